//! Which lane holds which matrix element ("Matrix Fragments for mma.m16n8k16", "Matrix Fragments for mma.m16n8k8" and
//! "Warp Level Matrix Load Instruction: ldmatrix" in the PTX manual).
//!
//! `mma.sync` multiplies a 16xK matrix A by a Kx8 matrix B and adds a 16x8 matrix C. No lane has a whole matrix: each
//! of the 32 lanes holds a few elements of each, its *fragment*. The manual calls `lane / 4` the group and `lane % 4`
//! the thread in the group:
//!
//! * A is stored by rows. Group `g` has the rows `g` and `g + 8`; thread `t` has the columns `2t` and `2t + 1`, and for
//!   K = 16 also the columns 8 further. Two neighbours of a row share a register, the left one in the low half.
//! * B is stored by columns. Group `g` has column `g`; thread `t` has the rows `2t` and `2t + 1`, and those 8 further.
//! * C and D: group `g` has the rows `g` and `g + 8`, thread `t` the columns `2t` and `2t + 1`, one register each.
//!
//! `ldmatrix` loads 8x8 matrices of 16-bit elements so that they land in this layout: one matrix is one register of A;
//! with `.trans`, a matrix that lies in memory by rows is one register of B.

/// The lanes of a warp.
pub const LANES: usize = 32;

/// The rows of A, C and D.
pub const M: usize = 16;

/// The columns of B, C and D.
pub const N: usize = 8;

/// Row and column of an element of A. Element `i` lies in register `i / 2`, in the low half for an even `i`. There are
/// 8 elements for K = 16 and 4 for K = 8.
#[inline(always)]
pub const fn a_position(lane: usize, element: usize) -> (usize, usize) {
    (lane / 4 + 8 * (element / 2 % 2), lane % 4 * 2 + element % 2 + 8 * (element / 4))
}

/// Row and column of an element of B. Element `i` lies in register `i / 2`, in the low half for an even `i`. There are
/// 4 elements for K = 16 and 2 for K = 8.
#[inline(always)]
pub const fn b_position(lane: usize, element: usize) -> (usize, usize) {
    (lane % 4 * 2 + element % 2 + 8 * (element / 2), lane / 4)
}

/// Row and column of an element of C or D, in `.f32`: element `i` is register `i`, and there are 4.
#[inline(always)]
pub const fn c_position(lane: usize, element: usize) -> (usize, usize) {
    (lane / 4 + 8 * (element / 2), lane % 4 * 2 + element % 2)
}

/// The lane whose address operand points to a row of a matrix in `ldmatrix.x1 .x2 .x4`: the first eight lanes have the
/// rows of matrix 0, and so on. Every row is 16 bytes of consecutive shared memory, aligned to 16 bytes.
#[inline(always)]
pub const fn ldmatrix_address_lane(matrix: usize, row: usize) -> usize {
    8 * matrix + row
}

/// Row and column, in memory, of the elements that `ldmatrix` puts into a lane's register: element 0 in the low half,
/// element 1 in the high half.
#[inline(always)]
pub const fn ldmatrix_position(lane: usize, element: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, lane % 4 * 2 + element);
    if transposed { (column, row) } else { (row, column) }
}

/// `ldmatrix{.trans}` of one 8x8 matrix: from its rows in memory to the 32 lanes' registers.
#[inline]
pub fn ldmatrix(rows: &[[u16; 8]; 8], transposed: bool) -> [u32; LANES] {
    std::array::from_fn(|lane| {
        let element = |index| {
            let (row, column) = ldmatrix_position(lane, index, transposed);
            u32::from(rows[row][column])
        };
        element(0) | element(1) << 16
    })
}

/// `stmatrix{.trans}` of one 8x8 matrix: a row in memory, as four words, from the 32 lanes' registers. Rows of
/// `movmatrix`, which transposes, are the same.
#[inline]
pub fn row_of(registers: &[u32; LANES], row: usize, transposed: bool) -> [u32; 4] {
    let element = |column: usize| {
        let (group, place) = if transposed { (column, row) } else { (row, column) };
        registers[group * 4 + place / 2] >> (16 * (place % 2)) & 0xffff
    };
    std::array::from_fn(|pair| element(2 * pair) | element(2 * pair + 1) << 16)
}

//! The kernels of [`super`], compiled once for each type of number.

use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use super::lanes::Lanes;
use super::outer::outer_block;
use super::panels::{GROUP, Rows};
use super::tiles::{FEW_ROWS, dot, pack_left};
use crate::arithmetic::shares;
use crate::arithmetic::stored::{Bf16, Dtype, F16, F32, F64, Same, Stored};

/// The products of one block, compiled (once, in this crate) for the number of lanes of the type.
pub trait Kernels: Copy + Send + Sync {
    /// One vector of lanes.
    type Lanes: Send + Sync;
    /// [`GROUP`] rows or fewer, laid out for the product of many rows.
    fn pack(rows: &[Self], k: usize) -> Vec<Self::Lanes>;
    /// The product of rows `a: [M, K]` and rows `b: [N, K]` in standard layout into `y: [M, N]`; M, N, K > 0.
    /// `b` is one block, small enough for a cache; `tile` a scratch buffer to reuse from call to call.
    fn dot_block(a: &Rows<Self, Self::Lanes>, b: &[Self], tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<Self>);
    /// The same with `b` as it is stored. Each of its numbers is widened once.
    fn dot_stored(
        a: &Rows<Self, Self::Lanes>,
        b: &[u8],
        dtype: Dtype,
        tile: &mut Vec<Self::Lanes>,
        y: ArrayViewMut2<Self>,
    );
    /// The product of `a: [M, K]` and `b: [K, N]` added to zeros in `y: [M, N]`, all in standard layout;
    /// M, N, K > 0.
    fn outer_block(a: &[Self], b: &[Self], k: usize, y: &mut [Self]);
    /// Writes as many numbers as `out` has, from the bytes in which they are stored.
    fn widen(bytes: &[u8], dtype: Dtype, out: &mut [Self]);
}

macro_rules! kernels {
    ($t:ty, lanes: $l:literal) => {
        impl Kernels for $t {
            type Lanes = Lanes<$t, $l>;
            fn pack(rows: &[$t], k: usize) -> Vec<Self::Lanes> {
                let mut panels = Vec::new();
                pack_left::<$t, $l>(rows, k, &mut panels);
                panels
            }
            fn dot_block(a: &Rows<$t, Self::Lanes>, b: &[$t], tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<$t>) {
                dot::<$t, Same, $l>(a, b, tile, y);
            }
            fn dot_stored(
                a: &Rows<$t, Self::Lanes>,
                b: &[u8],
                dtype: Dtype,
                tile: &mut Vec<Self::Lanes>,
                y: ArrayViewMut2<$t>,
            ) {
                match dtype {
                    Dtype::Bf16 => dot::<$t, Bf16, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F16 => dot::<$t, F16, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F32 => dot::<$t, F32, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F64 => dot::<$t, F64, $l>(a, b.as_chunks().0, tile, y),
                }
            }
            fn outer_block(a: &[$t], b: &[$t], k: usize, y: &mut [$t]) {
                outer_block::<$t, $l>(a, b, k, y);
            }
            fn widen(bytes: &[u8], dtype: Dtype, out: &mut [$t]) {
                match dtype {
                    Dtype::Bf16 => widen_each::<$t, Bf16>(bytes.as_chunks().0, out),
                    Dtype::F16 => widen_each::<$t, F16>(bytes.as_chunks().0, out),
                    Dtype::F32 => widen_each::<$t, F32>(bytes.as_chunks().0, out),
                    Dtype::F64 => widen_each::<$t, F64>(bytes.as_chunks().0, out),
                }
            }
        }
    };
}

kernels!(f32, lanes: 16);
kernels!(f64, lanes: 8);

fn widen_each<T, S: Stored<T>>(stored: &[S::Raw], out: &mut [T]) {
    for (to, &from) in out.iter_mut().zip(stored) {
        *to = S::widen(from);
    }
}

/// How many rows of K numbers make a block that, widened, stays in the second-level cache while rows of `a` pass by. It
/// is a multiple of the width of every tile.
pub(super) fn block_rows<T>(k: usize) -> usize {
    let row = (k * size_of::<T>()).max(1);
    ((1 << 20) / row).clamp(1, 48).next_multiple_of(12)
}

impl<'a, T: Kernels> Rows<'a, T, T::Lanes> {
    /// `rows` in standard layout, K numbers each.
    pub(super) fn new(rows: &'a [T], k: usize) -> Self {
        let groups = if rows.len() <= FEW_ROWS * k {
            Vec::new()
        } else {
            let panels = rows.par_chunks(GROUP * k).with_min_len(shares::least(GROUP * k));
            panels.map(|rows| T::pack(rows, k)).collect()
        };
        Rows { plain: rows, groups, k }
    }
}

//! Numbers of 8 bits that share scales, as fp8 checkpoints store matrices: `w = code · scale`.
//!
//! | scales | one for |
//! |---|---|
//! | `[⌈out / 128⌉, ⌈in / 128⌉]` (`weight_scale_inv`) | a block of 128 x 128; the blocks at the end may be cut off |
//! | `[out, 1]` or `[out]` | a row: an output channel |
//! | `[]`, `[1]` or `[1, 1]` | the matrix |
//!
//! The product is an fp32 number, rounded once: what Transformers makes of it where the model is fp32. It is made when
//! a row is used, and dropped then, so that a checkpoint takes no more memory than its file.
//!
//! **Trap.** Transformers 5.23 divides the rows by the number of rows of scales to find the height of a block. A matrix
//! of 192 rows has two of them, and is then read as blocks of 96; one of 576 rows is refused. The height is the one
//! that config.json states.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use float8::F8E4M3;
use rayon::prelude::*;

use super::tensor::SharedBytes;

/// All codes as numbers. (Computing one takes longer than looking it up.)
static E4M3: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| F8E4M3::from_bits(code as u8).to_f32()));

/// The largest number of 8 bits, without its scale.
pub(crate) const LARGEST: f32 = 448.0;

/// So many elements at a time are a thread's work.
const RUN: usize = 1 << 14;

/// Rows of a matrix of e4m3 numbers.
#[derive(Clone)]
pub(crate) struct Scaled {
    codes: SharedBytes,
    /// Where the first of these rows begins in `codes`.
    start: usize,
    columns: usize,
    /// The number of the first row among those that `scales` are counted for.
    first_row: usize,
    scales: Arc<Scales>,
    /// Whether what is multiplied with them is made e4m3 as well.
    operands: bool,
}

/// The scales of a matrix.
pub(crate) struct Scales {
    /// Row by row.
    pub(crate) values: Vec<f32>,
    /// How many there are in a row.
    pub(crate) in_row: usize,
    /// How many rows and columns share one.
    pub(crate) block: [usize; 2],
}

impl Scaled {
    /// The matrix whose rows begin at byte `start` of `codes`. Whoever makes one has seen to it that all bytes and all
    /// scales are there.
    pub(crate) fn new(codes: SharedBytes, start: usize, columns: usize, scales: Arc<Scales>) -> Self {
        Scaled { codes, start, columns, first_row: 0, scales, operands: false }
    }

    /// These rows of it.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let start = self.start + rows.start * self.columns;
        Scaled { start, first_row: self.first_row + rows.start, ..self.clone() }
    }

    /// The same for a computation in fp8: see [`Scaled::operand_tile`].
    pub(crate) fn with_fp8_operands(&self) -> Self {
        Scaled { operands: true, ..self.clone() }
    }

    /// How many neighbouring numbers of an operand share a scale, if operands are made e4m3 before they are multiplied:
    /// as many as columns do.
    pub(crate) fn operand_tile(&self) -> Option<usize> {
        self.operands.then(|| self.scales.block[1].min(self.columns).max(1))
    }

    /// Elements from `start` on, row by row.
    pub(crate) fn widen(&self, start: usize, out: &mut [f32]) {
        let codes = &(*self.codes).as_ref()[self.start + start..][..out.len()];
        let Scales { values, in_row, block } = &*self.scales;
        let mut done = 0;
        while done < out.len() {
            let (row, column) = ((start + done) / self.columns, (start + done) % self.columns);
            let scale = values[(self.first_row + row) / block[0] * in_row + column / block[1]];
            // to the end of the block, of the row, or of what is wanted
            let end = block[1].saturating_mul(column / block[1] + 1).min(self.columns);
            let next = (done + end - column).min(out.len());
            for (x, &code) in out[done..next].iter_mut().zip(&codes[done..next]) {
                *x = E4M3[usize::from(code)] * scale;
            }
            done = next;
        }
    }

    /// All `count` elements as the bytes of fp32 numbers.
    pub(crate) fn bytes(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; 4 * count];
        bytes.par_chunks_mut(4 * RUN).enumerate().for_each(|(run, bytes)| {
            let mut values = vec![0.0; bytes.len() / 4];
            self.widen(run * RUN, &mut values);
            for (bytes, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = x.to_le_bytes();
            }
        });
        bytes
    }

    /// The first of `count` elements that is no finite number, and what it is.
    pub(crate) fn first_not_finite(&self, count: usize) -> Option<(usize, f64)> {
        let codes = &(*self.codes).as_ref()[self.start..][..count];
        let possible = self.scales.values.iter().all(|scale| (scale * LARGEST).is_finite());
        if possible && codes.par_iter().with_min_len(RUN).all(|code| code & 0x7f != 0x7f) {
            return None;
        }
        let value = |i| {
            let mut value = [0.0];
            self.widen(i, &mut value);
            (i, f64::from(value[0]))
        };
        (0..count).map(value).find(|(_, x)| !x.is_finite())
    }
}

//! L numbers side by side: one 512-bit vector, one cache line.

use ndarray::NdFloat;

use crate::arithmetic::stored::Stored;

/// L numbers.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Lanes<T, const L: usize>(pub [T; L]);

impl<T: NdFloat, const L: usize> Lanes<T, L> {
    pub(super) fn zeros() -> Self {
        Lanes([T::zero(); L])
    }
}

/// x\[l\] y\[l\] + s\[l\], each rounded once.
#[inline(always)]
pub(super) fn fma<T: NdFloat, const L: usize>(x: [T; L], y: [T; L], mut s: [T; L]) -> [T; L] {
    for l in 0..L {
        s[l] = x[l].mul_add(y[l], s[l]);
    }
    s
}

/// The sum of the lanes: the upper half onto the lower half until one is left.
///
/// (Out of line, because compilers turn a loop around it into a slow one over lanes gathered from many sums.)
#[inline(never)]
pub(super) fn add_lanes<T: NdFloat, const L: usize>(sums: &[T; L]) -> T {
    let mut s = *sums;
    let mut width = L;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            let upper = s[l + width];
            s[l] += upper;
        }
    }
    s[0] + T::zero()
}

/// The values of fewer than L numbers, then zeros.
#[inline(always)]
pub(super) fn pad<T: NdFloat, S: Stored<T>, const L: usize>(rest: &[S::Raw]) -> [T; L] {
    let mut padded = [T::zero(); L];
    for (to, &from) in padded.iter_mut().zip(rest) {
        *to = S::widen(from);
    }
    padded
}

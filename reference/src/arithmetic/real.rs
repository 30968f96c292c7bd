//! The number type of the computation: `f64` (the truth) or `f32` (what a plain implementation has).

use ndarray::NdFloat;

use super::matmul::Kernel;

/// A type to compute in. Everything in this crate is generic over it; nothing else depends on the precision.
pub trait Real: NdFloat + Kernel {
    /// The nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// The value itself: `f64` holds every `Self` exactly.
    fn to_f64(self) -> f64;
    /// The nearest value to `x` (exact for `f32` and `f64`).
    fn from_f32(x: f32) -> Self;
    /// The nearest `f32`.
    fn to_f32(self) -> f32;
}

impl Real for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Real for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f32(x: f32) -> Self {
        f64::from(x)
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
}

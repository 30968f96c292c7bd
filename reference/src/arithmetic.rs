//! The arithmetic below the model: products whose sums have a fixed order, on factors that are stored in any type.
//!
//! Nothing here knows a model. [`matmul`] multiplies matrices of numbers, [`linear`] rows of numbers with a weight in the
//! type that its checkpoint has.

pub mod linear;
pub mod matmul;

//! The arithmetic below the model: it knows numbers, rows and matrices, and neither weights by name nor a config.
//!
//! * [`matmul`]: products whose sums have one fixed order, also with a factor that stays in the type it is stored in;
//! * [`softmax`], [`activation`]: the functions of a row and of a number;
//! * `stored`, `real`: the types that numbers are stored in ([`crate::Dtype`]) and computed in ([`crate::Real`]);
//! * `map`: how functions of rows and of pairs of numbers are applied;
//! * `shares`: how much work is worth a thread.

pub mod activation;
pub(crate) mod map;
pub mod matmul;
pub(crate) mod real;
pub(crate) mod shares;
pub mod softmax;
pub(crate) mod stored;

//! What the paper has beyond the forward pass: training, sharding, and facts about the matrices themselves.

#[cfg(feature = "linalg")]
pub mod linalg;
pub mod parallel;
pub mod training;

//! The model split over devices, computed on one: the oracle for programs that run on many.

pub mod device_limited;
pub mod expert_parallel;
pub mod placement;
pub mod shard;
pub mod tensor_parallel;

pub use placement::Placement;
pub use shard::{Rank, Shard};
pub use tensor_parallel::TensorParallel;

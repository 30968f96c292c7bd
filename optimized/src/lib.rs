//! DeepSeek-V2's kernels in CUDA C++, and the host code that launches them: on an NVIDIA GPU, or on an emulator that runs
//! the same PTX on the CPU and checks every access.
//!
//! ```text
//! kernels/*.cu  --nvrtc.py-->  kernels/ptx/*.ptx      committed; a test compiles them anew and compares
//! Library (the PTX)  ->  Device: cuda::Cuda | emulated::Emulated
//! operators::rms_norm(..)  checks shapes, chooses the kernel, launches it on the tensors' device
//! ```
//!
//! Every operator has two kernels for each type of number: a naive one that can be read, and a tuned one. They are two
//! implementations of one function, and the tests hold both to the same budget.
//!
//! No arithmetic of the model is shared with `dsv2-reference`: two implementations that share arithmetic cannot check
//! each other.

#![deny(missing_docs)]

pub mod collective;
pub mod device;
mod error;
pub mod library;
pub mod model;
pub mod operators;
pub mod tensor;

pub use device::Device;
pub use device::cuda::Cuda;
pub use device::emulated::Emulated;
pub use error::{Error, Result};
pub use library::{Kernel, Library};
pub use operators::Variant;
pub use ptx_emulator::numeric::mma::Summation;
pub use ptx_emulator::{Arg, Grid};
pub use tensor::{Element, Tensor};

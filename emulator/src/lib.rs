#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod emulator;
mod error;
mod exec;
mod lower;
mod memory;
mod module;
pub mod numeric;
pub mod observe;
mod options;
mod parse;
pub mod profile;
pub mod race;
mod unwritten;

pub use emulator::Emulator;
pub use error::{Cause, Error, Fault, Jam, Place, Stuck, Waiting};
pub use exec::launch::Report;
pub use memory::DevicePointer;
pub use module::{Module, Parameter};
pub use options::{Arg, Grid, Options, Unwritten};
pub use parse::types::Space;
pub use unwritten::{Source, UnwrittenUse, Use};

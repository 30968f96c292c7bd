//! How long a kernel will take on a card that nobody has here.
//!
//! ```text
//! Sketch     a device that runs kernels on the emulator and keeps what each block did, or only writes down what is launched
//! Work       what a launch did: instructions, mma, passes through shared memory, bytes, waits
//! Card       a card's constants, which its measurements may correct
//! Terms      what each resource takes at least: the largest, and a node of a graph, is the prediction
//! Step       a decode step of a whole model: every launch of the step that the model itself captures
//! ```
//!
//! **No card has been asked.** A prediction is arithmetic on counts; what it leaves out is said in [`predict`].

#![deny(missing_docs)]

mod card;
mod key;
pub mod occupancy;
pub mod predict;
mod sectors;
mod sketch;
pub mod step;
mod work;

pub use card::{Card, Constant};
pub use key::{Key, Launch};
pub use predict::Terms;
pub use sketch::Sketch;
pub use step::Step;
pub use work::{Block, Work};

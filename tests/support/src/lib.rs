//! What the tests of several crates share: how a law is stated, and the weights of small models.

mod property;
mod weights;

pub use property::{Property, for_all};
pub use weights::{Exchanged, hot_weights};

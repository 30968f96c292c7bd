//! The parts of the model, each from the stages before it, taken apart so far that a wrong one can be put together.

mod attention;
mod experts;
mod linear;
mod norm;

pub use attention::{Heads, expand};
pub use experts::{Expert, Routed, Router};
pub use linear::Projection;
pub use norm::NormInput;

use ndarray::Array2;

use super::kinds;
use super::scene::Scene;

impl Scene<'_> {
    /// The residual stream that enters a layer (after the last one: the last norm), as rows.
    pub fn stream(&self, layer: usize) -> Option<Array2<f64>> {
        match layer.checked_sub(1) {
            None => self.rows(kinds::EMBEDDING, 0),
            Some(before) => self.rows(kinds::LAYER, before),
        }
    }

    /// The residual stream between attention and feed-forward network.
    pub fn middle(&self, layer: usize) -> Option<Array2<f64>> {
        Some(self.stream(layer)? + self.rows(kinds::O, layer)?)
    }

    /// What the feed-forward network gives to the stream.
    pub fn feed_forward(&self, layer: usize) -> Option<Array2<f64>> {
        self.rows(kinds::MLP, layer).or_else(|| self.rows(kinds::DOWN, layer))
    }
}

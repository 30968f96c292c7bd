//! The parts of the model, each from the stages before it, taken apart so far that a wrong one can be put together.

mod attention;
mod experts;
mod linear;
mod norm;

use dsv2_reference::stage::table;
pub use experts::{Expert, Routed, Router};
pub use linear::{PROJECTIONS, Projection};
use ndarray::Array2;
pub use norm::NormInput;

use super::scene::Scene;
pub use attention::{Heads, by_part, expand, rotate};

impl Scene<'_> {
    /// The residual stream that enters a layer (after the last one: the last norm), as rows.
    pub fn stream(&self, layer: usize) -> Option<Array2<f64>> {
        match layer.checked_sub(1) {
            None => self.rows(table::EMBED_TOKENS, 0),
            Some(before) => self.rows(table::LAYER, before),
        }
    }

    /// The residual stream between attention and feed-forward network.
    pub fn middle(&self, layer: usize) -> Option<Array2<f64>> {
        Some(self.stream(layer)? + self.rows(table::O_PROJ, layer)?)
    }

    /// What the feed-forward network gives to the stream.
    pub fn feed_forward(&self, layer: usize) -> Option<Array2<f64>> {
        self.rows(table::MLP, layer).or_else(|| self.rows(table::DOWN_PROJ, layer))
    }
}

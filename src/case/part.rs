//! A part of the model: some of its layers, alone.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::layer_path;
use ndarray::Array3;

use crate::error::{Error, Result};

/// Layers that are looked at alone.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which.
    pub layers: Layers,
    /// What enters them.
    pub entering: Entering,
}

/// What enters layers that are run alone.
#[derive(Clone, Debug)]
pub enum Entering {
    /// What a dump holds, once it is read.
    OfDump,
    /// `[B,S,D]`: this residual stream.
    Given(Arc<Array3<f64>>),
    /// The embedding: they are the first layers.
    Embedding,
}

/// Layers in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(pub Range<usize>);

/// The weight of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

impl Part {
    /// The layers before `end`, from the embedding on.
    pub fn first(end: usize) -> Self {
        Part { layers: Layers(0..end), entering: Entering::Embedding }
    }

    /// Whether the weight is needed to run it.
    pub fn needs(&self, weight: &str) -> bool {
        self.layers.hold(weight) || (weight == EMBEDDING && matches!(self.entering, Entering::Embedding))
    }
}

impl Layers {
    /// The same, if the model has them.
    ///
    /// # Errors
    /// If it has not.
    pub fn of(self, config: &DeepseekV2Config) -> Result<Self> {
        if self.0.is_empty() || self.0.end > config.num_hidden_layers {
            let last = config.num_hidden_layers.saturating_sub(1);
            return Err(Error::request(
                "--layers",
                format!("layers from 0 to {last}"),
                format!("{}..{}", self.0.start, self.0.end),
            ));
        }
        Ok(self)
    }

    /// Whether the weight is one of theirs.
    pub fn hold(&self, weight: &str) -> bool {
        let of = |layer| weight.strip_prefix(&layer_path(layer)).is_some_and(|rest| rest.starts_with('.'));
        self.0.clone().any(of)
    }
}

impl FromStr for Layers {
    type Err = Error;

    /// `10`, `10..12` (without the end) or `10..=12` (with it).
    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<usize>().ok();
        let range = match text.split_once("..") {
            None => number(text).map(|layer| layer..layer.saturating_add(1)),
            Some((start, end)) => {
                let end = match end.strip_prefix('=') {
                    Some(last) => number(last).map(|last| last.saturating_add(1)),
                    None => number(end),
                };
                number(start).zip(end).map(|(start, end)| start..end)
            }
        };
        let some = range.filter(|range| !range.is_empty()).map(Layers);
        some.ok_or_else(|| Error::request("--layers", "layers such as 10, 10..12 or 10..=11", format!("{text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_said_as_in_rust() {
        let read = |text: &str| text.parse::<Layers>().map(|layers| layers.0).map_err(|error| error.to_string());
        assert_eq!([read("10"), read("10..12"), read("10..=12")], [Ok(10..11), Ok(10..12), Ok(10..13)]);
        for wrong in ["", "..", "3..3", "4..3", "-1", "1..=", "a", "1..2..3"] {
            let line = format!("--layers: expected layers such as 10, 10..12 or 10..=11, found {wrong:?}");
            assert_eq!(read(wrong), Err(line));
        }
    }

    #[test]
    fn a_weight_is_that_of_one_layer() {
        let layers = Layers(1..3);
        assert!(layers.hold("model.layers.2.mlp.gate.weight") && !layers.hold("model.layers.12.mlp.gate.weight"));
        assert!(!layers.hold("model.norm.weight"));
    }
}

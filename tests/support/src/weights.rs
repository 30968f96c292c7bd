//! Weights of models that are small and still decided.

use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{Result, Tensor};
use serde_json::json;

/// "Hot" weights: they keep the spread of what passes through them, attention is peaked and the router decided, so that a
/// mistake in either shows. (With the usual standard deviation of 0.02 attention is nearly uniform, and a wrong softmax
/// scale is hardly visible.)
pub fn hot_weights(seed: u64) -> GeneratedWeights {
    serde_json::from_value(json!({"seed": seed, "rules": [
        {"suffix": "norm.weight", "mean": 1.0, "std": 0.2},
        {"suffix": "embed_tokens.weight", "std": 1.0},
        {"suffix": "bias", "std": 0.3},
        {"suffix": "gate.weight", "gain": 1.5},
        {"suffix": "q_proj.weight", "gain": 1.5},
        {"suffix": "q_b_proj.weight", "gain": 1.5},
        {"suffix": "weight", "gain": 1.0},
    ]}))
    .expect("rules")
}

/// Weights, some of them exchanged: where the function returns a tensor for a name and a shape.
pub struct Exchanged<F>(pub GeneratedWeights, pub F);

impl<F: Fn(&str, &[usize]) -> Option<Tensor>> WeightSource for Exchanged<F> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        (self.1)(name, shape).map_or_else(|| self.0.tensor(name, shape), Ok)
    }
    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

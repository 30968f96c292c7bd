//! Weights made on the device: the host's to the bit, whatever their shape, rule, name and seed, and the same in f32.

use std::sync::Arc;

use dsv2_optimized::operators::generated::fill_generated;
use dsv2_optimized::{Device, Element, Result};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use ndarray::IxDyn;

use crate::harness::{Case, Output, output};

/// A norm's weights, a linear layer's, and numbers that are rounded in every binade.
const RULES: &str = r#"[{"suffix": "norm.weight", "mean": 1.0, "std": 0.3}, {"suffix": "bias", "mean": -3e4, "std": 2e4},
    {"suffix": "weight", "gain": 1.5}, {"suffix": "nothing", "std": 0.0}]"#;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for element in [Element::F32, Element::Bf16] {
        for (seed, name, shape) in [
            (0, "norm.weight", &[1][..]),
            (7, "model.layers.3.self_attn.kv_b_proj.weight", &[5, 51]),
            (8, "model.norm.weight", &[257]),
            (u64::MAX, "mlp.experts.1.up_proj.weight", &[3, 0, 2]),
            (1 << 40, "bias", &[512]),
            (3, "nothing", &[2, 3, 4]),
            (4, "lm_head.weight", &[64, 1536]),
        ] {
            cases.push(Case {
                name: format!("fill_generated/{element}/seed={seed},name={name},shape={shape:?}"),
                module: "generated",
                watched: shape.iter().product::<usize>() <= 600,
                run: Box::new(move |device| made(device, element, seed, name, shape)),
            });
        }
    }
    cases
}

fn made(device: &Arc<dyn Device>, element: Element, seed: u64, name: &str, shape: &[usize]) -> Result<Vec<Output>> {
    let rules = serde_json::from_str(RULES).expect("rules");
    let weights = GeneratedWeights { seed, rules };
    let out = output(device, element, shape)?;
    fill_generated(&weights, name, &out)?;
    let want = weights.tensor(name, shape)?.to_array::<f32, IxDyn>();
    Ok(vec![Output::exactly("out", &out, want.into_iter().map(f64::from))?])
}

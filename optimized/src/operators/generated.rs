//! Generated weights, made where they are needed.

use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, fnv1a64, splitmix64};
use ptx_emulator::Grid;

use super::{Arguments, Operand};
use crate::{Error, Result, Tensor};

/// Threads of a block, each with one element. As in the kernel.
const THREADS: usize = 256;

/// The tensor `name` of generated weights, in the shape of `out` (any; the elements are neighbours): to the bit what
/// [`GeneratedWeights`] makes of it on the host.
///
/// There is one kernel, which is fast and can be read.
///
/// # Errors
/// If no rule is for the name, its rule gives no distribution, `out` does not fit, or the launch fails.
pub fn fill_generated(weights: &GeneratedWeights, name: &str, out: &Tensor) -> Result<()> {
    const OPERATOR: &str = "fill_generated";
    Operand::new(OPERATOR, "out", out).real()?.contiguous()?;
    let row = out.shape().last().copied().unwrap_or(1).max(1);
    // No rows of it: no element is made, but the rule is found out to be possible, or the error is the host's.
    weights.tensor(name, &[0, row])?;
    let Some(rule) = weights.rules.iter().find(|rule| name.ends_with(&rule.suffix)) else {
        return Err(Error::operand(OPERATOR, "name", "one that a rule is for", name));
    };
    let std = rule.std.unwrap_or_else(|| rule.gain.unwrap_or(0.0) / (row as f64).sqrt());
    let blocks = u32::try_from(out.len().div_ceil(THREADS)).ok().filter(|blocks| *blocks <= i32::MAX as u32);
    let blocks = blocks.ok_or_else(|| Error::operand(OPERATOR, "out", "fewer than 2^39 elements", out.len()))?;
    if blocks == 0 {
        return Ok(());
    }
    let base = splitmix64(fnv1a64(name) ^ weights.seed);
    let args = Arguments::default().and(base).and(rule.mean).and(std).tensors([out]).and(out.len() as i64);
    args.launch(out, "generated", format!("{OPERATOR}_{}", out.element()), Grid::linear(blocks, THREADS as u32))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Device, Element, Emulated, Library};

    #[test]
    fn what_cannot_be_made_is_refused_in_the_hosts_words() {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let out = Tensor::empty(&device, Element::Bf16, &[3, 4]).unwrap();
        let weights = |rules: &str| -> GeneratedWeights {
            serde_json::from_str(&format!(r#"{{"seed": 1, "rules": {rules}}}"#)).unwrap()
        };
        let message = |weights: &GeneratedWeights, out: &Tensor| {
            fill_generated(weights, "a.weight", out).expect_err("refused").to_string()
        };
        for mut rules in [weights("[]"), weights(r#"[{"suffix": "weight", "gain": 1}]"#)] {
            rules.rules.iter_mut().for_each(|rule| rule.gain = None);
            assert_eq!(message(&rules, &out), rules.tensor("a.weight", &[3, 4]).unwrap_err().to_string());
        }
        let rules = weights(r#"[{"suffix": "weight", "std": 1}]"#);
        let narrow = out.narrow(1, 0..3).unwrap();
        assert!(message(&rules, &narrow).starts_with("fill_generated: out: expected neighbouring elements, found"));
        let integers = Tensor::empty(&device, Element::I32, &[3]).unwrap();
        assert_eq!(message(&rules, &integers), "fill_generated: out: expected f32 or bf16, found i32");
    }
}

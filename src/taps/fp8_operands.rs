//! What an engine that computes in fp8 does to its operands.

use dsv2_reference::Tensor;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::changed::Changed;

use crate::case::Case;
use crate::error::{Error, Result};

/// `weights`, which are those of `case`; its 8-bit matrices are multiplied with numbers of 8 bits.
///
/// # Errors
/// If there is no matrix of 8 bits among them: then there is nothing that this type would mean.
pub fn fp8_operands(weights: &dyn WeightSource, case: &Case) -> Result<impl WeightSource> {
    if !has_8_bits(case)? {
        return Err(Error::request("--dtype", "a checkpoint of fp8 weights for fp8", "one without"));
    }
    Ok(Changed { source: weights, change: |_: &str, tensor: Tensor| Ok(tensor.with_fp8_operands()) })
}

/// Whether a case has a matrix of 8 bits.
///
/// # Errors
/// If a weight cannot be had.
pub fn has_8_bits(case: &Case) -> Result<bool> {
    for (name, shape) in case.weight_shapes() {
        if case.weights.tensor(&name, &shape)?.is_scaled() {
            return Ok(true);
        }
    }
    Ok(false)
}

//! What an engine that computes in fp8 does to its operands.

use std::sync::Arc;

use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::finite::Watch;
use dsv2_reference::{Error as ReferenceError, Tensor};

use crate::case::Case;
use crate::error::{Error, Result};

/// Weights whose 8-bit matrices are multiplied with numbers of 8 bits.
pub struct Fp8Operands<'a>(&'a dyn WeightSource);

impl<'a> Fp8Operands<'a> {
    /// `weights`, which are those of `case`.
    ///
    /// # Errors
    /// If there is no matrix of 8 bits among them: then there is nothing that this type would mean.
    pub fn of(weights: &'a dyn WeightSource, case: &Case) -> Result<Self> {
        for (name, shape) in case.weight_shapes() {
            if case.weights.tensor(&name, &shape)?.is_scaled() {
                return Ok(Fp8Operands(weights));
            }
        }
        Err(Error::request("--dtype", "a checkpoint of fp8 weights for fp8", "one without"))
    }
}

impl WeightSource for Fp8Operands<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ReferenceError> {
        Ok(self.0.tensor(name, shape)?.with_fp8_operands())
    }

    fn names(&self) -> Option<Vec<String>> {
        self.0.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn watch(&self) -> Arc<Watch> {
        self.0.watch()
    }
}

//! The weights of another source, each changed when it is asked for.

use std::ops::Deref;
use std::sync::Arc;

use super::WeightSource;
use super::finite::Watch;
use crate::{Result, Tensor};

/// The weights of `source` (a reference, a box, an arc), each as `change` makes it of the name and the tensor that is there.
#[derive(Clone, Debug)]
pub struct Changed<S, F> {
    /// Where they come from.
    pub source: S,
    /// What is made of one.
    pub change: F,
}

impl<S, F> WeightSource for Changed<S, F>
where
    S: Deref<Target: WeightSource>,
    F: Fn(&str, Tensor) -> Result<Tensor>,
{
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        (self.change)(name, self.source.tensor(name, shape)?)
    }

    fn names(&self) -> Option<Vec<String>> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn watch(&self) -> Arc<Watch> {
        self.source.watch()
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }
}

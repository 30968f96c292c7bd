//! The tap: one hook that sees, and may change, every named tensor of the forward pass.
//!
//! Recording a trace, rounding to bf16, replaying somebody's routing, feeding a golden input into one stage and
//! planting a bug are all taps. There is no second mechanism. Stage names are Hugging Face module paths
//! (`model.layers.1.self_attn.o_proj`), so that forward hooks on any module tree with these names speak of the same
//! tensors.

use ndarray::{Array, ArrayViewMut, ArrayViewMutD, Dimension};

/// A stage's tensor, by mutable reference: what the tap leaves in it is what the forward pass goes on with.
pub enum StageValue<'a, T> {
    /// Numbers of the computation.
    Real(ArrayViewMutD<'a, T>),
    /// Indices (`mlp.gate.topk_indices`).
    Index(ArrayViewMutD<'a, i64>),
}

/// Called once for each stage, in the order of computation.
///
/// A closure `FnMut(&str, StageValue<T>)` is a tap.
pub trait Tap<T> {
    /// `name` is the stage's full name; `value` may be changed in place.
    fn stage(&mut self, name: &str, value: StageValue<'_, T>);
}

impl<T, F: FnMut(&str, StageValue<'_, T>)> Tap<T> for F {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        self(name, value);
    }
}

/// The tap that does nothing.
pub struct NoTap;

impl<T> Tap<T> for NoTap {
    fn stage(&mut self, _: &str, _: StageValue<'_, T>) {}
}

/// A tap seen from inside a module: it knows the module's path.
pub struct Scope<'a, T> {
    tap: &'a mut dyn Tap<T>,
    path: String,
}

impl<'a, T> Scope<'a, T> {
    /// The outermost scope; names are given in full.
    pub fn root(tap: &'a mut dyn Tap<T>) -> Self {
        Scope { tap, path: String::new() }
    }

    /// The scope of a child module: `child("self_attn")` of `model.layers.1` is `model.layers.1.self_attn`.
    pub fn child(&mut self, name: impl std::fmt::Display) -> Scope<'_, T> {
        let path = self.join(&name);
        Scope { tap: &mut *self.tap, path }
    }

    /// Shows a tensor to the tap. An empty name is the module's own output.
    pub fn real<D: Dimension>(&mut self, name: &str, value: &mut Array<T, D>) {
        let path = self.join(&name);
        self.tap.stage(&path, StageValue::Real(value.view_mut().into_dyn()));
    }

    /// The scope of a module outside this one, by its full path.
    pub fn root_child(&mut self, path: String) -> Scope<'_, T> {
        Scope { tap: &mut *self.tap, path }
    }

    /// Shows a tensor that is part of a larger one to the tap.
    pub fn view<D: Dimension>(&mut self, name: &str, value: ArrayViewMut<'_, T, D>) {
        let path = self.join(&name);
        self.tap.stage(&path, StageValue::Real(value.into_dyn()));
    }

    /// Shows indices to the tap.
    pub fn index<D: Dimension>(&mut self, name: &str, value: &mut Array<i64, D>) {
        let path = self.join(&name);
        self.tap.stage(&path, StageValue::Index(value.view_mut().into_dyn()));
    }

    fn join(&self, name: &impl std::fmt::Display) -> String {
        let name = name.to_string();
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name,
            (_, true) => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        }
    }
}

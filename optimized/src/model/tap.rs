//! The tap on the device: sees, and may change, every stage; costs nothing where nobody looks.

use crate::{Result, Tensor};

/// Looks at stages. Names and shapes are those of `dsv2-reference`.
pub trait Tap {
    /// Whether it wants to see a stage. Some are computed for it alone.
    fn wants(&self, stage: &str) -> bool;

    /// A stage's tensor, or a view of it. Returns whether it was changed.
    ///
    /// # Errors
    /// Whatever keeps the tap from its work ends the forward pass.
    fn stage(&mut self, name: &str, value: &Tensor) -> Result<bool>;
}

/// The tap seen from inside a module.
pub(super) struct Scope<'a> {
    tap: Option<&'a mut dyn Tap>,
    path: String,
}

impl<'a> Scope<'a> {
    pub(super) fn root(tap: Option<&'a mut dyn Tap>) -> Self {
        Scope { tap, path: String::new() }
    }

    pub(super) fn child(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        let path = match &self.tap {
            None => String::new(),
            Some(_) => self.join(name),
        };
        Scope { tap: self.tap.as_deref_mut().map(|tap| tap as _), path }
    }

    /// A module outside this one.
    pub(super) fn absolute(&mut self, path: impl std::fmt::Display) -> Scope<'_> {
        let path = self.tap.as_ref().map(|_| path.to_string()).unwrap_or_default();
        Scope { tap: self.tap.as_deref_mut().map(|tap| tap as _), path }
    }

    fn join(&self, name: impl std::fmt::Display) -> String {
        let name = name.to_string();
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name,
            (_, true) => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        }
    }

    /// Whether somebody wants to see a stage of this module.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.wants(&self.join(name)))
    }

    /// Shows a stage: a view in the stage's own shape. Returns whether it was changed.
    pub(super) fn show(&mut self, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<bool> {
        if !self.wants(name) {
            return Ok(false);
        }
        let path = self.join(name);
        match &mut self.tap {
            Some(tap) => tap.stage(&path, &value()?),
            None => Ok(false),
        }
    }
}

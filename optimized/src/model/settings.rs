//! How a model computes: types, kernels, and who makes plain products.

use std::sync::Arc;

use crate::{Device, Element, Result, Variant};

/// How a model computes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The type of weights, activations and cache.
    pub element: Element,
    /// Which kernels.
    pub variant: Variant,
    /// Who makes plain products.
    pub products: Products,
}

/// Who makes plain matrix products: those of linear layers without a bias, expanded keys and values, and logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Our own kernel. The bits of a sequence's result do not depend on its batch.
    #[default]
    Ours,
    /// The library of the GPU's vendor. It chooses its kernel by the number of rows, so that the bits of a sequence's result
    /// may depend on its batch. The emulator has no library.
    Library,
}

impl Settings {
    /// With our own kernels alone.
    pub const fn new(element: Element, variant: Variant) -> Self {
        Settings { element, variant, products: Products::Ours }
    }

    /// Refuses what the device does not have. (A library takes memory for itself when it is opened: this comes before
    /// anybody asks how much there is.)
    pub(super) fn check(self, device: &Arc<dyn Device>) -> Result<()> {
        if self.products == Products::Library {
            device.products()?;
        }
        Ok(())
    }
}

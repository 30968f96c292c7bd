//! Weights on the device: taken one by one from a checkpoint, or generated where they are, in the type of the computation.

use std::ops::Range;
use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, Tensor as Stored};
use half::bf16;

use super::parallel::Share;
use super::{Settings, plan};
use crate::operators::generated::fill_generated;
use crate::{Device, Element, Error, Result, Tensor};

/// Where weights come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// From the host, which holds one at a time.
    Host(&'a dyn WeightSource),
    /// From their recipe, by the device. The host has no part in it.
    Generated(&'a GeneratedWeights),
}

/// Puts the weights of a model on a device.
pub(super) struct Loader<'a> {
    pub(super) config: &'a DeepseekV2Config,
    pub(super) dialect: Dialect,
    pub(super) source: Source<'a>,
    pub(super) device: &'a Arc<dyn Device>,
    pub(super) settings: Settings,
    /// What a rank has of the model, if there are several. The config is that of its heads and columns.
    pub(super) share: Option<Arc<Share>>,
    /// Told after each weight how many bytes it has on the device.
    pub(super) progress: &'a mut dyn FnMut(usize),
}

impl Loader<'_> {
    /// The config is possible, the device can do what the settings ask for, and it has room for all weights, of this head
    /// too. `operation` is told so in an error.
    pub(super) fn check(&self, operation: &'static str, head: Option<Head>) -> Result<()> {
        self.config.validate(self.dialect)?;
        self.settings.check(self.device)?;
        let all = plan::weights(self.config, self.dialect, head, self.settings.element);
        let elsewhere = self.share.as_ref().map_or(0, |share| share.numbers_elsewhere(self.config, self.dialect));
        plan::check(operation, self.device, all.saturating_sub(elsewhere.saturating_mul(self.settings.element.bytes())))
    }

    /// A weight of a checkpoint.
    pub(super) fn load(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let weight = Tensor::empty(self.device, self.settings.element, shape)?;
        self.load_into(name, shape, &weight)?;
        Ok(weight)
    }

    /// The same into a place that is there already, a part of a larger tensor.
    pub(super) fn load_into(&mut self, name: &str, shape: &[usize], place: &Tensor) -> Result<()> {
        match self.source {
            Source::Generated(weights) => fill_generated(weights, name, place)?,
            Source::Host(source) => {
                self.copy(&source.tensor(name, shape)?, place)?;
                source.watch().check()?;
            }
        }
        (self.progress)(place.len() * self.settings.element.bytes());
        Ok(())
    }

    /// Zeros where a checkpoint has nothing.
    pub(super) fn fill_zero(&mut self, place: &Tensor) -> Result<()> {
        let bytes = place.len() * self.settings.element.bytes();
        self.device.fill(place.address(), 0, bytes)?;
        (self.progress)(bytes);
        Ok(())
    }

    fn copy(&self, stored: &Stored, place: &Tensor) -> Result<()> {
        match (stored.dtype(), self.settings.element) {
            (Dtype::Bf16, Element::Bf16) | (Dtype::F32, Element::F32) => place.write(&stored.bytes()),
            (_, Element::F32) => place.write(&narrow(stored, |x| x.to_le_bytes())),
            (_, Element::Bf16) => place.write(&narrow(stored, |x| bf16::from_f32(x).to_le_bytes())),
            (_, Element::I32) => Err(Error::operand("load", "element", "f32 or bf16", self.settings.element)),
        }
    }

    /// The matrices of some experts in one tensor \[E, rows, columns\]; `parts` are laid below each other.
    pub(super) fn experts(
        &mut self,
        path: &str,
        experts: Range<usize>,
        parts: &[&str],
        [rows, columns]: [usize; 2],
    ) -> Result<Tensor> {
        let all = Tensor::empty(self.device, self.settings.element, &[experts.len(), parts.len() * rows, columns])?;
        for (number, expert) in experts.enumerate() {
            for (index, part) in parts.iter().enumerate() {
                let place = all.narrow(0, number..number + 1)?.narrow(1, index * rows..(index + 1) * rows)?;
                self.load_into(&format!("{path}.experts.{expert}.{part}.weight"), &[rows, columns], &place)?;
            }
        }
        Ok(all)
    }
}

/// The bytes of a stored tensor in another type, by way of `f32`.
fn narrow<const N: usize>(stored: &Stored, encode: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut values = vec![0.0f32; stored.len()];
    stored.widen(0, &mut values);
    values.into_iter().flat_map(encode).collect()
}

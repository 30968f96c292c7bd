//! The CUDA kernels as a decoder, on the emulator or on a GPU.

use std::cell::RefCell;
use std::sync::Arc;

use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Device, Tensor};
use dsv2_reference::model::causal_lm::LogitsToKeep;
use ndarray::Array2;

use super::{Decoder, Step};
use crate::error::{Error, Result};
use crate::generate::ModelFolder;

/// Tokens of a page of the cache.
pub const PAGE: usize = 64;

/// The CUDA model.
pub struct OnDevice {
    model: CausalLm,
    cache: LatentCache,
}

impl OnDevice {
    /// Brings the weights to the device; `tell` is told how many bytes of them are there.
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or the device has no room.
    pub fn load(
        folder: &ModelFolder,
        device: &Arc<dyn Device>,
        settings: Settings,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut loaded = 0;
        let mut each = |bytes: usize| {
            loaded += bytes;
            tell(loaded);
        };
        let model = CausalLm::load(&folder.config, folder.dialect, &*folder.weights, device, settings, &mut each)?;
        // a page, until it is known how many there should be
        let cache = LatentCache::new(&folder.config, device, settings.element, 1, 1, PAGE)?;
        Ok(OnDevice { model, cache })
    }
}

impl Decoder for OnDevice {
    fn start(&mut self, batch: usize, tokens: usize) -> Result<()> {
        let (config, device, settings) =
            (self.model.model().config(), self.model.model().device(), self.model.model().settings());
        self.cache = LatentCache::new(config, device, settings.element, batch, tokens, PAGE)?;
        Ok(())
    }

    fn cached(&self) -> usize {
        self.cache.lengths().into_iter().max().unwrap_or(0)
    }

    fn forward(&mut self, step: Step, tell: &mut dyn FnMut(&str)) -> Result<Array2<f32>> {
        let (batch, form) = (step.tokens.nrows(), step.attention());
        let input = CausalLmInput { input: step.input(), logits_to_keep: LogitsToKeep::Last(1), labels: None };
        let mut told = Told(RefCell::new(tell));
        let (logits, _) = self.model.forward(&input, Some(&mut self.cache), form, Some(&mut told))?;
        let (expected, found) = (format!("[{batch}, 1, V]"), format!("{:?}", logits.shape()));
        let vocab = logits.shape().last().copied().unwrap_or(0);
        Array2::from_shape_vec((batch, vocab), logits.to_f32()?).map_err(|_| Error::input("logits", expected, found))
    }

    fn keep(&mut self, rows: &[usize]) -> Result<()> {
        Ok(self.cache.reorder(rows)?)
    }

    fn crop(&mut self, tokens: usize) -> Result<()> {
        let cached = self.cached();
        if tokens > cached {
            return Err(Error::input("length", format!("at most {cached} (tokens in the cache)"), tokens));
        }
        self.cache.crop(&vec![tokens; self.cache.batch()]);
        Ok(())
    }
}

/// Hears the names of stages, and looks at none, so that none is brought to the host or computed for it.
struct Told<'a>(RefCell<&'a mut dyn FnMut(&str)>);

impl Tap for Told<'_> {
    fn wants(&self, stage: &str) -> bool {
        (self.0.borrow_mut())(stage);
        false
    }

    fn stage(&mut self, _: &str, _: &Tensor) -> dsv2_optimized::Result<bool> {
        Ok(false)
    }
}

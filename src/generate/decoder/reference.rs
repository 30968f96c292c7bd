//! The reference as a decoder: f64 or f32, or either of the 16-bit types around f32 arithmetic.

use dsv2_reference::Real;
use dsv2_reference::model::Run;
use dsv2_reference::model::cache::LatentCache;
use dsv2_reference::model::causal_lm::{CausalLmInput, DeepseekV2ForCausalLM, LogitsToKeep};
use dsv2_reference::round::RoundingTap;
use dsv2_reference::tap::{StageValue, Tap};
use ndarray::{Array2, Axis};

use super::{Decoder, Step};
use crate::error::Result;
use crate::generate::ModelFolder;
use crate::precision::Precision;
use crate::taps::again;

/// The model written to be read. Its weights stay mapped, in the type of the file, and are widened where they are used.
pub struct OnHost<T> {
    model: DeepseekV2ForCausalLM<T>,
    rounding: Option<RoundingTap>,
    cache: LatentCache<T>,
}

impl<T: Real> OnHost<T> {
    /// A model that stores each stage in the type of `precision`, if that is narrower than T.
    ///
    /// # Errors
    /// If a weight is missing or of another shape than the config implies.
    pub fn load(folder: &ModelFolder, precision: Precision) -> Result<Self> {
        let model = DeepseekV2ForCausalLM::load(&folder.config, folder.dialect, &*folder.weights)?;
        let cache = LatentCache::new(&folder.config, 0);
        Ok(OnHost { model, rounding: precision.narrow().map(RoundingTap), cache })
    }
}

impl<T: Real> Decoder for OnHost<T> {
    fn start(&mut self, batch: usize, _: usize) -> Result<()> {
        self.cache = LatentCache::new(self.model.model().config(), batch);
        Ok(())
    }

    fn cached(&self) -> usize {
        self.cache.len()
    }

    fn forward(&mut self, step: Step, tell: &mut dyn FnMut(&str)) -> Result<Array2<f32>> {
        let attention = step.attention();
        let input = CausalLmInput { input: step.input(), logits_to_keep: LogitsToKeep::Last(1), labels: None };
        let mut rounding = self.rounding;
        let mut tap = |name: &str, mut value: StageValue<'_, T>| {
            tell(name);
            if let Some(rounding) = &mut rounding {
                rounding.stage(name, again(&mut value));
            }
        };
        let run = Run { attention, ..Run::default() };
        let output = self.model.forward(&input, Some(&mut self.cache), &run, &mut tap)?;
        Ok(output.logits.index_axis(Axis(1), 0).mapv(Real::to_f32))
    }

    fn keep(&mut self, rows: &[usize]) -> Result<()> {
        Ok(self.cache.reorder(rows)?)
    }

    fn crop(&mut self, tokens: usize) -> Result<()> {
        Ok(self.cache.crop(tokens as i64)?)
    }
}

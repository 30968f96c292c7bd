//! Sequences that join and leave: each has a cache of its own, and all that decode take a step together, so that each weight is
//! read once for all of them. On the reference alone, where a sequence has the same bits in any company.

use dsv2_reference::model::cache::LatentCache;
use dsv2_reference::model::causal_lm::{CausalLmInput, DeepseekV2ForCausalLM, LogitsToKeep};
use dsv2_reference::model::{ModelInput, Run};
use dsv2_reference::round::RoundingTap;
use dsv2_reference::tap::{NoTap, Tap};
use dsv2_reference::{AttentionForm, Real};
use ndarray::{Array2, Axis};

use super::ModelFolder;
use crate::error::Result;
use crate::precision::Precision;

/// How many tokens of prompts are read at a time: what sequences that decode wait for when another one joins.
pub const CHUNK: usize = 128;

/// A model, and no sequence: they are its callers'.
pub struct Pool<T> {
    model: DeepseekV2ForCausalLM<T>,
    rounding: Option<RoundingTap>,
    chunks: bool,
}

/// What is known of a sequence's tokens.
pub struct Known<T> {
    cache: LatentCache<T>,
    absorbed: bool,
}

impl<T> Known<T> {
    /// How many tokens there are.
    pub fn tokens(&self) -> usize
    where
        T: Real,
    {
        self.cache.len()
    }
}

impl<T: Real> Pool<T> {
    /// A model that stores each stage in the type of `precision`, if that is narrower than T.
    ///
    /// # Errors
    /// If a weight is missing or of another shape than the config implies.
    pub fn load(folder: &ModelFolder, precision: Precision) -> Result<Self> {
        let model = DeepseekV2ForCausalLM::load(&folder.config, folder.dialect, &*folder.weights)?;
        // angles that depend on the length of the text are those of a whole prompt, not of its chunks
        let chunks = !folder.angles_depend_on_length()?;
        Ok(Pool { model, rounding: precision.narrow().map(RoundingTap), chunks })
    }

    /// A sequence of which nothing is known, whose prompt has so many tokens.
    pub fn begin(&self, prompt: usize) -> Known<T> {
        Known { cache: LatentCache::new(self.model.model().config(), 1), absorbed: prompt == 1 }
    }

    /// How many of so many tokens of a prompt that are still to be read are read next, if there may be `most`.
    pub fn next_chunk(&self, tokens: usize, most: usize) -> usize {
        if self.chunks { tokens.min(most) } else { tokens }
    }

    /// Reads more tokens of a prompt. Logits \[S,V\] of all of them, or \[1,V\] of the last one. The chunks that a prompt is
    /// cut into change no bit.
    ///
    /// # Errors
    /// If a token is out of range.
    pub fn read(&self, known: &mut Known<T>, tokens: &[i64], all: bool) -> Result<Array2<f32>> {
        let ids = Array2::from_shape_fn((1, tokens.len()), |(_, s)| tokens[s]);
        let logits_to_keep = LogitsToKeep::Last(i64::from(!all));
        let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep, labels: None };
        // as `generate` reads a prompt
        let attention = if known.absorbed { AttentionForm::Absorbed } else { AttentionForm::Expanded };
        let run = Run { attention, ..Run::default() };
        let output = self.tapped(|tap| Ok(self.model.forward(&input, Some(&mut known.cache), &run, tap)?))?;
        Ok(output.logits.index_axis(Axis(0), 0).mapv(Real::to_f32))
    }

    /// One more token of each of some sequences: logits \[B,V\]. If it fails, nothing has changed.
    ///
    /// # Errors
    /// If a token is out of range, or there is none.
    pub fn step(&self, known: &mut [&mut Known<T>], tokens: &[i64]) -> Result<Array2<f32>> {
        let mut caches: Vec<_> = known.iter_mut().map(|known| &mut known.cache).collect();
        let logits = self.tapped(|tap| Ok(self.model.step_each(tokens, &mut caches, tap)?))?;
        Ok(logits.mapv(Real::to_f32))
    }

    fn tapped<V>(&self, pass: impl FnOnce(&mut dyn Tap<T>) -> Result<V>) -> Result<V> {
        match self.rounding {
            Some(mut rounding) => pass(&mut rounding),
            None => pass(&mut NoTap),
        }
    }
}

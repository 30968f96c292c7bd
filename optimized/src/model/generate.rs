//! Generation: the prompt in one piece, in expanded form, then token by token through a cache.
//!
//! The next token is chosen on the device: the likeliest, or one drawn from the nucleus. Only the chosen tokens come back
//! to the host. The number that decides a draw is a pure function of the seed, the sequence's place in the batch, and the
//! step:
//!
//! ```text
//! u = splitmix64(splitmix64(seed) + 2^32 b + t) >> 40, divided by 2^24          in [0,1), and exact in fp32
//! ```
//!
//! so that a text can be drawn again, and a sequence's draws do not depend on what else is in the batch.

use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::model::{ModelInput, Tokens};
use dsv2_reference::weights::generator::splitmix64;
use dsv2_reference::{AttentionMask, DeepseekV2Config, Dialect};
use ndarray::{Array1, Array2, Axis, s};

use super::Settings;
use super::cache::LatentCache;
use super::decode::{self, Decode, Sizes, Start};
use super::head::{CausalLm, CausalLmInput};
use super::plan::{self, CacheSize, MemoryPlan, Pass};
use super::tap::Tap;
use crate::operators::advance::{Draws, Sequences};
use crate::operators::argmax::argmax;
use crate::operators::sample::sample;
use crate::{Element, Error, Result, Tensor};

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest; of equal ones the lowest.
    Greedy,
    /// Drawn from the likeliest tokens that together have the probability `top_p`.
    TopP {
        /// What logits are divided by.
        temperature: f32,
        /// From 0 (the likeliest; the first of those whose probabilities are one number in fp32) to 1 (all tokens).
        top_p: f32,
        /// Another seed, other tokens.
        seed: u64,
    },
}

/// What to generate, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// How many tokens to add to each sequence, unless all end before.
    pub max_new_tokens: usize,
    /// How attention is computed after the prompt.
    pub decode: AttentionForm,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Tokens of a page of the cache.
    pub page_size: usize,
}

impl GenerateOptions {
    /// Greedy, absorbed, in pages of 64 tokens.
    pub fn new(max_new_tokens: usize) -> Self {
        let (decode, sampling) = (AttentionForm::Absorbed, Sampling::Greedy);
        GenerateOptions { max_new_tokens, decode, sampling, page_size: 64 }
    }

    /// What generation takes of a device's memory, the weights included, for `batch` prompts of `prompt` tokens. `padded`
    /// says whether there is padding among them.
    ///
    /// # Errors
    /// If the config is impossible, or a page has no tokens.
    pub fn plan(
        &self,
        config: &DeepseekV2Config,
        dialect: Dialect,
        settings: Settings,
        batch: usize,
        prompt: usize,
        padded: bool,
    ) -> Result<MemoryPlan> {
        let cache = self.cache(batch, prompt);
        let first = Pass { new: prompt, keys: prompt, form: AttentionForm::Expanded, masked: padded, logits: 1 };
        let last = Pass { new: 1, keys: cache.tokens, form: self.decode, ..first };
        if !self.captures(config, dialect, settings)? {
            return MemoryPlan::new(config, dialect, Head::CausalLm, settings, cache, &[first, last]);
        }
        let plan = MemoryPlan::new(config, dialect, Head::CausalLm, settings, cache, &[first])?;
        let pages = cache.tokens.div_ceil(cache.page_size);
        let capacity = pages.saturating_mul(cache.page_size);
        let sizes = Sizes { config, dialect, element: settings.element, batch, capacity };
        let draws = if self.sampling == Sampling::Greedy { 0 } else { self.max_new_tokens };
        let step = decode::bytes(sizes, pages, padded, draws)?;
        Ok(MemoryPlan { workspace: plan.workspace.max(step), ..plan })
    }

    /// Whether a step after the prompt is captured and launched as a whole.
    fn captures(&self, config: &DeepseekV2Config, dialect: Dialect, settings: Settings) -> Result<bool> {
        let possible = decode::can_be_captured(config, dialect, settings)?;
        Ok(possible && self.decode == AttentionForm::Absorbed && self.max_new_tokens > 1)
    }

    /// The cache for prompts of `prompt` tokens. The last token is never read, and has no place.
    fn cache(&self, batch: usize, prompt: usize) -> CacheSize {
        let tokens = prompt.saturating_add(self.max_new_tokens.saturating_sub(1));
        CacheSize { batch, tokens, page_size: self.page_size }
    }
}

/// The texts of a batch while they grow.
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a CausalLm,
    options: GenerateOptions,
    cache: LatentCache,
    /// \[B,S\]: which tokens of the prompt are no padding. What follows them is none.
    real: Array2<bool>,
    /// What follows the end of a text.
    filler: i64,
    /// Whether steps after the prompt are captured.
    captures: bool,
    /// \[B,S\]: those of the next pass.
    tokens: Array2<i64>,
    finished: Vec<bool>,
    step: usize,
    /// The captured step, once there was one. It knows where the sequences are, as long as no other pass comes between.
    decode: Option<Decode>,
}

impl CausalLm {
    /// Adds tokens to each sequence of `prompt` \[B,S\], until each has reached one of the config's `eos_token_id` (one
    /// that is done goes on with `pad_token_id`, or the end token if there is none) or there are `max_new_tokens`: the
    /// new tokens \[B, at most `max_new_tokens`\].
    ///
    /// `attention_mask` \[B,S\] is false at padding, which should be on the left; positions are then counted from the
    /// first real token.
    ///
    /// # Errors
    /// As [`CausalLm::forward`]; also if the mask does not fit, a parameter of the sampling is impossible, or the device
    /// has no room for cache and workspace (which is found out before any is taken).
    pub fn generate(
        &self,
        prompt: &Array2<i64>,
        attention_mask: Option<&Array2<bool>>,
        options: &GenerateOptions,
    ) -> Result<Array2<i64>> {
        let mut generation = self.start(prompt, attention_mask, options)?;
        let mut columns = vec![];
        while let Some(tokens) = generation.step(None)? {
            columns.push(tokens);
        }
        Ok(Array2::from_shape_fn((prompt.nrows(), columns.len()), |(b, t)| columns[t][b]))
    }

    /// The same step by step.
    ///
    /// # Errors
    /// If the mask does not fit, or there is no room.
    pub fn start(
        &self,
        prompt: &Array2<i64>,
        attention_mask: Option<&Array2<bool>>,
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        let (batch, length) = prompt.dim();
        let real = attention_mask.cloned().unwrap_or_else(|| Array2::from_elem((batch, length), true));
        if real.dim() != (batch, length) {
            let (expected, found) = (format!("shape [{batch}, {length}]"), format!("{:?}", real.shape()));
            return Err(Error::operand("generate", "attention_mask", expected, found));
        }
        let (config, dialect, settings) = (self.model().config(), self.model().dialect(), self.model().settings());
        let device = self.model().device();
        let padded = real.iter().any(|real| !real);
        let plan = options.plan(config, dialect, settings, batch, length, padded)?;
        plan::check("generate", device, plan.cache.saturating_add(plan.workspace))?;
        let CacheSize { tokens, page_size, .. } = options.cache(batch, length);
        let filler = config.pad_token_id.or(config.eos_token_ids().first().copied()).unwrap_or(0);
        // The filler may be no token: then a pass refuses it, where it comes to that.
        let is_token = (0..config.vocab_size as i64).contains(&filler);
        Ok(Generation {
            model: self,
            options: *options,
            cache: LatentCache::new(config, device, settings.element, batch, tokens, page_size)?,
            real,
            filler,
            captures: is_token && self.model().whole && options.captures(config, dialect, settings)?,
            tokens: prompt.clone(),
            finished: vec![false; batch],
            step: 0,
            decode: None,
        })
    }
}

impl Generation<'_> {
    /// The next token of each sequence, \[B\]; none when all are done. The first step runs the prompt.
    ///
    /// Without a tap a step after the prompt is captured once and launched as a whole, if the model's steps are all alike;
    /// its tokens are the same to the bit.
    ///
    /// # Errors
    /// As [`CausalLm::generate`]. The texts cannot go on after an error. While a step is captured, what other threads ask of
    /// the device is refused: on one device one thread generates.
    pub fn step(&mut self, tap: Option<&mut dyn Tap>) -> Result<Option<Array1<i64>>> {
        if self.step == self.options.max_new_tokens || (self.step > 0 && self.finished.iter().all(|done| *done)) {
            return Ok(None);
        }
        let next: Array1<i64> = if self.captures && tap.is_none() && self.step > 0 {
            let decode = match self.decode.take() {
                Some(decode) => decode,
                None => self.capture()?,
            };
            let tokens = decode.step()?;
            self.cache.advance(1);
            self.decode = Some(decode);
            tokens.into_iter().map(i64::from).collect()
        } else {
            // What was captured does not see this pass.
            self.decode = None;
            let chosen = self.pass(tap)?;
            let next = |(done, token): (&bool, i32)| if *done { self.filler } else { i64::from(token) };
            self.finished.iter().zip(chosen).map(next).collect()
        };
        let ends = self.model.model().config().eos_token_ids();
        self.finished.iter_mut().zip(&next).for_each(|(done, token)| *done |= ends.contains(token));
        self.step += 1;
        self.tokens = next.clone().insert_axis(Axis(1));
        Ok(Some(next))
    }

    /// What the last step chose from, \[B,V\], if it was captured.
    pub fn logits(&self) -> Option<&Tensor> {
        self.decode.as_ref().map(Decode::logits)
    }

    /// \[B,T\]: which tokens are no padding, with those of the next pass.
    fn real_so_far(&self) -> Array2<bool> {
        let shape = (self.real.nrows(), self.real.ncols() + self.step);
        Array2::from_shape_fn(shape, |at| self.real.get(at).is_none_or(|real| *real))
    }

    /// The tokens that are chosen by a pass that may be looked at.
    fn pass(&mut self, tap: Option<&mut dyn Tap>) -> Result<Vec<i32>> {
        let real = self.real_so_far();
        let input = CausalLmInput {
            input: ModelInput {
                position_ids: Some(positions_of_real_tokens(&real, self.tokens.ncols())),
                tokens: Tokens::InputIds(self.tokens.clone()),
                attention_mask: Some(AttentionMask::Padding(real)),
            },
            logits_to_keep: LogitsToKeep::Last(1),
            labels: None,
        };
        let form = if self.step == 0 { AttentionForm::Expanded } else { self.options.decode };
        let (logits, _) = self.model.forward(&input, Some(&mut self.cache), form, tap)?;
        self.choose(&logits.reshape(&[self.finished.len(), logits.shape()[2]])?)
    }

    /// Captures the steps from here on: all that the device needs to know of the sequences goes there.
    fn capture(&mut self) -> Result<Decode> {
        let device = self.model.model().device();
        let batch = self.finished.len();
        let integers = |values: Vec<i32>| Tensor::from_i32(device, &[batch], &values);
        let token = |token: &i64| *token as i32;
        let left = self.options.max_new_tokens - self.step;
        let lengths = self.cache.lengths();
        let longest = lengths.iter().max().map_or(0, |longest| longest + left);
        let block_table = self.cache.reserve(longest)?;
        let slots = self.cache.next_slots();
        let draws = match self.options.sampling {
            Sampling::Greedy => None,
            Sampling::TopP { seed, .. } => {
                let of = |step: usize| (0..batch).map(move |b| uniform(seed, b as u64, step as u64));
                let all: Vec<f32> = (self.step..self.options.max_new_tokens).flat_map(of).collect();
                Some(Draws {
                    next: Tensor::from_f32(device, Element::F32, &[batch], &all[..batch])?,
                    all: Tensor::from_f32(device, Element::F32, &[left, batch], &all)?,
                    drawn: integers(vec![1; batch])?,
                })
            }
        };
        let sequences = Sequences {
            tokens: integers(self.tokens.iter().map(token).collect())?,
            positions: integers(positions_of_real_tokens(&self.real_so_far(), 1).iter().map(token).collect())?,
            lengths: integers(lengths.iter().map(|length| (length + 1) as i32).collect())?,
            slots: integers(slots)?,
            ended: integers(self.finished.iter().map(|done| i32::from(*done)).collect())?,
            draws,
            block_table,
        };
        // Padding stands before the texts: what comes is real.
        let mask = match self.real.iter().all(|real| *real) {
            true => None,
            false => {
                let columns = sequences.block_table.shape()[1] * self.options.page_size;
                let real = |at: usize| self.real.get([at / columns, at % columns]).is_none_or(|real| *real);
                let hide = |at: usize| if real(at) { 0.0 } else { f32::NEG_INFINITY };
                let values: Vec<f32> = (0..batch * columns).map(hide).collect();
                Some(Tensor::from_f32(device, Element::F32, &[batch, 1, columns], &values)?)
            }
        };
        let ends = self.model.model().config().eos_token_ids().iter().filter_map(|end| i32::try_from(*end).ok());
        let (ends, filler, sampling) = (ends.collect(), self.filler as i32, self.options.sampling);
        Decode::capture(self.model, &self.cache, Start { sequences, mask, ends, filler, sampling })
    }

    /// A token for each row of logits \[B,V\].
    fn choose(&self, logits: &Tensor) -> Result<Vec<i32>> {
        let (device, batch) = (logits.device(), logits.shape()[0]);
        let variant = self.model.model().settings().variant;
        let tokens = Tensor::empty(device, Element::I32, &[batch])?;
        match self.options.sampling {
            Sampling::Greedy => argmax(variant, logits, &tokens)?,
            Sampling::TopP { temperature, top_p, seed } => {
                let uniforms: Vec<f32> = (0..batch).map(|b| uniform(seed, b as u64, self.step as u64)).collect();
                let uniforms = Tensor::from_f32(device, Element::F32, &[batch], &uniforms)?;
                sample(variant, logits, temperature, top_p, &uniforms, &tokens)?;
            }
        }
        tokens.to_i32()
    }
}

/// The number from \[0,1) that decides a draw.
fn uniform(seed: u64, sequence: u64, step: u64) -> f32 {
    let counter = (sequence << 32).wrapping_add(step);
    (splitmix64(splitmix64(seed).wrapping_add(counter)) >> 40) as f32 / (1 << 24) as f32
}

/// For the last `length` tokens, how many real ones come before each; 0 for padding. \[B,length\].
fn positions_of_real_tokens(real: &Array2<bool>, length: usize) -> Array2<i64> {
    let mut positions = Array2::zeros(real.dim());
    for (mut positions, real) in positions.rows_mut().into_iter().zip(real.rows()) {
        let mut seen = 0;
        for (position, real) in positions.iter_mut().zip(real) {
            *position = if *real { seen } else { 0 };
            seen += i64::from(*real);
        }
    }
    positions.slice(s![.., positions.ncols() - length..]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_over_zero_to_one_and_belong_to_a_seed_a_sequence_and_a_step() {
        let draws: Vec<f32> = (0..100).flat_map(|b| (0..100).map(move |t| uniform(5, b, t))).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mut tenths = [0; 10];
        draws.iter().for_each(|u| tenths[(u * 10.0) as usize] += 1);
        // Each count has mean 1000 and standard deviation 30.
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
        let different = [uniform(5, 0, 0), uniform(6, 0, 0), uniform(5, 1, 0), uniform(5, 0, 1)];
        assert!((1..4).all(|i| !different[..i].contains(&different[i])), "{different:?}");
    }

    #[test]
    fn positions_are_counted_from_the_first_real_token() {
        let real = ndarray::array![[false, false, true, true], [true, true, true, true]];
        assert_eq!(positions_of_real_tokens(&real, 4), ndarray::array![[0, 0, 0, 1], [0, 1, 2, 3]]);
        assert_eq!(positions_of_real_tokens(&real, 1), ndarray::array![[1], [3]]);
    }
}

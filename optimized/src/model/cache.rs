//! The latent cache in pages: for each token and layer the normed latent and the rotated key (c + r numbers), and for
//! each sequence the list of its pages.
//!
//! A page belongs to one sequence. All layers have the same pages, so that one block table serves them all.

use std::sync::Arc;

use dsv2_reference::DeepseekV2Config;

use super::plan::{self, CacheSize};
use crate::{Device, Element, Error, Result, Tensor};

/// What marks the unused end of a row of the block table. No kernel may follow it.
pub const NO_PAGE: i32 = 2_147_480_000;

/// A cache for some sequences.
#[derive(Debug)]
pub struct LatentCache {
    device: Arc<dyn Device>,
    /// \[pages, page_size, c+r\] for each layer.
    layers: Vec<Tensor>,
    page_size: usize,
    free: Vec<i32>,
    sequences: Vec<Sequence>,
    /// See [`super::rotary::Frequencies::of_call`]. One for all sequences: they advance together.
    reached: i64,
}

/// The pages of a sequence, in order, and what is in them.
#[derive(Clone, Debug, Default)]
struct Sequence {
    pages: Vec<i32>,
    length: usize,
}

impl Sequence {
    /// The place of token `at`, which has a page.
    fn slot(&self, at: usize, page_size: usize) -> i32 {
        self.pages[at / page_size] * page_size as i32 + (at % page_size) as i32
    }
}

/// Where the new tokens of a forward pass go, and what they see.
#[derive(Debug)]
pub(super) struct Placement {
    /// \[N\]: the place of each new token.
    pub(super) slots: Tensor,
    /// \[B, pages\]
    pub(super) block_table: Tensor,
    /// \[B\], with the new tokens.
    pub(super) lengths: Tensor,
    /// The longest of them.
    pub(super) longest: usize,
}

impl Placement {
    /// \[B T\]: the place of every token, new or not; -1 behind a sequence's end.
    pub(super) fn all_slots(&self, page_size: usize) -> Result<Vec<i32>> {
        let (table, lengths) = (self.block_table.to_i32()?, self.lengths.to_i32()?);
        let columns = self.block_table.shape()[1];
        let slot = |b: usize, t: usize| table[b * columns + t / page_size] * page_size as i32 + (t % page_size) as i32;
        let places = (0..lengths.len()).flat_map(|b| (0..self.longest).map(move |t| (b, t)));
        Ok(places.map(|(b, t)| if (t as i32) < lengths[b] { slot(b, t) } else { -1 }).collect())
    }
}

impl LatentCache {
    /// Room for `tokens` tokens of each of `batch` sequences, in pages of `page_size` tokens.
    ///
    /// # Errors
    /// If there is no room on the device, which is found out before any is taken, or there are more places than a kernel can
    /// count.
    pub fn new(
        config: &DeepseekV2Config,
        device: &Arc<dyn Device>,
        element: Element,
        batch: usize,
        tokens: usize,
        page_size: usize,
    ) -> Result<Self> {
        if page_size == 0 {
            return Err(Error::operand("LatentCache::new", "page_size", "at least 1", page_size));
        }
        let pages = batch.saturating_mul(tokens.div_ceil(page_size));
        if pages.saturating_mul(page_size) > NO_PAGE as usize {
            let found = format!("{pages} pages of {page_size}");
            return Err(Error::operand("LatentCache::new", "tokens", format!("at most {NO_PAGE} in all"), found));
        }
        let size = CacheSize { batch, tokens, page_size };
        plan::check("LatentCache::new", device, plan::cache_bytes(config, element, size))?;
        let width = config.kv_lora_rank + config.qk_rope_head_dim;
        let layer = |_| Tensor::empty(device, element, &[pages, page_size, width]);
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let sequences = vec![Sequence::default(); batch];
        Ok(LatentCache {
            device: device.clone(),
            layers,
            page_size,
            free: (0..pages as i32).rev().collect(),
            sequences,
            reached: 0,
        })
    }

    /// How many sequences there are.
    pub fn batch(&self) -> usize {
        self.sequences.len()
    }

    /// How many tokens of each sequence are cached.
    pub fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(|sequence| sequence.length).collect()
    }

    /// Forgets all but the first `lengths[b]` tokens of each sequence b (of which there are as many as lengths; others stay
    /// as they are). Sequences may have different lengths.
    pub fn crop(&mut self, lengths: &[usize]) {
        for (sequence, length) in self.sequences.iter_mut().zip(lengths) {
            sequence.length = sequence.length.min(*length);
            let kept = sequence.length.div_ceil(self.page_size);
            self.free.extend(sequence.pages.split_off(kept).into_iter().rev());
        }
    }

    /// Sequence b becomes what sequence `from[b]` is: a beam search's reordering, or (with a longer list) a fork.
    ///
    /// # Errors
    /// If there is no such sequence, or no room for the copies; then nothing has changed.
    pub fn reorder(&mut self, from: &[usize]) -> Result<()> {
        if let Some(bad) = from.iter().find(|b| **b >= self.sequences.len()) {
            let expected = format!("sequences below {}", self.sequences.len());
            return Err(Error::operand("LatentCache::reorder", "from", expected, bad));
        }
        // The first that wants a sequence takes its pages, the others get copies.
        let mut taken = vec![false; self.sequences.len()];
        let copies: usize = from
            .iter()
            .filter(|b| std::mem::replace(&mut taken[**b], true))
            .map(|b| self.sequences[*b].pages.len())
            .sum();
        let unused: usize =
            self.sequences.iter().zip(&taken).filter(|(_, taken)| !**taken).map(|(s, _)| s.pages.len()).sum();
        if copies > self.free.len() + unused {
            let found = self.free.len() + unused;
            return Err(Error::operand("LatentCache::reorder", "cache", format!("{copies} free pages"), found));
        }
        let old = std::mem::take(&mut self.sequences);
        for (sequence, taken) in old.iter().zip(&taken) {
            if !taken {
                self.free.extend(sequence.pages.iter().rev());
            }
        }
        let mut given = vec![false; old.len()];
        for &b in from {
            let mut sequence = old[b].clone();
            if std::mem::replace(&mut given[b], true) {
                let at = self.free.len() - sequence.pages.len();
                sequence.pages = self.free.split_off(at).into_iter().rev().collect();
                for (index, (from, to)) in old[b].pages.iter().zip(&sequence.pages).enumerate() {
                    let tokens = (sequence.length - index * self.page_size).min(self.page_size);
                    self.copy_page(*from, *to, tokens)?;
                }
            }
            self.sequences.push(sequence);
        }
        Ok(())
    }

    /// Copies the first `tokens` places of a page, in all layers.
    fn copy_page(&self, from: i32, to: i32, tokens: usize) -> Result<()> {
        for layer in &self.layers {
            let address =
                |page: i32| layer.address() + (page as usize * layer.strides()[0] * layer.element().bytes()) as u64;
            self.device.copy(address(from), address(to), tokens * layer.strides()[1] * layer.element().bytes())?;
        }
        Ok(())
    }

    /// Tokens of a page.
    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Gives every sequence pages for `tokens` tokens in all: the block table \[B, pages\].
    ///
    /// # Errors
    /// If the pages do not suffice; then nothing has changed.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<Tensor> {
        let pages = tokens.div_ceil(self.page_size);
        self.extend_to(&|_| pages, format_args!("{tokens} tokens"))?;
        let table: Vec<i32> = self.sequences.iter().flat_map(|sequence| sequence.pages[..pages].to_vec()).collect();
        Tensor::from_i32(&self.device, &[self.batch(), pages], &table)
    }

    /// The place of the next token of each sequence, which has a page for it.
    pub(super) fn next_slots(&self) -> Vec<i32> {
        self.sequences.iter().map(|sequence| sequence.slot(sequence.length, self.page_size)).collect()
    }

    /// A layer's pages.
    pub(super) fn layer(&self, layer: usize) -> &Tensor {
        &self.layers[layer]
    }

    /// The longest context that a sequence has reached, for the rope type `dynamic`.
    pub(super) fn reached(&mut self) -> &mut i64 {
        &mut self.reached
    }

    /// Whether a model of this config, with numbers of this type on this device, can use it.
    ///
    /// # Errors
    /// What it was made for instead.
    pub(super) fn check(&self, config: &DeepseekV2Config, device: &Arc<dyn Device>, element: Element) -> Result<()> {
        let show =
            |layers, width, element| format!("a cache of {layers} layers of {width} numbers {element} per token");
        let wanted = (config.num_hidden_layers, config.kv_lora_rank + config.qk_rope_head_dim, element);
        let found = match self.layers.first() {
            Some(layer) => (self.layers.len(), layer.shape()[2], layer.element()),
            None => (0, 0, element),
        };
        let refused = |expected, found| Err(Error::operand("forward", "past_key_values", expected, found));
        if found != wanted {
            return refused(show(wanted.0, wanted.1, wanted.2), show(found.0, found.1, found.2));
        }
        if !Arc::ptr_eq(&self.device, device) {
            return refused("a cache on the model's device".into(), format!("one on another ({})", self.device.name()));
        }
        Ok(())
    }

    /// Runs `pass`, which may append to the cache. If it fails, the cache (if there is one) is put back as it was.
    pub(super) fn undo_on_error<V>(
        mut cache: Option<&mut Self>,
        pass: impl FnOnce(Option<&mut Self>) -> Result<V>,
    ) -> Result<V> {
        let before = cache.as_deref().map(|cache| (cache.lengths(), cache.reached));
        let result = pass(cache.as_deref_mut());
        if let (Err(_), Some(cache), Some((lengths, reached))) = (&result, cache, before) {
            cache.crop(&lengths);
            cache.reached = reached;
        }
        result
    }

    /// Gives each sequence as many pages as it should have in all, which is for so many tokens.
    ///
    /// # Errors
    /// If the pages do not suffice; then nothing has changed.
    fn extend_to(&mut self, pages: &dyn Fn(&Sequence) -> usize, tokens: std::fmt::Arguments<'_>) -> Result<()> {
        let lacking = |sequence: &Sequence| pages(sequence).saturating_sub(sequence.pages.len());
        let wanted: usize = self.sequences.iter().map(lacking).sum();
        if wanted > self.free.len() {
            let found = format!("{} free of {} tokens", self.free.len(), self.page_size);
            return Err(Error::operand("LatentCache", "pages", format!("{wanted} for {tokens}"), found));
        }
        for sequence in &mut self.sequences {
            let at = self.free.len() - lacking(sequence);
            sequence.pages.extend(self.free.split_off(at).into_iter().rev());
        }
        Ok(())
    }

    /// Finds places for `new` more tokens of each sequence. They count as cached after [`LatentCache::advance`].
    ///
    /// # Errors
    /// If the pages do not suffice; then nothing has changed.
    pub(super) fn place(&mut self, new: usize) -> Result<Placement> {
        let page_size = self.page_size;
        let pages = |sequence: &Sequence| (sequence.length + new).div_ceil(page_size);
        self.extend_to(&pages, format_args!("{new} more tokens"))?;
        let slots: Vec<i32> = self
            .sequences
            .iter()
            .flat_map(|sequence| (sequence.length..sequence.length + new).map(move |t| sequence.slot(t, page_size)))
            .collect();
        let columns = self.sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(0);
        let padded = |sequence: &Sequence| {
            let rest = columns - sequence.pages.len();
            sequence.pages.iter().copied().chain(std::iter::repeat_n(NO_PAGE, rest)).collect::<Vec<_>>()
        };
        let table: Vec<i32> = self.sequences.iter().flat_map(padded).collect();
        let lengths: Vec<i32> = self.sequences.iter().map(|sequence| (sequence.length + new) as i32).collect();
        Ok(Placement {
            slots: Tensor::from_i32(&self.device, &[slots.len()], &slots)?,
            block_table: Tensor::from_i32(&self.device, &[self.batch(), columns], &table)?,
            longest: lengths.iter().copied().max().unwrap_or(0) as usize,
            lengths: Tensor::from_i32(&self.device, &[lengths.len()], &lengths)?,
        })
    }

    /// The new tokens are cached.
    pub(super) fn advance(&mut self, new: usize) {
        self.sequences.iter_mut().for_each(|sequence| sequence.length += new);
    }
}

//! Tensor parallelism: attention split by heads and MLPs by columns over P ranks, computed on one machine.
//!
//! ```text
//! x <- x + sum_p Attention_p(RMSNorm(x))        rank p has the heads of block p
//! x <- x + sum_p FFN_p(RMSNorm(x))              rank p has 1/P of the width of every expert and of the dense MLP
//! ```
//!
//! What each rank holds is told in [`crate::paper::parallel::shard`]. The two sums of a layer, the all-reduces, are all that
//! the ranks say to each other; everything between them is the model as it is. Here a rank is a thread that runs
//! [`DeepseekV2ForCausalLM`], and an all-reduce is a tap that replaces a module's output by the sum over ranks. After
//! it all ranks hold the same bits, so they route alike and cache the same latents.
//!
//! Another order of the same sums: equal to the whole model within rounding, and to the bit if P = 1.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ndarray::{Array, ArrayD, Dimension};

use crate::paper::parallel::shard::{Rank, Shard};
use crate::weights::WeightSource;
use crate::{
    CausalLmInput, CausalLmOutput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Error, LatentCache, Real, Result,
    Run, StageValue,
};

/// The sum over ranks, in their order; nothing if there are none.
pub fn all_reduce<T: Real, D: Dimension>(parts: impl IntoIterator<Item = Array<T, D>>) -> Option<Array<T, D>> {
    parts.into_iter().reduce(|sum, part| sum + part)
}

/// Is this the output of a module that has only a part of the sum: attention, a dense MLP, a layer of experts?
fn is_partial_sum(stage: &str) -> bool {
    [".self_attn.o_proj", ".mlp.down_proj", ".mlp"].iter().any(|module| stage.ends_with(module))
}

/// A model on P ranks.
#[derive(Debug)]
pub struct TensorParallel<T> {
    ranks: Vec<DeepseekV2ForCausalLM<T>>,
}

impl<T: Real> TensorParallel<T> {
    /// Splits the model of `config` and `weights` into `ranks` parts.
    ///
    /// # Errors
    /// If it cannot be split like this, or as [`DeepseekV2ForCausalLM::load`].
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, weights: &dyn WeightSource, ranks: usize) -> Result<Self> {
        config.validate(dialect)?;
        let part = |rank: Rank| DeepseekV2ForCausalLM::load(&rank.config(config)?, dialect, &Shard::new(weights, rank));
        TensorParallel::new(Rank::all(ranks).map(part).collect::<Result<_>>()?)
    }

    /// From the ranks' parts, however they were made.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(ranks: Vec<DeepseekV2ForCausalLM<T>>) -> Result<Self> {
        if ranks.is_empty() {
            return Err(Error::input("ranks", "one rank or more", 0));
        }
        Ok(TensorParallel { ranks })
    }

    /// The ranks' parts.
    pub fn ranks(&self) -> &[DeepseekV2ForCausalLM<T>] {
        &self.ranks
    }

    /// An empty cache for each rank. Each is as large as the whole model's: latents belong to all heads.
    pub fn new_caches(&self, batch: usize) -> Vec<LatentCache<T>> {
        self.ranks.iter().map(|rank| LatentCache::new(rank.model().config(), batch)).collect()
    }

    /// Runs all ranks on the same input, with an all-reduce after attention and after the feed-forward network of each
    /// layer. Returns each rank's output: the same hidden states, logits and loss on all, and the attention weights of
    /// its own heads.
    ///
    /// # Errors
    /// As [`DeepseekV2ForCausalLM::forward`], or if there is not one cache for each rank.
    pub fn forward(
        &self,
        input: &CausalLmInput<T>,
        caches: Option<&mut [LatentCache<T>]>,
        run: &Run,
    ) -> Result<Vec<CausalLmOutput<T>>> {
        let caches: Vec<Option<&mut LatentCache<T>>> = match caches {
            None => self.ranks.iter().map(|_| None).collect(),
            Some(caches) if caches.len() == self.ranks.len() => caches.iter_mut().map(Some).collect(),
            Some(caches) => {
                let expected = format!("a cache for each of {} ranks", self.ranks.len());
                return Err(Error::input("past_key_values", expected, caches.len()));
            }
        };
        thread::scope(|scope| {
            let (lines, ranks): (Vec<_>, Vec<_>) = (self.ranks.iter().zip(caches))
                .map(|(rank, cache)| {
                    let ((part, parts), (sum, sums)) = (channel(), channel());
                    let mut tap = move |name: &str, value: StageValue<T>| exchange(name, value, &part, &sums);
                    ((parts, sum), scope.spawn(move || rank.forward(input, cache, run, &mut tap)))
                })
                .unzip();
            serve(lines);
            let join = |rank: thread::ScopedJoinHandle<_>| rank.join().expect("a forward pass does not panic");
            ranks.into_iter().map(join).collect()
        })
    }
}

/// From a rank, its parts; to it, the sums.
type Line<T> = (Receiver<ArrayD<T>>, Sender<ArrayD<T>>);

/// A rank's side of an all-reduce. (If another rank has failed, no sum comes: the rank ends with what it has, and the
/// other's error is what is returned.)
fn exchange<T: Real>(name: &str, value: StageValue<T>, part: &Sender<ArrayD<T>>, sums: &Receiver<ArrayD<T>>) {
    if let StageValue::Real(mut value) = value
        && is_partial_sum(name)
        && part.send(value.to_owned()).is_ok()
        && let Ok(sum) = sums.recv()
    {
        value.assign(&sum);
    }
}

/// The other side: while every rank sends a part, sends the sum to all of them.
fn serve<T: Real>(lines: Vec<Line<T>>) {
    let one_of_each = || lines.iter().map(|(parts, _)| parts.recv().ok()).collect::<Option<Vec<_>>>();
    while let Some(sum) = one_of_each().and_then(all_reduce) {
        lines.iter().for_each(|(_, to_rank)| to_rank.send(sum.clone()).unwrap_or(()));
    }
}

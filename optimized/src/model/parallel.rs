//! A model over several ranks: what each holds, and what they say to each other.
//!
//! With a [`Layout`] of P tensor ranks and Q expert ranks there are P Q ranks; rank q P + p has block p of the heads and of the
//! columns of every MLP (as [`dsv2_reference::paper::parallel::shard`] tells) and of the routed experts those of block q, E/Q of
//! them. Latents, caches, the router, norms, the embedding and the head stand on every rank. Two groups:
//!
//! * ranks of the same q: a sum after attention and one after the feed-forward network
//! * ranks of the same p: tokens go to their experts, and the results come back
//!
//! Every token is at home on one rank of the second group. What comes back is summed there in the order in which one device
//! sums: a split by experts changes no bit. A split by heads sums in another order.

use std::ops::Range;
use std::sync::Arc;

use dsv2_reference::paper::parallel::{self, Placement};
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::rotary::Frequencies;
use crate::collective::Group;
use crate::collective::emulated::Rank;
use crate::{Error, Result, Tensor};

/// How a model is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// P: parts of heads and of MLPs' columns.
    pub tensor: usize,
    /// Q: blocks of routed experts.
    pub experts: usize,
    /// Who has which sequences.
    pub homes: Homes,
}

/// Which tokens the ranks of a group of experts work on outside the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Homes {
    /// All on all: attention is computed on each rank. A layer's tokens are divided among the ranks for its experts alone, and
    /// gathered again.
    Every,
    /// Each on its own (data-parallel attention): every rank is given other sequences, and caches those.
    Own,
}

impl Layout {
    /// How many ranks there are.
    pub fn ranks(self) -> usize {
        self.tensor.saturating_mul(self.experts)
    }

    /// A block of so many experts: rank r has block r / P.
    pub(super) fn block(self, block: usize, experts: usize) -> Range<usize> {
        let each = experts / self.experts;
        block * each..(block + 1) * each
    }

    /// Refuses what cannot be split like this: sizes that do not divide, a number of ranks that is another.
    ///
    /// # Errors
    /// If so, with the name of what does not fit.
    pub fn check(self, config: &DeepseekV2Config, dialect: Dialect, ranks: usize) -> Result<()> {
        config.validate(dialect)?;
        let refused = |name, expected: String, found: String| Err(Error::operand("Layout", name, expected, found));
        if self.tensor == 0 || self.experts == 0 || self.ranks() != ranks {
            let found = format!("{} x {} ranks", self.tensor, self.experts);
            return refused("tensor x experts", format!("the number of ranks, {ranks}"), found);
        }
        for rank in parallel::Rank::all(self.tensor) {
            rank.config(config)?;
        }
        // Its angles depend on the longest of all sequences.
        if self.homes == Homes::Own && self.experts > 1 && !Frequencies::new(config, dialect)?.is_fixed() {
            return refused("homes", "Every, where the rope type is `dynamic`".into(), "Own".into());
        }
        if self.experts > 1 && !config.has_moe_layers(dialect) {
            return refused("experts", "1 for a model without routed experts".into(), self.experts.to_string());
        }
        if self.experts > 1 {
            Placement::contiguous(config.num_experts(), self.experts)?;
        }
        Ok(())
    }
}

/// What one rank has of a model.
#[derive(Debug)]
pub(super) struct Share {
    layout: Layout,
    /// Its tensor rank.
    tensor_rank: parallel::Rank,
    tensor: Group,
    experts: Group,
}

impl Share {
    pub(super) fn new(layout: Layout, rank: &Rank) -> Result<Arc<Self>> {
        let Layout { tensor, experts, .. } = layout;
        let (p, q) = (rank.index() % tensor, rank.index() / tensor);
        let tensor_rank = parallel::Rank::all(tensor).nth(p);
        let of_tensor: Vec<usize> = (0..tensor).map(|p| q * tensor + p).collect();
        let of_experts: Vec<usize> = (0..experts).map(|q| q * tensor + p).collect();
        Ok(Arc::new(Share {
            layout,
            tensor_rank: tensor_rank.ok_or_else(|| Error::operand("Layout", "tensor", "1 or more", tensor))?,
            tensor: rank.group(&of_tensor)?,
            experts: rank.group(&of_experts)?,
        }))
    }

    pub(super) fn tensor_rank(&self) -> parallel::Rank {
        self.tensor_rank
    }

    /// Those between which tokens go to their experts.
    pub(super) fn between_experts(&self) -> &Group {
        &self.experts
    }

    /// Its block of so many experts.
    pub(super) fn experts_of(&self, experts: usize) -> Range<usize> {
        self.layout.block(self.experts.place(), experts)
    }

    /// How many numbers the experts of other ranks have in all layers; the config is this rank's.
    pub(super) fn numbers_elsewhere(&self, config: &DeepseekV2Config, dialect: Dialect) -> usize {
        let layers = (0..config.num_hidden_layers).filter(|layer| config.is_moe_layer(*layer, dialect)).count();
        let of_each = [3, layers, config.hidden_size, config.moe_intermediate_size];
        let experts = if layers == 0 { 0 } else { config.num_experts() };
        of_each.into_iter().fold(experts - self.experts_of(experts).len(), usize::saturating_mul)
    }

    /// The rows, of so many, that are at home on a rank of the group of experts.
    fn rows_at(&self, place: usize, rows: usize) -> Range<usize> {
        let ranks = self.layout.experts;
        place * rows / ranks..(place + 1) * rows / ranks
    }

    /// The rows that are at home here.
    pub(super) fn own_rows(&self, rows: usize) -> Range<usize> {
        match self.layout.homes {
            Homes::Every => self.rows_at(self.experts.place(), rows),
            Homes::Own => 0..rows,
        }
    }

    /// The sum of what the ranks have that hold other heads and columns, in place.
    pub(super) fn sum(&self, purpose: &str, partial: &Tensor) -> Result<()> {
        match self.layout.tensor {
            1 => Ok(()),
            _ => self.tensor.all_reduce(&format!("{purpose}: sum"), partial),
        }
    }

    /// All rows \[N,D\] from those at home on each rank.
    pub(super) fn gather(&self, purpose: &str, own: Tensor, rows: usize) -> Result<Tensor> {
        if self.layout.homes == Homes::Own || self.layout.experts == 1 {
            return Ok(own);
        }
        let width = own.shape()[1];
        let all = Tensor::empty(own.device(), own.element(), &[rows, width])?;
        let counts: Vec<usize> =
            (0..self.layout.experts).map(|place| self.rows_at(place, rows).len() * width).collect();
        self.experts.all_gather(&format!("{purpose}: rows"), &own, &all, &counts)?;
        Ok(all)
    }
}

//! The same for one rank of several: its share of the weights, and a pass in which tokens go to other ranks' experts.
//!
//! How many tokens come to a rank's experts is the router's choice. What is planned suffices for any: all tokens of the group
//! come, and all of their experts are here.

use std::ops::Range;

use dsv2_reference::config::Head;
use dsv2_reference::paper::parallel;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::{CacheSize, Pass, Settings, Workspace, cache_bytes, sum, wide};
use crate::model::Products;
use crate::model::decode::{self, Sizes};
use crate::model::parallel::{Homes, Layout};
use crate::{Error, Result};

/// The bytes of a pass at one time, beside weights and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    /// From the embedding to the last norm.
    pub throughout: usize,
    /// A layer's attention.
    pub attention: usize,
    /// What attention gave, and the feed-forward network that takes most.
    pub feed_forward: usize,
    /// The last hidden states, and logits.
    pub head: usize,
    /// Of the feed-forward network, what other ranks send or get: hidden states and results.
    pub sent: usize,
}

impl PassSize {
    /// The most at one time.
    pub fn total(&self) -> usize {
        sum([self.throughout, self.attention.max(self.feed_forward)]).max(self.head)
    }
}

/// What one rank of a model takes that is split, or one device that has all of it; with a head for language.
#[derive(Clone, Debug)]
pub struct RankPlan {
    /// Nothing, where no other rank has a part.
    layout: Option<Layout>,
    /// Of its heads and columns.
    config: DeepseekV2Config,
    dialect: Dialect,
    settings: Settings,
    /// Those of its experts.
    experts: Range<usize>,
    experts_per_token: usize,
}

impl RankPlan {
    /// For a device that has all of the model.
    ///
    /// # Errors
    /// If the config is impossible.
    pub fn alone(config: &DeepseekV2Config, dialect: Dialect, settings: Settings) -> Result<Self> {
        config.validate(dialect)?;
        let (experts, experts_per_token) = (0..config.num_experts(), experts_per_token(config, dialect)?);
        Ok(RankPlan { layout: None, config: config.clone(), dialect, settings, experts, experts_per_token })
    }

    /// For rank `rank` of all that a layout has.
    ///
    /// # Errors
    /// If the model cannot be split so, with the words of [`Layout::check`], or there is no such rank.
    pub fn new(
        whole: &DeepseekV2Config,
        dialect: Dialect,
        layout: Layout,
        rank: usize,
        settings: Settings,
    ) -> Result<Self> {
        layout.check(whole, dialect, layout.ranks())?;
        let of_tensor = parallel::Rank::all(layout.tensor).nth(rank % layout.tensor);
        let of_tensor = of_tensor.filter(|_| rank < layout.ranks());
        let no_rank = || Error::operand("RankPlan", "rank", format!("below {}", layout.ranks()), rank);
        let config = of_tensor.ok_or_else(no_rank)?.config(whole)?;
        config.validate(dialect)?;
        let experts = layout.block(rank / layout.tensor, config.num_experts());
        let experts_per_token = experts_per_token(&config, dialect)?;
        Ok(RankPlan { layout: Some(layout), config, dialect, settings, experts, experts_per_token })
    }

    /// Every tensor that loading it puts on the device, and its shape there.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let &RankPlan { ref config, dialect, .. } = self;
        let is_here = |name: &str| expert(name).is_none_or(|expert| self.experts.contains(&expert));
        let mut weights = config.weight_shapes(Head::CausalLm, dialect);
        weights.retain(|(name, _)| is_here(name));
        // A query without a bias beside a latent with one has zeros.
        if config.q_lora_rank.is_none() && config.attention_bias {
            let query = config.num_attention_heads * config.qk_head_dim();
            let of_layer = |layer| format!("{}.self_attn.q_proj.bias", dsv2_reference::stage::layer_path(layer));
            weights.extend((0..config.num_hidden_layers).map(|layer| (of_layer(layer), vec![query])));
        }
        weights
    }

    /// The bytes of a cache with all its pages. The size of a page is not zero.
    pub fn cache(&self, cache: CacheSize) -> usize {
        cache_bytes(&self.config, self.settings.element, cache)
    }

    /// What a pass takes at most, over the sequences that are at home on this device.
    pub fn pass(&self, cache: CacheSize, pass: &Pass) -> PassSize {
        let &RankPlan { ref config, dialect, settings, experts_per_token, .. } = self;
        let of_pass = Workspace { config, dialect, head: Head::CausalLm, settings, cache, pass, experts_per_token };
        match self.layout {
            None => of_pass.size(of_pass.experts()),
            Some(layout) => {
                let spread = Spread::new(&of_pass, layout, self.experts.len());
                PassSize { sent: spread.sent(), ..of_pass.size(spread.bytes()) }
            }
        }
    }

    /// What [`generate`](crate::model::head::CausalLm::generate) has for a step of all sequences up to the end of the cache, where
    /// steps are captured: on a device that has all of the model.
    ///
    /// # Errors
    /// If the config is impossible.
    pub fn captured_step(&self, cache: CacheSize) -> Result<Option<usize>> {
        let &RankPlan { ref config, dialect, settings, .. } = self;
        if self.layout.is_some() || !decode::can_be_captured(config, dialect, settings)? {
            return Ok(None);
        }
        let pages = cache.tokens.div_ceil(cache.page_size);
        let (batch, capacity) = (cache.batch, pages.saturating_mul(cache.page_size));
        let sizes = Sizes { config, dialect, element: settings.element, batch, capacity };
        decode::bytes(sizes, pages, false, 0).map(Some)
    }
}

/// k, or nothing where no layer has experts.
pub(super) fn experts_per_token(config: &DeepseekV2Config, dialect: Dialect) -> Result<usize> {
    Ok(if config.has_moe_layers(dialect) { config.experts_per_token()? } else { 0 })
}

/// The number of the expert that a tensor belongs to, if it is a routed one's.
fn expert(name: &str) -> Option<usize> {
    name.split_once(".mlp.experts.")?.1.split('.').next()?.parse().ok()
}

/// A layer whose experts are on several ranks.
struct Spread<'a> {
    pass: &'a Workspace<'a>,
    layout: Layout,
    /// Experts here.
    each: usize,
    /// Tokens that are at home here, and all that may come.
    own: usize,
    coming: usize,
}

impl<'a> Spread<'a> {
    fn new(pass: &'a Workspace<'a>, layout: Layout, each: usize) -> Self {
        let rows = pass.rows();
        let (own, coming) = match layout.homes {
            Homes::Every => (rows.div_ceil(layout.experts), rows),
            Homes::Own => (rows, rows.saturating_mul(layout.experts)),
        };
        Spread { pass, layout, each, own, coming }
    }

    /// D numbers for each of so many rows.
    fn hidden(&self, rows: &[usize]) -> usize {
        rows.iter().fold(self.pass.real(&[self.pass.config.hidden_size]), |bytes, rows| bytes.saturating_mul(*rows))
    }

    /// How many copies of its tokens a rank sends.
    fn copies(&self) -> usize {
        self.own.saturating_mul(self.pass.experts_per_token.min(self.layout.experts))
    }

    /// Of each token that comes, so many experts may be here.
    fn here(&self) -> usize {
        self.pass.experts_per_token.min(self.each)
    }

    /// Tokens that go and come; results that go back and come home.
    fn sent(&self) -> usize {
        let k = self.pass.experts_per_token;
        let parts = [vec![self.copies()], vec![self.coming], vec![self.coming, self.here()], vec![self.own, k]];
        sum(parts.map(|rows| self.hidden(&rows)))
    }

    /// `MixtureOfExperts::forward_spread`: routing; then the results of all experts, or, with those at home, the shared experts
    /// and the sum.
    fn bytes(&self) -> usize {
        let &Spread { pass, layout, each, own, .. } = self;
        let (rows, config, k) = (pass.rows(), pass.config, pass.experts_per_token);
        let routing = sum([wide(&[rows, config.num_experts()]), wide(&[rows, 2 * k])]);
        let home = sum([self.hidden(&[own, k]), wide(&[own, k])]);
        let width = config.shared_width();
        let (shared, result) = match config.n_shared_experts {
            None => (0, 0),
            Some(_) if !config.mlp_bias && pass.settings.products == Products::Ours => {
                // As rows of no routed expert. A tensor of nothing takes a byte.
                (sum([pass.real(&[own, width]), self.hidden(&[own]), wide(&[each + 1]), 4]), self.hidden(&[own]))
            }
            Some(_) => (sum([pass.real(&[own, 2 * width]), self.hidden(&[own])]), self.hidden(&[own])),
        };
        let gathered = if layout.homes == Homes::Every && layout.experts > 1 { rows } else { 0 };
        let outputs = sum([result, self.hidden(&[own]), self.hidden(&[gathered])]);
        sum([routing, sum([home, shared.max(outputs)]).max(self.results())])
    }

    /// `MixtureOfExperts::results`: what is sent and what comes, what the experts here make of it, and what goes back.
    fn results(&self) -> usize {
        let &Spread { pass, layout, each, own, coming } = self;
        let (k, copies) = (pass.experts_per_token, self.copies());
        let numbers = sum([wide(&[2, layout.experts]), wide(&[copies, k]), wide(&[coming, k])]);
        let tokens = sum([self.hidden(&[copies]), self.hidden(&[coming])]);
        let made = self.hidden(&[coming, self.here()]);
        let inner = pass.real(&[coming, self.here(), pass.config.moe_intermediate_size]);
        let making = sum([wide(&[each + 1]), wide(&[2, coming, k]), inner]);
        let places = wide(&[coming, self.here()]).max(sum([self.hidden(&[own, k]), wide(&[own, k])]));
        let back = sum([self.hidden(&[coming, self.here()]), places]);
        sum([numbers, tokens, made, making.max(back)])
    }
}

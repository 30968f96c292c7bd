//! Feed-forward networks on the device (paper 2.2, eq. 20 to 22): the gated MLP, and the mixture of experts.
//!
//! Tokens visit their experts sorted by expert, so that one launch serves all of them:
//!
//! ```text
//! logits = W_gate u            fp32
//! experts, weights = route(logits)                                (21, 22)
//! order = the pairs (token, j), sorted by expert
//! h = silu(W_g u) * (W_u u)    one row for each pair, gathered through `order`
//! y = W_d h
//! experts = sum_j weight_j y_j                                    (20)
//! ```
//!
//! The shared experts are one more expert, as wide as all of them, which every token visits.

mod spread;
mod step;

use std::str::FromStr;
use std::sync::Arc;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::stage::layer_path;
use dsv2_reference::{Activation, DeepseekV2Config, Dialect};

use super::linear::Linear;
use super::parallel::Share;
use super::tap::Scope;
use super::weights::Loader;
use super::{Products, Settings};
use crate::operators::combine::combine;
use crate::operators::dispatch::sort_by_expert;
use crate::operators::experts::{down, gate_up};
use crate::operators::router::{RoutingRule, reweigh, route, router_logits};
use crate::operators::swiglu::{add, gated};
use crate::{Element, Error, Result, Tensor, Variant};
pub(super) use step::FeedForwardRoom;

#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Box<Mlp>),
    Experts(Box<MixtureOfExperts>),
}

/// `down(act(gate x) * up x)`.
#[derive(Debug)]
pub(super) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
    path: String,
    /// What a rank has of the columns, if there are several and what it makes of them is to be summed here.
    share: Option<Arc<Share>>,
}

#[derive(Debug)]
pub(super) struct MixtureOfExperts {
    /// \[E,D\]
    gate: Tensor,
    rule: RoutingRule,
    /// \[E,2I,D\]: gate rows, then up rows.
    gate_up: Tensor,
    /// \[E,D,I\]
    down: Tensor,
    shared_experts: Option<SharedExperts>,
    activation: Activation,
    path: String,
    /// What a rank has of the experts, if there are several.
    share: Option<Arc<Share>>,
}

#[derive(Debug)]
enum SharedExperts {
    /// In the launches of the others.
    Expert {
        /// \[2I',D\]: gate rows, then up rows.
        gate_up: Tensor,
        /// \[D,I'\]
        down: Tensor,
    },
    /// With biases, or by a library of products.
    Mlp(Box<Mlp>),
}

impl FeedForward {
    pub(super) fn load(loader: &mut Loader, layer: usize) -> Result<Self> {
        let &mut Loader { config, dialect, .. } = loader;
        let path = format!("{}.mlp", layer_path(layer));
        if !config.is_moe_layer(layer, dialect) {
            let mlp = Mlp::load(loader, &path, config.intermediate_size)?;
            return Ok(FeedForward::Dense(Box::new(Mlp { share: loader.share.clone(), ..mlp })));
        }
        let share = loader.share.clone();
        let (experts, hidden, width) = (config.num_experts(), config.hidden_size, config.moe_intermediate_size);
        let here = share.as_ref().map_or(0..experts, |share| share.experts_of(experts));
        Ok(FeedForward::Experts(Box::new(MixtureOfExperts {
            gate: loader.load(&format!("{path}.gate.weight"), &[experts, hidden])?,
            rule: rule(config, dialect)?,
            gate_up: loader.experts(&path, here.clone(), &["gate_proj", "up_proj"], [width, hidden])?,
            down: loader.experts(&path, here, &["down_proj"], [hidden, width])?,
            shared_experts: match config.n_shared_experts {
                None => None,
                Some(_) => Some(SharedExperts::load(loader, &format!("{path}.shared_experts"))?),
            },
            activation: activation(config)?,
            path,
            share,
        })))
    }

    /// \[N,D\] -> \[N,D\].
    pub(super) fn forward(
        &self,
        normed: &Tensor,
        [batch, new]: [usize; 2],
        settings: Settings,
        tap: &mut Scope,
    ) -> Result<Tensor> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(normed, Some([batch, new]), settings, tap),
            FeedForward::Experts(experts) => experts.forward(normed, [batch, new], settings, tap),
        }
    }
}

/// Which experts a token visits, and with what weight.
fn rule(config: &DeepseekV2Config, dialect: Dialect) -> Result<RoutingRule> {
    let (experts, k) = (config.num_experts(), config.experts_per_token()?);
    let rule = match config.topk_method()? {
        TopkMethod::Greedy => RoutingRule::greedy(experts, k)?,
        TopkMethod::GroupLimitedGreedy { n_group, topk_group } => {
            RoutingRule::group_limited(experts, n_group, topk_group, k)?
        }
    };
    let rule = rule.scaled_by(config.routed_scaling_factor as f32);
    Ok(if config.norm_topk_prob && dialect.honours_norm_topk_prob() { rule.normalised() } else { rule })
}

fn activation(config: &DeepseekV2Config) -> Result<Activation> {
    let unknown = |_| Error::operand("load", "hidden_act", "an activation of Transformers", &config.hidden_act);
    Activation::from_str(&config.hidden_act).map_err(unknown)
}

impl Mlp {
    fn load(loader: &mut Loader, path: &str, width: usize) -> Result<Self> {
        let config = loader.config;
        let (hidden, bias) = (config.hidden_size, config.mlp_bias);
        Ok(Mlp {
            gate_proj: Linear::load(loader, &format!("{path}.gate_proj"), width, hidden, bias)?,
            up_proj: Linear::load(loader, &format!("{path}.up_proj"), width, hidden, bias)?,
            down_proj: Linear::load(loader, &format!("{path}.down_proj"), hidden, width, bias)?,
            activation: activation(config)?,
            path: path.to_owned(),
            share: None,
        })
    }

    /// \[N,D\] -> \[N,D\]. The projections of a dense layer are stages; those of the shared experts are not.
    fn forward(&self, x: &Tensor, stages: Option<[usize; 2]>, settings: Settings, tap: &mut Scope) -> Result<Tensor> {
        let mut show = |name: &str, value: &Tensor| match stages {
            Some([batch, new]) => tap.show(name, || value.reshape(&[batch, new, value.shape()[1]])),
            None => Ok(false),
        };
        let gate = self.gate_proj.forward(settings, x)?;
        show("gate_proj", &gate)?;
        let up = self.up_proj.forward(settings, x)?;
        show("up_proj", &up)?;
        gated(settings.variant, self.activation, &gate, &up, &gate)?;
        let down = self.down_proj.forward(settings, &gate)?;
        if let Some(share) = &self.share {
            share.sum(&self.path, &down)?;
        }
        show("down_proj", &down)?;
        Ok(down)
    }
}

impl SharedExperts {
    fn load(loader: &mut Loader, path: &str) -> Result<Self> {
        let &mut Loader { config, device, settings, .. } = loader;
        let (width, hidden) = (config.shared_width(), config.hidden_size);
        if config.mlp_bias || settings.products == Products::Library {
            return Ok(SharedExperts::Mlp(Box::new(Mlp::load(loader, path, width)?)));
        }
        let gate_up = Tensor::empty(device, settings.element, &[2 * width, hidden])?;
        for (part, name) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let place = gate_up.narrow(0, part * width..(part + 1) * width)?;
            loader.load_into(&format!("{path}.{name}.weight"), &[width, hidden], &place)?;
        }
        let down = loader.load(&format!("{path}.down_proj.weight"), &[hidden, width])?;
        Ok(SharedExperts::Expert { gate_up, down })
    }
}

impl MixtureOfExperts {
    fn forward(&self, x: &Tensor, [batch, new]: [usize; 2], settings: Settings, tap: &mut Scope) -> Result<Tensor> {
        let Settings { element, variant, .. } = settings;
        let device = x.device();
        let (tokens, hidden) = (x.shape()[0], x.shape()[1]);
        let (experts, k) = (self.gate.shape()[0], self.rule.num_experts_per_tok());
        let of = |element, shape: &[usize]| Tensor::empty(device, element, shape);

        let mut gate = tap.child("gate");
        let logits = of(Element::F32, &[tokens, experts])?;
        router_logits(variant, x, &self.gate, &logits)?;
        gate.show("router_logits", || Ok(logits.clone()))?;
        let (indices, weights) = (of(Element::I32, &[tokens, k])?, of(Element::F32, &[tokens, k])?);
        route(variant, &logits, &self.rule, &indices, &weights)?;
        if gate.show("topk_indices", || Ok(indices.clone()))? {
            check_indices(&indices, experts)?;
            reweigh(&logits, &self.rule, &indices, &weights)?;
        }
        gate.show("topk_weights", || Ok(weights.clone()))?;
        if let Some(share) = &self.share {
            return self.forward_spread(share, [x, &indices, &weights], [batch, new], settings, tap);
        }

        let (offsets, order) = (of(Element::I32, &[experts + 1])?, of(Element::I32, &[tokens * k])?);
        let places = of(Element::I32, &[tokens * k])?;
        sort_by_expert(variant, &indices, experts, &offsets, &order, &places)?;
        let width = self.down.shape()[2];
        let (h, y) = (of(element, &[tokens * k, width])?, of(element, &[tokens * k, hidden])?);
        let shared = match &self.shared_experts {
            Some(SharedExperts::Expert { down, .. }) => {
                Some((of(element, &[tokens, down.shape()[1]])?, of(element, &[tokens, hidden])?))
            }
            _ => None,
        };
        self.visit(variant, x, [&offsets, &order], k, [&h, &y], shared.as_ref())?;
        let shared = match &self.shared_experts {
            Some(SharedExperts::Mlp(mlp)) => Some(mlp.forward(x, None, settings, tap)?),
            _ => shared.map(|(_, y)| y),
        };
        let output = of(element, &[tokens, hidden])?;
        combine(variant, &y, &places, &weights, shared.as_ref(), &output)?;
        // The sum over the routed experts alone is a stage, but no tensor of its own unless somebody looks at it.
        let mut changed = false;
        let mut routed = None;
        if tap.wants("experts") {
            let alone = of(element, &[tokens, hidden])?;
            combine(variant, &y, &places, &weights, None, &alone)?;
            changed |= tap.show("experts", || Ok(alone.clone()))?;
            routed = Some(alone);
        }
        if let Some(shared) = &shared {
            changed |= tap.show("shared_experts", || shared.reshape(&[batch, new, hidden]))?;
        }
        match (&routed, &shared) {
            _ if !changed => (),
            (Some(routed), Some(shared)) => add(variant, routed, shared, &output)?,
            (Some(routed), None) => {
                output.device().copy(routed.address(), output.address(), routed.len() * element.bytes())?;
            }
            (None, _) => {
                let expected = "a look at `experts` as well, to be put together anew";
                return Err(Error::operand("tap", "shared_experts", expected, "none"));
            }
        }
        tap.show("", || output.reshape(&[batch, new, hidden]))?;
        Ok(output)
    }

    /// h = silu(W_g u) * (W_u u) and y = W_d h, a row for each place of `order`; and, where there is room for them, those of the
    /// shared experts in the same launches: what they made.
    fn visit<'a>(
        &self,
        variant: Variant,
        x: &Tensor,
        [offsets, order]: [&Tensor; 2],
        k: usize,
        [h, y]: [&Tensor; 2],
        shared: Option<&'a (Tensor, Tensor)>,
    ) -> Result<Option<&'a Tensor>> {
        let shared = match (&self.shared_experts, shared) {
            (Some(SharedExperts::Expert { gate_up, down }), Some((h, y))) => Some((gate_up, h, down, y)),
            _ => None,
        };
        let of_gate_up = shared.map(|(weight, h, ..)| [weight, h]);
        gate_up(variant, self.activation, x, &self.gate_up, offsets, order, k, h, of_gate_up)?;
        down(variant, h, &self.down, offsets, y, shared.map(|(_, h, weight, y)| [h, weight, y]))?;
        Ok(shared.map(|(.., y)| y))
    }
}

/// A tap may choose other experts, but not ones that do not exist.
fn check_indices(indices: &Tensor, experts: usize) -> Result<()> {
    match indices.to_i32()?.into_iter().find(|expert| !(0..experts as i32).contains(expert)) {
        None => Ok(()),
        Some(bad) => Err(Error::operand("tap", "topk_indices", format!("experts 0 to {}", experts - 1), bad)),
    }
}

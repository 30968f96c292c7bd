//! Feed-forward networks: the gated MLP, and DeepSeekMoE's mixture of it (paper 2.2.1, eq. 20).
//!
//! ```text
//! FFN(x)  = W_down (act(W_gate x) * (W_up x))
//! h'_t    = sum_{shared} FFN^(s)(u_t) + sum_i g_{i,t} FFN^(r)_i(u_t)          (20, without the residual)
//! ```
//!
//! The shared experts are stored as one MLP of `n_shared_experts` times the width, which is the same sum.
//!
//! | | D | dense MLP (layer 0) | routed experts | shared experts |
//! |---|---|---|---|---|
//! | V2 | 5120 | 12288 | 160 of width 1536, 6 a token | 2, as one MLP of 3072 |
//! | V2-Lite | 2048 | 10944 | 64 of width 1408, 6 a token | 2, as one MLP of 2816 |
//!
//! **Trap.** `routed_scaling_factor` applies to the routed experts only. `mlp_bias` puts a bias on the dense MLP and on
//! the shared experts, never on routed ones.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use crate::arithmetic::activation::Activation;
use crate::arithmetic::map::{pair_by_pair, row_by_row};
use crate::arithmetic::shares;
use crate::model::linear::Linear;
use crate::model::router::{DROPPED, DeepseekV2TopkRouter, Router, Routing};
use crate::tap::{NoTap, Scope};
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// `down_proj(act(gate_proj(x)) * up_proj(x))`: the dense MLP, the shared experts, and each routed expert.
#[derive(Debug)]
pub struct DeepseekV2Mlp<T> {
    gate_proj: Linear<T>,
    up_proj: Linear<T>,
    down_proj: Linear<T>,
    act: Activation,
}

impl<T: Real> DeepseekV2Mlp<T> {
    /// Takes `{path}.{gate,up,down}_proj.weight` (and `.bias`) from `weights`; I = `width`.
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or the activation is unknown.
    pub fn load(
        config: &DeepseekV2Config,
        path: &str,
        width: usize,
        bias: bool,
        weights: &dyn WeightSource,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let linear = |name: &str, rows, columns| Linear::load(weights, &format!("{path}.{name}"), rows, columns, bias);
        Ok(DeepseekV2Mlp {
            gate_proj: linear("gate_proj", width, hidden)?,
            up_proj: linear("up_proj", width, hidden)?,
            down_proj: linear("down_proj", hidden, width)?,
            act: config.activation()?,
        })
    }

    /// \[N,D\] -> \[N,D\].
    pub fn forward(&self, x: ArrayView2<T>) -> Array2<T> {
        let gated = self.gated(self.gate_proj.forward(x), &self.up_proj.forward(x));
        self.down_proj.forward(gated.view())
    }

    /// \[B,S,D\] -> \[B,S,D\], the three projections shown to the tap (a dense layer's `mlp`).
    pub(crate) fn forward_with_stages(&self, x: ArrayView3<T>, tap: &mut Scope<T>) -> Array3<T> {
        let mut gate = self.gate_proj.forward_3d(x);
        tap.real("gate_proj", &mut gate);
        let mut up = self.up_proj.forward_3d(x);
        tap.real("up_proj", &mut up);
        let gated = self.gated(gate, &up);
        let mut down = self.down_proj.forward_3d(gated.view());
        tap.real("down_proj", &mut down);
        down
    }

    /// How many products a token takes.
    fn products(&self) -> usize {
        3 * self.down_proj.in_features() * self.down_proj.out_features()
    }

    fn gated<D: ndarray::Dimension>(
        &self,
        mut gate: ndarray::Array<T, D>,
        up: &ndarray::Array<T, D>,
    ) -> ndarray::Array<T, D> {
        pair_by_pair(&mut gate, up, |gate, &up| *gate = self.act.apply(*gate) * up);
        gate
    }
}

/// A mixture-of-experts layer.
#[derive(Debug)]
pub struct DeepseekV2Moe<T> {
    gate: Box<dyn Router<T>>,
    experts: Vec<DeepseekV2Mlp<T>>,
    shared_experts: Option<DeepseekV2Mlp<T>>,
    hidden_size: usize,
}

impl<T: Real> DeepseekV2Moe<T> {
    /// Takes `{path}.gate.weight`, `{path}.experts.{e}.*` and `{path}.shared_experts.*` from `weights`.
    ///
    /// # Errors
    /// If a weight is missing or of another shape.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, path: &str, weights: &dyn WeightSource) -> Result<Self> {
        let gate = DeepseekV2TopkRouter::load(config, dialect, &format!("{path}.gate"), weights)?;
        DeepseekV2Moe::with_gate(config, Box::new(gate), path, weights)
    }

    /// The same behind any router.
    ///
    /// # Errors
    /// If a weight is missing or of another shape.
    pub fn with_gate(
        config: &DeepseekV2Config,
        gate: Box<dyn Router<T>>,
        path: &str,
        weights: &dyn WeightSource,
    ) -> Result<Self> {
        let expert = |e| {
            DeepseekV2Mlp::load(config, &format!("{path}.experts.{e}"), config.moe_intermediate_size, false, weights)
        };
        let shared = format!("{path}.shared_experts");
        Ok(DeepseekV2Moe {
            gate,
            experts: (0..config.num_experts()).map(expert).collect::<Result<_>>()?,
            shared_experts: match config.n_shared_experts {
                None => None,
                Some(_) => Some(DeepseekV2Mlp::load(config, &shared, config.shared_width(), config.mlp_bias, weights)?),
            },
            hidden_size: config.hidden_size,
        })
    }

    /// Where each of N tokens goes: \[N,D\].
    ///
    /// # Errors
    /// If the tokens have another width than the layer, or the router refuses its logits.
    pub fn route(&self, tokens: ArrayView2<T>) -> Result<Routing<T>> {
        self.check_width(tokens.ncols())?;
        self.gate.route(tokens, &mut Scope::root(&mut NoTap))
    }

    fn check_width(&self, width: usize) -> Result<()> {
        if width == self.hidden_size {
            return Ok(());
        }
        Err(Error::input("hidden_states", format!("{} numbers for each token", self.hidden_size), width))
    }

    /// The routed experts.
    pub fn experts(&self) -> &[DeepseekV2Mlp<T>] {
        &self.experts
    }

    /// The shared experts, as one MLP.
    pub fn shared_experts(&self) -> Option<&DeepseekV2Mlp<T>> {
        self.shared_experts.as_ref()
    }

    /// \[B,S,D\] -> \[B,S,D\], and the router's logits \[B S,E\].
    ///
    /// # Errors
    /// As [`DeepseekV2Moe::route`].
    pub fn forward(&self, hidden: ArrayView3<T>, tap: &mut Scope<T>) -> Result<(Array3<T>, Array2<T>)> {
        let (batch, length, width) = hidden.dim();
        self.check_width(width)?;
        let tokens = hidden.to_shape((batch * length, width)).expect("a row for each token");
        let routing = self.gate.route(tokens.view(), &mut tap.child("gate"))?;
        let mut routed = self.routed(tokens.view(), &routing)?;
        tap.real("experts", &mut routed);
        let mut output = routed.into_shape_with_order((batch, length, width)).expect("a row for each token");
        if let Some(shared_experts) = &self.shared_experts {
            let mut shared = row_by_row(hidden, |tokens| shared_experts.forward(tokens));
            tap.real("shared_experts", &mut shared);
            output += &shared;
        }
        tap.real("", &mut output);
        Ok((output, routing.router_logits))
    }

    /// sum_i g_{i,t} FFN_i(u_t): each expert sees all tokens that selected it at once; the sum over experts is in
    /// order of the expert's index, whatever the number of threads. \[N,D\] -> \[N,D\].
    ///
    /// # Errors
    /// If `routing` is not of these tokens and experts.
    pub fn routed(&self, tokens: ArrayView2<T>, routing: &Routing<T>) -> Result<Array2<T>> {
        self.check_width(tokens.ncols())?;
        check_routing(routing, tokens.nrows(), self.experts.len())?;
        let of_experts: Vec<_> =
            routing.tokens_of_experts().into_iter().enumerate().filter(|(_, of)| !of.is_empty()).collect();
        let rows = routing.topk_indices.len() / of_experts.len().max(1);
        let each = rows.max(1) * self.experts.first().map_or(0, DeepseekV2Mlp::products);
        let outputs: Vec<Array2<T>> = of_experts
            .par_iter()
            .with_min_len(shares::least(each))
            .map(|(expert, of)| {
                let rows: Vec<usize> = of.iter().map(|(token, _)| *token).collect();
                self.experts[*expert].forward(tokens.select(Axis(0), &rows).view())
            })
            .collect();
        let mut sum = Array2::zeros(tokens.dim());
        for ((_, of), output) in of_experts.iter().zip(&outputs) {
            for ((token, weight), y) in of.iter().zip(output.rows()) {
                sum.row_mut(*token).scaled_add(*weight, &y);
            }
        }
        Ok(sum)
    }
}

/// Refuses a routing (anybody may make one) of other tokens or to experts that do not exist.
pub(crate) fn check_routing<T: Real>(routing: &Routing<T>, tokens: usize, experts: usize) -> Result<()> {
    let Routing { router_logits, topk_indices, topk_weights } = routing;
    if router_logits.dim() != (tokens, experts) || topk_indices.nrows() != tokens {
        let found = format!("logits {:?} and indices {:?}", router_logits.shape(), topk_indices.shape());
        return Err(Error::input("routing", format!("logits [{tokens}, {experts}] and indices [{tokens}, k]"), found));
    }
    if topk_weights.dim() != topk_indices.dim() {
        let found = format!("{:?}", topk_weights.shape());
        return Err(Error::input("topk_weights", format!("{:?}, as the indices", topk_indices.shape()), found));
    }
    match topk_indices.iter().find(|&&expert| !(DROPPED..experts as i64).contains(&expert)) {
        None => Ok(()),
        Some(bad) => Err(Error::input("topk_indices", format!("experts below {experts}"), bad)),
    }
}

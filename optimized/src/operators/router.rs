//! The router: logits, then which experts a token goes to and with what weight (paper 2.2.1 and 2.2.2, eq. 20 to 22).
//!
//! ```text
//! z_i = u . e_i                                   router_logits: fp32, whatever the types
//! s_i = softmax(z)_i                              route                                     (22)
//! g_i = s_i * routed_scaling_factor if s_i is among the k best, else 0                      (21)
//! ```
//!
//! With groups, only the experts of the `topk_group` groups whose *best* expert is best are candidates. Of equal scores
//! and of equal groups the lower index wins.

use ptx_emulator::{Arg, Grid};

use super::gemm::linear;
use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// As many experts as a warp can rank.
const MOST_EXPERTS: usize = 1024;

/// Tokens and experts of a block of `router_logits_tuned`.
const BLOCK: [usize; 2] = [8, 4];

/// The logits of all experts: x \[N,D\] (rows may be apart), weight \[E,D\] -> logits \[N,E\] in fp32.
///
/// The weight is of the type of x, or fp32. Both are widened: products and sums are fp32. Where the types are one, the tuned
/// kernel is [`linear`]'s, to the bit.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn router_logits(variant: Variant, x: &Tensor, weight: &Tensor, logits: &Tensor) -> Result<()> {
    let operator = "router_logits";
    let [tokens, width] = Operand::new(operator, "x", x).real()?.contiguous_rows()?.axes()?;
    let [experts, _] = Operand::new(operator, "weight", weight).contiguous()?.axes()?;
    let weights = Operand::new(operator, "weight", weight).shape(&[experts, width])?;
    if weight.element() != Element::F32 {
        weights.element(x.element())?;
    }
    Operand::new(operator, "logits", logits).element(Element::F32)?.shape(&[tokens, experts])?.contiguous()?;
    if variant == Variant::Tuned && x.element() == weight.element() {
        return linear(variant, x, weight, None, logits);
    }
    if logits.is_empty() {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((tokens * experts).div_ceil(128) as u32, 128),
        Variant::Tuned => Grid {
            blocks: [experts.div_ceil(BLOCK[1]) as u32, tokens.div_ceil(BLOCK[0]) as u32, 1],
            threads: [256, 1, 1],
            shared: 0,
        },
    };
    let args = Arguments::default().strided(x, 1).tensors([weight, logits]).sizes([tokens, width, experts]);
    let types = match (x.element(), weight.element()) {
        (x, weight) if x == weight => x.to_string(),
        (x, weight) => format!("{x}_{weight}"),
    };
    args.launch(x, "router", format!("{operator}_{variant}_{types}"), grid)
}

/// Which experts are selected, and what their weights are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingRule {
    experts: usize,
    n_group: usize,
    topk_group: usize,
    num_experts_per_tok: usize,
    routed_scaling_factor: f32,
    norm_topk_prob: bool,
}

impl RoutingRule {
    /// `num_experts_per_tok` of all `experts`; the weights are the scores.
    ///
    /// # Errors
    /// If there are not as many experts, or more than 1024.
    pub fn greedy(experts: usize, num_experts_per_tok: usize) -> Result<Self> {
        RoutingRule::group_limited(experts, 1, 1, num_experts_per_tok)
    }

    /// `num_experts_per_tok` of the experts in the `topk_group` best of `n_group` groups; the weights are the scores.
    ///
    /// # Errors
    /// If there are more than 1024 experts, the groups do not divide them, or those that are kept hold too few.
    pub fn group_limited(
        experts: usize,
        n_group: usize,
        topk_group: usize,
        num_experts_per_tok: usize,
    ) -> Result<Self> {
        let wrong = |number, expected: String, found| Err(Error::operand("RoutingRule", number, expected, found));
        if !(1..=MOST_EXPERTS).contains(&experts) {
            return wrong("experts", format!("1 to {MOST_EXPERTS}"), experts);
        }
        if n_group == 0 || !experts.is_multiple_of(n_group) {
            return wrong("n_group", format!("a divisor of the number of experts, {experts}"), n_group);
        }
        if !(1..=n_group).contains(&topk_group) {
            return wrong("topk_group", format!("1 to {n_group}"), topk_group);
        }
        let selectable = experts / n_group * topk_group;
        if num_experts_per_tok > selectable {
            let expected = format!("at most {selectable}, the experts of {topk_group} groups");
            return wrong("num_experts_per_tok", expected, num_experts_per_tok);
        }
        let (routed_scaling_factor, norm_topk_prob) = (1.0, false);
        Ok(RoutingRule { experts, n_group, topk_group, num_experts_per_tok, routed_scaling_factor, norm_topk_prob })
    }

    /// With weights that are multiplied by `routed_scaling_factor`.
    #[must_use]
    pub fn scaled_by(self, routed_scaling_factor: f32) -> Self {
        RoutingRule { routed_scaling_factor, ..self }
    }

    /// With weights that are divided by their sum instead, if there is more than one (`norm_topk_prob` in DeepSeek's
    /// own code).
    #[must_use]
    pub fn normalised(self) -> Self {
        RoutingRule { norm_topk_prob: true, ..self }
    }

    /// E: how many experts there are.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// k: how many are selected for each token.
    pub fn num_experts_per_tok(&self) -> usize {
        self.num_experts_per_tok
    }

    /// Groups of experts.
    pub(super) fn groups(&self) -> usize {
        self.n_group
    }

    /// Checked, as the first arguments of a kernel.
    pub(super) fn operands(
        &self,
        operator: &'static str,
        logits: &Tensor,
        indices: &Tensor,
        weights: &Tensor,
    ) -> Result<Arguments> {
        let [tokens, _] = Operand::new(operator, "logits", logits).element(Element::F32)?.contiguous()?.axes()?;
        Operand::new(operator, "logits", logits).shape(&[tokens, self.experts])?;
        let selected = [tokens, self.num_experts_per_tok];
        Operand::new(operator, "indices", indices).element(Element::I32)?.shape(&selected)?.contiguous()?;
        Operand::new(operator, "weights", weights).element(Element::F32)?.shape(&selected)?.contiguous()?;
        Ok(Arguments::default().tensors([logits, indices, weights]))
    }

    /// `struct Rule` of `route.cu`.
    pub(super) fn arg(&self) -> Arg {
        let RoutingRule { experts, n_group, topk_group, num_experts_per_tok, .. } = *self;
        let mut bytes: Vec<u8> = [experts, n_group, topk_group, num_experts_per_tok]
            .iter()
            .flat_map(|n| (*n as i32).to_le_bytes())
            .collect();
        bytes.extend(self.routed_scaling_factor.to_le_bytes());
        bytes.extend(i32::from(self.norm_topk_prob).to_le_bytes());
        Arg::bytes(&bytes)
    }
}

/// Selects experts: logits \[N,E\] in fp32 -> indices \[N,k\], weights \[N,k\] in fp32, by falling score, equal scores
/// by rising index.
///
/// A logit that is NaN or plus infinity makes all weights of its token NaN, and its experts the first ones. Minus
/// infinity is a score of 0.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn route(variant: Variant, logits: &Tensor, rule: &RoutingRule, indices: &Tensor, weights: &Tensor) -> Result<()> {
    let per_block = if variant == Variant::Naive { 128 } else { 4 };
    launch("route", format!("route_{variant}_f32"), per_block, logits, rule, indices, weights)
}

/// The weights of experts that were chosen otherwise: logits \[N,E\] f32, indices \[N,k\] -> weights \[N,k\] f32, by the same
/// rule. For comparing with another implementation's choice.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails. An index that is no expert's is a fault of the caller.
pub fn reweigh(logits: &Tensor, rule: &RoutingRule, indices: &Tensor, weights: &Tensor) -> Result<()> {
    launch("reweigh", "reweigh_f32".into(), 128, logits, rule, indices, weights)
}

/// Launches a kernel that makes weights of logits, `per_block` tokens for each block of 128 threads.
fn launch(
    operator: &'static str,
    entry: String,
    per_block: usize,
    logits: &Tensor,
    rule: &RoutingRule,
    indices: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    let args = rule.operands(operator, logits, indices, weights)?;
    if indices.is_empty() {
        return Ok(());
    }
    let tokens = logits.shape()[0];
    args.sizes([tokens]).and(rule.arg()).launch(
        logits,
        "route",
        entry,
        Grid::linear(tokens.div_ceil(per_block) as u32, 128),
    )
}

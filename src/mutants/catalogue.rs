//! All mutants, module by module.

mod attention;
mod cache;
mod experts;
mod head;
mod mask;
mod norm;
mod precision;
mod rope;
mod router;
mod scale;
mod tables;
mod yarn;

use dsv2_reference::config::{RopeParameters, RopeType, TopkMethod};

use super::{Class, Mutant};
use crate::case::Case;
use crate::inputs::AttentionMask;

/// Every mutant, in the order of the forward pass, precision last.
pub fn catalogue() -> impl Iterator<Item = &'static Mutant> {
    let modules: [&'static [Mutant]; 11] = [
        head::INPUT,
        yarn::MUTANTS,
        rope::MUTANTS,
        norm::MUTANTS,
        attention::MUTANTS,
        scale::MUTANTS,
        mask::MUTANTS,
        cache::MUTANTS,
        router::MUTANTS,
        experts::MUTANTS,
        head::MUTANTS,
    ];
    modules.into_iter().flatten().chain(precision::MUTANTS)
}

const fn structural(id: &'static str, what: &'static str) -> Mutant {
    Mutant::new(Class::Structural, id, what)
}

const fn imprecise(id: &'static str, what: &'static str) -> Mutant {
    Mutant::new(Class::Precision, id, what)
}

const fn equivalent(id: &'static str, what: &'static str) -> Mutant {
    Mutant::new(Class::Equivalent, id, what)
}

// When a mutant applies.

fn rope(case: &Case) -> Option<RopeParameters> {
    case.config.rope().ok()
}

/// Whether the angles do not depend on how long the sequence has become.
fn fixed_rope(case: &Case) -> bool {
    rope(case).is_some_and(|rope| !rope.rope_type.depends_on_length())
}

fn yarn(case: &Case) -> bool {
    rope(case).is_some_and(|rope| rope.rope_type == RopeType::Yarn)
}

fn cached(case: &Case) -> bool {
    case.use_cache
}

fn chunked(case: &Case) -> bool {
    case.chunks.len() > 1
}

/// Whether there is more than one token for attention to tell apart.
fn several_tokens(case: &Case) -> bool {
    case.inputs.length() > 1
}

/// Whether the causal rule holds, and nothing but padding beside it.
fn causal(case: &Case) -> bool {
    several_tokens(case) && !matches!(case.inputs.attention_mask, Some(AttentionMask::Additive(_)))
}

fn low_rank_queries(case: &Case) -> bool {
    case.config.q_lora_rank.is_some()
}

fn several_heads(case: &Case) -> bool {
    case.config.num_attention_heads > 1
}

fn moe(case: &Case) -> bool {
    case.config.has_moe_layers(case.dialect) && case.config.experts_per_token().is_ok_and(|k| k > 0)
}

/// Whether a token goes to several experts, but not to all.
fn several_experts(case: &Case) -> bool {
    moe(case) && case.config.experts_per_token().is_ok_and(|k| k > 1)
}

fn some_experts(case: &Case) -> bool {
    moe(case) && case.config.experts_per_token().is_ok_and(|k| k < case.config.num_experts())
}

fn shared_experts(case: &Case) -> bool {
    case.config.has_moe_layers(case.dialect) && case.config.shared_width() > 0
}

/// Whether only some of the groups are kept.
fn grouped(case: &Case) -> bool {
    let method = case.config.topk_method();
    moe(case) && matches!(method, Ok(TopkMethod::GroupLimitedGreedy { n_group, topk_group }) if topk_group < n_group)
}

/// Whether the weights of experts are scaled, and not normalised.
fn scaled_experts(case: &Case) -> bool {
    moe(case) && plain_weights(case) && case.config.routed_scaling_factor != 1.0
}

fn plain_weights(case: &Case) -> bool {
    !(case.config.norm_topk_prob && case.dialect.honours_norm_topk_prob())
}

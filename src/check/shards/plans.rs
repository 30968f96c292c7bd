//! How the tensors of parallel runs are spread over their ranks: a table for each framework.
//!
//! A plan says what a forward hook on the module of that name holds on each rank. What a plan does not name is the same on all.

use std::str::FromStr;

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::convention::name::{GATE_UP_PROJ, other_name, unwrapped};
use dsv2_reference::stage::table::*;
use glob::Pattern;

use crate::error::{Error, Result};

/// How the ranks' tensors make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each rank has the whole: they must agree.
    Replicated,
    /// Each rank has some columns: they lie side by side along the last axis.
    Columns,
    /// Each rank has some heads, on an axis of their own.
    Heads,
    /// Each rank has a part of a sum: of the columns of its input, of the experts, of the vocabulary. After an all-reduce each
    /// rank has the whole, which shows in the numbers.
    Sum,
    /// Each rank has some tokens.
    Sequence,
}

impl How {
    const ALL: [(&str, How); 5] = [
        ("replicated", How::Replicated),
        ("columns", How::Columns),
        ("heads", How::Heads),
        ("sum", How::Sum),
        ("sequence", How::Sequence),
    ];
}

/// The plan of a framework.
#[derive(Debug)]
pub struct Plan {
    /// What it is called.
    pub name: &'static str,
    /// Where it is written down.
    pub source: &'static str,
    /// What is not the same on all ranks.
    pub kinds: &'static [(How, &'static [&'static str])],
}

/// What belongs to a rank's heads, wherever attention is split by heads: q_b_proj and kv_b_proj have whole heads as columns.
const HEADWISE: (How, &[&str]) = (How::Columns, &[Q_PROJ, Q_B_PROJ, KV_B_PROJ, ATTN_OUTPUT]);
const BY_HEAD: (How, &[&str]) = (How::Heads, &[Q_PE, ATTN_SCORES, ATTN_WEIGHTS]);

/// All plans.
pub const PLANS: &[Plan] = &[
    Plan {
        name: "transformers",
        source: "base_model_tp_plan of configuration_deepseek_v2.py and distributed/tensor_parallel.py (5.23): the outputs of \
                 rowwise layers and of the experts are reduced before a hook sees them, the logits gathered",
        kinds: &[HEADWISE, BY_HEAD, (How::Columns, &[GATE_PROJ, UP_PROJ, GATE_UP_PROJ])],
    },
    Plan {
        name: "vllm",
        source: "vllm/model_executor/models/deepseek_v2.py (002d6073): shared experts have reduce_results=False; whether the \
                 experts and the vocabulary are reduced before a hook sees them depends on the version",
        kinds: &[
            HEADWISE,
            BY_HEAD,
            (How::Columns, &[GATE_PROJ, UP_PROJ, GATE_UP_PROJ, LM_HEAD]),
            (How::Sum, &[EMBED_TOKENS, EXPERTS, SHARED_EXPERTS, MLP]),
        ],
    },
    Plan {
        name: "megatron",
        source: "megatron/core/transformer/multi_latent_attention.py (003b4ce2): down-projections are duplicated or split by \
                 columns and gathered; row-parallel layers reduce their own output",
        kinds: &[
            HEADWISE,
            BY_HEAD,
            (How::Columns, &[Q_A_PROJ, KV_A_PROJ, GATE_PROJ, UP_PROJ, GATE_UP_PROJ, LM_HEAD]),
            (How::Sum, &[EMBED_TOKENS, EXPERTS, SHARED_EXPERTS, MLP]),
        ],
    },
    Plan {
        name: "megatron-sequence",
        source: "the same with sequence_parallel: norms, the residual stream and the router have each rank's tokens",
        kinds: &[
            HEADWISE,
            BY_HEAD,
            (How::Columns, &[GATE_PROJ, UP_PROJ, GATE_UP_PROJ, LM_HEAD]),
            (
                How::Sequence,
                &[
                    EMBED_TOKENS,
                    INPUT_LAYERNORM,
                    Q_A_PROJ,
                    Q_A_LAYERNORM,
                    KV_A_PROJ,
                    KV_A_LAYERNORM,
                    O_PROJ,
                    POST_ATTENTION_LAYERNORM,
                    DOWN_PROJ,
                    ROUTER_LOGITS,
                    TOPK_INDICES,
                    TOPK_WEIGHTS,
                    EXPERTS,
                    SHARED_EXPERTS,
                    MLP,
                    LAYER,
                    NORM,
                ],
            ),
        ],
    },
];

/// How a dump is joined: by a plan, by patterns of names, or by a plan and patterns that overrule it.
#[derive(Clone, Debug)]
pub struct Rule {
    plan: Option<&'static Plan>,
    patterns: Vec<(Pattern, How)>,
}

impl Rule {
    /// How the ranks' tensors of this name make one.
    pub fn how(&self, name: &str) -> How {
        let overruled = self.patterns.iter().rev().find(|(pattern, _)| pattern.matches(name));
        let planned = || {
            let (kind, plan) = (kind(name)?, self.plan?);
            plan.kinds.iter().find(|(_, kinds)| kinds.contains(&kind)).map(|(how, _)| *how)
        };
        overruled.map(|(_, how)| *how).or_else(planned).unwrap_or(How::Replicated)
    }
}

/// The kind of stage that a tensor is or holds.
pub fn kind(name: &str) -> Option<&'static str> {
    let bare = unwrapped(name).map_or_else(|| name.to_owned(), |(bare, _)| bare);
    Stage::parse(&bare).map(|stage| stage.kind).or_else(|| match other_name(&bare)?.0.holds {
        [part] => Some(part.kind),
        [first, second] if [first.kind, second.kind].iter().all(|kind| [GATE_PROJ, UP_PROJ].contains(kind)) => {
            Some(GATE_UP_PROJ)
        }
        _ => None,
    })
}

impl FromStr for Rule {
    type Err = Error;

    /// A plan's name, `PATTERN=HOW`, or several of these with commas between them.
    fn from_str(text: &str) -> Result<Self> {
        let mut rule = Rule { plan: None, patterns: Vec::new() };
        for part in text.split(',').map(str::trim) {
            let names = |all: Vec<&str>| all.join(", ");
            let refused = || {
                let plans = names(PLANS.iter().map(|plan| plan.name).collect());
                let hows = names(How::ALL.iter().map(|(name, _)| *name).collect());
                Error::request("--shards", format!("{plans} or PATTERN=HOW (how: {hows})"), format!("{part:?}"))
            };
            match part.split_once('=') {
                Some((pattern, how)) => {
                    let how = How::ALL.iter().find(|(name, _)| *name == how).ok_or_else(refused)?.1;
                    rule.patterns.push((Pattern::new(pattern).map_err(|_| refused())?, how));
                }
                None => rule.plan = Some(PLANS.iter().find(|plan| plan.name == part).ok_or_else(refused)?),
            }
        }
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_overrules_the_plan_and_the_last_pattern_the_others() {
        let rule: Rule = "vllm,*.experts=replicated, model.layers.3.*=columns".parse().unwrap();
        assert_eq!(rule.how("model.layers.0.mlp.shared_experts"), How::Sum);
        assert_eq!(rule.how("model.layers.0.mlp.experts"), How::Replicated);
        assert_eq!(rule.how("model.layers.3.mlp.experts"), How::Columns);
        assert_eq!(rule.how("model.layers.0.mlp.gate_up_proj"), How::Columns);
        assert_eq!(rule.how("logits"), How::Columns);
        assert_eq!(rule.how("model.norm"), How::Replicated);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let refused = ["", "tensorrt", "vllm,tensor", "*.experts=added", "[=sum"];
        insta::assert_snapshot!(refused.map(|text| text.parse::<Rule>().unwrap_err().to_string()).join("\n"));
    }

    #[test]
    fn plans_name_each_kind_once_and_only_kinds_that_there_are() {
        for plan in PLANS {
            let kinds: Vec<_> = plan.kinds.iter().flat_map(|(_, kinds)| *kinds).collect();
            for (i, name) in kinds.iter().enumerate() {
                assert!(!kinds[..i].contains(name), "{}: {name}", plan.name);
                assert_eq!(kind(&dsv2_reference::stage::name(name, 0)), Some(**name), "{}", plan.name);
            }
        }
    }
}

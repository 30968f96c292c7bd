//! What a configuration may not be.

use super::rope_parameters::ORIGINAL;
use super::{DeepseekV2Config, read};
use crate::{Dialect, Error, Result};

/// `topk_method`: among which experts the k best are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopkMethod {
    /// `greedy`: among all.
    Greedy,
    /// `group_limited_greedy`: among the experts of the best groups, a group being as good as its best expert. Group g
    /// consists of the experts from g·E/n_group on.
    GroupLimitedGreedy {
        /// Groups that there are; a divisor of E.
        n_group: usize,
        /// Groups that are kept. They hold k experts or more.
        topk_group: usize,
    },
}

/// No size may be larger, so that the rows and columns of every weight fit in 64 bits.
const MAX_SIZE: usize = i32::MAX as usize;
/// Nor the number of experts in all layers, so that a list of all weights fits in memory. V2 has 9,440.
const MAX_EXPERTS_IN_ALL: usize = 1 << 18;

impl DeepseekV2Config {
    /// Checks that a model of this configuration exists in `dialect`.
    ///
    /// # Errors
    ///
    /// The first field that is impossible or contradicts another.
    pub fn validate(&self, dialect: Dialect) -> Result<()> {
        self.validate_in_every_dialect()?;
        if dialect.is_transformers() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a multiple of num_attention_heads, {}", self.num_attention_heads);
            return Err(Error::config("hidden_size", expected, self.hidden_size));
        }
        match dialect {
            Dialect::Deepseek => self.validate_deepseek()?,
            Dialect::Hf | Dialect::HfPre515 => self.validate_base_class()?,
        }
        if self.n_routed_experts.is_none() && !dialect.allows_null_routed_experts() {
            return Err(Error::config("n_routed_experts", format!("an integer in dialect {dialect}"), "null"));
        }
        if self.n_shared_experts.is_none() && !dialect.allows_null_shared_experts() {
            return Err(Error::config("n_shared_experts", format!("an integer in dialect {dialect}"), "null"));
        }
        // The router's fields matter only where a layer has a router.
        if self.has_moe_layers(dialect) {
            if self.num_experts() == 0 {
                return Err(Error::config("n_routed_experts", "an integer >= 1", 0));
            }
            self.experts_per_token()?;
            self.topk_method()?;
        }
        Ok(())
    }

    /// k: how many routed experts a token visits.
    ///
    /// # Errors
    ///
    /// k is null (as in Transformers' default configuration) or more than E.
    pub fn experts_per_token(&self) -> Result<usize> {
        self.num_experts_per_tok.filter(|k| *k <= self.num_experts()).ok_or_else(|| {
            let expected = format!("an integer of 0 to n_routed_experts, {}", self.num_experts());
            Error::config("num_experts_per_tok", expected, or_null(self.num_experts_per_tok))
        })
    }

    /// How those k are selected; greedily, where no layer has a router and the field is not looked at.
    ///
    /// # Errors
    ///
    /// There is no method of that name, or the groups that it needs are missing, do not divide E, or hold too few
    /// experts.
    pub fn topk_method(&self) -> Result<TopkMethod> {
        const EXPECTED: &str = "\"greedy\" or \"group_limited_greedy\"";
        match self.topk_method.as_deref() {
            _ if !self.has_moe_layers(Dialect::Hf) => Ok(TopkMethod::Greedy),
            Some("greedy") => Ok(TopkMethod::Greedy),
            Some("group_limited_greedy") => self.groups(),
            Some(other) => {
                let note = if other == "noaux_tc" { " (DeepSeek-V3's, not V2's)" } else { "" };
                Err(Error::config("topk_method", EXPECTED, format!("{other:?}{note}")))
            }
            None => Err(Error::config("topk_method", EXPECTED, "null")),
        }
    }

    fn groups(&self) -> Result<TopkMethod> {
        let (experts, per_token) = (self.num_experts(), self.experts_per_token()?);
        let n_group = self.n_group.filter(|n| *n >= 1 && experts.is_multiple_of(*n)).ok_or_else(|| {
            let expected = format!("a divisor of n_routed_experts, {experts}, for group_limited_greedy");
            Error::config("n_group", expected, or_null(self.n_group))
        })?;
        let topk_group = self.topk_group.filter(|kept| (1..=n_group).contains(kept)).ok_or_else(|| {
            let expected = format!("an integer of 1 to n_group, {n_group}, for group_limited_greedy");
            Error::config("topk_group", expected, or_null(self.topk_group))
        })?;
        let selectable = topk_group * (experts / n_group);
        if selectable < per_token {
            let expected = format!("at most {selectable}, the experts of topk_group = {topk_group} groups");
            return Err(Error::config("num_experts_per_tok", expected, per_token));
        }
        Ok(TopkMethod::GroupLimitedGreedy { n_group, topk_group })
    }

    /// What is wrong in any dialect.
    pub(super) fn validate_in_every_dialect(&self) -> Result<()> {
        if self.model_type != "deepseek_v2" {
            return Err(Error::config("model_type", "\"deepseek_v2\"", format!("{:?}", self.model_type)));
        }
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("num_labels", self.num_labels()),
        ] {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(Error::config(field, format!("an integer of 1 to {MAX_SIZE}"), size));
            }
        }
        for (field, size) in [("n_routed_experts", self.n_routed_experts), ("n_shared_experts", self.n_shared_experts)]
        {
            if let Some(size) = size.filter(|size| *size > MAX_SIZE) {
                return Err(Error::config(field, format!("an integer of 0 to {MAX_SIZE}, or null"), size));
            }
        }
        if let Some(rank) = self.q_lora_rank.filter(|rank| !(1..=MAX_SIZE).contains(rank)) {
            return Err(Error::config("q_lora_rank", format!("an integer of 1 to {MAX_SIZE}, or null"), rank));
        }
        if let Some(heads) = self.num_key_value_heads.filter(|heads| *heads != self.num_attention_heads) {
            let expected = format!("num_attention_heads, {}, or null", self.num_attention_heads);
            return Err(Error::config("num_key_value_heads", expected, heads));
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return Err(Error::config("qk_rope_head_dim", "an even integer", self.qk_rope_head_dim));
        }
        let in_all = self.num_hidden_layers.saturating_mul(self.num_experts().max(1));
        if in_all > MAX_EXPERTS_IN_ALL {
            let expected = format!("at most {MAX_EXPERTS_IN_ALL} layers times n_routed_experts");
            return Err(Error::config("num_hidden_layers", expected, in_all));
        }
        for (field, value) in [("rms_norm_eps", self.rms_norm_eps), ("initializer_range", self.initializer_range)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(field, "a number >= 0", value));
            }
        }
        if !self.routed_scaling_factor.is_finite() {
            return Err(Error::config("routed_scaling_factor", "a finite number", self.routed_scaling_factor));
        }
        let vocabulary = self.vocab_size as i64;
        if let Some(pad) = self.pad_token_id.filter(|pad| !(-vocabulary..vocabulary).contains(pad)) {
            return Err(Error::config("pad_token_id", format!("a token below vocab_size, {vocabulary}, or null"), pad));
        }
        match (self.problem_type.as_deref(), self.num_labels()) {
            (Some("single_label_classification"), 1) => {
                let expected = "at least 2 for problem_type single_label_classification";
                return Err(Error::config("num_labels", expected, 1));
            }
            (None | Some("regression" | "single_label_classification" | "multi_label_classification"), _) => {}
            (Some(other), _) => {
                let expected = "regression, single_label_classification or multi_label_classification";
                return Err(Error::config("problem_type", expected, format!("{other:?}")));
            }
        }
        self.activation()?;
        self.rope()?;
        Ok(())
    }

    /// What DeepSeek's code does not have, or has no default for that agrees with Transformers'.
    fn validate_deepseek(&self) -> Result<()> {
        if let Some(beat) = self.moe_layer_freq.filter(|beat| *beat < 1) {
            return Err(Error::config("moe_layer_freq", "an integer >= 1", beat));
        }
        for (field, expected) in [("moe_layer_freq", "an integer >= 1"), ("scoring_func", "\"softmax\"")] {
            if let Some(unread) = self.extra.get(field) {
                return Err(Error::config(field, expected, read::shortened(unread)));
            }
        }
        if let Some(name) = self.scoring_func.as_deref().filter(|name| *name != "softmax") {
            return Err(Error::config("scoring_func", "\"softmax\"", format!("{name:?}")));
        }
        if self.mlp_bias {
            return Err(Error::config("mlp_bias", "false: DeepSeek's code has no such biases", true));
        }
        let Some((place, dict)) = self.rope_dict() else { return Ok(()) };
        if let (Some(new), Some(old)) = (dict.get("rope_type"), dict.get("type"))
            && new != old
        {
            return Err(Error::config(format!("{place}.type"), format!("the same as rope_type, {new}"), old));
        }
        let rope = self.rope()?;
        if !rope.rope_type.is_deepseeks() {
            let key = if dict.contains_key("rope_type") { "rope_type" } else { "type" };
            let expected = "default, linear, dynamic or yarn, which are those of DeepSeek's code";
            return Err(Error::config(format!("{place}.{key}"), expected, rope.rope_type));
        }
        if rope.rope_type == super::RopeType::Yarn {
            let key = ORIGINAL;
            if let Some(beside) = self.extra.get(key).filter(|beside| dict.get(key) != Some(*beside)) {
                let expected = format!("what {place}.{key} says: DeepSeek's code reads no other");
                return Err(Error::config(key, expected, beside));
            }
            if !dict.contains_key(key) {
                let expected = "an integer: where it is missing, DeepSeek's code takes 4096 and Transformers \
                                max_position_embeddings";
                return Err(Error::config(format!("{place}.{key}"), expected, "nothing"));
            }
            if dict.get("truncate") == Some(&false.into()) {
                let expected = "true or nothing: DeepSeek's code has no such key";
                return Err(Error::config(format!("{place}.truncate"), expected, false));
            }
        }
        Ok(())
    }
}

fn or_null(value: Option<usize>) -> String {
    value.map_or("null".into(), |value| value.to_string())
}

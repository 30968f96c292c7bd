//! What deserves a word though it is no fault: keys without effect that suggest another model than the one that runs.

use serde_json::{Map, Value};

use super::read::shortened;
use super::rope_parameters::PARTIAL;
use super::{DeepseekV2Config, RopeType};
use crate::Dialect;
use crate::error::one_line;

/// A key of other models' files, whether its value fits this model, and what holds instead.
type Stranger = (&'static str, fn(&Value) -> bool, &'static str);

const STRANGERS: &[Stranger] = &[
    ("use_mla", |value| *value == Value::Bool(true), "attention is MLA"),
    ("rope_interleave", |value| *value == Value::Bool(true), "the pairs that turn are neighbours"),
    ("num_nextn_predict_layers", |value| *value == 0, "no layer predicts a token beyond the next"),
];

impl DeepseekV2Config {
    /// Keys that are set, have no effect in this dialect and suggest another model than the one that runs, and a
    /// vocabulary whose size is a default: one line for each.
    pub fn notes(&self, dialect: Dialect) -> Vec<String> {
        let mut notes = Vec::new();
        let mut without_effect = |key: &str, value: &dyn std::fmt::Display, because: &str| {
            notes.push(format!("{key}, {value}, has no effect: {because}"));
        };
        if !dialect.honours_scoring_func() {
            let other =
                self.scoring_func.as_ref().filter(|name| *name != "softmax").map(|name| Value::from(name.as_str()));
            if let Some(value) = other.as_ref().or_else(|| self.extra.get("scoring_func")) {
                without_effect("scoring_func", &shortened(value), "scores are a softmax");
            }
        }
        if !dialect.honours_norm_topk_prob() && self.norm_topk_prob {
            without_effect("norm_topk_prob", &true, "Transformers does not divide the weights by their sum");
        }
        if !dialect.honours_moe_layer_freq() {
            let because = "every layer from first_k_dense_replace on has experts";
            if let Some(beat) = self.moe_layer_freq.filter(|beat| *beat != 1) {
                without_effect("moe_layer_freq", &beat, because);
            } else if let Some(value) = self.extra.get("moe_layer_freq") {
                without_effect("moe_layer_freq", &shortened(value), because);
            }
        }
        if self.topk_method.as_deref() == Some("greedy") && self.n_group.is_some_and(|groups| groups > 1) {
            without_effect("n_group", &self.n_group.unwrap_or(1), "topk_method is greedy");
        }
        for (key, fits, because) in STRANGERS {
            if let Some(value) = self.extra.get(*key).filter(|value| !value.is_null() && !fits(value)) {
                without_effect(key, &shortened(value), because);
            }
        }
        if dialect == Dialect::Deepseek {
            for key in ["sliding_window", "is_causal", "per_layer_config", "layer_types"] {
                if let Some(value) = self.extra.get(key).filter(|value| !value.is_null()) {
                    without_effect(key, &shortened(value), "DeepSeek's code has no such key");
                }
            }
        }
        self.note_rope(dialect, &mut without_effect);
        if self.vocab_size_by_default {
            let found = self.vocab_size;
            notes.push(format!(
                "vocab_size is not in config.json: {found} is taken, as Transformers does since 5.16; its versions before \
                 that, and their documentation, take 32000"
            ));
        }
        notes.iter().map(one_line).collect()
    }

    fn note_rope(&self, dialect: Dialect, without_effect: &mut dyn FnMut(&str, &dyn std::fmt::Display, &str)) {
        let Some((place, dict)) = self.rope_dict() else { return };
        let of_dict = |key: &str| dict.get(key).filter(|value| !value.is_null());
        if let Some(value) = of_dict("attention_factor").filter(|_| !dialect.honours_attention_factor()) {
            without_effect(&format!("{place}.attention_factor"), value, "DeepSeek's code has no such key");
        }
        if let Some(value) = of_dict("attn_factor") {
            without_effect(&format!("{place}.attn_factor"), value, "the key is attention_factor");
        }
        let is_default = self.rope().is_ok_and(|rope| rope.rope_type == RopeType::Default);
        let share = of_dict(PARTIAL).map(|value| (format!("{place}.{PARTIAL}"), value));
        let share = share.or_else(|| Some((PARTIAL.to_owned(), self.extra.get(PARTIAL)?)));
        if let Some((key, value)) = share.filter(|(_, value)| is_default && value.as_f64() != Some(1.0)) {
            without_effect(&key, &shortened(value), "with rope type default all of qk_rope_head_dim is rotated");
        }
        if let Some((key, value)) = dict.iter().find(|(_, value)| value.is_object()) {
            without_effect(&format!("{place}.{key}"), &shortened(value), "all layers have one rotary embedding");
        }
        let other = self.rope_parameters.as_ref().filter(|other| place == "rope_scaling" && contradict(dict, other));
        if let Some(other) = other {
            let value = shortened(&Value::Object(other.clone()));
            without_effect("rope_parameters", &value, "rope_scaling, which says something else, is read instead");
        }
    }
}

/// Do the two say different things under one key? `type` and `rope_type` are one.
fn contradict(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let rule = |dict: &Map<String, Value>| dict.get("rope_type").or_else(|| dict.get("type")).cloned();
    let differ = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a != b,
        _ => a != b,
    };
    let values = other.iter().filter(|(key, _)| !["type", "rope_type"].contains(&key.as_str()));
    rule(one) != rule(other)
        || values.into_iter().any(|(key, value)| one.get(key).is_some_and(|own| differ(own, value)))
}

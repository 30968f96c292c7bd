//! The settings as they stand in a file.

use serde_json::{Map, Value};

use super::config::Biased;
use crate::error::{Error, Result};

/// The settings of a file or a call.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// Those that are set.
    pub(super) fn set(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.0.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
    }
}

/// Settings that change what comes out and are not supported, and the values that turn them off (as null does).
const NOT_SUPPORTED: [(&str, &[f64]); 29] = [
    ("num_beams", &[1.0]),
    ("num_beam_groups", &[1.0]),
    ("num_return_sequences", &[1.0]),
    ("diversity_penalty", &[0.0]),
    ("penalty_alpha", &[0.0]),
    ("guidance_scale", &[1.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("top_h", &[]),
    ("encoder_repetition_penalty", &[1.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("dola_layers", &[]),
    ("constraints", &[]),
    ("force_words_ids", &[]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("decoder_start_token_id", &[]),
    ("exponential_decay_length_penalty", &[]),
    ("remove_invalid_values", &[0.0]),
    ("renormalize_logits", &[0.0]),
    ("watermarking_config", &[]),
    ("token_healing", &[0.0]),
    ("max_time", &[]),
    ("prompt_lookup_num_tokens", &[]),
    ("use_mtp", &[0.0]),
    ("is_assistant", &[0.0]),
    ("assistant_early_exit", &[]),
    ("speculation_type", &[]),
];

/// Settings that change how something is computed or what is told of it, not what comes out; and those of beams alone.
const NO_EFFECT: [&str; 28] = [
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "low_memory",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "early_stopping",
    "length_penalty",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "max_matching_ngram_size",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_ensemble_weight",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "_from_model_config",
    "transformers_version",
    "generation_kwargs",
    "_commit_hash",
    "generation_mode",
];

/// Whether a name is that of a setting which has no effect here.
///
/// # Errors
/// If it has one in Transformers.
pub(super) fn without_effect(name: &str, value: &Value) -> Result<bool> {
    let Some((_, off)) = NOT_SUPPORTED.iter().find(|(known, _)| *known == name) else {
        return Ok(NO_EFFECT.contains(&name));
    };
    let number = value.as_f64().or_else(|| value.as_bool().map(|set| f64::from(u8::from(set))));
    if value.is_null() || number.is_some_and(|number| off.contains(&number)) {
        return Ok(true);
    }
    let nothing = off.first().map_or("nothing, since this is not supported".into(), |off| {
        format!("nothing or {off}, since others are not supported")
    });
    Err(Error::setting(name, nothing, value))
}

/// A number of things, or nothing.
pub(super) fn count(name: &str, value: &Value) -> Result<Option<usize>> {
    one(name, value, "a whole number, 0 or more", |value| {
        value.as_u64().and_then(|number| usize::try_from(number).ok())
    })
}

/// A number, or nothing.
pub(super) fn number(name: &str, value: &Value) -> Result<Option<f64>> {
    one(name, value, "a number", Value::as_f64)
}

/// A token, or nothing.
pub(super) fn token(name: &str, value: &Value) -> Result<Option<i64>> {
    one(name, value, "a token's id", id)
}

/// Yes or no; nothing is no.
pub(super) fn flag(name: &str, value: &Value) -> Result<bool> {
    Ok(one(name, value, "true or false", Value::as_bool)?.unwrap_or(false))
}

/// One token or a list of them, or nothing.
pub(super) fn tokens(name: &str, value: &Value) -> Result<Option<Vec<i64>>> {
    one(name, value, "a token's id or a list of them", |value| match value {
        Value::Array(list) => list.iter().map(id).collect(),
        one => Some(vec![id(one)?]),
    })
}

/// One text or a list of them; nothing is none.
pub(super) fn texts(name: &str, value: &Value) -> Result<Vec<String>> {
    let texts = one(name, value, "a text or a list of them", |value| match value {
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        one => Some(vec![one.as_str()?.to_owned()]),
    });
    Ok(texts?.unwrap_or_default())
}

/// A list of runs of tokens, or nothing.
pub(super) fn runs(name: &str, value: &Value) -> Result<Option<Vec<Vec<i64>>>> {
    one(name, value, "a list of lists of tokens' ids", |value| {
        let list = value.as_array().filter(|list| !list.is_empty())?;
        list.iter().map(run).collect()
    })
}

/// A list of runs of tokens and what they get, or nothing.
pub(super) fn biases(name: &str, value: &Value) -> Result<Option<Vec<Biased>>> {
    one(name, value, "a list of lists: tokens' ids, and a number", |value| {
        let list = value.as_array().filter(|list| !list.is_empty())?;
        let pair = |entry: &Value| match entry.as_array()?.as_slice() {
            [tokens, bias] => Some((run(tokens)?, bias.as_f64()?)),
            _ => None,
        };
        list.iter().map(pair).collect()
    })
}

fn run(value: &Value) -> Option<Vec<i64>> {
    value.as_array().filter(|list| !list.is_empty())?.iter().map(id).collect()
}

fn id(value: &Value) -> Option<i64> {
    value.as_i64().filter(|id| *id >= 0)
}

fn one<T>(name: &str, value: &Value, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
    if value.is_null() {
        return Ok(None);
    }
    read(value).map(Some).ok_or_else(|| Error::setting(name, expected, value))
}

//! Rotary position embedding: one normal form for the two layouts of config.json.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::DeepseekV2Config;
use super::read::read_field;
use crate::{Error, Result};

/// How position p turns into angles: the inverse frequencies' rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeType {
    /// θ^(-2i/r), unscaled.
    Default,
    /// Positions divided by `factor`.
    Linear,
    /// NTK: θ grows with the longest position seen ("dynamic").
    Dynamic,
    /// YaRN: high frequencies unscaled, low frequencies divided by `factor`, a ramp between them. All released
    /// DeepSeek-V2 models.
    Yarn,
}

impl RopeType {
    /// The name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            RopeType::Default => "default",
            RopeType::Linear => "linear",
            RopeType::Dynamic => "dynamic",
            RopeType::Yarn => "yarn",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [RopeType::Default, RopeType::Linear, RopeType::Dynamic, RopeType::Yarn].into_iter().find(|t| t.name() == name)
    }
}

impl fmt::Display for RopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What `rope_scaling` (Transformers 4, DeepSeek) or `rope_parameters` (Transformers 5) say, defaults filled in.
///
/// Of the two dictionaries the first that is not empty counts, in this order. The type is its `rope_type`, else its
/// `type`, else `default`; θ is its `rope_theta`, else config.json's own `rope_theta`, else 10000.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParameters {
    /// Which rule.
    pub rope_type: RopeType,
    /// θ, the base of the frequencies.
    pub rope_theta: f64,
    /// How many times the context is extended. Always there for linear, dynamic and yarn. YaRN with an explicit
    /// `null` gets `max_position_embeddings / original_max_position_embeddings`.
    pub factor: Option<f64>,
    /// YaRN: the context length before the extension, `max_position_embeddings` if not given. Always there for yarn.
    pub original_max_position_embeddings: Option<usize>,
    /// YaRN: a pair that turns at least this often within the original context keeps its frequency. 32 if missing,
    /// null or 0.
    pub beta_fast: f64,
    /// YaRN: a pair that turns at most this often within the original context is interpolated by the whole factor.
    /// 1 if missing, null or 0.
    pub beta_slow: f64,
    /// YaRN: the attention factor's numerator (see [`crate::dialect`]). `Some(0.0)` is kept, Transformers treats it
    /// like `None`.
    pub mscale: Option<f64>,
    /// YaRN: the attention factor's denominator, and with any type but default the mscale² of the softmax scale.
    /// `Some(0.0)` is kept, Transformers treats it like `None`.
    pub mscale_all_dim: Option<f64>,
    /// YaRN: the factor on cos and sin, overriding what mscale and mscale_all_dim give.
    pub attention_factor: Option<f64>,
    /// YaRN: are the ramp's ends rounded to whole pairs? True unless given.
    pub truncate: bool,
}

impl Default for RopeParameters {
    /// Plain rotary embedding with θ = 10000.
    fn default() -> Self {
        RopeParameters {
            rope_type: RopeType::Default,
            rope_theta: DEFAULT_THETA,
            factor: None,
            original_max_position_embeddings: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            attention_factor: None,
            truncate: true,
        }
    }
}

/// θ where config.json does not say.
const DEFAULT_THETA: f64 = 10000.0;

/// The dictionary as it is written, types checked. Other keys are allowed and have no effect.
#[derive(Deserialize)]
struct Written {
    rope_theta: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

impl DeepseekV2Config {
    /// The rotary embedding's parameters, read from whichever layout this configuration has.
    ///
    /// # Errors
    ///
    /// A type other than default, linear, dynamic and yarn; a factor that is missing where the type needs it; values of
    /// the wrong type or outside their domain.
    pub fn rope(&self) -> Result<RopeParameters> {
        let empty = Map::new();
        let (place, dict) = self.rope_dict().unwrap_or(("rope_parameters", &empty));
        let at = |key: &str| format!("{place}.{key}");
        let written: Written = read_field(place, &Value::Object(dict.clone()))?;

        let type_key = if dict.contains_key("rope_type") { "rope_type" } else { "type" };
        let rope_type = match dict.get(type_key) {
            None => RopeType::Default,
            Some(value) => value.as_str().and_then(RopeType::from_name).ok_or_else(|| {
                let others = ["llama3", "longrope"].map(Value::from).contains(value);
                let note = if others { " (a rope type, but not one of DeepSeek-V2's)" } else { "" };
                Error::config(at(type_key), "default, linear, dynamic or yarn", format!("{value}{note}"))
            })?,
        };
        let positive = |key: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(Error::config(at(key), "a number > 0", value)),
        };
        let not_negative = |key: &str, value: Option<f64>| match value {
            Some(x) if !(x >= 0.0 && x.is_finite()) => Err(Error::config(at(key), "a number >= 0, or null", x)),
            _ => Ok(value),
        };

        let rope_theta = match (dict.get("rope_theta"), written.rope_theta) {
            (Some(_), Some(theta)) => positive("rope_theta", theta)?,
            (Some(_), None) => return Err(Error::config(at("rope_theta"), "a number > 0", "null")),
            (None, _) => {
                let theta = self.rope_theta.unwrap_or(DEFAULT_THETA);
                if !(theta > 0.0 && theta.is_finite()) {
                    return Err(Error::config("rope_theta", "a number > 0", theta));
                }
                theta
            }
        };
        if rope_type == RopeType::Yarn && rope_theta == 1.0 {
            return Err(Error::config("rope_theta", "a number other than 1 (yarn divides by its logarithm)", 1));
        }
        for partial in [written.partial_rotary_factor, self.extra.get("partial_rotary_factor").and_then(Value::as_f64)]
        {
            if let Some(partial) = partial.filter(|x| *x != 1.0) {
                let expected = "1 (all of qk_rope_head_dim is rotated)";
                return Err(Error::config("partial_rotary_factor", expected, partial));
            }
        }

        let original = written.original_max_position_embeddings;
        let original_is_null = dict.get("original_max_position_embeddings").is_some_and(Value::is_null);
        if original == Some(0) || (original_is_null && rope_type == RopeType::Yarn) {
            let found = if original_is_null { "null" } else { "0" };
            return Err(Error::config(at("original_max_position_embeddings"), "an integer >= 1", found));
        }
        let original = match rope_type {
            RopeType::Yarn => Some(original.unwrap_or(self.max_position_embeddings)),
            _ => original,
        };

        let mscale = not_negative("mscale", written.mscale)?;
        let mscale_all_dim = not_negative("mscale_all_dim", written.mscale_all_dim)?;
        let factor = match (rope_type, written.factor, dict.contains_key("factor")) {
            (RopeType::Default, factor, _) => factor,
            (_, Some(factor), _) => Some(positive("factor", factor)?),
            // Transformers derives YaRN's factor only for the frequencies; the mscale² of the softmax scale fails on
            // null.
            (RopeType::Yarn, None, true) if mscale_all_dim.is_none_or(|m| m == 0.0) => {
                original.map(|original| self.max_position_embeddings as f64 / original as f64)
            }
            (_, None, present) => {
                let expected = format!("a number > 0, which rope type {rope_type} needs");
                return Err(Error::config(at("factor"), expected, if present { "null" } else { "nothing" }));
            }
        };
        if rope_type == RopeType::Dynamic && self.qk_rope_head_dim == 2 {
            let expected = "more than 2 for rope type dynamic (its exponent is r/(r-2))";
            return Err(Error::config("qk_rope_head_dim", expected, 2));
        }
        let turns = |key, value, default| {
            not_negative(key, value).map(|value| value.filter(|turns| *turns != 0.0).unwrap_or(default))
        };
        Ok(RopeParameters {
            rope_type,
            rope_theta,
            factor,
            original_max_position_embeddings: original,
            beta_fast: turns("beta_fast", written.beta_fast, 32.0)?,
            beta_slow: turns("beta_slow", written.beta_slow, 1.0)?,
            mscale,
            mscale_all_dim,
            attention_factor: written.attention_factor,
            truncate: written.truncate.unwrap_or(true),
        })
    }

    /// The dictionary that counts, with its name in config.json.
    pub(super) fn rope_dict(&self) -> Option<(&'static str, &Map<String, Value>)> {
        let candidates = [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)];
        candidates.into_iter().find_map(|(name, dict)| Some((name, dict.as_ref().filter(|dict| !dict.is_empty())?)))
    }
}

//! Rotary position embedding: one normal form for the two layouts of config.json.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::read::read_field;
use super::{DeepseekV2Config, RopeType};
use crate::{Error, Result};

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
    /// How many times the context is extended. Always there for all types but default. YaRN with an explicit `null`,
    /// and longrope without the key, get `max_position_embeddings / original_max_position_embeddings`.
    pub factor: Option<f64>,
    /// YaRN, llama3, longrope: the context length before the extension. Always there for them.
    ///
    /// **Trap.** A key of this name beside the dictionary overrules the one in it (in Transformers; DeepSeek's code does
    /// not look there). Without either it is `max_position_embeddings`.
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
    /// YaRN, longrope: the factor on cos and sin, overriding what follows from the other parameters.
    pub attention_factor: Option<f64>,
    /// YaRN: are the ramp's ends rounded to whole pairs? True unless given.
    pub truncate: bool,
    /// llama3: a pair that turns at most this often within the original context is interpolated by the whole factor.
    pub low_freq_factor: f64,
    /// llama3: a pair that turns at least this often within the original context keeps its frequency.
    pub high_freq_factor: f64,
    /// longrope: a divisor for each pair, in calls that end within the original context.
    pub short_factor: Vec<f64>,
    /// longrope: the same in calls that end beyond it.
    pub long_factor: Vec<f64>,
    /// proportional: the share of the pairs that turn. 1 for the other types.
    pub partial_rotary_factor: f64,
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
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            short_factor: Vec::new(),
            long_factor: Vec::new(),
            partial_rotary_factor: 1.0,
        }
    }
}

/// θ where config.json does not say.
const DEFAULT_THETA: f64 = 10000.0;
/// The key that may stand in the dictionary and beside it.
pub(super) const ORIGINAL: &str = "original_max_position_embeddings";
/// The same.
pub(super) const PARTIAL: &str = "partial_rotary_factor";

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
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    partial_rotary_factor: Option<f64>,
}

impl DeepseekV2Config {
    /// The rotary embedding's parameters, read from whichever layout this configuration has.
    ///
    /// # Errors
    ///
    /// A type that does not exist; a parameter that is missing where the type needs it; values of the wrong type or
    /// outside their domain.
    pub fn rope(&self) -> Result<RopeParameters> {
        let empty = Map::new();
        let (place, dict) = self.rope_dict().unwrap_or(("rope_parameters", &empty));
        let written: Written = read_field(place, &Value::Object(dict.clone()))?;
        Reader { config: self, place, dict, written }.read()
    }

    /// The dictionary that counts, with its name in config.json.
    pub(super) fn rope_dict(&self) -> Option<(&'static str, &Map<String, Value>)> {
        let candidates = [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)];
        candidates.into_iter().find_map(|(name, dict)| Some((name, dict.as_ref().filter(|dict| !dict.is_empty())?)))
    }
}

/// The dictionary that counts.
struct Reader<'a> {
    config: &'a DeepseekV2Config,
    place: &'static str,
    dict: &'a Map<String, Value>,
    written: Written,
}

impl Reader<'_> {
    fn read(&self) -> Result<RopeParameters> {
        let written = &self.written;
        let rope_type = self.rope_type()?;
        let rope_theta = self.rope_theta()?;
        if rope_type == RopeType::Yarn && rope_theta == 1.0 {
            return Err(Error::config("rope_theta", "a number other than 1 (yarn divides by its logarithm)", 1));
        }
        let partial_rotary_factor = self.partial_rotary_factor(rope_type)?;
        let original = self.original_context(rope_type)?;
        let mscale = self.not_negative("mscale", written.mscale)?;
        let mscale_all_dim = self.not_negative("mscale_all_dim", written.mscale_all_dim)?;
        let factor = self.factor(rope_type, original, mscale_all_dim)?;
        if rope_type == RopeType::Dynamic && self.config.qk_rope_head_dim == 2 {
            let expected = "more than 2 for rope type dynamic (its exponent is r/(r-2))";
            return Err(Error::config("qk_rope_head_dim", expected, 2));
        }
        let divides_by_log = rope_type == RopeType::LongRope && written.attention_factor.is_none();
        if divides_by_log && original == Some(1) && factor.is_some_and(|factor| factor > 1.0) {
            let expected = "an integer >= 2 (longrope divides by its logarithm)";
            return Err(Error::config(self.at(ORIGINAL), expected, 1));
        }
        let turns = |key, value, default| {
            self.not_negative(key, value).map(|value| value.filter(|turns| *turns != 0.0).unwrap_or(default))
        };
        let defaults = RopeParameters::default();
        let is_llama3 = rope_type == RopeType::Llama3;
        let of_llama3 = |key, value, default| if is_llama3 { self.needed(rope_type, key, value) } else { Ok(default) };
        let is_longrope = rope_type == RopeType::LongRope;
        let of_longrope = |key, value: &Option<_>| {
            if is_longrope { self.divisors(key, value.as_deref()) } else { Ok(Vec::new()) }
        };
        Ok(RopeParameters {
            rope_type,
            rope_theta,
            factor,
            original_max_position_embeddings: original,
            beta_fast: turns("beta_fast", written.beta_fast, defaults.beta_fast)?,
            beta_slow: turns("beta_slow", written.beta_slow, defaults.beta_slow)?,
            mscale,
            mscale_all_dim,
            attention_factor: written.attention_factor,
            truncate: written.truncate.unwrap_or(defaults.truncate),
            low_freq_factor: of_llama3("low_freq_factor", written.low_freq_factor, defaults.low_freq_factor)?,
            high_freq_factor: of_llama3("high_freq_factor", written.high_freq_factor, defaults.high_freq_factor)?,
            short_factor: of_longrope("short_factor", &written.short_factor)?,
            long_factor: of_longrope("long_factor", &written.long_factor)?,
            partial_rotary_factor,
        })
    }

    fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.place)
    }

    fn positive(&self, key: &str, value: f64) -> Result<f64> {
        match value > 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(Error::config(self.at(key), "a number > 0", value)),
        }
    }

    fn not_negative(&self, key: &str, value: Option<f64>) -> Result<Option<f64>> {
        match value {
            Some(x) if !(x >= 0.0 && x.is_finite()) => Err(Error::config(self.at(key), "a number >= 0, or null", x)),
            _ => Ok(value),
        }
    }

    /// A number that the type cannot do without.
    fn needed(&self, rope_type: RopeType, key: &str, value: Option<f64>) -> Result<f64> {
        match value {
            Some(value) => self.positive(key, value),
            None => {
                let expected = format!("a number > 0, which rope type {rope_type} needs");
                Err(Error::config(self.at(key), expected, self.nothing_or_null(key)))
            }
        }
    }

    fn nothing_or_null(&self, key: &str) -> &'static str {
        if self.dict.contains_key(key) { "null" } else { "nothing" }
    }

    fn rope_type(&self) -> Result<RopeType> {
        let key = if self.dict.contains_key("rope_type") { "rope_type" } else { "type" };
        match self.dict.get(key) {
            None => Ok(RopeType::Default),
            Some(value) => value
                .as_str()
                .and_then(RopeType::from_name)
                .ok_or_else(|| Error::config(self.at(key), RopeType::names(), value)),
        }
    }

    fn rope_theta(&self) -> Result<f64> {
        match (self.dict.get("rope_theta"), self.written.rope_theta) {
            (Some(_), Some(theta)) => self.positive("rope_theta", theta),
            (Some(_), None) => Err(Error::config(self.at("rope_theta"), "a number > 0", "null")),
            (None, _) => {
                let theta = self.config.rope_theta.unwrap_or(DEFAULT_THETA);
                match theta > 0.0 && theta.is_finite() {
                    true => Ok(theta),
                    false => Err(Error::config("rope_theta", "a number > 0", theta)),
                }
            }
        }
    }

    /// The dictionary's, else the one beside it. The type default does not look at it; with the others that are not
    /// proportional the tables would not fit the heads.
    fn partial_rotary_factor(&self, rope_type: RopeType) -> Result<f64> {
        let beside = self.config.extra.get(PARTIAL).filter(|value| !value.is_null());
        let (name, given) = match (self.dict.get(PARTIAL), beside) {
            (Some(value), _) => (self.at(PARTIAL), value),
            (None, Some(value)) => (PARTIAL.to_owned(), value),
            (None, None) => return Ok(1.0),
        };
        let share = self.written.partial_rotary_factor.or_else(|| given.as_f64()).unwrap_or(f64::NAN);
        let (fits, expected) = match rope_type {
            RopeType::Default => return Ok(1.0),
            RopeType::Proportional => ((0.0..=1.0).contains(&share), "a number of 0 to 1".to_owned()),
            _ => (share == 1.0, format!("1 (with rope type {rope_type} all of qk_rope_head_dim is rotated)")),
        };
        if fits { Ok(share) } else { Err(Error::config(name, expected, given)) }
    }

    /// The context length before the extension; of a type that has none, what is written.
    fn original_context(&self, rope_type: RopeType) -> Result<Option<usize>> {
        const EXPECTED: &str = "an integer >= 1";
        let within = self.written.original_max_position_embeddings;
        if within == Some(0) {
            return Err(Error::config(self.at(ORIGINAL), EXPECTED, 0));
        }
        if !rope_type.has_original_context() {
            return Ok(within);
        }
        if let Some(beside) = self.config.extra.get(ORIGINAL) {
            let length = beside.as_u64().filter(|length| *length >= 1).and_then(|length| usize::try_from(length).ok());
            return length.map(Some).ok_or_else(|| Error::config(ORIGINAL, EXPECTED, beside));
        }
        match self.dict.get(ORIGINAL) {
            Some(Value::Null) => Err(Error::config(self.at(ORIGINAL), EXPECTED, "null")),
            _ => Ok(Some(within.unwrap_or(self.config.max_position_embeddings))),
        }
    }

    fn factor(&self, rope_type: RopeType, original: Option<usize>, mscale_all_dim: Option<f64>) -> Result<Option<f64>> {
        let written = self.written.factor;
        // The mscale² of the softmax scale reads the key itself and fails without a number.
        let unscaled = mscale_all_dim.is_none_or(|m| m == 0.0);
        let may_be_derived = match rope_type {
            RopeType::Yarn => unscaled && self.dict.contains_key("factor"),
            RopeType::LongRope => unscaled,
            _ => false,
        };
        match (rope_type, written) {
            (RopeType::Default, factor) => Ok(factor),
            (RopeType::Proportional, None) if unscaled && !self.dict.contains_key("factor") => Ok(Some(1.0)),
            (_, None) if may_be_derived => {
                Ok(original.map(|original| self.config.max_position_embeddings as f64 / original as f64))
            }
            (_, factor) => self.needed(rope_type, "factor", factor).map(Some),
        }
    }

    /// longrope: r/2 divisors; one number is the divisor of all.
    fn divisors(&self, key: &str, written: Option<&[f64]>) -> Result<Vec<f64>> {
        let pairs = self.config.qk_rope_head_dim / 2;
        let expected = || format!("{pairs} numbers > 0, half of qk_rope_head_dim, which rope type longrope needs");
        let refused = |found: String| Err(Error::config(self.at(key), expected(), found));
        match written {
            None => refused(self.nothing_or_null(key).to_owned()),
            Some(list) if list.iter().any(|x| !(*x > 0.0 && x.is_finite())) => {
                refused("a number that is not > 0".to_owned())
            }
            Some([one]) => Ok(vec![*one; pairs]),
            Some(list) if list.len() == pairs => Ok(list.to_vec()),
            Some(list) => refused(format!("{} numbers", list.len())),
        }
    }
}

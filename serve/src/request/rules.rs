//! How tokens are chosen, by what the client says and what the model's folder says below it.

use std::path::Path;

use dsv2::generate::{ModelFolder, Rules};
use dsv2_text::embedded;
use serde_json::{Map, Value, json};

use super::{Fields, any_seed};
use crate::error::{ApiError, Result};

/// What generation_config.json says of settings that a client leaves out, as vLLM reads it: where it says nothing, temperature and
/// top_p are 1, and all tokens may be drawn. (`do_sample` is not looked at: the temperature decides, 0 is the likeliest token.)
#[derive(Clone, Debug)]
pub struct Defaults {
    temperature: f64,
    names_top_k: bool,
    max_new_tokens: Option<usize>,
}

/// How many tokens an answer has at most where nobody says: OpenAI's number for completions, that of `dsv2 generate` for chats.
const OF_COMPLETIONS: usize = 16;
const OF_CHATS: usize = 256;

/// Logits that are divided by less are no numbers any more.
const COLDEST: f64 = 1e-6;

impl Defaults {
    /// Those of a model.
    ///
    /// # Errors
    /// If its generation_config.json is at fault.
    pub fn of(folder: &ModelFolder, path: Option<&Path>) -> dsv2::Result<Self> {
        let config = folder.generation_config(&Map::new())?;
        // Transformers would draw from 50 tokens where the file does not say
        let names_top_k = match path {
            None => names_top_k(embedded::GENERATION_CONFIG),
            Some(path) => {
                let (own, legacy) = (path.join("generation_config.json"), path.join("config.json"));
                let file = if own.exists() { own } else { legacy };
                names_top_k(&dsv2_reference::file::read_text(&file, dsv2_reference::file::CONFIG)?)
            }
        };
        Ok(Defaults {
            temperature: config.temperature.unwrap_or(1.0),
            names_top_k,
            max_new_tokens: config.max_new_tokens,
        })
    }

    /// How many tokens a completion has at most.
    pub(super) fn completion(&self) -> usize {
        self.max_new_tokens.unwrap_or(OF_COMPLETIONS)
    }

    /// How many tokens an answer in a chat has at most.
    pub(super) fn chat(&self) -> usize {
        self.max_new_tokens.unwrap_or(OF_CHATS)
    }

    /// The rules of a request, but for how many tokens there may be.
    ///
    /// # Errors
    /// If a setting is impossible or not supported.
    pub(super) fn rules(&self, folder: &ModelFolder, fields: &mut Fields) -> Result<Rules> {
        for penalty in ["frequency_penalty", "presence_penalty"] {
            fields.refuse(penalty, &[json!(0)])?;
        }
        let temperature = fields.take::<f64>("temperature")?.unwrap_or(self.temperature);
        if temperature != 0.0 && temperature < COLDEST {
            let message = format_args!("expected 0, or a number of at least {COLDEST}, found {temperature}");
            return Err(ApiError::field("temperature", message));
        }
        let drawn = [
            ("top_p", fields.take::<f64>("top_p")?.map(Value::from)),
            ("min_p", fields.take::<f64>("min_p")?.map(Value::from)),
            ("top_k", top_k(fields)?.or((!self.names_top_k).then_some(0)).map(Value::from)),
        ];
        let mut arguments = Map::from_iter([("do_sample".to_owned(), json!(temperature != 0.0))]);
        if temperature != 0.0 {
            arguments.insert("temperature".to_owned(), json!(temperature));
            arguments.extend(drawn.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        } else {
            // the likeliest token, whatever else is said; what is impossible is impossible all the same
            let own: Map<_, _> =
                drawn.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            let drawing = Map::from_iter(
                own.into_iter().chain([("do_sample".to_owned(), json!(true)), ("temperature".to_owned(), json!(1))]),
            );
            folder.generation_config(&drawing)?;
        }
        let given = [
            ("repetition_penalty", fields.take::<f64>("repetition_penalty")?.map(Value::from)),
            ("min_new_tokens", fields.take::<usize>("min_tokens")?.map(Value::from)),
            ("stop_strings", stop(fields)?),
            ("sequence_bias", logit_bias(fields)?),
        ];
        arguments.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if fields.take::<bool>("ignore_eos")? == Some(true) {
            arguments.insert("eos_token_id".to_owned(), Value::Null);
        }
        let seed = fields.take::<i64>("seed")?.map_or_else(any_seed, |seed| seed as u64);
        let config = folder.generation_config(&arguments)?;
        Ok(Rules { config, seed, logprobs: false, first_sequence: 0 })
    }
}

fn names_top_k(json: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(json).is_ok_and(|file| file.get("top_k").is_some_and(|k| !k.is_null()))
}

/// vLLM writes -1 for all.
fn top_k(fields: &mut Fields) -> Result<Option<u64>> {
    let Some(k) = fields.take::<i64>("top_k")? else { return Ok(None) };
    let k = if k == -1 { 0 } else { k };
    u64::try_from(k).map(Some).map_err(|_| ApiError::field("top_k", format_args!("expected -1 or more, found {k}")))
}

/// What each sequence looks for at each token, and keeps.
const MOST_STOPS: usize = 16 << 10;

/// One text or some.
fn stop(fields: &mut Fields) -> Result<Option<Value>> {
    let Some(stop) = fields.take::<Value>("stop")? else { return Ok(None) };
    let texts = match &stop {
        Value::Array(list) => list.iter().all(|text| text.is_string_with_text()),
        one => one.is_string_with_text(),
    };
    let bytes = stop.to_string().len();
    match texts {
        true if bytes > MOST_STOPS => {
            Err(ApiError::field("stop", format_args!("expected at most {MOST_STOPS} bytes of JSON, found {bytes}")))
        }
        true => Ok(Some(stop)),
        false => Err(ApiError::field(
            "stop",
            format_args!("expected a text or a list of texts, none of them empty, found {stop}"),
        )),
    }
}

trait Says {
    fn is_string_with_text(&self) -> bool;
}

impl Says for Value {
    fn is_string_with_text(&self) -> bool {
        self.as_str().is_some_and(|text| !text.is_empty())
    }
}

/// An object whose keys are ids.
fn logit_bias(fields: &mut Fields) -> Result<Option<Value>> {
    let Some(biases) = fields.take::<Map<String, Value>>("logit_bias")? else { return Ok(None) };
    let refused = |found: String| {
        ApiError::field(
            "logit_bias",
            format_args!("expected ids of tokens and numbers from -100 to 100, found {found}"),
        )
    };
    let pair = |(id, bias): (String, Value)| {
        let number = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        match (id.parse::<u32>(), number) {
            // written in one way only, or one id could have several biases
            (Ok(token), Some(bias)) if token.to_string() == id => Ok(json!([[token], bias])),
            _ => Err(refused(format!("{id:?}: {bias}"))),
        }
    };
    let biases: Vec<Value> = biases.into_iter().map(pair).collect::<Result<_>>()?;
    Ok((!biases.is_empty()).then(|| json!(biases)))
}

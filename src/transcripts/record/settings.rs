//! The body of a request, and which of them can be judged.

use std::fmt;

use dsv2_foreign::Foreign;
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Fault, Prompt, Stop};

/// The body of a request. What it leaves out is as OpenAI documents it: a temperature and a `top_p` of 1. (How
/// many tokens an answer has at most, then, is each engine's own.)
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Of a completion: a text, or tokens.
    pub prompt: Option<Prompt>,
    /// Of a chat: the turns.
    pub messages: Option<Vec<Value>>,
    /// Of a chat: the tools that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Of a chat: whether the template opens the assistant's turn; yes, if nobody says.
    pub add_generation_prompt: Option<bool>,
    /// Of a chat: further variables of the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the tokenizer adds its special tokens: to a prompt yes, to a chat no, if nobody says.
    pub add_special_tokens: Option<bool>,
    /// How many tokens the answer has at most.
    pub max_tokens: Option<usize>,
    /// The newer name of `max_tokens`.
    pub max_completion_tokens: Option<usize>,
    /// Before so many tokens no end token may come.
    pub min_tokens: Option<usize>,
    /// What logits are divided by; 0 takes the likeliest.
    pub temperature: Option<f64>,
    /// The probability of the nucleus.
    pub top_p: Option<f64>,
    /// How many tokens may be drawn; all, if it is 0 or negative.
    pub top_k: Option<i64>,
    /// How likely a token must be, as a part of the likeliest's probability.
    pub min_p: Option<f64>,
    /// What logits of tokens that came before are divided by (multiplied, where negative).
    pub repetition_penalty: Option<f64>,
    /// Not supported but for 0.
    pub presence_penalty: Option<f64>,
    /// Not supported but for 0.
    pub frequency_penalty: Option<f64>,
    /// What is added to the logits of tokens.
    pub logit_bias: Option<IndexMap<String, f64>>,
    /// Strings that end the answer.
    pub stop: Option<Stop>,
    /// Further tokens that end it.
    pub stop_token_ids: Option<Vec<i64>>,
    /// Whether the model's own end token does not.
    pub ignore_eos: Option<bool>,
    /// Whether the stop string is part of the text.
    pub include_stop_str_in_output: Option<bool>,
    /// Whether special tokens are no part of the text; yes, if nobody says.
    pub skip_special_tokens: Option<bool>,
    /// Whether the prompt is part of the text, and of the logprobs.
    pub echo: Option<bool>,
    /// Whether logprobs are wanted, or of how many of the likeliest tokens.
    pub logprobs: Option<Value>,
    /// Of a chat: of how many of the likeliest tokens.
    pub top_logprobs: Option<Value>,
    /// How many answers.
    pub n: Option<usize>,
    /// What else it says.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Keys that do not change what a right answer to a request is: who asks, how it is sent, what else is told, and the seed, which
/// draws in a way of its own in each engine.
const NEUTRAL: [&str; 24] = [
    "model",
    "seed",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "priority",
    "request_id",
    "parallel_tool_calls",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "prompt_logprobs",
    "return_meta_info",
    "return_tokens",
    "return_progress",
    "timings_per_token",
    "cache_prompt",
    "cache_salt",
    "id_slot",
    "n_probs",
];

impl Request {
    /// Whether it asks for the logprob of each token.
    pub fn asks_for_logprobs(&self) -> bool {
        self.logprobs.as_ref().is_some_and(|asked| !matches!(asked, Value::Null | Value::Bool(false)))
    }

    /// Of how many of the likeliest tokens it asks for logprobs, if it does.
    pub fn asks_for_likeliest(&self) -> Option<usize> {
        let asked = if self.messages.is_some() { &self.top_logprobs } else { &self.logprobs };
        asked.as_ref()?.as_u64().and_then(|asked| usize::try_from(asked).ok())
    }

    /// The requests that a body makes, one for each prompt, if answers to them can be judged.
    ///
    /// # Errors
    /// If it is none, or a setting is impossible.
    pub fn from_json(body: &Value, vocabulary: usize) -> Result<Vec<Self>, Fault> {
        let request = Self::deserialize(body).map_err(|error| fault("the body of a request", error))?;
        request.check(vocabulary)?;
        Ok(request.each())
    }

    /// One for each prompt, and for one answer each.
    pub(super) fn each(&self) -> Vec<Self> {
        let alone = |prompt| Request { prompt, n: None, ..self.clone() };
        match &self.prompt {
            None => vec![alone(None)],
            Some(prompt) => prompt.each().into_iter().map(|prompt| alone(Some(prompt))).collect(),
        }
    }

    /// Whether its answer can be judged, by a model with so many tokens.
    pub(super) fn check(&self, vocabulary: usize) -> Result<(), Fault> {
        let prompts = match (&self.prompt, &self.messages) {
            (None, None) => return Err(fault("a request with prompt or messages", "neither")),
            (Some(_), Some(_)) => return Err(fault("a request with prompt or messages", "both")),
            (Some(prompt), None) => prompt.each(),
            (None, Some(_)) => Vec::new(),
        };
        if self.n == Some(0) {
            return Err(fault("an n from 1 up", 0));
        }
        within("temperature", self.temperature, "0, or from 0.001 to 1000", |t| t == 0.0 || (1e-3..=1e3).contains(&t))?;
        within("top_p", self.top_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        within("min_p", self.min_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        within("repetition_penalty", self.repetition_penalty, "from 0.01 to 100", |p| (0.01..=100.0).contains(&p))?;
        within("presence_penalty", self.presence_penalty, "0 (another is not judged)", |p| p == 0.0)?;
        within("frequency_penalty", self.frequency_penalty, "0 (another is not judged)", |p| p == 0.0)?;
        for (key, value) in self.rest.iter().filter(|(key, _)| !NEUTRAL.contains(&key.as_str())) {
            if !self.says_nothing(key, value) {
                let expected = "a request of which it is known what a right answer is";
                return Err(fault(expected, format!("\"{}\": {}", Foreign(key), Foreign(value))));
            }
        }
        let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        for (token, &bias) in self.logit_bias.iter().flatten() {
            if !token.parse().is_ok_and(known) {
                return Err(fault(format!("tokens below {vocabulary} in logit_bias"), format!("\"{token}\"")));
            }
            within("logit_bias", Some(bias), "from -10000 to 10000", |bias| (-1e4..=1e4).contains(&bias))?;
        }
        for prompt in prompts {
            let Prompt::Ids(ids) = prompt else { continue };
            if ids.is_empty() {
                return Err(fault("a prompt", "an empty list"));
            }
            if let Some(id) = ids.iter().find(|id| !known(**id)) {
                return Err(fault(format!("tokens below {vocabulary} in prompt"), id));
            }
        }
        if self.stop.as_ref().is_some_and(|stop| stop.strings().iter().any(String::is_empty)) {
            return Err(fault("stop strings that are not empty", "\"\""));
        }
        Ok(())
    }

    /// Whether an answer with this setting is as it is without.
    fn says_nothing(&self, key: &str, value: &Value) -> bool {
        match key {
            _ if value.is_null() => true,
            "suffix" => value == "",
            "best_of" => value.as_u64() == Some(self.n.unwrap_or(1) as u64),
            "response_format" => value["type"] == "text",
            "tool_choice" => value == "none" || value == "auto",
            "functions" | "documents" | "bad_words" => value == &json!([]),
            "function_call" => value == "none",
            "modalities" => value == &json!(["text"]),
            "use_beam_search" | "continue_final_message" => value == false,
            "length_penalty" => value.as_f64() == Some(1.0),
            "spaces_between_special_tokens" => value == true,
            _ => false,
        }
    }

    /// In a few words, what sets it apart.
    pub fn words(&self) -> String {
        let kind = if self.messages.is_some() { "chat" } else { "completion" };
        let settings = [
            self.temperature.map(|t| if t == 0.0 { "greedy".to_owned() } else { format!("temperature {t}") }),
            self.top_k.map(|k| format!("top_k {k}")),
            self.top_p.filter(|&p| p != 1.0).map(|p| format!("top_p {p}")),
            self.min_p.filter(|&p| p != 0.0).map(|p| format!("min_p {p}")),
            self.repetition_penalty.map(|p| format!("repetition_penalty {p}")),
            self.logit_bias.as_ref().map(|_| "logit_bias".to_owned()),
            self.tools.as_ref().map(|_| "tools".to_owned()),
            self.stop.as_ref().map(|_| "stop".to_owned()),
            self.stop_token_ids.as_ref().map(|_| "stop_token_ids".to_owned()),
            self.min_tokens.map(|n| format!("min_tokens {n}")),
            self.ignore_eos.filter(|&ignored| ignored).map(|_| "ignore_eos".to_owned()),
            self.echo.filter(|&echo| echo).map(|_| "echo".to_owned()),
        ];
        let said = settings.into_iter().flatten();
        [kind.to_owned()].into_iter().chain(said).collect::<Vec<_>>().join(", ")
    }
}

/// Refuses a number that makes no sense, or that single precision does not hold.
fn within(name: &str, value: Option<f64>, range: &str, holds: impl Fn(f64) -> bool) -> Result<(), Fault> {
    match value.filter(|&value| !holds(value)) {
        Some(value) => Err(fault(format!("a {name} of {range}"), value)),
        None => Ok(()),
    }
}

fn fault(expected: impl Into<String>, found: impl fmt::Display) -> Fault {
    (expected.into(), found.to_string())
}

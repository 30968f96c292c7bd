//! A transcript: one request and its answer, as JSON, one a line.
//!
//! ```json
//! {"request": {"prompt": "Once", "max_tokens": 4, "temperature": 0, "logprobs": 2}, "response": {"choices": [{"text": ...}]}}
//! ```
//!
//! `request` and `response` are the bodies of `/v1/completions` or, where the request has `messages`, of
//! `/v1/chat/completions`. Of what servers add, this is understood:
//!
//! | where | key | what |
//! |---|---|---|
//! | response or choice | `prompt_token_ids` | the prompt as the engine fed it |
//! | choice | `token_ids` | the tokens of the answer, the end token included or not |
//! | a token of logprobs | `id`, or `token_id:17` as its text | which token it is |
//! | choice | `stop_reason`, or `matched_stop` | the token or the string that ended it |
//! | request | `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`, `add_special_tokens`, ... | as vLLM calls them |
//!
//! A request for several answers (a list of prompts, or `n`) is taken apart: each answer is judged by itself.

mod settings;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

pub use settings::Request;

/// What is at fault: what was expected, and what was found.
pub type Fault = (String, String);

/// What a line of a file holds, or a server sent.
#[derive(Clone, Debug)]
pub enum Taken {
    /// Answers, each with its request.
    Answers(Vec<Transcript>),
    /// An error in place of an answer: its own words.
    NoAnswer(String),
    /// A request whose answer cannot be judged: why.
    NotJudged(String),
}

/// One request and its answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Transcript {
    /// What was asked for.
    pub request: Request,
    /// What came.
    pub response: Response,
}

/// What is to be completed.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Its tokens.
    Ids(Vec<i64>),
    /// Several texts.
    Texts(Vec<String>),
    /// The tokens of several.
    ManyIds(Vec<Vec<i64>>),
}

/// One string, or several.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// The body of a response.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Response {
    /// The answers.
    pub choices: Vec<AnswerRecord>,
    /// How many tokens that was.
    pub usage: Option<Usage>,
    /// The prompt as it was fed.
    pub prompt_token_ids: Option<Vec<i64>>,
    /// What went wrong, in place of choices.
    pub error: Option<Value>,
}

/// An answer, as a choice of the response has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AnswerRecord {
    /// Which of several it is.
    pub index: Option<usize>,
    /// Of a completion.
    pub text: Option<String>,
    /// Of a chat.
    pub message: Option<MessageRecord>,
    /// Of either.
    pub logprobs: Option<LogprobsRecord>,
    /// `stop` or `length`.
    pub finish_reason: Option<String>,
    /// The token or the string that ended it, as vLLM says it (SGLang: `matched_stop`).
    #[serde(alias = "matched_stop")]
    pub stop_reason: Option<Value>,
    /// The prompt as it was fed.
    pub prompt_token_ids: Option<Vec<i64>>,
    /// The tokens of the answer.
    pub token_ids: Option<Vec<i64>>,
}

/// The assistant's turn.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MessageRecord {
    /// Its text.
    pub content: Option<String>,
}

/// The likeliest tokens of a completion, by text, with their logprobs.
pub type Likeliest = IndexMap<String, Option<f64>>;

/// Logprobs, in either of the two shapes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogprobsRecord {
    /// Of a chat: a record a token.
    pub content: Option<Vec<TokenRecord>>,
    /// Of a completion: the tokens' texts.
    pub tokens: Option<Vec<String>>,
    /// Of a completion: their logprobs; the first token of an echoed prompt has none.
    pub token_logprobs: Option<Vec<Option<f64>>>,
    /// Of a completion: the likeliest tokens, by text.
    pub top_logprobs: Option<Vec<Option<Likeliest>>>,
    /// Of a completion: where in the text each token begins.
    pub text_offset: Option<Vec<i64>>,
}

/// A token of a chat.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TokenRecord {
    /// Its text.
    pub token: Option<String>,
    /// The bytes of its text.
    pub bytes: Option<Vec<i64>>,
    /// Which it is.
    pub id: Option<i64>,
    /// The logarithm of its probability.
    pub logprob: Option<f64>,
    /// The likeliest tokens.
    pub top_logprobs: Option<Vec<TokenRecord>>,
}

/// How many tokens an answer took.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Of the answer.
    pub completion_tokens: Option<u64>,
    /// Of both.
    pub total_tokens: Option<u64>,
}

#[cfg(test)]
impl Taken {
    /// The answers.
    pub fn answers(self) -> Vec<Transcript> {
        match self {
            Taken::Answers(answers) => answers,
            other => panic!("{other:?}"),
        }
    }
}

impl Stop {
    /// All of them.
    pub fn strings(&self) -> &[String] {
        match self {
            Stop::One(one) => std::slice::from_ref(one),
            Stop::Several(several) => several,
        }
    }
}

impl Prompt {
    /// One by one.
    fn each(&self) -> Vec<Prompt> {
        match self {
            Prompt::Text(_) | Prompt::Ids(_) => vec![self.clone()],
            Prompt::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
            Prompt::ManyIds(many) => many.iter().cloned().map(Prompt::Ids).collect(),
        }
    }
}

impl Transcript {
    /// What a line holds. `vocabulary` is how many tokens the model has.
    ///
    /// # Errors
    /// If it is no transcript, or has more or fewer answers than were asked for.
    pub fn from_json(line: &str, vocabulary: usize) -> Result<Taken, Fault> {
        let expected = "a JSON object with a request and a response, as OpenAI's API has them";
        let transcript: Transcript =
            serde_json::from_str(line).map_err(|error| (expected.to_owned(), error.to_string()))?;
        if let Err((expected, found)) = transcript.request.check(vocabulary) {
            return Ok(Taken::NotJudged(format!("expected {expected}, found {found}")));
        }
        let Response { choices, error, .. } = &transcript.response;
        match (choices.is_empty(), error) {
            (true, None) => Ok(Taken::NoAnswer("a response without choices".to_owned())),
            (true, Some(error)) => Ok(Taken::NoAnswer(said(error))),
            (false, _) => transcript.each().map(Taken::Answers),
        }
    }

    /// The same, taken apart: a request and an answer each.
    fn each(self) -> Result<Vec<Self>, Fault> {
        let requests = self.request.each();
        let of_each = self.request.n.unwrap_or(1);
        let answers = requests.len().saturating_mul(of_each);
        let choices = self.response.choices;
        if choices.len() != answers {
            return Err((format!("{} in the response", count(answers, "choice")), choices.len().to_string()));
        }
        let mut places: Vec<usize> = (0..).zip(&choices).map(|(at, choice)| choice.index.unwrap_or(at)).collect();
        places.sort_unstable();
        if let Some((_, place)) = (0..).zip(&places).find(|(at, place)| at != *place) {
            return Err((format!("choices with an index from 0 to {}, each once", answers - 1), place.to_string()));
        }
        let alone = answers == 1;
        let one = |(at, choice): (usize, AnswerRecord)| {
            let place = choice.index.unwrap_or(at);
            let request = requests[place / of_each].clone();
            let response = Response {
                choices: vec![choice],
                // what is counted is all of them together
                usage: self.response.usage.filter(|_| alone),
                prompt_token_ids: self.response.prompt_token_ids.clone().filter(|_| alone),
                error: None,
            };
            Transcript { request, response }
        };
        Ok(choices.into_iter().enumerate().map(one).collect())
    }

    /// The answer.
    pub fn answer(&self) -> &AnswerRecord {
        // One, as `each` has seen.
        &self.response.choices[0]
    }

    /// What the answer says.
    pub fn text(&self) -> Option<&str> {
        let answer = self.answer();
        answer.text.as_deref().or_else(|| answer.message.as_ref()?.content.as_deref())
    }

    /// The prompt as the engine fed it, if it says so.
    pub fn prompt_token_ids(&self) -> Option<&[i64]> {
        self.answer().prompt_token_ids.as_deref().or(self.response.prompt_token_ids.as_deref())
    }
}

/// The message of an error in OpenAI's shape or a shorter one, or the whole.
pub fn said(error: &Value) -> String {
    let message = error["error"]["message"].as_str().or_else(|| error["message"].as_str()).or_else(|| error.as_str());
    message.map_or_else(|| error.to_string(), str::to_owned)
}

/// `1 choice`, `2 choices`
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

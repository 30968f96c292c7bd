//! What a client is told, in OpenAI's shapes.

mod logprobs;
mod parts;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::Response;
use dsv2::generate::ModelFolder;
use dsv2_text::FinishReason;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::engine::{Event, Scored};
use crate::error::{ApiError, Result, json_response};
use crate::request::{Asked, Prompt};
pub use parts::in_parts;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

/// What an answer is made of.
pub struct Reply {
    kind: Kind,
    folder: Arc<ModelFolder>,
    prompts: Vec<Prompt>,
    n: usize,
    echo: bool,
    scored: bool,
    include_usage: bool,
    return_token_ids: bool,
    id: String,
    created: u64,
    model: String,
    events: UnboundedReceiver<(usize, Event)>,
}

/// An answer, as far as it is known.
#[derive(Default)]
struct Answer {
    text: String,
    prompt: Vec<Scored>,
    tokens: Vec<i64>,
    scored: Vec<Scored>,
    finish: Option<FinishReason>,
}

impl Reply {
    /// To what was asked for, by what is heard.
    pub fn new(
        kind: Kind,
        folder: Arc<ModelFolder>,
        model: &str,
        asked: Asked,
        events: UnboundedReceiver<(usize, Event)>,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Reply {
            kind,
            folder,
            id: format!("{prefix}-{:016x}", RandomState::new().hash_one(created)),
            n: asked.n,
            echo: asked.echo,
            scored: asked.logprobs.is_some(),
            include_usage: asked.include_usage,
            return_token_ids: asked.return_token_ids,
            prompts: asked.prompts,
            created,
            model: model.to_owned(),
            events,
        }
    }

    /// All at once, when all is known.
    ///
    /// # Errors
    /// If one of the answers could not be completed.
    pub async fn whole(mut self) -> Result<Response> {
        let mut answers: Vec<Answer> = (0..self.choices()).map(|_| Answer::default()).collect();
        while answers.iter().any(|answer| answer.finish.is_none()) {
            let (index, event) = self.event().await?;
            let answer = &mut answers[index];
            match event {
                Event::Prompt(scored) => answer.prompt = scored,
                Event::Token { id, text, scored } => {
                    answer.text += &text;
                    answer.tokens.push(id);
                    answer.scored.extend(scored);
                }
                Event::End { text, finish } => {
                    answer.text += &text;
                    answer.finish = Some(finish);
                }
                Event::Failed(error) => return Err(error),
            }
        }
        let new = answers.iter().map(|answer| answer.tokens.len()).sum();
        let choices: Vec<Value> =
            answers.iter().enumerate().map(|(index, answer)| self.choice(index, answer)).collect();
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let mut body = self.body(object, choices);
        body.insert("usage".to_owned(), self.usage(new));
        if self.return_token_ids && self.kind == Kind::Chat {
            body.insert("prompt_token_ids".to_owned(), json!(self.prompts[0].tokens));
        }
        Ok(json_response(StatusCode::OK, &Value::Object(body)))
    }

    /// What happens next.
    async fn event(&mut self) -> Result<(usize, Event)> {
        let gone = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, "the thread that computes has ended");
        self.events.recv().await.ok_or_else(gone)
    }

    fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }

    /// What each answer is an answer to.
    fn prompt(&self, index: usize) -> &Prompt {
        &self.prompts[index / self.n]
    }

    fn body(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.model)),
            ("choices", Value::Array(choices)),
        ];
        fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
    }

    fn choice(&self, index: usize, answer: &Answer) -> Value {
        let prompt = self.prompt(index);
        let logprobs = match self.kind {
            Kind::Completion if self.scored => self.logprobs_of(prompt, answer),
            Kind::Chat if self.scored => logprobs::of_chat(&self.folder.tokenizer, &answer.scored),
            _ => Value::Null,
        };
        let mut choice = Map::from_iter([("index".to_owned(), json!(index))]);
        match self.kind {
            Kind::Completion => {
                let before = if self.echo { &*prompt.text } else { "" };
                choice.insert("text".to_owned(), json!(format!("{before}{}", answer.text)));
            }
            Kind::Chat => {
                let message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                choice.insert("message".to_owned(), message);
            }
        }
        choice.insert("logprobs".to_owned(), logprobs);
        choice.extend(finish(answer.finish.as_ref()));
        if self.return_token_ids {
            choice.insert("token_ids".to_owned(), json!(answer.tokens));
            if self.kind == Kind::Completion {
                choice.insert("prompt_token_ids".to_owned(), json!(prompt.tokens));
            }
        }
        Value::Object(choice)
    }

    fn logprobs_of(&self, prompt: &Prompt, answer: &Answer) -> Value {
        let mut logprobs = logprobs::Completion::new(&self.folder.tokenizer, logprobs::Place::default());
        if self.echo {
            logprobs.prompt(prompt, &answer.prompt);
        }
        answer.scored.iter().for_each(|scored| logprobs.push(scored));
        logprobs.json()
    }

    fn usage(&self, new: usize) -> Value {
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new})
    }
}

/// Why an answer ended; and, as vLLM tells it, what ended it.
fn finish(finish: Option<&FinishReason>) -> [(String, Value); 2] {
    let by = finish.map_or(Value::Null, FinishReason::stopped_by);
    [("finish_reason".to_owned(), json!(finish.map(FinishReason::name))), ("stop_reason".to_owned(), by)]
}

//! An answer in parts: server-sent events, the last of which is `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::{Kind, Reply, finish, logprobs};
use crate::engine::{Event, Scored};
use crate::error::Result;

/// Begins to answer when there is something to say.
///
/// # Errors
/// If the first thing that happens is that it cannot be done.
pub async fn in_parts(mut reply: Reply) -> Result<Response> {
    let first = reply.event().await?;
    if let Event::Failed(error) = first.1 {
        return Err(error);
    }
    let answers = (0..reply.choices()).map(|_| Told::default()).collect();
    let mut parts = Parts { reply, answers, said: VecDeque::new(), prompt: false, over: false };
    parts.hear(first.0, first.1);
    let events = stream::unfold(parts, |mut parts| async move {
        let said = parts.next().await?;
        Some((Ok::<_, Infallible>(format!("data: {said}\n\n")), parts))
    });
    let headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")];
    Ok((StatusCode::OK, headers, Body::from_stream(events)).into_response())
}

/// What was told of an answer.
#[derive(Default)]
struct Told {
    begun: bool,
    ended: bool,
    tokens: usize,
    /// Before the next token.
    place: logprobs::Place,
    /// Whether the tokens of its prompt were told.
    prompt: bool,
}

struct Parts {
    reply: Reply,
    answers: Vec<Told>,
    /// What is to be sent.
    said: VecDeque<String>,
    /// Whether the tokens of a chat's prompt were told.
    prompt: bool,
    over: bool,
}

impl Parts {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Some(said);
            }
            if self.over {
                return None;
            }
            if self.answers.iter().all(|answer| answer.ended) {
                self.end();
                continue;
            }
            match self.reply.event().await {
                Ok((index, event)) => self.hear(index, event),
                Err(error) => self.hear(0, Event::Failed(error)),
            }
        }
    }

    fn hear(&mut self, index: usize, event: Event) {
        match event {
            Event::Prompt(scored) => self.begin(index, &scored),
            Event::Token { id, text, scored } => {
                self.begin(index, &[]);
                self.answers[index].tokens += 1;
                if !text.is_empty() || scored.is_some() || self.reply.return_token_ids {
                    let logprobs = scored.map_or(Value::Null, |scored| self.logprobs(index, &scored));
                    self.part(index, &text, logprobs, &[id], finish(None));
                }
            }
            Event::End { text, finish: reason } => {
                self.begin(index, &[]);
                self.answers[index].ended = true;
                self.part(index, &text, Value::Null, &[], finish(Some(&reason)));
            }
            Event::Failed(error) => {
                self.said.push_back(error.body().to_string());
                self.said.push_back("[DONE]".to_owned());
                self.over = true;
            }
        }
    }

    /// What stands before an answer: who speaks, or the prompt.
    fn begin(&mut self, index: usize, scored: &[Scored]) {
        if std::mem::replace(&mut self.answers[index].begun, true) {
            return;
        }
        match self.reply.kind {
            Kind::Chat => {
                let choice = json!({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null});
                self.say(vec![choice]);
            }
            Kind::Completion if self.reply.echo => {
                let prompt = self.reply.prompt(index);
                let text = prompt.text.clone();
                let logprobs = self.reply.scored.then(|| {
                    let mut logprobs =
                        logprobs::Completion::new(&self.reply.folder.tokenizer, logprobs::Place::default());
                    logprobs.prompt(prompt, scored);
                    logprobs.json()
                });
                self.answers[index].place = logprobs::Place::after(&text);
                self.part(index, &text, logprobs.unwrap_or(Value::Null), &[], finish(None));
            }
            Kind::Completion => {}
        }
    }

    fn logprobs(&mut self, index: usize, scored: &Scored) -> Value {
        let tokenizer = &self.reply.folder.tokenizer;
        match self.reply.kind {
            Kind::Chat => logprobs::of_chat(tokenizer, std::slice::from_ref(scored)),
            Kind::Completion => {
                let mut logprobs = logprobs::Completion::new(tokenizer, self.answers[index].place.clone());
                logprobs.push(scored);
                self.answers[index].place = logprobs.place();
                logprobs.json()
            }
        }
    }

    fn part(&mut self, index: usize, text: &str, logprobs: Value, ids: &[i64], finish: [(String, Value); 2]) {
        let mut choice = Map::from_iter([("index".to_owned(), json!(index))]);
        match self.reply.kind {
            Kind::Completion => choice.insert("text".to_owned(), json!(text)),
            Kind::Chat if text.is_empty() => choice.insert("delta".to_owned(), json!({})),
            Kind::Chat => choice.insert("delta".to_owned(), json!({"content": text})),
        };
        choice.insert("logprobs".to_owned(), logprobs);
        choice.extend(finish);
        if self.reply.return_token_ids {
            choice.insert("token_ids".to_owned(), json!(ids));
            if self.reply.kind == Kind::Completion && !std::mem::replace(&mut self.answers[index].prompt, true) {
                choice.insert("prompt_token_ids".to_owned(), json!(self.reply.prompt(index).tokens));
            }
        }
        self.say(vec![Value::Object(choice)]);
    }

    fn say(&mut self, choices: Vec<Value>) {
        let object = if self.reply.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut body = self.reply.body(object, choices);
        if self.reply.include_usage {
            body.insert("usage".to_owned(), Value::Null);
        }
        if self.reply.return_token_ids && self.reply.kind == Kind::Chat && !std::mem::replace(&mut self.prompt, true) {
            body.insert("prompt_token_ids".to_owned(), json!(self.reply.prompts[0].tokens));
        }
        self.said.push_back(Value::Object(body).to_string());
    }

    fn end(&mut self) {
        if self.reply.include_usage {
            let object = if self.reply.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
            let mut body = self.reply.body(object, vec![]);
            body.insert("usage".to_owned(), self.reply.usage(self.answers.iter().map(|answer| answer.tokens).sum()));
            self.said.push_back(Value::Object(body).to_string());
        }
        self.said.push_back("[DONE]".to_owned());
        self.over = true;
    }
}

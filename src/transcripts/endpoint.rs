//! Transcripts from a server as it runs: any that speaks OpenAI's API (vLLM, SGLang, llama.cpp, `dsv2-serve`).
//!
//! Each request is sent as it stands, with `logprobs` where it says nothing of them, and with what some servers need to say which
//! tokens they mean (`TELLS`). A server that refuses these is asked again with fewer of them, and with none. One that is busy
//! (429, 503) is asked again when it says (`Retry-After`), as long as an answer may take.

use std::thread;
use std::time::{Duration, Instant};

use dsv2_foreign::Foreign;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{Response, StatusCode};

use super::record::{Taken, Transcript, said};
use crate::error::{Error, Result};

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 64 << 20;
/// How many of the likeliest tokens are asked for. OpenAI's completions give 5 at most.
const TOP: u64 = 5;
/// How many tokens an answer has at most, where the request does not say.
const MAX_TOKENS: u64 = 32;
/// What makes servers tell more, and what is given up first if they refuse it: both keys by which vLLM says which tokens it means,
/// then logprobs.
const TELLS: [&[&str]; 3] = [&["return_tokens_as_token_ids"], &["return_token_ids"], &["logprobs", "top_logprobs"]];
/// How long a busy server is left alone that does not say how long.
const PAUSE: Duration = Duration::from_secs(1);

/// A server.
pub struct Endpoint {
    agent: Agent,
    base: String,
    key: Option<String>,
    model: String,
    patience: Duration,
}

impl Endpoint {
    /// The server at a URL such as `http://127.0.0.1:8000`, with `/v1` at its end or without. `model` is what it calls the model;
    /// it is asked, if nobody says. `key` is sent as a bearer token. Each answer may take as long as `patience`.
    ///
    /// # Errors
    /// If it is no URL of http, or no such server is there. (There is no TLS here: a server elsewhere is reached through a
    /// tunnel.)
    pub fn new(url: &str, model: Option<String>, key: Option<String>, patience: Duration) -> Result<Self> {
        if !url.starts_with("http://") {
            let expected = "a URL that begins with http:// (no TLS: a server elsewhere is reached through a tunnel)";
            return Err(Error::request("--endpoint", expected, Foreign(url)));
        }
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let config = Agent::config_builder()
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None);
        let mut endpoint = Endpoint { agent: config.build().into(), base, key, model: String::new(), patience };
        endpoint.model = match model {
            Some(model) => model,
            None => endpoint.served()?,
        };
        Ok(endpoint)
    }

    /// What the server calls its model.
    fn served(&self) -> Result<String> {
        let path = "/v1/models";
        let (status, text) = self.read(path, self.signed(self.agent.get(self.url(path))).call())?;
        let expected = "a list of models, as OpenAI's API has it";
        if !status.is_success() {
            return Err(self.refused(path, expected, format!("status {}: {text}", status.as_u16())));
        }
        let list: Value = serde_json::from_str(&text).map_err(|error| self.no_json(path, &text, &error))?;
        let ids = list["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
        match ids.collect::<Vec<_>>()[..] {
            [one] => Ok(one.to_owned()),
            [] => Err(self.refused(path, expected, Foreign(&text))),
            ref several => {
                let several = dsv2_foreign::list(several, 10);
                Err(Error::request("--served-model", format!("one of the server's models: {several}"), "none"))
            }
        }
    }

    /// Sends a request, and takes down what comes: what it is, and the line that a file of transcripts has of it. `vocabulary` is
    /// how many tokens the model has.
    ///
    /// # Errors
    /// If the server cannot be reached, does not answer in time, or answers with something that OpenAI's API does not have.
    pub fn ask(&self, request: &Value, vocabulary: usize) -> Result<(Taken, String)> {
        let chat = request.get("messages").is_some();
        let path = if chat { "/v1/chat/completions" } else { "/v1/completions" };
        let mut body = self.body(request, chat);
        let (mut status, mut text) = self.post(path, &body)?;
        for keys in TELLS.iter().filter(|keys| request.get(keys[0]).is_none()) {
            if !matches!(status.as_u16(), 400 | 422) {
                break;
            }
            keys.iter().for_each(|key| drop(body.as_object_mut().and_then(|body| body.shift_remove(*key))));
            (status, text) = self.post(path, &body)?;
        }
        let response = match status.as_u16() {
            200..=299 => serde_json::from_str(&text).map_err(|error| self.no_json(path, &text, &error))?,
            401 | 403 => {
                let expected = "a key that it accepts (--api-key-env)";
                return Err(self.refused(path, expected, format!("status {}: {text}", status.as_u16())));
            }
            _ => {
                let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.clone()));
                json!({"error": {"message": format!("status {}: {}", status.as_u16(), said(&error))}})
            }
        };
        let line = json!({"request": body, "response": response}).to_string();
        let taken = Transcript::from_json(&line, vocabulary);
        Ok((taken.map_err(|(expected, found)| self.refused(path, &expected, found))?, line))
    }

    /// The request with what makes the server tell more.
    fn body(&self, request: &Value, chat: bool) -> Value {
        let mut body = request.clone();
        let mut unless_said = |key: &str, value: Value| {
            if body.get(key).is_none() {
                body[key] = value;
            }
        };
        unless_said("model", json!(self.model));
        unless_said("max_tokens", json!(MAX_TOKENS));
        match chat {
            true => {
                unless_said("logprobs", json!(true));
                unless_said("top_logprobs", json!(TOP));
            }
            false => unless_said("logprobs", json!(TOP)),
        }
        TELLS[..2].iter().for_each(|keys| unless_said(keys[0], json!(true)));
        body["stream"] = json!(false);
        body
    }

    fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, String)> {
        let begun = Instant::now();
        loop {
            let request = self.signed(self.agent.post(self.url(path)).header("content-type", "application/json"));
            let sent = request.send(body.to_string());
            match sent.as_ref().ok().and_then(pause).filter(|pause| begun.elapsed() + *pause < self.patience) {
                Some(pause) => thread::sleep(pause),
                None => return self.read(path, sent),
            }
        }
    }

    fn read(&self, path: &str, sent: Result<Response<ureq::Body>, ureq::Error>) -> Result<(StatusCode, String)> {
        let expected = "an answer";
        let mut response = sent.map_err(|error| self.refused(path, expected, error))?;
        // no text in UTF-8 is no JSON either, which is said later
        let bytes = response.body_mut().with_config().limit(LONGEST).read_to_vec();
        let bytes = bytes.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(limit) => {
                self.refused(path, &format!("an answer of at most {limit} bytes"), "a longer one")
            }
            error => self.refused(path, expected, error),
        })?;
        Ok((response.status(), String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn signed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn no_json(&self, path: &str, text: &str, error: &serde_json::Error) -> Error {
        let begin: String = text.chars().take(60).collect();
        self.refused(path, "JSON", format!("\"{begin}\" ({error})"))
    }

    fn refused(&self, path: &str, expected: &str, found: impl ToString) -> Error {
        Error::request(self.url(path), expected, found)
    }
}

/// How long a server is to be left alone, if it is busy.
fn pause(response: &Response<ureq::Body>) -> Option<Duration> {
    let seconds = || response.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok();
    let busy = matches!(response.status().as_u16(), 429 | 503);
    busy.then(|| seconds().map_or(PAUSE, Duration::from_secs).max(PAUSE))
}

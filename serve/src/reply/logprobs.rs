//! Logarithms of probabilities, in the shapes of both endpoints.

use std::fmt::Write;

use dsv2_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::engine::Scored;
use crate::request::Prompt;

/// A token as a text: its characters; `bytes:\xe4\xb8` if it is no whole characters, as OpenAI writes it; `token_id:7` if the
/// tokenizer has none of this number.
fn shown(tokenizer: &Tokenizer, id: i64) -> String {
    match tokenizer.bytes_of(id).map(String::from_utf8) {
        Some(Ok(text)) => text,
        Some(Err(error)) => error.as_bytes().iter().fold("bytes:".to_owned(), |mut shown, byte| {
            let _ = write!(shown, "\\x{byte:02x}");
            shown
        }),
        None => format!("token_id:{id}"),
    }
}

/// Where a text is: how many characters have begun, and the bytes of the last one if there may come more.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    characters: usize,
    begun: Vec<u8>,
}

impl Place {
    /// After so many characters, all of which are whole.
    pub(super) fn after(text: &str) -> Self {
        Place { characters: text.chars().count(), begun: Vec::new() }
    }

    /// Goes on by a token. Bytes that are no character are told as one `�` for each run that could have begun one.
    fn pass(&mut self, tokenizer: &Tokenizer, id: i64) {
        if tokenizer.is_special(id) {
            return;
        }
        let before = usize::from(!self.begun.is_empty());
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend(tokenizer.bytes_of(id).unwrap_or_default());
        let mut characters = 0;
        for chunk in bytes.utf8_chunks() {
            characters += chunk.valid().chars().count() + usize::from(!chunk.invalid().is_empty());
            let may_go_on = std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            self.begun = if may_go_on { chunk.invalid().to_vec() } else { Vec::new() };
        }
        self.characters += characters - before;
    }
}

/// Those of `/v1/completions`: four lists.
pub(super) struct Completion<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Before the next token.
    place: Place,
}

impl<'a> Completion<'a> {
    /// Of tokens from a place on.
    pub(super) fn new(tokenizer: &'a Tokenizer, place: Place) -> Self {
        let (tokens, token_logprobs, top_logprobs, text_offset) = Default::default();
        Completion { tokenizer, tokens, token_logprobs, top_logprobs, text_offset, place }
    }

    /// A prompt; nothing is known of its first token.
    pub(super) fn prompt(&mut self, prompt: &Prompt, scored: &[Scored]) {
        if let Some(first) = prompt.tokens.first() {
            self.add(*first, Value::Null, Value::Null);
        }
        scored.iter().for_each(|scored| self.push(scored));
        self.place = Place::after(&prompt.text);
    }

    /// One more token.
    pub(super) fn push(&mut self, scored: &Scored) {
        let mut top = Map::new();
        let itself = (scored.id, scored.logprob);
        let missing = scored.top.iter().all(|(id, _)| *id != scored.id).then_some(&itself);
        for (id, logprob) in scored.top.iter().chain(missing) {
            let name = shown(self.tokenizer, *id);
            let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
            top.insert(name, number(*logprob));
        }
        self.add(scored.id, number(scored.logprob), Value::Object(top));
    }

    fn add(&mut self, id: i64, logprob: Value, top: Value) {
        self.tokens.push(shown(self.tokenizer, id));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
        self.text_offset.push(self.place.characters);
        self.place.pass(self.tokenizer, id);
    }

    /// Before the next token.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    pub(super) fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// Those of `/v1/chat/completions`: a list of objects.
pub(super) fn of_chat(tokenizer: &Tokenizer, scored: &[Scored]) -> Value {
    let entry = |id: i64, logprob: f64| {
        let fields = [
            ("token", json!(shown(tokenizer, id))),
            ("logprob", number(logprob)),
            ("bytes", json!(tokenizer.bytes_of(id))),
        ];
        Map::from_iter(fields.map(|(name, value)| (name.to_owned(), value)))
    };
    let of = |scored: &Scored| {
        let top: Vec<_> = scored.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
        let mut entry = entry(scored.id, scored.logprob);
        entry.insert("top_logprobs".to_owned(), json!(top));
        entry
    };
    json!({"content": scored.iter().map(of).collect::<Vec<_>>(), "refusal": null})
}

/// JSON has no infinity: OpenAI's stand-in for what is impossible.
fn number(logprob: f64) -> Value {
    json!(if logprob.is_finite() { logprob } else { -9999.0 })
}

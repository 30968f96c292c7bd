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

/// How many characters of the text begin in a token.
fn width(tokenizer: &Tokenizer, id: i64) -> usize {
    if tokenizer.is_special(id) {
        return 0;
    }
    tokenizer.bytes_of(id).unwrap_or_default().iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// Those of `/v1/completions`: four lists.
pub(super) struct Completion<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// How many characters stand before the next token.
    offset: usize,
}

impl<'a> Completion<'a> {
    /// Of tokens after so many characters.
    pub(super) fn new(tokenizer: &'a Tokenizer, offset: usize) -> Self {
        let (tokens, token_logprobs, top_logprobs, text_offset) = Default::default();
        Completion { tokenizer, tokens, token_logprobs, top_logprobs, text_offset, offset }
    }

    /// A prompt; nothing is known of its first token.
    pub(super) fn prompt(&mut self, prompt: &Prompt, scored: &[Scored]) {
        if let Some(first) = prompt.tokens.first() {
            self.add(*first, Value::Null, Value::Null);
        }
        scored.iter().for_each(|scored| self.push(scored));
        self.offset = prompt.text.chars().count();
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
        self.text_offset.push(self.offset);
        self.offset += width(self.tokenizer, id);
    }

    /// How many characters stand before the next token.
    pub(super) fn offset(&self) -> usize {
        self.offset
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

//! Which token a text is.

use std::collections::HashMap;

use dsv2_text::Tokenizer;

use crate::generate::ModelFolder;

/// How a server writes which token it means, in place of its text (vLLM's `return_tokens_as_token_ids`).
const BY_ID: &str = "token_id:";
/// How OpenAI and `dsv2-serve` write a token that is no whole characters.
const BY_BYTES: &str = "bytes:";

/// The texts of all tokens.
pub struct Vocabulary<'a> {
    tokenizer: &'a Tokenizer,
    /// By any text that an engine may give it, the tokens that have it.
    texts: HashMap<String, Vec<i64>>,
    /// Of each token, whether what an engine calls it may depend on those around it, or on nothing that is known here: parts of
    /// characters, special tokens, and ids that the tokenizer does not have.
    loose: Vec<bool>,
}

impl<'a> Vocabulary<'a> {
    /// Of a model.
    pub fn new(model: &'a ModelFolder) -> Self {
        let tokenizer = &model.tokenizer;
        let (mut texts, mut loose): (HashMap<String, Vec<i64>>, _) = (HashMap::new(), Vec::new());
        for id in 0..model.config.vocab_size as i64 {
            let written = tokenizer.token_of(id);
            let bytes = tokenizer.bytes_of(id).unwrap_or_default();
            let whole = std::str::from_utf8(&bytes).is_ok();
            let spaced = written.as_ref().filter(|text| text.contains('▁')).map(|text| text.replace('▁', " "));
            let by_bytes = (!whole).then(|| by_bytes(&bytes));
            let mut all: Vec<String> = tokenizer
                .decode(&[id], false)
                .ok()
                .into_iter()
                .chain(written.clone())
                .chain(spaced)
                .chain(by_bytes)
                .collect();
            all.sort_unstable();
            all.dedup();
            all.into_iter().for_each(|text| texts.entry(text).or_default().push(id));
            loose.push(!whole || written.is_none() || tokenizer.is_special(id));
        }
        Vocabulary { tokenizer, texts, loose }
    }

    /// The token that a text means, if that is clear.
    pub fn id(&self, text: &str) -> Option<i64> {
        if let Some(id) = text.strip_prefix(BY_ID) {
            return id.parse().ok();
        }
        match self.texts.get(text)?[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// Whether the model has no such token.
    pub fn lacks(&self, id: i64) -> bool {
        usize::try_from(id).map_or(true, |id| id >= self.loose.len())
    }

    /// Whether no token may be called so. (What is not ASCII may be a character that a token completes.)
    pub fn is_none(&self, text: &str) -> bool {
        let of_its_own = [BY_ID, BY_BYTES].iter().any(|prefix| text.starts_with(prefix));
        !text.is_empty() && text.is_ascii() && !of_its_own && !self.texts.contains_key(text)
    }

    /// Whether a token may be called so. An empty text says nothing of it.
    pub fn fits(&self, text: &str, id: i64) -> bool {
        if let Some(named) = text.strip_prefix(BY_ID) {
            return named.parse() == Ok(id);
        }
        let loose = usize::try_from(id).ok().and_then(|id| self.loose.get(id)).is_none_or(|&loose| loose);
        // what was begun before it may be shown with it
        let own = text.trim_start_matches('\u{fffd}');
        loose || own.is_empty() || self.texts.get(own).is_some_and(|of| of.contains(&id))
    }

    /// Whether these may be the bytes of a token, which is called so: its own, or those of the text.
    pub fn has_bytes(&self, id: Option<i64>, text: Option<&str>, bytes: &[i64]) -> bool {
        let same = |own: &[u8]| own.iter().copied().map(i64::from).eq(bytes.iter().copied());
        text.is_some_and(|text| same(text.as_bytes()))
            || id.is_none_or(|id| self.tokenizer.bytes_of(id).is_none_or(|own| same(&own)))
    }
}

/// `bytes:\xe4\xb8`
fn by_bytes(bytes: &[u8]) -> String {
    bytes.iter().fold(BY_BYTES.to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
}

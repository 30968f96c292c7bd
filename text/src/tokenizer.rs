//! Text into tokens and back, as `AutoTokenizer` of Transformers 5.23 reads a folder.

mod bytes;
mod fewest;
mod special;
mod stream;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use dsv2_reference::file;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};
use crate::folder;
use fewest::Sayings;
pub use special::SpecialTokens;
pub use stream::TextStream;

/// A tokenizer: Hugging Face's `tokenizers`, and the special tokens that the files beside it name.
///
/// **Trap.** `add_bos_token` and `add_eos_token` of tokenizer_config.json say nothing where there is a tokenizer.json: what
/// is added to a text is what the post-processor of that file adds. Transformers 4 obeyed them for the class that the
/// DeepSeek folders name, 5.23 does not.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// By id, as far as they have been asked for: `tokenizers` takes longer for a token than a small model does.
    alone: Arc<[OnceLock<Option<Alone>>]>,
    /// What tokens say, when it has been asked for; none, if one could stand for other text than its own.
    sayings: Arc<OnceLock<Option<Sayings>>>,
}

/// What a token says by itself.
#[derive(Debug)]
struct Alone {
    text: String,
    /// Whether it is left out where special tokens are.
    special: bool,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint folder: tokenizer.json, tokenizer_config.json, special_tokens_map.json and
    /// added_tokens.json; only the first must be there.
    ///
    /// # Errors
    /// If it is not there, or one of them is none, or of a model that `tokenizers` does not know.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = file::read(&path, folder::TOKENIZER)?;
        let beside = folder.join("tokenizer_config.json");
        let config = folder::object(&beside)?.unwrap_or_default();
        let special = SpecialTokens::new(&config, || folder::object(&folder.join("special_tokens_map.json")))?;
        let added = match config.contains_key("added_tokens_decoder") {
            true => None,
            false => folder::object(&folder.join("added_tokens.json"))?,
        };
        let of = |path| {
            move |error| match error {
                Error::Tokenizer { expected, found } => Error::file(path, expected, found),
                other => other,
            }
        };
        let more = special::tokens_to_add(&config, &special, &added.unwrap_or_default()).map_err(of(&beside))?;
        Self::new(&bytes, &config, special, more).map_err(of(&path))
    }

    /// The tokenizer that a tokenizer.json and a tokenizer_config.json describe.
    ///
    /// # Errors
    /// As [`Self::from_folder`].
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self> {
        let config: Map<String, Value> = match tokenizer_config.map(serde_json::from_slice) {
            None => Map::new(),
            Some(Ok(config)) => config,
            Some(Err(error)) => return Err(Error::tokenizer("a tokenizer_config.json that is an object", error)),
        };
        let special = SpecialTokens::new(&config, || Ok(None))?;
        let more = special::tokens_to_add(&config, &special, &Map::new())?;
        Self::new(tokenizer_json, &config, special, more)
    }

    fn new(json: &[u8], config: &Map<String, Value>, special: SpecialTokens, more: Vec<AddedToken>) -> Result<Self> {
        let refused = |error: tokenizers::Error| Error::tokenizer("a tokenizer.json of a known model", error);
        checked(json)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(refused)?;
        // What a file says about cutting and padding is for whoever trained it.
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(config.get("split_special_tokens") == Some(&Value::Bool(true)));
        for token in more {
            let known = inner.get_added_vocabulary().get_vocab().contains_key(&token.content);
            if !known {
                let added = match token.special {
                    true => inner.add_special_tokens([token]),
                    false => inner.add_tokens([token]),
                };
                added.map_err(refused)?;
            }
        }
        let cleans = config.get("clean_up_tokenization_spaces") == Some(&Value::Bool(true));
        if cleans && !matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_)) {
            return Err(Error::tokenizer("a tokenizer whose text is not cleaned up", "clean_up_tokenization_spaces"));
        }
        let alone = std::iter::repeat_with(OnceLock::new).take(inner.get_vocab_size(true)).collect();
        Ok(Tokenizer { inner, special, alone, sayings: Arc::default() })
    }

    /// The tokens of a text. Those that stand for something other than text ("begin of sentence") are recognised within it;
    /// with `add_special_tokens`, the tokenizer adds its own around it.
    ///
    /// # Errors
    /// If the tokenizer's model has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| Error::tokenizer("a text that has tokens", error))?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// Whether a text has certainly more tokens than these. It is known in a small part of the time that it takes to make them, and
    /// in little memory; false says nothing. (Nothing is certain but with byte-level BPE over the text as it is, as DeepSeek's.)
    pub fn is_certainly_longer(&self, text: &str, tokens: usize) -> bool {
        // a token says at least a byte
        let sayings = || self.sayings.get_or_init(|| Sayings::of(&self.inner)).as_ref();
        text.len() > tokens && sayings().is_some_and(|sayings| sayings.need_more_than(tokens, text.as_bytes()))
    }

    /// The same without any special tokens: where a text has them, they are text like any other.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<i64>> {
        let mut ordinary = self.clone();
        ordinary.inner.set_encode_special_tokens(true);
        ordinary.encode(text, false)
    }

    /// The text of tokens. Bytes that are no character become `�`.
    ///
    /// # Errors
    /// If a number is no token's. (Transformers leaves it out.)
    pub fn decode(&self, ids: &[i64], skip_special_tokens: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|id| self.known(*id)).collect::<Result<_>>()?;
        self.text_of(&ids, skip_special_tokens)
    }

    /// The text of tokens that come one by one.
    pub fn stream(&self, skip_special_tokens: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special_tokens)
    }

    /// The special tokens that the files name.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The token that begins a text, if one is named.
    pub fn bos_token_id(&self) -> Option<i64> {
        self.id_of(self.special.get("bos_token")?)
    }

    /// The token that ends a text, if one is named. A model may end texts with others too: those are in its
    /// [`GenerationConfig`](crate::GenerationConfig).
    pub fn eos_token_id(&self) -> Option<i64> {
        self.id_of(self.special.get("eos_token")?)
    }

    /// The token that fills short sequences of a batch, if one is named.
    pub fn pad_token_id(&self) -> Option<i64> {
        self.id_of(self.special.get("pad_token")?)
    }

    /// How many tokens there are, those that were added included. A model's vocabulary may be larger.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, as it is written in tokenizer.json.
    pub fn id_of(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The token of an id, as it is written in tokenizer.json (bytes of a text may be written as other characters there).
    pub fn token_of(&self, id: i64) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The bytes that a token adds to a text, where others stand before it; often no whole characters. None if there is no such token.
    pub fn bytes_of(&self, id: i64) -> Option<Vec<u8>> {
        let known = self.known(id).ok()?;
        let token = self.inner.id_to_token(known)?;
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&known) {
            return Some(token.into_bytes());
        }
        if self.joins_bytes() {
            return Some(token.chars().flat_map(bytes::of_character).collect());
        }
        if let Some(byte) = bytes::of_fallback(&token) {
            return Some(vec![byte]);
        }
        // a text's first token may lose its space
        let (once, twice) = (self.text_of(&[known], false).ok()?, self.text_of(&[known, known], false).ok()?);
        Some(twice.strip_prefix(&*once).unwrap_or(&once).as_bytes().to_vec())
    }

    /// Whether a token stands for something other than text.
    pub fn is_special(&self, id: i64) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        u32::try_from(id).is_ok_and(|id| added.get(&id).is_some_and(|token: &AddedToken| token.special))
    }

    /// Whether texts come from bytes that are joined, so that what tokens say does not depend on those before them.
    fn joins_bytes(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(tokenizers::DecoderWrapper::ByteLevel(_)))
    }

    fn text_of(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let text = self.inner.decode(ids, skip_special_tokens);
        text.map_err(|error| Error::tokenizer("tokens that have a text", error))
    }

    /// What a token says by itself; nothing, if there is none, or none that is kept.
    fn alone(&self, id: i64) -> Result<Option<&Alone>> {
        let Some(kept) = usize::try_from(id).ok().and_then(|id| self.alone.get(id)) else { return Ok(None) };
        if let Some(alone) = kept.get() {
            return Ok(alone.as_ref());
        }
        let alone = match self.known(id) {
            Ok(known) => Some(Alone { text: self.text_of(&[known], false)?, special: self.is_special(id) }),
            Err(_) => None,
        };
        Ok(kept.get_or_init(|| alone).as_ref())
    }

    /// The id as `tokenizers` takes it, if there is such a token.
    fn known(&self, id: i64) -> Result<u32> {
        let known = u32::try_from(id).ok().filter(|id| self.inner.id_to_token(*id).is_some());
        known.ok_or_else(|| Error::Token { id, size: self.vocabulary_size() })
    }
}

/// That `tokenizers` refuses what it does not know of a tokenizer.json, as it panics
///
/// * where a decoder's part is no JSON,
/// * at a damaged `Precompiled` normalizer, some at their first text. It belongs to tokenizers of other models (T5, XLM-R).
///
/// # Errors
/// If it is one of these.
fn checked(json: &[u8]) -> Result<()> {
    let whole: Value = serde_json::from_slice(json).map_err(|error| Error::tokenizer("JSON", error))?;
    match has_type(&whole["normalizer"], "Precompiled") {
        true => Err(Error::tokenizer("a normalizer that a DeepSeek model may have", "Precompiled")),
        false => Ok(()),
    }
}

/// Whether this part, or one within it, is of a type.
fn has_type(part: &Value, name: &str) -> bool {
    match part {
        Value::Object(fields) => part["type"] == name || fields.values().any(|within| has_type(within, name)),
        Value::Array(parts) => parts.iter().any(|within| has_type(within, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;

//! Which special tokens the files beside a tokenizer.json name.

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// The names of special tokens that every tokenizer may have.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Special tokens by name (`bos_token`), and those that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: IndexMap<String, String>,
    extra: Vec<String>,
}

impl SpecialTokens {
    /// From tokenizer_config.json; and from special_tokens_map.json (which is asked for only then) if the former lists no
    /// added tokens, as older folders do not.
    pub(crate) fn new(
        config: &Map<String, Value>,
        map: impl FnOnce() -> Result<Option<Map<String, Value>>>,
    ) -> Result<Self> {
        let mut special = SpecialTokens::default();
        special.take(config)?;
        if !config.contains_key("added_tokens_decoder")
            && let Some(map) = map()?
        {
            special.take(&map)?;
        }
        Ok(special)
    }

    /// The token of this name: `bos_token`, `eos_token`, `pad_token`, ...
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// All that have a name. A chat template sees them as variables.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// Takes what a file says over what is there.
    fn take(&mut self, file: &Map<String, Value>) -> Result<()> {
        for (name, value) in file {
            let standard = NAMES.contains(&name.as_str());
            // A tokenizer may have names of its own: `image_token`.
            let own = name.ends_with("_token") && content(value).is_some();
            if standard || own {
                match content(value) {
                    Some(token) => drop(self.named.insert(name.clone(), token)),
                    None if value.is_null() => {}
                    None => return Err(Error::tokenizer(format!("`{name}` to be a token"), value)),
                }
            }
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"];
        match extra.into_iter().find_map(|name| file.get(name).filter(|value| !is_empty(value))) {
            Some(Value::Array(tokens)) => self.extra.extend(tokens.iter().filter_map(content)),
            Some(Value::Object(named)) => {
                let named = named.iter().filter_map(|(name, value)| Some((name.clone(), content(value)?)));
                self.named.extend(named);
            }
            Some(Value::Null) | None => {}
            Some(other) => return Err(Error::tokenizer("`extra_special_tokens` to be a list of tokens", other)),
        }
        Ok(())
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        value => value.is_null(),
    }
}

/// The text of a token: a string, or an object that says more about it.
fn content(value: &Value) -> Option<String> {
    let text = value.as_object().map_or(Some(value), |token| token.get("content"))?;
    text.as_str().map(str::to_owned)
}

/// The tokens that must be there, in the order in which they get an id if tokenizer.json does not have them.
pub(super) fn tokens_to_add(
    config: &Map<String, Value>,
    special: &SpecialTokens,
    added: &Map<String, Value>,
) -> Result<Vec<AddedToken>> {
    let mut listed = Vec::new();
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, token) in decoder {
            let id: u32 = id.parse().map_err(|_| Error::tokenizer("ids in `added_tokens_decoder`", id))?;
            let token: AddedToken = serde_json::from_value(complete(token))
                .map_err(|error| Error::tokenizer("tokens in `added_tokens_decoder`", error))?;
            listed.push((id, token));
        }
    }
    for (token, id) in added {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::tokenizer("ids in added_tokens.json", token))?;
        let is_special = special.named().any(|(_, named)| named == token) || special.extra.contains(token);
        listed.push((id, AddedToken::from(token, is_special)));
    }
    listed.sort_by_key(|(id, _)| *id);
    let named = special.named().map(|(_, token)| token).chain(special.extra.iter().map(String::as_str));
    let mut tokens: Vec<AddedToken> = listed.into_iter().map(|(_, token)| token).collect();
    for token in named {
        if !tokens.iter().any(|known| known.content == token) {
            tokens.push(AddedToken::from(token, true));
        }
    }
    Ok(tokens)
}

/// A token with the fields that its object may leave out.
fn complete(token: &Value) -> Value {
    let mut whole = serde_json::json!({
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false,
    });
    if let (Some(whole), Some(token)) = (whole.as_object_mut(), token.as_object()) {
        whole.extend(token.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    whole
}

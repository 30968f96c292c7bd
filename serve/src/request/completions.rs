//! `POST /v1/completions`.

use dsv2::generate::ModelFolder;
use serde_json::{Value, json};

use super::{Asked, Defaults, Fields, MOST_LOGPROBS, Prompt, fewest, known, new_tokens, tokens};
use crate::engine::Engine;
use crate::error::{ApiError, Result};

/// What a body asks for.
///
/// # Errors
/// If a field is impossible, not supported or not known.
pub fn asked(folder: &ModelFolder, defaults: &Defaults, engine: &Engine, mut fields: Fields) -> Result<Asked> {
    let rules = defaults.rules(folder, &mut fields)?;
    let echo = fields.take("echo")?.unwrap_or(false);
    let most = fields.take::<usize>("max_tokens")?;
    if most == Some(0) && !echo {
        return Err(ApiError::field("max_tokens", "expected at least 1 (0 only with `echo`), found 0"));
    }
    let n = super::chat::count(&mut fields)?;
    fields.refuse("best_of", &[json!(n)])?;
    fields.refuse("suffix", &[json!("")])?;
    let logprobs = fields.take::<usize>("logprobs")?;
    if let Some(found) = logprobs.filter(|logprobs| *logprobs > MOST_LOGPROBS) {
        return Err(ApiError::field("logprobs", format_args!("expected 0 to {MOST_LOGPROBS}, found {found}")));
    }
    let (stream, include_usage) = super::chat::stream(&mut fields)?;
    let return_token_ids = fields.take("return_token_ids")?.unwrap_or(false);
    let special = fields.take("add_special_tokens")?.unwrap_or(true);
    let prompt = fields.need::<Value>("prompt")?;
    // before any of them is made into tokens
    engine.could_hold(several(&prompt).map_or(1, <[Value]>::len).saturating_mul(n))?;
    let prompts = prompts(folder, &prompt, special)?;
    fields.end()?;
    let new = |prompt: &Prompt| new_tokens(folder, prompt.tokens.len(), most, "prompt", defaults.completion());
    let new = prompts.iter().map(new).collect::<Result<Vec<_>>>()?;
    fewest(&rules, &new)?;
    Ok(Asked { prompts, n, rules, new, logprobs, echo, stream, include_usage, return_token_ids })
}

/// A text, texts, tokens, or lists of tokens.
fn prompts(folder: &ModelFolder, value: &Value, special: bool) -> Result<Vec<Prompt>> {
    let of = |value: &Value| match value {
        Value::String(text) => of_text(folder, text, special),
        Value::Array(ids) => of_tokens(folder, ids),
        other => Err(refused(other)),
    };
    match several(value) {
        Some([]) => Err(refused(value)),
        Some(list) => list.iter().map(of).collect(),
        None => Ok(vec![of(value)?]),
    }
}

/// What is in a list that is not one of tokens.
fn several(value: &Value) -> Option<&[Value]> {
    value.as_array().filter(|list| list.first().is_none_or(|first| !first.is_number())).map(Vec::as_slice)
}

fn of_text(folder: &ModelFolder, text: &str, special: bool) -> Result<Prompt> {
    if text.is_empty() {
        return Err(ApiError::field("prompt", "expected a text, found an empty one"));
    }
    Ok(Prompt { text: text.to_owned(), tokens: tokens(folder, text, special, "prompt")? })
}

fn of_tokens(folder: &ModelFolder, ids: &[Value]) -> Result<Prompt> {
    let tokens = ids.iter().map(|id| id.as_i64().ok_or_else(|| refused(id))).collect::<Result<Vec<_>>>()?;
    known(folder, &tokens, "prompt")?;
    // an id without a token has no text
    let text = folder.tokenizer.decode(&tokens, true).map_err(|error| ApiError::field("prompt", error))?;
    Ok(Prompt { text, tokens })
}

fn refused(found: &Value) -> ApiError {
    let message =
        format_args!("expected a text, a list of texts, a list of tokens or a list of lists of tokens, found {found}");
    ApiError::field("prompt", message)
}

//! What a client asks for.

pub mod chat;
pub mod completions;
mod fields;
mod rules;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use axum::http::StatusCode;
use dsv2::generate::{ModelFolder, Rules};

use crate::error::{ApiError, Result};
pub use fields::Fields;
pub use rules::Defaults;

/// Prompts, and how each goes on.
pub struct Asked {
    /// What is said again before an answer, and its tokens.
    pub prompts: Vec<Prompt>,
    /// How many answers each prompt gets.
    pub n: usize,
    /// How they come to be.
    pub rules: Rules,
    /// How many tokens may be added to each prompt.
    pub new: Vec<usize>,
    /// How many likely tokens are told beside each one, if logarithms are wanted.
    pub logprobs: Option<usize>,
    /// Whether the prompt stands before the answer.
    pub echo: bool,
    /// Whether the answer comes in parts.
    pub stream: bool,
    /// Whether usage is told at the end of a stream.
    pub include_usage: bool,
    /// Whether ids of tokens are told.
    pub return_token_ids: bool,
}

/// A prompt.
pub struct Prompt {
    /// As the client wrote it, or as its tokens read.
    pub text: String,
    /// What the model is fed.
    pub tokens: Vec<i64>,
}

/// The most likely tokens that are told beside each one.
const MOST_LOGPROBS: usize = 20;

/// The tokens of a text for `name`. One that has certainly too many for the context is refused without them.
fn tokens(folder: &ModelFolder, text: &str, special: bool, name: &str) -> Result<Vec<i64>> {
    let context = folder.config.max_position_embeddings;
    if folder.tokenizer.is_certainly_longer(text, context) {
        return Err(too_long(name, format!("this model's context has {context} tokens, the prompt more")));
    }
    let tokens = folder.tokenizer.encode(text, special)?;
    known(folder, &tokens, name)?;
    Ok(tokens)
}

fn too_long(name: &str, message: String) -> ApiError {
    let error = ApiError::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message);
    ApiError { param: Some(name.to_owned()), ..error }
}

/// How many tokens may be added to a prompt: those that were asked for, or `otherwise` as far as there is room in the context.
fn new_tokens(
    folder: &ModelFolder,
    prompt: usize,
    asked: Option<usize>,
    name: &str,
    otherwise: usize,
) -> Result<usize> {
    let context = folder.config.max_position_embeddings;
    let room = context.saturating_sub(prompt);
    match asked {
        // nothing is added, and yet the prompt may be too long
        Some(new) if prompt.saturating_add(new) > context => Err(too_long(
            name,
            format!(
                "this model's context has {context} tokens; {} were asked for: {prompt} in the prompt, {new} in the answer",
                prompt.saturating_add(new)
            ),
        )),
        Some(new) => Ok(new),
        None if room == 0 => {
            Err(too_long(name, format!("this model's context has {context} tokens, the prompt {prompt}")))
        }
        None => Ok(otherwise.min(room)),
    }
}

/// Refuses answers that would have to be longer than they may be.
fn fewest(rules: &Rules, new: &[usize]) -> Result<()> {
    match (rules.config.min_new_tokens, new.iter().min()) {
        (Some(fewest), Some(most)) if fewest > *most => Err(ApiError::field(
            "min_tokens",
            format_args!("expected at most {most}, as many as there may be, found {fewest}"),
        )),
        _ => Ok(()),
    }
}

/// Refuses tokens that the model does not know, and prompts without any.
fn known(folder: &ModelFolder, tokens: &[i64], name: &str) -> Result<()> {
    let vocabulary = folder.config.vocab_size;
    if tokens.is_empty() {
        return Err(ApiError::field(name, "expected at least one token, found none"));
    }
    match tokens.iter().find(|id| !(0..vocabulary as i64).contains(*id)) {
        Some(id) => Err(ApiError::field(name, format_args!("expected tokens 0 to {}, found {id}", vocabulary - 1))),
        None => Ok(()),
    }
}

/// What drawing begins with where the client does not say: something else each time.
fn any_seed() -> u64 {
    RandomState::new().hash_one(0)
}

//! The prompt: messages through the template, text through the tokenizer.
//!
//! **Trap.** A template writes the begin token itself, so that a chat's text goes through the tokenizer without special tokens,
//! and a completion's with them. Engines that do both alike feed the begin token twice, or not at all.

use dsv2_text::{ChatOptions, Message};
use serde_json::Value;

use super::Speech;
use super::mutants::Bug;
use super::record::{Prompt, Request};
use crate::error::{Error, Result};
use crate::generate::ModelFolder;

/// The prompt of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Fed {
    /// Its text; of tokens, none.
    pub text: Option<String>,
    /// Its tokens.
    pub ids: Vec<i64>,
}

/// What a request's prompt is: right, or as an engine with this bug makes it.
///
/// # Errors
/// If the template refuses the messages, there is none, or the text has no tokens.
pub fn prompt(speech: &Speech<'_>, request: &Request, bug: Option<Bug>) -> Result<Fed> {
    let (text, chat) = match (&request.prompt, &request.messages) {
        (Some(Prompt::Ids(ids)), _) if !ids.is_empty() => return Ok(Fed { text: None, ids: ids.clone() }),
        (Some(Prompt::Text(text)), _) => (text.clone(), false),
        // one of several, as `Transcript` takes them apart
        (Some(Prompt::Ids(_) | Prompt::Texts(_) | Prompt::ManyIds(_)), _) => {
            return Err(Error::request("prompt", "a text, or at least one token", "none, or several texts"));
        }
        (None, messages) => (rendered(speech, request, messages.as_deref().unwrap_or_default(), bug)?, true),
    };
    let add_special_tokens = request.add_special_tokens.unwrap_or(!chat);
    let ids = tokens(speech.model, &text, add_special_tokens, bug)?;
    match ids.is_empty() {
        true => Err(Error::request("prompt", "at least one token", "none")),
        false => Ok(Fed { text: Some(text), ids }),
    }
}

/// Messages through the template.
fn rendered(speech: &Speech<'_>, request: &Request, messages: &[Value], bug: Option<Bug>) -> Result<String> {
    let messages = (1..).zip(messages).map(|(number, value)| Message::from_value(number, value.clone()));
    let mut messages: Vec<Message> = messages.collect::<Result<_, _>>()?;
    match bug {
        Some(Bug::ContentStripped) => {
            for message in &mut messages {
                let Some(text) = message.text().map(|text| text.trim().to_owned()) else { continue };
                *message = message.clone().with("content", text.into());
            }
        }
        Some(Bug::SystemDropped) if messages.len() > 1 => messages.retain(|message| message.role() != Some("system")),
        Some(Bug::SystemAsUser) => {
            for message in messages.iter_mut().filter(|message| message.role() == Some("system")) {
                *message = message.clone().with("role", "user".into());
            }
        }
        Some(Bug::OnlyLastTurn) => messages = messages.pop().into_iter().collect(),
        _ => {}
    }
    let opens = request.add_generation_prompt.unwrap_or(true);
    let options = ChatOptions {
        tools: request.tools.as_deref().filter(|_| bug != Some(Bug::ToolsDropped)),
        add_generation_prompt: opens && bug != Some(Bug::NoGenerationPrompt),
        variables: request.chat_template_kwargs.clone().unwrap_or_default(),
        ..ChatOptions::default()
    };
    let mut text = speech.template()?.render(&messages, &options)?;
    match bug {
        Some(Bug::NewlinesHalved) => text = text.replace("\n\n", "\n"),
        Some(Bug::NewlineAtEnd) => text.push('\n'),
        Some(Bug::SpaceAtEnd) => text.push(' '),
        Some(Bug::EndTokensDropped) => {
            if let Some(eos) = speech.model.tokenizer.special_tokens().get("eos_token") {
                text = text.replace(eos, "");
            }
        }
        _ => {}
    }
    Ok(text)
}

/// Text through the tokenizer.
fn tokens(model: &ModelFolder, text: &str, add_special_tokens: bool, bug: Option<Bug>) -> Result<Vec<i64>> {
    let tokenizer = &model.tokenizer;
    let (bos, eos) = (tokenizer.bos_token_id(), tokenizer.eos_token_id());
    let mut ids = match bug {
        Some(Bug::LeadingSpace) => {
            // After the begin token, which may be part of the text.
            let begin = bos.and_then(|id| tokenizer.token_of(id)).filter(|begin| text.starts_with(begin.as_str()));
            let at = begin.map_or(0, |begin| begin.len());
            tokenizer.encode(&format!("{} {}", &text[..at], &text[at..]), add_special_tokens)?
        }
        Some(Bug::SpecialTokensAsText) => tokenizer.encode_ordinary(text)?,
        _ => tokenizer.encode(text, add_special_tokens)?,
    };
    let begins = ids.first().is_some_and(|first| Some(*first) == bos);
    match (bug, bos, eos) {
        (Some(Bug::BosTwice), Some(bos), _) => ids.insert(0, bos),
        (Some(Bug::BosMissing), ..) if begins => drop(ids.remove(0)),
        (Some(Bug::EosAppended), _, Some(eos)) => ids.push(eos),
        (Some(Bug::FirstTokenCut), ..) if ids.len() > usize::from(begins) => drop(ids.remove(usize::from(begins))),
        _ => {}
    }
    Ok(ids)
}

//! Text: what an engine answered, against what the model, its tokenizer and its template say.
//!
//! Two engines with equal logits still differ in what they say if templates, tokens, stop rules or sampling differ. A
//! [transcript](record) is one request and its answer, in the shape that OpenAI's API gave them and that most servers speak. It
//! is judged part by part, each from the transcript's own tokens, so that one fault does not fail what comes after it:
//!
//! ```text
//! template        messages -> the prompt's text
//! tokenization    text -> the prompt's tokens
//! tokens          each token: the likeliest, or one that the filters leave      up to near ties
//! logprobs        of each token, and of the likeliest                           within the budget of the engine's type
//! finish_reason   where the answer ends, and why
//! text            tokens -> text, without end token and stop string
//! usage           how many tokens that was
//! ```
//!
//! | module | |
//! |---|---|
//! | [`record`] | transcripts, as files and servers have them |
//! | [`files`] | files of transcripts, and of requests |
//! | `prompt`, `sampling`, `ending` | how an engine does text: the right way, and with [known bugs](mutants) |
//! | `answer` | which tokens a transcript means |
//! | `truth` | what the model says at each token, and how far off a plain implementation is |
//! | [`judge`], [`report`] | the parts, judged |
//! | [`endpoint`] | transcripts from a server as it runs |

mod answer;
mod ending;
pub mod endpoint;
pub mod files;
pub mod judge;
pub mod mutants;
mod prompt;
pub mod record;
pub mod report;
mod sampling;
mod truth;

use dsv2_text::ChatTemplate;
use serde_json::Map;

use crate::error::{Error, Result};
use crate::generate::ModelFolder;
pub use sampling::LogprobsOf;

#[cfg(test)]
mod tests;

/// What a model's folder says of text.
#[derive(Clone)]
pub struct Speech<'a> {
    /// The folder.
    pub model: &'a ModelFolder,
    template: Result<&'a ChatTemplate, String>,
    end_tokens: Vec<i64>,
}

impl<'a> Speech<'a> {
    /// Of this folder. It may have no template: then it completes, and a chat is refused.
    ///
    /// # Errors
    /// If generation_config.json is at fault.
    pub fn of(model: &'a ModelFolder) -> Result<Self> {
        let template = model.template().map_err(|error| error.to_string());
        let mut end_tokens = model.generation_config(&Map::new())?.eos_token_id;
        if end_tokens.is_empty() {
            end_tokens.extend(model.tokenizer.eos_token_id());
        }
        Ok(Speech { model, template, end_tokens })
    }

    fn template(&self) -> Result<&'a ChatTemplate> {
        self.template.as_ref().copied().map_err(|found| Error::request("messages", "a chat template", found))
    }
}

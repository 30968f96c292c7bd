//! What stands between a prompt and a model, as Hugging Face Transformers 5.23 does it: text into tokens and back, messages
//! into a prompt, settings, logits into a token, and when an answer ends. What computes a model is not here; the files of a small one are
//! ([`embedded`]).
//!
//! | | |
//! |---|---|
//! | [`Tokenizer`], [`TextStream`] | tokenizer.json and what lies beside it, by Hugging Face's `tokenizers` |
//! | [`ChatTemplate`], [`Message`] | the model's Jinja template, by `minijinja`; bounded in time and memory |
//! | [`GenerationConfig`], [`Lengths`] | generation_config.json (or config.json) below the arguments of a call |
//! | [`LogitsProcessors`], [`Sampler`] | repetition penalty, bias, temperature, top-k, top-p, min-p, ...; the likeliest token or a drawn one |
//! | [`StoppingCriteria`], [`StopStrings`] | tokens, texts and lengths that end an answer |
//! | [`generation::padding`] | batches with padding on the left, and the mask that Transformers infers from it |
//!
//! golden/text holds what Transformers says of the same texts, chats and logits; `tests/goldens` compares.
//!
//! ```no_run
//! use dsv2_text::*;
//!
//! # fn logits_of_the_next_token(row: &[i64]) -> Vec<f32> { vec![] }
//! # fn main() -> Result<()> {
//! let folder = std::path::Path::new("DeepSeek-V2-Lite-Chat");
//! let tokenizer = Tokenizer::from_folder(folder)?;
//! let template = ChatTemplate::from_folder(folder)?;
//! let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
//! let prompt = template.render(&[Message::new("user", "Hello!")], &options)?;
//! // The template writes the special tokens itself.
//! let mut row = tokenizer.encode(&prompt, false)?;
//!
//! let config = GenerationConfig::from_folder(folder, &serde_json::Map::new())?;
//! let lengths = Lengths::new(&config, row.len(), Some(163_840))?;
//! let processors = LogitsProcessors::new(&config, &lengths, 0, 102_400)?;
//! let sampler = if config.do_sample { Sampler::Seeded(7) } else { Sampler::Greedy };
//! let criteria = StoppingCriteria::new(&config, &lengths);
//! let mut text = StopStrings::new(&tokenizer, &config.stop_strings, true);
//! for step in 0.. {
//!     let mut logits = logits_of_the_next_token(&row);
//!     processors.apply(&row, &mut logits)?;
//!     let token = sampler.choose(&logits, 0, step)?;
//!     row.push(token);
//!     let piece = text.push(token)?;
//!     print!("{}", piece.text);
//!     if piece.stopped.or(criteria.after(&row)).is_some() {
//!         break;
//!     }
//! }
//! println!("{}", text.finish()?);
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]

pub mod chat;
pub mod embedded;
pub mod error;
mod folder;
pub mod generation;
pub mod tokenizer;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use error::{Error, Result};
pub use generation::{
    FinishReason, GenerationConfig, Lengths, LogitsProcessors, Sampler, StopStrings, StoppingCriteria,
};
pub use tokenizer::{SpecialTokens, TextStream, Tokenizer};

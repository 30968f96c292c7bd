//! What stands between a prompt and a model.

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

//! What stands between a prompt and a model.

#![deny(missing_docs)]

pub mod chat;
pub mod error;
mod folder;
pub mod tokenizer;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use error::{Error, Result};
pub use tokenizer::{SpecialTokens, TextStream, Tokenizer};

//! `dsv2-serve`: an OpenAI-compatible server of DeepSeek-V2, for evaluation harnesses and clients. It is not made for production:
//! it computes on the reference, which is written to be read and to be right, has no users, no encryption and no log.
//!
//! ```text
//! connection -> api -> request: fields, prompts, rules -> engine: sequences join and leave -> reply: whole, or in parts
//! ```
//!
//! What it computes are the bits of `dsv2 generate`, whatever else is computed at the same time ([`engine`]).

pub mod api;
pub mod engine;
mod error;
pub mod options;
mod reply;
mod request;
pub mod server;

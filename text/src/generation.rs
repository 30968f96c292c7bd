//! How tokens are chosen, and when that ends: as `generate` of Transformers 5.23.

pub mod config;
mod fields;
pub mod lengths;
pub mod padding;
pub mod processors;
pub mod sampler;
pub mod stopping;

pub use config::GenerationConfig;
pub use lengths::Lengths;
pub use processors::{LogitsProcessor, LogitsProcessors};
pub use sampler::Sampler;
pub use stopping::{FinishReason, StopStrings, StoppingCriteria};

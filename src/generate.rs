//! Text from a model: prompts in, tokens out, over any backend.
//!
//! ```text
//! prompts -> tokenizer -> [ Decoder -> logits -> processors -> sampler -> stop rules ] for each token -> text
//! ```
//!
//! A batch runs its prompts in one pass, padded on the left, then one token a step. A sequence that ends leaves the work. The
//! tokens are those of Transformers' `generate` (goldens: `golden/text/runs.json`); [`dsv2_text`] has the rules.

mod batch;
pub mod decoder;
mod model_folder;
pub mod need;
pub mod pool;
mod prompts;
mod sequence;
mod session;

use dsv2_text::{FinishReason, GenerationConfig};

use crate::error::Result;
pub use batch::generate;
pub use model_folder::ModelFolder;
pub use prompts::{Fed, Prompt, conversation};
pub use sequence::Sequence;
pub use session::Session;

/// How tokens are chosen, and when that ends.
#[derive(Clone, Debug)]
pub struct Rules {
    /// By Hugging Face's names.
    pub config: GenerationConfig,
    /// What drawing begins with, where tokens are drawn.
    pub seed: u64,
    /// Whether the probabilities of the chosen tokens are wanted, which takes a pass over all logits.
    pub logprobs: bool,
    /// The number of the first sequence: a draw belongs to the seed, the number of the sequence and that of the token.
    pub first_sequence: usize,
}

impl Rules {
    /// The likeliest token each time, `tokens` times, whatever it is.
    pub fn greedy(tokens: usize) -> Self {
        let config = GenerationConfig { max_new_tokens: Some(tokens), ..GenerationConfig::default() };
        Rules { config, seed: 0, logprobs: false, first_sequence: 0 }
    }
}

/// A token that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub id: i64,
    /// The logarithm of its probability after all processors, by which it was chosen; if it was asked for.
    pub logprob: Option<f64>,
}

/// What was added to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// All tokens, a stop token at the end included.
    pub tokens: Vec<Chosen>,
    /// Their text, without special tokens and what ends it.
    pub text: String,
    /// Why there are no more.
    pub finish: FinishReason,
}

/// Hears what happens while it happens.
pub trait Listener {
    /// A stage of the model was computed.
    fn stage(&mut self, name: &str) {
        let _ = name;
    }

    /// A sequence has one more token, and its text goes on so; often there is none, since a character may have several tokens.
    ///
    /// # Errors
    /// What ends the generation.
    fn token(&mut self, sequence: usize, chosen: Chosen, text: &str) -> Result<()>;

    /// A sequence is complete; the text ends so.
    ///
    /// # Errors
    /// What ends the generation.
    fn end(&mut self, sequence: usize, text: &str) -> Result<()>;
}

/// A listener who does not care.
pub struct Silent;

impl Listener for Silent {
    fn token(&mut self, _: usize, _: Chosen, _: &str) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: usize, _: &str) -> Result<()> {
        Ok(())
    }
}

//! The parts of a transcript, judged one by one, each from what the transcript itself holds of the parts before it.

mod all;
mod ends;
mod errors;
mod fed;
mod logprobs;
mod numbers;
mod settled;

use std::fmt;
use std::rc::Rc;

use serde_json::Value;

use super::Speech;
use super::answer::{Answer, Vocabulary};
use super::ending::Stops;
use super::mutants::{self, Bug, Mutant};
use super::prompt::{Fed, prompt};
use super::record::{Fault, Request, Transcript};
use super::sampling::{LogprobsOf, Sampling};
use super::truth;
use crate::error::{Error, Result};
use crate::generate::ModelFolder;
use crate::memory::Need;
use crate::precision::Precision;
pub use all::Judgement;
use numbers::Numbers;
pub use settled::{Judged, settle};

/// What of a transcript is judged, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Messages into the prompt's text.
    Template,
    /// Text into the prompt's tokens.
    Tokenization,
    /// Each token of the answer: whether it may be chosen.
    Tokens,
    /// The probabilities that are told.
    Logprobs,
    /// Where the answer ends, and why.
    FinishReason,
    /// Tokens into the answer's text.
    Text,
    /// How many tokens that was.
    Usage,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 7] = {
        use Part::*;
        [Template, Tokenization, Tokens, Logprobs, FinishReason, Text, Usage]
    };

    /// Whether a pass says something of the model: a text that ends where it may and a count that adds up do not.
    pub fn tells(self) -> bool {
        matches!(self, Part::Template | Part::Tokenization | Part::Tokens | Part::Logprobs)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Template => "template",
            Part::Tokenization => "tokenization",
            Part::Tokens => "tokens",
            Part::Logprobs => "logprobs",
            Part::FinishReason => "finish_reason",
            Part::Text => "text",
            Part::Usage => "usage",
        })
    }
}

/// What came of a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is as it should be, as far as the transcript says.
    Pass,
    /// It is not: what was expected, and what was found.
    Fail {
        /// What should be.
        expected: String,
        /// What is.
        found: String,
    },
    /// It may be a fault or none, for this reason.
    Inconclusive(String),
    /// The transcript does not hold what is needed: what that is.
    NotJudged(String),
}

/// The verdict on a part.
#[derive(Clone, Debug)]
pub struct PartVerdict {
    /// The part.
    pub part: Part,
    /// What came of it.
    pub outcome: Outcome,
    /// How many tokens, characters or numbers were compared.
    pub compared: usize,
    /// The largest error, in budgets, where there is one.
    pub ratio: Option<f64>,
    /// Known bugs that make exactly this.
    pub hints: Vec<&'static Mutant>,
}

impl PartVerdict {
    fn of(part: Part, outcome: Outcome, compared: usize) -> Self {
        PartVerdict { part, outcome, compared, ratio: None, hints: Vec::new() }
    }

    fn not_judged(part: Part, needs: impl Into<String>) -> Self {
        Self::of(part, Outcome::NotJudged(needs.into()), 0)
    }

    /// Whether it fails.
    pub fn fails(&self) -> bool {
        matches!(self.outcome, Outcome::Fail { .. })
    }

    /// Whether it is as it should be.
    fn passes(&self) -> bool {
        self.outcome == Outcome::Pass
    }

    /// Whether nothing could be said of it.
    fn is_not_judged(&self) -> bool {
        matches!(self.outcome, Outcome::NotJudged(_))
    }

    /// Whether it fails, or nobody knows.
    fn is_off(&self) -> bool {
        self.fails() || matches!(self.outcome, Outcome::Inconclusive(_))
    }

    fn explained(mut self, hints: Vec<&'static Mutant>) -> Self {
        self.hints = hints;
        self
    }
}

/// What transcripts are judged by.
pub struct Judge<'a> {
    pub(super) speech: Speech<'a>,
    pub(super) vocabulary: Rc<Vocabulary<'a>>,
    pub(super) precision: Precision,
    pub(super) logprobs_of: Option<LogprobsOf>,
}

impl<'a> Judge<'a> {
    /// By this model, of engines that compute in `precision` and tell these probabilities; whichever fit, if it is not said.
    ///
    /// # Errors
    /// If its generation_config.json is at fault.
    pub fn new(model: &'a ModelFolder, precision: Precision, logprobs_of: Option<LogprobsOf>) -> Result<Self> {
        Ok(Judge { speech: Speech::of(model)?, vocabulary: Rc::new(Vocabulary::new(model)), precision, logprobs_of })
    }

    /// The same for engines that compute in another type.
    fn of_type(&self, precision: Precision) -> Self {
        Judge { speech: self.speech.clone(), vocabulary: Rc::clone(&self.vocabulary), precision, ..*self }
    }

    /// Whether answers to a request could be judged.
    ///
    /// # Errors
    /// If not: it is no request, a setting is impossible, or it is a chat, and the model has no template or is refused by it.
    pub fn can_judge(&self, request: &Value) -> Result<()> {
        let vocabulary = self.speech.model.config.vocab_size;
        let fault = |(expected, found): Fault| Error::request("request", expected, found);
        Request::from_json(request, vocabulary).map_err(fault)?.iter().try_for_each(|one| self.right(one).map(drop))
    }

    /// The right prompt, which the model can be fed.
    fn right(&self, request: &Request) -> Result<Fed> {
        let right = prompt(&self.speech, request, None)?;
        self.speech.model.check(&right.ids)?;
        Ok(right)
    }

    /// About so much memory judging this takes.
    ///
    /// # Errors
    /// If the request is none that can be judged: its chat has no template or is refused by it, it has no tokens or some that
    /// the model does not have, or there is no room for them.
    pub fn need(&self, transcript: &Transcript) -> Result<Need> {
        let prompt =
            self.right(&transcript.request)?.ids.len().max(transcript.prompt_token_ids().map_or(0, <[i64]>::len));
        let record = transcript.answer();
        let told = record.logprobs.as_ref().map_or(0, |logprobs| {
            let (content, tokens) = (logprobs.content.as_ref(), logprobs.tokens.as_ref());
            content.map_or(0, Vec::len).max(tokens.map_or(0, Vec::len))
        });
        let answer = told.max(record.token_ids.as_ref().map_or(0, Vec::len));
        let context = self.speech.model.config.max_position_embeddings;
        if prompt.saturating_add(answer) > context {
            let expected = format!("at most {context} tokens with the prompt (max_position_embeddings)");
            return Err(Error::request("transcript", expected, prompt.saturating_add(answer)));
        }
        Ok(truth::need(self.speech.model, prompt + answer, answer + 1))
    }

    /// Judges a transcript.
    ///
    /// # Errors
    /// If the request is none that can be judged ([`Judge::need`] says so before).
    pub fn judge(&self, transcript: &Transcript) -> Result<Judged> {
        let request = &transcript.request;
        let right = self.right(request)?;
        let stops = self.stops(transcript, right.ids.len(), None);
        let answer = Answer::of(transcript, self.speech.model, &self.vocabulary, &right, stops.ends())?;
        let echoed = answer.as_ref().ok().and_then(|answer| answer.echoed.clone());
        let given = transcript.prompt_token_ids().map(<[i64]>::to_vec).or(echoed);
        let mut parts = fed::judge(self, request, &right, given.as_deref())?;
        let mut fed = given.clone().unwrap_or_else(|| right.ids.clone());
        let answer = match answer {
            Ok(answer) => answer,
            Err(needs) => {
                let none = [Part::Tokens, Part::Logprobs, Part::FinishReason, Part::Text];
                parts.extend(none.map(|part| PartVerdict::not_judged(part, needs.clone())));
                parts.push(ends::usage(self, transcript, &fed, None)?);
                return Ok(Judged { parts, logprobs: Vec::new() });
            }
        };
        let mut numbers = numbers::judge(self, transcript, &fed, &answer)?;
        // The prompt is not told, but what the model says of the answer tells of it.
        if given.is_none() && numbers.fail_by_all() {
            for mutant in [Part::Template, Part::Tokenization].into_iter().flat_map(mutants::of) {
                let Ok(other) = prompt(&self.speech, request, Some(mutant.bug)) else { continue };
                if other.ids == right.ids || other.ids.is_empty() {
                    continue;
                }
                let tried = numbers::judge(self, transcript, &other.ids, &answer)?;
                if tried.pass() {
                    fed::tell(&mut parts, mutant, &right, &other);
                    (numbers, fed) = (tried, other.ids);
                    break;
                }
            }
        }
        let Numbers { tokens, logprobs } = numbers;
        parts.push(tokens);
        parts.extend(logprobs.first().map(|(_, verdict)| verdict.clone()));
        if let Some(unknown) = answer.ids.iter().find(|&&id| self.speech.model.tokenizer.token_of(id).is_none()) {
            let needs = format!("tokens that the tokenizer has ({unknown} is none)");
            parts.extend([Part::FinishReason, Part::Text].map(|part| PartVerdict::not_judged(part, needs.clone())));
        } else {
            parts.push(ends::finish_reason(self, transcript, &fed, &answer)?);
            parts.push(ends::text(self, transcript, &fed, &answer, &right)?);
        }
        parts.push(ends::usage(self, transcript, &fed, Some(&answer))?);
        Ok(Judged { parts, logprobs })
    }

    fn stops<'t>(&'t self, transcript: &'t Transcript, fed: usize, bug: Option<Bug>) -> Stops<'t> {
        Stops::new(&self.speech, &transcript.request, fed, bug)
    }

    fn sampling(&self, transcript: &Transcript, fed: usize, bug: Option<Bug>) -> Sampling {
        Sampling::new(&transcript.request, &self.stops(transcript, fed, bug), fed, bug)
    }
}

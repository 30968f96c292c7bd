//! Many transcripts of one engine, and the type that it computes in where nobody says.
//!
//! **Trap.** A budget of bf16 hides an engine's faults in f32: there, a logprob that is off by a whole nat may be rounding. So f32 is
//! tried first, and bf16 taken only if a transcript is off by the first and not by the second.

use super::{Judge, Judged, Part, PartVerdict, settle};
use crate::error::Result;
use crate::precision::Precision;
use crate::transcripts::files::Named;
use crate::transcripts::sampling::LogprobsOf;

/// What came of many.
pub struct Judgement {
    /// One by one, by the same convention of logprobs.
    pub judged: Vec<Judged>,
    /// Which logprobs the engine tells; several, if the transcripts do not tell them apart; none, if it tells none.
    pub logprobs: Vec<LogprobsOf>,
    /// What the engine is taken to compute in.
    pub precision: Precision,
    /// What is to be said of that, if anything is.
    pub note: Option<String>,
}

impl<'a> Judge<'a> {
    /// Judges transcripts of an engine that computes in `said`; if nobody says, in f32 or bf16. `progress` is told how many are
    /// judged.
    ///
    /// # Errors
    /// As [`Judge::judge`].
    pub fn all(&self, of: &[Named], said: Option<Precision>, mut progress: impl FnMut(usize)) -> Result<Judgement> {
        let (bf16, mut judge) = (self.of_type(Precision::Bf16), self.of_type(said.unwrap_or(Precision::F32)));
        let (mut judged, mut note) = (Vec::with_capacity(of.len()), None);
        while let Some(named) = of.get(judged.len()) {
            progress(judged.len());
            let one = judge.judge(&named.transcript)?;
            let finer = !matches!(judge.precision, Precision::Bf16 | Precision::Fp8) && note.is_none();
            let only_here = finer && is_off(&one) && is_right(&bf16.judge(&named.transcript)?);
            match said {
                Some(_) if only_here => {
                    note =
                        Some(format!("{} is off, and would not be in bf16: is that what it computes in?", named.name));
                }
                None if only_here => {
                    note = Some(format!("--dtype does not say so: {} is off in f32", named.name));
                    judge = self.of_type(Precision::Bf16);
                    judged.clear();
                    continue;
                }
                _ => {}
            }
            judged.push(one);
        }
        let logprobs = settle(&mut judged);
        let f32 = self.of_type(Precision::F32);
        note = match said {
            _ if note.is_some() => note,
            None => Some("--dtype does not say so".to_owned()),
            Some(Precision::Bf16 | Precision::Fp8) if !judged.iter().any(is_off) && f32.finds_none_off(of)? => {
                Some("all are within the budget of f32, too: --dtype f32 would see more".to_owned())
            }
            Some(_) => None,
        };
        Ok(Judgement { judged, logprobs, precision: judge.precision, note })
    }

    /// Whether there are logprobs, and all of them and all tokens are within the budget.
    fn finds_none_off(&self, of: &[Named]) -> Result<bool> {
        let mut logprobs = false;
        for named in of {
            let one = self.judge(&named.transcript)?;
            if !is_right(&one) {
                return Ok(false);
            }
            logprobs |= one.parts.iter().any(|part| part.ratio.is_some());
        }
        Ok(logprobs)
    }
}

/// Whether a token or a logprob is off by more than a budget.
fn is_off(judged: &Judged) -> bool {
    numbers(judged).iter().any(PartVerdict::fails)
}

/// Whether all tokens and logprobs are within it. (What is open is neither.)
fn is_right(judged: &Judged) -> bool {
    !numbers(judged).iter().any(PartVerdict::is_off)
}

/// The verdicts on tokens and logprobs, by the convention that suits this transcript best.
fn numbers(judged: &Judged) -> Vec<PartVerdict> {
    let mut alone = [judged.clone()];
    settle(&mut alone);
    let [settled] = alone;
    // what contradicts itself has no error, and is wrong in every type
    let counts = |part: &PartVerdict| part.part == Part::Tokens || part.ratio.is_some();
    settled.parts.into_iter().filter(|part| counts(part) || part.part == Part::Logprobs && part.is_off()).collect()
}

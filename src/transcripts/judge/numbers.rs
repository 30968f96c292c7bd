//! Tokens and their probabilities, against the model.

use std::ops::Range;

use dsv2_foreign::Foreign;

use super::{Judge, Outcome, Part, PartVerdict};
use crate::error::Result;
use crate::transcripts::answer::{Answer, Told};
use crate::transcripts::mutants::{self, Bug};
use crate::transcripts::record::{Fault, Transcript};
use crate::transcripts::sampling::{LogprobsOf, best};
use crate::transcripts::truth::Truth;

/// Why something is open.
pub(super) const NEARLY_EQUAL: &str =
    "it may be a bug, or experts that were chosen otherwise where the router's logits are nearly equal";

/// The verdicts on both parts.
pub struct Numbers {
    pub tokens: PartVerdict,
    /// By each convention that the engine may have.
    pub logprobs: Vec<(LogprobsOf, PartVerdict)>,
}

impl Numbers {
    /// Whether all is as it should be, by one convention at least.
    pub fn pass(&self) -> bool {
        let told = self.logprobs.iter().any(|(_, verdict)| !verdict.is_not_judged());
        !self.tokens.is_off() && (!told || self.logprobs.iter().any(|(_, verdict)| verdict.passes()))
    }

    /// Whether it is wrong by every convention by which it can be judged.
    pub fn fail_by_all(&self) -> bool {
        let judged = || self.logprobs.iter().filter(|(_, verdict)| !verdict.is_not_judged());
        self.tokens.fails() || (judged().count() > 0 && judged().all(|(_, verdict)| verdict.fails()))
    }

    /// Whether something is wrong. **Trap.** A convention by which few numbers can be compared, or none, excuses no other.
    fn fail(&self) -> bool {
        let as_much = |than: &PartVerdict| {
            self.logprobs.iter().any(|(_, verdict)| verdict.passes() && verdict.compared >= than.compared)
        };
        self.tokens.fails() || self.logprobs.iter().any(|(_, verdict)| verdict.fails() && !as_much(verdict))
    }
}

/// What is judged: rows of logits, and what the transcript has of each.
pub(super) struct Question<'q> {
    pub(super) judge: &'q Judge<'q>,
    pub(super) transcript: &'q Transcript,
    /// How many tokens were fed.
    pub(super) fed: usize,
    /// Prompt and answer.
    pub(super) row: Vec<i64>,
    /// The first token that the model says something of.
    pub(super) from: usize,
    pub(super) truth: Truth,
    /// Of the tokens from `from` on.
    pub(super) told: Vec<Told>,
    /// Where the logprobs contradict themselves, or the tokens.
    pub(super) contradiction: Option<Fault>,
}

/// Both parts, for an engine that was fed these tokens.
pub fn judge(judge: &Judge<'_>, transcript: &Transcript, fed: &[i64], answer: &Answer) -> Result<Numbers> {
    let (model, row) = (judge.speech.model, [fed, &answer.ids].concat());
    let vocabulary = model.config.vocab_size;
    let beyond = row.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocabulary));
    if fed.is_empty() || beyond.is_some() {
        let (expected, found) = match beyond {
            Some(id) => (format!("tokens below {vocabulary}"), id.to_string()),
            None => ("an answer to a prompt".to_owned(), "an empty prompt".to_owned()),
        };
        let logprobs = PartVerdict::not_judged(Part::Logprobs, "tokens of the model");
        return Ok(Numbers {
            tokens: PartVerdict::of(Part::Tokens, Outcome::Fail { expected, found }, row.len()),
            logprobs: vec![(LogprobsOf::Model, logprobs)],
        });
    }
    // Of an echoed prompt all tokens but the first are told of.
    let from = if answer.echoed.is_some() { 1 } else { fed.len() };
    let told = answer.logprobs.iter().flatten().skip(usize::from(answer.echoed.is_some())).cloned().collect();
    let contradiction = answer.contradiction.clone();
    let truth = Truth::of(model, &row, from, judge.precision)?;
    let question = Question { judge, transcript, fed: fed.len(), row, from, truth, told, contradiction };
    let first = question.numbers();
    if !first.fail() {
        return Ok(first);
    }
    // What a token that goes to other experts makes is no fault.
    let Some(truth) = question.truth.rerouted()? else { return Ok(first) };
    let again = Question { truth, ..question }.numbers();
    let open = |first: PartVerdict, again: PartVerdict| match (first.fails(), again.fails()) {
        (true, true) if first.hints.is_empty() => first.explained(again.hints),
        (true, false) => again,
        _ => first,
    };
    let logprobs = first.logprobs.into_iter().zip(again.logprobs);
    Ok(Numbers {
        tokens: open(first.tokens, again.tokens),
        logprobs: logprobs.map(|((of, first), (_, again))| (of, open(first, again))).collect(),
    })
}

impl Question<'_> {
    /// Of the answer's `at`-th token: its place among the rows of the truth.
    fn place(&self, at: usize) -> usize {
        self.fed + at - self.from
    }

    fn answer(&self) -> &[i64] {
        &self.row[self.fed..]
    }

    fn numbers(&self) -> Numbers {
        let all = self.judge.logprobs_of.map_or(LogprobsOf::ALL.to_vec(), |of| vec![of]);
        let mut logprobs: Vec<_> = all.into_iter().map(|of| (of, self.logprobs(of))).collect();
        if !logprobs.iter().any(|(_, verdict)| verdict.passes()) {
            // no number explains what is not there, or contradicts itself
            for (of, verdict) in logprobs.iter_mut().filter(|(_, verdict)| verdict.fails() && verdict.ratio.is_some()) {
                verdict.hints = self.bugs_of_logprobs(*of);
            }
        }
        Numbers { tokens: self.tokens(), logprobs }
    }

    /// Whether each token may be chosen.
    fn tokens(&self) -> PartVerdict {
        if self.answer().is_empty() {
            return PartVerdict::not_judged(Part::Tokens, "an answer");
        }
        let verdict = |outcome| PartVerdict::of(Part::Tokens, outcome, self.answer().len());
        let ignores_end = self.transcript.request.ignore_eos == Some(true);
        let either = |_: &(usize, String)| !ignores_end || self.wrong_token(Some(Bug::EndTokenForbidden)).is_some();
        let Some((at, expected)) = self.wrong_token(None).filter(either) else {
            return verdict(self.unless_moved(self.fed - self.from..self.row.len() - self.from));
        };
        if self.truth.is_reached(self.place(at)) {
            return verdict(Outcome::Inconclusive(NEARLY_EQUAL.to_owned()));
        }
        let found = format!("{} as token {at} of the answer", self.named(self.answer()[at]));
        let hints = mutants::of(Part::Tokens).filter(|mutant| self.wrong_token(Some(mutant.bug)).is_none());
        verdict(Outcome::Fail { expected, found }).explained(hints.collect())
    }

    /// The first token that may not be chosen, and what may.
    fn wrong_token(&self, bug: Option<Bug>) -> Option<(usize, String)> {
        let sampling = self.judge.sampling(self.transcript, self.fed, bug);
        let mut wrong = self.answer().iter().enumerate().filter_map(|(at, &token)| {
            let before = &self.row[..self.fed + at];
            let adjusted = sampling.adjusted(before, &self.truth.row(self.place(at)));
            let may = |tolerance| sampling.may_choose(before, &adjusted, token, tolerance);
            let tolerance = || self.truth.tolerance(self.place(at), before, &sampling, token as usize);
            (!may(0.0) && !may(tolerance())).then_some((at, adjusted))
        });
        let first = wrong.next()?;
        // one that no choice of experts explains tells more
        let certain = |(at, _): &(usize, _)| !self.truth.is_reached(self.place(*at));
        let (at, adjusted) = if certain(&first) { first } else { wrong.find(certain).unwrap_or(first) };
        let scores = sampling.processed(&self.row[..self.fed + at], adjusted);
        let likeliest = best(&scores).map_or("none".to_owned(), |token| self.named(token as i64));
        let left = scores.iter().filter(|score| score.is_finite()).count();
        Some((
            at,
            match sampling.greedy() {
                true => likeliest,
                false => format!("one of the {left} tokens that the filters leave, such as {likeliest}"),
            },
        ))
    }

    /// That these rows of the truth are right: a pass, if most of them do not depend on experts that may be others.
    pub(super) fn unless_moved(&self, rows: Range<usize>) -> Outcome {
        let (all, moved) = (rows.len(), rows.filter(|&row| self.truth.is_moved(row)).count());
        match 2 * moved <= all {
            true => Outcome::Pass,
            false => Outcome::Inconclusive(format!("{NEARLY_EQUAL}, as they are for {moved} of {all} tokens")),
        }
    }

    /// A token, for a line.
    pub(super) fn named(&self, token: i64) -> String {
        let text = self.judge.speech.model.tokenizer.token_of(token).unwrap_or_default();
        format!("{token} (\"{}\")", Foreign(text))
    }
}

//! Logprobs, by each of the conventions that engines have.

use super::errors::Errors;
use super::numbers::{NEARLY_EQUAL, Question};
use super::{Outcome, Part, PartVerdict};
use crate::transcripts::answer::Told;
use crate::transcripts::mutants::{self, Bug, Mutant};
use crate::transcripts::record::Fault;
use crate::transcripts::sampling::LogprobsOf;

impl Question<'_> {
    /// That logprobs contradict themselves or the tokens, or that a token has none where they were asked for and are listed.
    fn not_as_asked(&self) -> Option<Fault> {
        let asked = self.transcript.request.asks_for_logprobs();
        let lacking = || self.told.iter().position(|told| asked && told.lacks_own);
        let lacks = |at| {
            let found = format!("none at token {at} of {}", self.whose());
            ("a logprob for each token, as was asked for".to_owned(), found)
        };
        self.contradiction.clone().or_else(|| lacking().map(lacks))
    }

    /// Whether the probabilities are the model's.
    pub fn logprobs(&self, of: LogprobsOf) -> PartVerdict {
        if let Some((expected, found)) = self.not_as_asked() {
            return PartVerdict::of(Part::Logprobs, Outcome::Fail { expected, found }, self.told.len());
        }
        if self.told.iter().all(|told| told.own.is_none() && told.top.is_empty()) {
            return PartVerdict::not_judged(Part::Logprobs, "logprobs");
        }
        let Off { ratio, compared, open, worst, too_few } = self.off(&self.told, of, None);
        if let Some((expected, found)) = too_few {
            return PartVerdict::of(Part::Logprobs, Outcome::Fail { expected, found }, compared);
        }
        if compared == 0 {
            return PartVerdict::not_judged(Part::Logprobs, "a token for which it is certain what the filters leave");
        }
        let verdict =
            |outcome| PartVerdict { ratio: Some(ratio), ..PartVerdict::of(Part::Logprobs, outcome, compared) };
        if ratio <= 1.0 {
            return verdict(self.unless_moved(0..self.told.len().min(self.truth.rows())));
        }
        if open {
            return verdict(Outcome::Inconclusive(NEARLY_EQUAL.to_owned()));
        }
        let Worst { at, token, expected, found, .. } = worst;
        let expected = format!("{expected:.4} for {}", self.named(token));
        verdict(Outcome::Fail { expected, found: format!("{found:.4} at token {at} of {}", self.whose()) })
    }

    /// Of what tokens are counted: of all, if the prompt was echoed.
    fn whose(&self) -> &'static str {
        if self.from < self.fed { "the text" } else { "the answer" }
    }

    pub fn bugs_of_logprobs(&self, of: LogprobsOf) -> Vec<&'static Mutant> {
        let shifted = shifted(&self.told);
        let makes = |mutant: &&Mutant| {
            let told = if mutant.bug == Bug::LogprobsShifted { &shifted } else { &self.told };
            let off = self.off(told, of, Some(mutant.bug));
            off.compared > 0 && off.ratio <= 1.0
        };
        mutants::of(Part::Logprobs).filter(makes).collect()
    }

    /// The largest error in budgets, and where it is.
    fn off(&self, told: &[Told], of: LogprobsOf, bug: Option<Bug>) -> Off {
        let sampling = self.judge.sampling(self.transcript, self.fed, bug);
        // rows that near ties reach have a budget of their own
        let (mut errors, mut worst) = ([Errors::default(), Errors::default()], Worst::default());
        let (mut not_told, mut too_few) = (0, None);
        for (at, told) in told.iter().enumerate().filter(|(_, told)| told.own.is_some() || !told.top.is_empty()) {
            let (Some(&token), true) = (self.row.get(self.from + at), at < self.truth.rows()) else { continue };
            let before = &self.row[..self.from + at];
            if of == LogprobsOf::Processed && sampling.filters() {
                // with one token more or less, all others have other probabilities
                let adjusted = sampling.adjusted(before, &self.truth.row(at));
                let tolerance = |token| self.truth.tolerance(at, before, &sampling, token);
                if !sampling.leaves_the_same(before, &adjusted, tolerance) {
                    continue;
                }
            }
            let right = sampling.told(of, before, &self.truth.row(at));
            let plain: Vec<Vec<f64>> = self.truth.plain_rows(at).map(|row| sampling.told(of, before, &row)).collect();
            let own = told.own.map(|own| (token, own));
            too_few = too_few.or_else(|| self.too_few(at, told, &right));
            let left_out = told.left_out(token, &right);
            not_told += usize::from(left_out.is_some());
            for (token, found) in own.into_iter().chain(told.top.iter().copied()).chain(left_out) {
                let Some(&expected) = usize::try_from(token).ok().and_then(|token| right.get(token)) else { continue };
                let noise = plain.iter().map(|plain| plain[token as usize] - expected);
                let error = errors[usize::from(self.truth.is_reached(at))].add(
                    expected,
                    found,
                    noise,
                    self.truth.rounding(at, token as usize),
                );
                if error > worst.error {
                    worst = Worst { error, at, token, expected, found };
                }
            }
        }
        let [steady, reached] = errors;
        let (by_steady, by_reached) = (steady.ratio(), reached.ratio());
        let open = by_steady <= 1.0 && by_reached > 1.0;
        Off {
            ratio: by_steady.max(by_reached),
            compared: (steady.count + reached.count).saturating_sub(not_told),
            open,
            worst,
            too_few,
        }
    }

    /// That fewer of the likeliest are listed than were asked for and can come. (An answer that lists none says nothing.)
    fn too_few(&self, at: usize, told: &Told, right: &[f64]) -> Option<Fault> {
        let lists = self.told.iter().any(|told| !told.top.is_empty());
        let asked = self.transcript.request.asks_for_likeliest().filter(|_| lists)?;
        let asked = asked.min(right.iter().filter(|logprob| logprob.is_finite()).count());
        let listed = told.listed().filter(|&listed| listed < asked)?;
        let found = format!("{listed} at token {at} of {}", self.whose());
        Some((format!("the {asked} likeliest tokens, as was asked for"), found))
    }
}

/// How far off logprobs are.
struct Off {
    /// In budgets.
    ratio: f64,
    /// How many numbers were compared.
    compared: usize,
    /// Whether it is only where experts may have been chosen otherwise.
    open: bool,
    worst: Worst,
    /// Where fewer of the likeliest are listed than were asked for.
    too_few: Option<Fault>,
}

/// The number that is off most.
#[derive(Default)]
struct Worst {
    error: f64,
    at: usize,
    token: i64,
    expected: f64,
    found: f64,
}

/// The same, where each token has the logprob that its predecessor is told to have.
fn shifted(told: &[Told]) -> Vec<Told> {
    let own = |at: usize| at.checked_sub(1).and_then(|before| told.get(before)).and_then(|told| told.own);
    told.iter().enumerate().map(|(at, told)| Told { own: own(at), ..told.clone() }).collect()
}

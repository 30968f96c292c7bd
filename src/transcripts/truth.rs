//! What the model says at each token of an answer, and how far off a plain implementation is.
//!
//! The model runs once in f64 over the prompt and the tokens that the engine took (so that one wrong token does not fail those
//! after it), and some times as plain implementations of the engine's type, which go to the experts that the f64 run goes to.
//! Their errors are what an engine's are held against.
//!
//! An engine may send a token to other experts, if its router's logits are nearly equal ([`near_tie`](crate::judge::near_tie)):
//! then its errors there are larger, and no fault. What that makes is seen from plain implementations that go elsewhere at
//! random ([`rerouting`]).

mod rerouting;

use std::collections::BTreeSet;

use dsv2_metrics::{FACTORS, for_so_many};
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{LM_HEAD, ROUTER_LOGITS, TOPK_INDICES};
use dsv2_reference::{Dtype, NoTap};
use ndarray::{Array2, Ix3, s};

use super::sampling::Sampling;
use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::generate::{ModelFolder, need};
use crate::inputs::{Inputs, LogitsToKeep, Tokens};
use crate::local::plain;
use crate::memory::{Need, Size};
use crate::precision::{Precision, unit_roundoff};
use crate::taps::AnyTap;
use crate::trace::Trace;
use rerouting::{Rerouting, RouterErrors};

/// How many plain implementations there are.
const DRAWS: u64 = 3;
/// How many go to other experts where they may: each near tie falls otherwise in about half of them.
const REROUTED: u64 = 8;
/// A row whose errors are so many times larger where experts are chosen otherwise is moved by that.
const MOVED: f64 = 2.0;

/// The logits of some tokens.
pub struct Truth {
    /// \[n+1,V\], in f64: by which each token is chosen, and the one that would come next.
    logits: Array2<f64>,
    /// The same of plain implementations.
    plain: Vec<Array2<f64>>,
    /// Rows that near ties of the router move, if it is known.
    moved: Option<Vec<bool>>,
    /// How finely the engine's type resolves.
    roundoff: f64,
    case: Case,
    precision: Precision,
    method: TopkMethod,
    errors: RouterErrors,
    /// The tokens that may go to other experts, if it is known.
    open: BTreeSet<usize>,
}

impl Truth {
    /// Of the tokens `from..` of `ids`, for an engine that computes in `precision`.
    ///
    /// # Errors
    /// If a token is none of the model's, or there is nothing before the first.
    pub fn of(model: &ModelFolder, ids: &[i64], from: usize, precision: Precision) -> Result<Self> {
        let case = case(model, ids, from)?;
        let settings = Settings { stages: Some(&wanted), ..Settings::default() };
        let truth = Reference.run(&case, &settings, &mut NoTap)?;
        let choices = truth.choices();
        let plain = (0..DRAWS).map(|draw| plain_run(&case, precision, Some(&choices), draw, &mut NoTap));
        let plain = plain.collect::<Result<Vec<Trace>>>()?;
        Ok(Truth {
            logits: logits(&truth)?,
            plain: plain.iter().map(logits).collect::<Result<_>>()?,
            moved: None,
            roundoff: unit_roundoff(precision.narrow().unwrap_or(Dtype::F32)),
            errors: RouterErrors::of(&truth, &plain, FACTORS.l2),
            method: model.config.topk_method()?,
            open: BTreeSet::new(),
            case,
            precision,
        })
    }

    /// The same for an engine that may send tokens to other experts where the router's logits are nearly equal. Nothing, if there
    /// is no such token.
    ///
    /// # Errors
    /// As [`Truth::of`].
    pub fn rerouted(mut self) -> Result<Option<Self>> {
        let at_home: Vec<f64> = (0..self.rows()).map(|row| self.usual_error(row)).collect();
        let (mut plain, mut open) = (Vec::new(), BTreeSet::new());
        for draw in 0..REROUTED {
            let mut rerouting = Rerouting::new(self.method, &self.errors, draw);
            let run = plain_run(&self.case, self.precision, None, draw, &mut rerouting)?;
            open.extend(rerouting.open);
            // nothing is moved in the first run before the first near tie
            if open.is_empty() {
                return Ok(None);
            }
            plain.push(logits(&run)?);
        }
        self.plain = plain;
        let moved = at_home.iter().enumerate().map(|(row, usual)| self.usual_error(row) > MOVED * usual);
        self.moved = Some(moved.collect());
        self.open = open;
        Ok(Some(self))
    }

    /// Whether near ties of the router move a row.
    pub fn is_moved(&self, row: usize) -> bool {
        self.moved.as_ref().is_some_and(|moved| moved.get(row) == Some(&true))
    }

    /// Whether they may, though no run shows it: they move it, or its own token has one.
    pub fn is_reached(&self, row: usize) -> bool {
        let token = self.case.inputs.length() - self.rows() + row;
        self.is_moved(row) || self.open.contains(&token)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.logits.nrows()
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f64> {
        self.logits.row(row).to_vec()
    }

    /// Those of plain implementations.
    pub fn plain_rows(&self, row: usize) -> impl Iterator<Item = Vec<f64>> {
        self.plain.iter().map(move |plain| plain.row(row).to_vec())
    }

    /// What rounding to the engine's type costs a logit, as a rule.
    pub fn rounding(&self, row: usize, token: usize) -> f64 {
        // A rounding error is evenly spread, up to the unit roundoff of a number that is itself anywhere in its binade.
        self.logits[(row, token)].abs() * self.roundoff / 3.0_f64.sqrt()
    }

    /// How much the difference of two logits of a row may be off, after bias and penalty, where `token` is one of them.
    pub fn tolerance(&self, row: usize, before: &[i64], sampling: &Sampling, token: usize) -> f64 {
        let right = sampling.adjusted(before, &self.row(row));
        let mut largest = self.rounding(row, token);
        for plain in self.plain_rows(row) {
            let plain = sampling.adjusted(before, &plain);
            let errors: Vec<f64> = plain.iter().zip(&right).map(|(plain, right)| f64::from(plain - right)).collect();
            let known: Vec<f64> = errors.iter().copied().filter(|error| error.is_finite()).collect();
            let own = errors.get(token).copied().filter(|error| error.is_finite()).unwrap_or(0.0);
            largest = largest.max(own.abs()).max(root_mean_square(known.into_iter()));
        }
        2.0_f64.sqrt() * for_so_many(FACTORS, 1.0).l2 * largest
    }

    /// The root mean square of a row's errors, in the run that has the largest.
    fn usual_error(&self, row: usize) -> f64 {
        let right = self.logits.row(row);
        let errors = |plain: &Array2<f64>| {
            root_mean_square(plain.row(row).iter().zip(right).map(|(plain, right)| plain - right))
        };
        self.plain.iter().map(errors).fold(0.0, f64::max)
    }
}

fn root_mean_square(errors: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = errors.len().max(1) as f64;
    (errors.map(|error| error * error).sum::<f64>() / count).sqrt()
}

/// About so much memory a transcript of so many tokens needs, of which the model says something of `told`.
pub fn need(model: &ModelFolder, tokens: usize, told: usize) -> Need {
    let sequences = need::Sequences { batch: 1, cached: 0, prompt: tokens, new: 1, padded: false };
    let run = need::on_host(model, Precision::F64, sequences);
    // of the truth and of each plain implementation, and a copy
    let rows = (told as u64).saturating_mul(model.config.vocab_size as u64).saturating_mul(8 * (REROUTED + 2));
    Need { size: Size(run.size.0.saturating_add(rows)), less: "shorter transcripts take less" }
}

fn is(name: &str, kind: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| stage.kind == kind)
}

fn wanted(name: &str) -> bool {
    [LM_HEAD, TOPK_INDICES, ROUTER_LOGITS].into_iter().any(|kind| is(name, kind))
}

fn plain_run(
    case: &Case,
    precision: Precision,
    replay: Option<&Trace>,
    draw: u64,
    tap: &mut dyn AnyTap,
) -> Result<Trace> {
    let precision = plain(precision);
    // the engine may have either
    let attention = if draw.is_multiple_of(2) { AttentionForm::Expanded } else { AttentionForm::Absorbed };
    let settings = Settings {
        precision,
        attention,
        plain_errors: true,
        draw,
        replay,
        stages: Some(&wanted),
        ..Settings::default()
    };
    Reference.run(case, &settings, tap)
}

/// What a plain implementation in this type says of the tokens `from..` of `ids`, and of the next.
#[cfg(test)]
pub(super) fn plain_logits(model: &ModelFolder, ids: &[i64], from: usize, precision: Precision) -> Result<Array2<f64>> {
    // a draw that no truth has
    logits(&plain_run(&case(model, ids, from)?, precision, None, 70, &mut NoTap)?)
}

/// The run that tells what comes after each token from the one before `from` on.
fn case(model: &ModelFolder, ids: &[i64], from: usize) -> Result<Case> {
    if from == 0 || from > ids.len() {
        return Err(Error::input("tokens", "at least one before those that are judged", from));
    }
    let fed = Array2::from_shape_fn((1, ids.len()), |(_, at)| ids[at]);
    let mut inputs = Inputs::new(Tokens::InputIds(fed));
    inputs.logits_to_keep = Some(LogitsToKeep::Last((ids.len() + 1 - from) as i64));
    Case::of_language_model(model.config.clone(), model.dialect, model.weights.clone(), inputs).checked()
}

fn logits(trace: &Trace) -> Result<Array2<f64>> {
    let missing = || Error::input("model", "logits", "none");
    let logits = trace.get(LM_HEAD).and_then(|values| values.real()).ok_or_else(missing)?;
    let logits = logits.view().into_dimensionality::<Ix3>().map_err(|_| missing())?;
    Ok(logits.slice(s![0, .., ..]).to_owned())
}

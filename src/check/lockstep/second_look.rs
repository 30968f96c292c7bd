//! Stages that fail: whether a second look would find something that explains them, and what they look like.
//!
//! What a dump gets that is read whole are other layouts of it, conventions, rounded weights, and near ties that it does not
//! hold (`align`, `near_ties`). Each needs something that is known without the dump: another reading by which a stage passes, a
//! failing stage of a kind that conventions are about, weights in another type, a choice of experts between all failing stages
//! and what they are judged from. Where all of it is lacking, the verdict stands.

use std::collections::BTreeSet;

use dsv2_reference::Real;
use dsv2_reference::stage::table::{EXPERTS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{self, Stage, flow, forward_order};
use dsv2_reference::tap::{NoTap, StageValue, Tap};
use ndarray::Axis;

use super::measured::{DUMP, Measured, OWN, is_compared_with_help_of};
use super::pieces::{numbers, taken};
use super::station::put;
use super::visit::{Chunks, Piece, Progress};
use super::{PlainDump, Reached};
use crate::backend::{Reference, Settings};
use crate::budget::Budgets;
use crate::case::{Case, Part};
use crate::check::Request;
use crate::check::align::{self, Order};
use crate::check::explain::{Hint, facts, said};
use crate::error::{Error, Result};
use crate::inputs::Tokens;
use crate::judge::{Disposition, LocalTruth, StageVerdict, Truth, Verdict};
use crate::local::{copied, is_choice};
use crate::mutants::explain::{Named, are_too_many, suspects};
use crate::precision::Precision;
use crate::taps::recorded;
use crate::trace::{Trace, as_held};
use crate::values::Values;

/// Whether stages that fail may be right as another layout, by a convention, or by rounded weights.
///
/// # Errors
/// If a weight cannot be read.
pub fn may_be_meant_otherwise(
    request: &Request,
    dump: &PlainDump,
    measured: &Measured,
    verdict: &Verdict,
) -> Result<bool> {
    let case = &request.case;
    let failing: Vec<&StageVerdict> = verdict.stages.iter().filter(|stage| stage.disposition.fails()).collect();
    let (batch, length) = (case.inputs.batch(), case.inputs.length());
    // shapes do not tell which of the two comes first
    if batch == length && batch > 1 {
        return Ok(true);
    }
    let is_turned = |name: &str| {
        let read_otherwise = measured.readings.iter().any(|(read, says)| read == name && !align::in_rows(says));
        read_otherwise || dump.order(name) == Some(Order::Other)
    };
    if failing.iter().any(|stage| is_turned(&stage.stage) || dump.may_be_the_other_part(&stage.stage)) {
        return Ok(true);
    }
    let budgets = measured.budgets(&case.config);
    Ok(failing.iter().any(|stage| measured.may_be_read_otherwise(&stage.stage, &budgets))
        || align::may_be_rounded(case, dump.precision())?
        || may_be_restated(request, measured, &failing, &budgets)?)
}

/// Whether near ties that the dump does not hold may explain all that fails.
pub fn may_be_near_ties(request: &Request, measured: &Measured, verdict: &Verdict) -> bool {
    let exists = |name: &str| measured.names.contains(name);
    let held = |name: &str| measured.taught.contains(name);
    let of_near_ties = |stage: &StageVerdict| {
        let between = flow::sources(&stage.stage, &request.case.config, exists, held).not_held;
        stage.disposition == Disposition::OverBudget && between.iter().any(|name| is_choice(name))
    };
    verdict.stages.iter().filter(|stage| stage.disposition.fails()).all(of_near_ties)
}

/// Whether a convention about experts and their weights may explain why they fail: the weights pass by it, or the experts are
/// another stage. (A dump without weights does not tell.)
fn may_be_restated(
    request: &Request,
    measured: &Measured,
    failing: &[&StageVerdict],
    budgets: &Budgets,
) -> Result<bool> {
    let is = |stage: &StageVerdict, kinds: &[&str]| {
        Stage::parse(&stage.stage).filter(|of| kinds.contains(&of.kind)).and_then(|of| of.layer)
    };
    let layers: BTreeSet<usize> = failing.iter().filter_map(|stage| is(stage, &[TOPK_WEIGHTS, EXPERTS])).collect();
    let [held, own] = [DUMP, OWN].map(|of| &measured.routing[of]);
    for layer in layers {
        let (name, choice) = (stage::name(TOPK_WEIGHTS, layer), stage::name(TOPK_INDICES, layer));
        let (Some(Values::Real(dtype, weights)), Some(by_itself)) = (held.get(&name), own.get(&name)) else {
            return Ok(true);
        };
        // as many experts as are chosen: weights may be by expert
        let by_expert = weights.shape().last() == Some(&request.case.config.num_experts());
        if by_expert || !measured.experts_are_not_mlp(layer, budgets) || weights.shape() != by_itself.shape() {
            return Ok(true);
        }
        if !failing.iter().any(|stage| stage.stage == name) {
            continue;
        }
        let mut edited = vec![weights * request.case.config.routed_scaling_factor];
        if let Some(by_itself) = by_itself.real() {
            let last = Axis(weights.ndim() - 1);
            let mut summed = weights.clone();
            let sums = by_itself.sum_axis(last);
            summed.lanes_mut(last).into_iter().zip(&sums).for_each(|(mut row, sum)| row *= *sum);
            edited.push(summed);
        }
        for edited in edited {
            let mut stages: Trace = [(name.clone(), Values::Real(*dtype, edited))].into_iter().collect();
            if let Some(chosen) = held.get(&choice) {
                stages = stages.with(&choice, chosen.clone());
            }
            let verdict = measured.of_routing(&stages, request, budgets)?;
            if verdict.stages.iter().any(|stage| stage.stage == name && stage.disposition == Disposition::Pass) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What the first wrong stage looks like, if there is something to say; nothing, if mutants can be tried, for which all of the
/// dump is needed.
///
/// # Errors
/// If the reference refuses the case, or a tensor cannot be decoded.
#[expect(clippy::option_option, reason = "whether it is known, and whether there is one")]
pub fn hint(
    request: &Request,
    dump: &PlainDump,
    measured: &Measured,
    failed: &StageVerdict,
    reached: Reached<'_>,
) -> Result<Option<Option<Hint>>> {
    let (case, name) = (&request.case, failed.stage.as_str());
    let suspects = suspects(case, name, &measured.names, |name| measured.taught.contains(name));
    if !are_too_many(&suspects, case) {
        return Ok(None);
    }
    let (mut held, mut own) = (measured.routing[DUMP].clone(), measured.routing[OWN].clone());
    if own.get(name).is_none() {
        let (got, by_itself) = both(request, dump, measured, name, reached)?;
        (held, own) = (held.with(name, got), own.with(name, by_itself));
    }
    let budgets = measured.budgets(&case.config);
    let local = LocalTruth {
        truth: Truth { trace: &own, budgets: &budgets, rows: &measured.rows },
        exact: &measured.exact,
        method: Some(case.config.topk_method()?),
    };
    Ok(Some(said(facts(name, case, &held, &local), Named::TooMany(suspects.len()))))
}

/// A stage of the dump, and what it should be by itself: the model is run again, as far as to this stage.
fn both(
    request: &Request,
    dump: &PlainDump,
    measured: &Measured,
    name: &str,
    reached: Reached<'_>,
) -> Result<(Values, Values)> {
    let case = &request.case;
    let last = Stage::parse(name).and_then(|stage| stage.layer).map(|layer| layer + 1);
    let needed = last.filter(|_| case.part.is_none() && matches!(case.inputs.tokens, Tokens::InputIds(_)));
    let case = Case { part: needed.map(Part::first).or(case.part.clone()), ..case.clone() };
    let (chunks, progress) = (Chunks::of(&case), Progress::default());
    let mut taught = Taught {
        dump,
        measured,
        chunks,
        progress,
        until: name,
        own: None,
        is_known: false,
        refused: None,
        done: 0,
        reached,
    };
    let settings = Settings { precision: Precision::F64, ..Settings::default() };
    Reference.show_by_layer(&case, &settings, &|_| false, &mut NoTap, &mut taught)?;
    let Taught { own, refused, .. } = taught;
    refused.map_or(Ok(()), Err)?;
    let (Some(got), Some(own)) = (dump.stage(name)?, own) else {
        return Err(dump.lacks(name));
    };
    let own = match (&own, measured.exact.contains(name)) {
        (Values::Real(_, a), true) => copied(&case, dump.precision(), name, a, &got, &measured.rows),
        _ => own,
    };
    Ok((got, own))
}

/// The sink of a run that goes on with the dump's stages, until one is reached.
struct Taught<'a> {
    dump: &'a PlainDump,
    measured: &'a Measured,
    chunks: Chunks,
    progress: Progress,
    until: &'a str,
    /// What this one should be, as far as it is known, and whether all of it is.
    own: Option<Values>,
    is_known: bool,
    refused: Option<Error>,
    done: usize,
    reached: Reached<'a>,
}

impl Taught<'_> {
    fn stage<T: Real>(&mut self, name: &str, value: StageValue<'_, T>) -> Result<()> {
        let (Some(held), Some(stage)) = (self.dump.held(name)?, Stage::parse(name)) else { return Ok(()) };
        let rows = &self.measured.rows;
        let shape = match &value {
            StageValue::Real(a) => a.shape(),
            StageValue::Index(a) => a.shape(),
        };
        let visit = self.progress.next(name, &stage, shape, &held.shape, &self.chunks);
        match value {
            value if name == self.until => {
                if visit.counts() {
                    visit.put_into(&mut self.own, as_held(name, recorded(Precision::F64, name, &value)), &held.shape);
                }
                self.is_known = visit.is_last;
            }
            StageValue::Real(mut value) => {
                let taken = taken(&stage, &held.shape, rows);
                for Piece { own, rows: piece, .. } in visit.pieces() {
                    let taken = taken.as_deref().map(|taken| &taken[piece.clone()]);
                    let got = visit.narrowed(held.rows(piece)?);
                    put(&mut value, own, numbers(&got), taken, |&x| T::from_f64(x));
                }
            }
            StageValue::Index(mut value) => {
                // it has been found out which of the dump's experts can be followed
                let Some(lesson) = self.measured.lesson(name) else { return Ok(()) };
                for (own, part) in visit.of_all(lesson) {
                    let chosen = part.index().and_then(|part| part.as_slice()).unwrap_or_default();
                    put(&mut value, own, chosen, None, |&x| x);
                }
            }
        }
        Ok(())
    }
}

impl<T: Real> Tap<T> for Taught<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if !self.is_known && self.refused.is_none() && (self.dump.holds(name) || is_compared_with_help_of(name)) {
            self.refused = Taught::stage(self, name, value).err();
            self.done += 1;
            let before = self.dump.names().filter(|held| forward_order(held) <= forward_order(self.until));
            (self.reached)(self.done, before.count().max(self.done), name);
        }
    }
}

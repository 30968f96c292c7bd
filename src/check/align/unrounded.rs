//! Stages that were computed from what others were before they were rounded: see
//! [`fused`](dsv2_reference::stage::convention::fused). The dump's own inputs of such a stage are not what it was computed
//! from, so that it seems off by what rounding them does to it.
//!
//! Where a stage of a narrow run fails so, it is held against what the reference makes of the inputs of those inputs. That is
//! no wider a budget: what lies between is computed in f64, and only what fp32 errs there comes to what the stage itself may
//! be off. The inputs that were left out must be right, too, and rounded. What passes so is judged so, and it is said.

use std::collections::BTreeSet;

use dsv2_metrics::Metrics;
use dsv2_reference::Dtype;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::stage::convention::fused::{FUSED, Fused};
use dsv2_reference::stage::table::{EMBED_TOKENS, LAYER, O_PROJ, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{Stage, flow, name};
use dsv2_reference::tap::{StageValue, Tap};

use super::{Judged, dispositions};
use crate::budget::part;
use crate::check::dump::Dump;
use crate::check::request::Request;
use crate::check::truth::Truth;
use crate::error::Result;
use crate::judge::Disposition;
use crate::local::Local;
use crate::precision::Precision;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// Judges the stages that fail by what others were before they were rounded, where they pass by it. What there is to say.
///
/// # Errors
/// If the reference refuses the case.
pub fn judge_by_unrounded(request: &Request, dump: &Dump, truth: &Truth, judged: &mut Judged) -> Result<Vec<String>> {
    let Some(narrow) = dump.precision.narrow().filter(|_| judged.failures() > 0) else { return Ok(Vec::new()) };
    let mut trial = Trial { request, dump, truth, judged, narrow, says: Vec::new() };
    for line in FUSED {
        trial.line(line)?;
    }
    trial.nothing_rounded()?;
    let says = trial.says;
    if !says.is_empty() {
        judged.dispositions = dispositions(request, &judged.local, truth, &dump.trace)?;
    }
    Ok(says)
}

struct Trial<'a> {
    request: &'a Request,
    dump: &'a Dump,
    truth: &'a Truth,
    judged: &'a mut Judged,
    narrow: Dtype,
    says: Vec<String>,
}

impl Trial<'_> {
    /// One way of computing a kind of stage, in all layers in which it fails.
    fn line(&mut self, line: &Fused) -> Result<()> {
        let layers = 0..self.request.case.config.num_hidden_layers;
        let open = layers.map(|layer| name(line.stage, layer)).filter(|stage| self.is_open(stage));
        let mut stages = Vec::new();
        let mut left_out = BTreeSet::new();
        for stage in open {
            let Some(copies) = self.copies(&stage, line) else { continue };
            left_out.extend(copies);
            stages.push(stage);
        }
        if stages.is_empty() {
            return Ok(());
        }
        let teacher = self.judged.local.teacher();
        let others = teacher.iter().filter(|(name, _)| !left_out.contains(*name));
        let mut given: Trace = others.map(|(name, values)| (name.to_owned(), values.clone())).collect();
        if line.stream_is_rounded {
            let Some(rounded) = stages.iter().try_fold(given, |given, stage| self.with_rounded_stream(given, stage))
            else {
                return Ok(());
            };
            given = rounded;
        }
        let explained = self.explained(&given, &stages)?;
        if !explained.is_empty() {
            self.says.push(says_not_rounded(line, self.dump.precision, &explained));
        }
        Ok(())
    }

    /// A run in a wider type, of which the dump holds rounded copies.
    fn nothing_rounded(&mut self) -> Result<()> {
        let near = |stage: &&str| {
            let off = |want: Option<&Values>| {
                Some(self.truth.rows.measure(stage, self.dump.trace.get(stage)?, want?)?.metrics.l2)
            };
            let [own, carried] = [self.judged.local.stage(stage), self.truth.trace.get(stage)].map(off);
            own.zip(carried).is_some_and(|(own, carried)| carried < HALF * own)
        };
        let is_routing =
            |stage: &&str| Stage::parse(stage).is_none_or(|stage| [TOPK_INDICES, TOPK_WEIGHTS].contains(&stage.kind));
        // from far back, near ties and the noise of many stages look alike
        let exists = |name: &str| self.truth.names.contains(name);
        let held = |name: &str| self.dump.trace.get(name).is_some();
        let config = &self.request.case.config;
        let from_its_inputs = |stage: &&str| flow::sources(stage, config, exists, held).not_held.is_empty();
        let failing = self.dump.trace.iter().map(|(name, _)| name).filter(|stage| self.is_open(stage));
        let stages: Vec<String> = failing
            .filter(|stage| !is_routing(stage))
            .filter(from_its_inputs)
            .filter(near)
            .map(str::to_owned)
            .collect();
        if stages.is_empty() {
            return Ok(());
        }
        let choices = self.judged.local.teacher().choices();
        let explained = self.explained(&choices, &stages)?;
        if !explained.is_empty() {
            self.says.push(says_wider(self.dump.precision, &explained));
        }
        Ok(())
    }

    fn is_open(&self, stage: &str) -> bool {
        self.judged.of(stage) == Some(Disposition::OverBudget)
    }

    /// The inputs that the dump holds rounded, if all of them are right.
    fn copies(&self, stage: &str, line: &Fused) -> Option<Vec<String>> {
        let layer = Stage::parse(stage)?.layer?;
        let named = line.unrounded.iter().map(|kind| name(kind, layer));
        let held: Vec<String> = named.filter(|name| self.dump.trace.get(name).is_some()).collect();
        let is_copy = |name: &String| {
            let rounded = matches!(self.dump.trace.get(name), Some(Values::Real(dtype, _)) if *dtype == self.narrow);
            rounded && !self.judged.fails(name)
        };
        (!held.is_empty() && held.iter().all(is_copy)).then_some(held)
    }

    /// Those of `stages` that are right if what `given` does not hold is computed without rounding; they are then judged so.
    fn explained(&mut self, given: &Trace, stages: &[String]) -> Result<Vec<String>> {
        let case = &self.request.case;
        let wide = Local::of(case, given, &self.truth.trace, Precision::F32, self.request.cache)?;
        let passes = |stage: &&String| {
            let (got, want) = (self.dump.trace.get(stage)?, wide.stage(stage)?);
            let budget = self.judged.local.budget(stage)?.zip(&wide.budget(stage)?, |own, between| own + between);
            let compared = self.truth.rows.measure(stage, got, want)?;
            let within = |(error, budget): (f64, f64)| part(error, budget) <= 1.0;
            let all_within = compared.metrics.values().into_iter().zip(budget.values()).all(within);
            (all_within && compared.nonfinite.is_none()).then_some(budget)
        };
        let explained: Vec<(String, Metrics)> =
            stages.iter().filter_map(|stage| Some((stage.clone(), passes(&stage)?))).collect();
        for (stage, budget) in &explained {
            self.judged.local.judge_by(&wide, stage, *budget);
            self.judged.dispositions.insert(stage.clone(), Disposition::Pass);
        }
        Ok(explained.into_iter().map(|(stage, _)| stage).collect())
    }

    /// `given` with the residual stream after attention in place of the one before it, rounded, and nothing to add to it.
    fn with_rounded_stream(&self, given: Trace, stage: &str) -> Option<Trace> {
        let layer = Stage::parse(stage)?.layer?;
        let (before, added) =
            (layer.checked_sub(1).map_or(EMBED_TOKENS.to_owned(), |before| name(LAYER, before)), name(O_PROJ, layer));
        let (Values::Real(dtype, stream), Values::Real(_, output)) = (given.get(&before)?, given.get(&added)?) else {
            return None;
        };
        let mut sum = stream + &fit(output, stream.shape())?;
        RoundingTap(self.narrow).stage(&before, StageValue::Real(sum.view_mut()));
        let nothing = Values::Real(*dtype, ndarray::ArrayD::zeros(output.raw_dim()));
        let sum = Values::Real(*dtype, sum);
        Some(given.with(&before, sum).with(&added, nothing))
    }
}

/// What is said of stages that are computed in one of these ways.
pub fn says_not_rounded(line: &Fused, precision: Precision, stages: &[String]) -> String {
    let of = line.stage.rsplit('.').next().unwrap_or(line.stage);
    format!(
        "{of} is computed from what was not yet rounded to {precision}, and the dump holds a rounded copy of: {} (layers {})",
        line.says,
        layers_of(stages),
    )
}

/// What is said of stages of a run in a wider type.
pub fn says_wider(precision: Precision, stages: &[String]) -> String {
    format!(
        "computed in a wider type than {precision}, in which the dump holds rounded copies, as these show: {}",
        stages.join(", "),
    )
}

/// A truth explains an error if it leaves less than this part of it.
pub const HALF: f64 = 0.5;

/// The layers of stages, as a list.
fn layers_of(stages: &[String]) -> String {
    let layers = stages.iter().filter_map(|stage| Stage::parse(stage)?.layer);
    layers.map(|layer| layer.to_string()).collect::<Vec<_>>().join(", ")
}

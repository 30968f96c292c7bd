//! Stages that were computed from what others were before they were rounded, as
//! [kernels do that are fused](crate::check::align): the same of a dump of which nothing is kept. Each way of computing them is one
//! more time through the model, in which what was not rounded is not given.

use std::collections::BTreeSet;

use dsv2_metrics::Metrics;
use dsv2_reference::Dtype;
use dsv2_reference::stage::convention::fused::{FUSED, Fused};
use dsv2_reference::stage::table::{EMBED_TOKENS, LAYER, O_PROJ, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{Stage, flow, name};

use super::measured::Measured;
use super::runs::{self, Way};
use super::{PlainDump, Reached};
use crate::budget::part;
use crate::check::Request;
use crate::check::align::{HALF, says_not_rounded, says_wider};
use crate::error::Result;
use crate::judge::{Disposition, Verdict};
use crate::local::is_choice;
use crate::precision::Precision;

/// Judges the stages that fail by what others were before they were rounded, where they pass by it. What there is to say.
///
/// # Errors
/// If the reference refuses the case.
pub fn judge_by_unrounded(
    request: &Request,
    dump: &PlainDump,
    measured: &mut Measured,
    verdict: &Verdict,
    reached: Reached<'_>,
) -> Result<Vec<String>> {
    let Some(narrow) = dump.precision().narrow() else { return Ok(Vec::new()) };
    let of = |is: fn(Disposition) -> bool| -> BTreeSet<String> {
        let stages = verdict.stages.iter().filter(|stage| is(stage.disposition));
        stages.map(|stage| stage.stage.clone()).collect()
    };
    let open = of(|disposition| disposition == Disposition::OverBudget);
    let failing = of(Disposition::fails);
    let mut trial = Trial { request, dump, measured, narrow, open, failing, says: Vec::new(), reached };
    for line in FUSED {
        trial.line(line)?;
    }
    trial.nothing_rounded(verdict)?;
    Ok(trial.says)
}

struct Trial<'a> {
    request: &'a Request,
    dump: &'a PlainDump,
    measured: &'a mut Measured,
    narrow: Dtype,
    /// The stages that are over their budgets, and all that fail.
    open: BTreeSet<String>,
    failing: BTreeSet<String>,
    says: Vec<String>,
    reached: Reached<'a>,
}

impl Trial<'_> {
    /// One way of computing a kind of stage, in all layers in which it fails.
    fn line(&mut self, line: &Fused) -> Result<()> {
        let layers = 0..self.request.case.config.num_hidden_layers;
        let mut left_out = BTreeSet::new();
        let (mut stages, mut of_layers) = (Vec::new(), BTreeSet::new());
        for layer in layers {
            let stage = name(line.stage, layer);
            if let Some(copies) = self.copies(layer, line).filter(|_| self.open.contains(&stage)) {
                left_out.extend(copies);
                stages.push(stage);
                of_layers.insert(layer);
            }
        }
        let given = |name: &str| self.measured.taught.contains(name) && !left_out.contains(name);
        let has_stream = |&layer: &usize| {
            let before = layer.checked_sub(1).map_or(EMBED_TOKENS.to_owned(), |before| name(LAYER, before));
            given(&before) && given(&name(O_PROJ, layer))
        };
        if stages.is_empty() || line.stream_is_rounded && !of_layers.iter().all(has_stream) {
            return Ok(());
        }
        let rounded_stream = line.stream_is_rounded.then_some((self.narrow, &of_layers));
        let taught = self.measured.taught.clone();
        let given = |name: &str| taught.contains(name) && !left_out.contains(name);
        let explained = self.explained(&Way { precision: Precision::F32, given: &given, rounded_stream }, &stages)?;
        if !explained.is_empty() {
            self.says.push(says_not_rounded(line, self.dump.precision(), &explained));
        }
        Ok(())
    }

    /// A run in a wider type, of which the dump holds rounded copies.
    fn nothing_rounded(&mut self, verdict: &Verdict) -> Result<()> {
        let is_routing =
            |stage: &str| Stage::parse(stage).is_none_or(|stage| [TOPK_INDICES, TOPK_WEIGHTS].contains(&stage.kind));
        let near = |stage: &str| {
            let off = self.measured.off(stage);
            off.is_some_and(|[own, carried]| carried.metrics.l2 < HALF * own.metrics.l2)
        };
        // from far back, near ties and the noise of many stages look alike
        let exists = |name: &str| self.measured.names.contains(name);
        let held = |name: &str| self.dump.holds(name);
        let config = &self.request.case.config;
        let from_its_inputs = |stage: &str| flow::sources(stage, config, exists, held).not_held.is_empty();
        let failing =
            verdict.stages.iter().map(|stage| stage.stage.as_str()).filter(|stage| self.open.contains(*stage));
        let failing = failing.filter(|stage| !is_routing(stage) && from_its_inputs(stage) && near(stage));
        let stages: Vec<String> = failing.map(str::to_owned).collect();
        if stages.is_empty() {
            return Ok(());
        }
        let taught = self.measured.taught.clone();
        let given = |name: &str| is_choice(name) && taught.contains(name);
        let way = Way { precision: Precision::F32, given: &given, rounded_stream: None };
        let explained = self.explained(&way, &stages)?;
        if !explained.is_empty() {
            self.says.push(says_wider(self.dump.precision(), &explained));
        }
        Ok(())
    }

    /// The inputs that the dump holds rounded, if all of them are right.
    fn copies(&self, layer: usize, line: &Fused) -> Option<Vec<String>> {
        let named = line.unrounded.iter().map(|kind| name(kind, layer));
        let held: Vec<String> = named.filter(|name| self.dump.holds(name)).collect();
        let is_copy =
            |name: &String| self.dump.dtype(name) == Some(self.narrow) && !self.failing.contains(name.as_str());
        (!held.is_empty() && held.iter().all(is_copy)).then_some(held)
    }

    /// Those of `stages` that are right if what is not given is computed without rounding; they are then judged so.
    fn explained(&mut self, way: &Way<'_>, stages: &[String]) -> Result<Vec<String>> {
        let config = &self.request.case.config;
        let Some(wide) = runs::measure(self.request, self.dump, way, &mut *self.reached)? else {
            return Ok(Vec::new());
        };
        let (own, between) = (self.measured.budgets(config), wide.budgets(config));
        let passes = |stage: &String| -> Option<Metrics> {
            let budget = own.get(stage)?.zip(&between.get(stage)?, |own, between| own + between);
            let [compared, _] = wide.off(stage)?;
            let mut parts = compared.metrics.values().into_iter().zip(budget.values());
            (parts.all(|(error, budget)| part(error, budget) <= 1.0) && compared.nonfinite.is_none()).then_some(budget)
        };
        let explained: Vec<(String, Metrics)> =
            stages.iter().filter_map(|stage| Some((stage.clone(), passes(stage)?))).collect();
        for (stage, budget) in &explained {
            self.measured.judge_by(&wide, stage, *budget);
            self.open.remove(stage);
            self.failing.remove(stage);
        }
        Ok(explained.into_iter().map(|(stage, _)| stage).collect())
    }
}

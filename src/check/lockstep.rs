//! A dump in a file, judged stage by stage as the model is run: three runs go side by side, and wait at each stage until it has
//! been compared. So no more than a stage of the dump is in memory at a time, however many layers there are.
//!
//! | run | is | goes on with |
//! |---|---|---|
//! | the truth | f64 | its own stages, and the dump's choice of experts |
//! | what each stage should be by itself | f64 | the dump's stages, where it has them |
//! | a plain implementation, for the noise | the dump's type | the same |
//!
//! What is kept of a stage is how far off it is, and what budgets are made of; and the routing as it is, which is small. At the
//! end the budgets are known, and it is judged as any dump. This is for dumps that are right as they came: whatever asks for a
//! second look (another layout, a stage that fails) needs the whole dump, and is not judged here.

mod plain_dump;
mod station;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dsv2_metrics::{Comparison, Metrics, Spread};
use dsv2_reference::stage::table::{ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{Stage, flow, forward_order};
use dsv2_reference::tap::NoTap;
use indexmap::{IndexMap, IndexSet};

use super::dump::Recognised;
use super::explain::{Told, what_is_lacking};
use super::judge::EndToEnd;
use super::{Checked, Request, align, doubt, truth};
use crate::backend::{Backend, Reference, Settings};
use crate::budget::{self, Budgets};
use crate::error::Result;
use crate::judge::{self, LocalTruth, Truth, Verdict};
use crate::local::{copied, draws, factors, is_choice, is_exact, plain, root_mean_square, usable, usual_noise};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::trace::Trace;
use crate::values::Values;
pub use plain_dump::PlainDump;
use station::{Names, Station, Waiting, station};

/// Who is told how far it is: so many stages of so many, and the last of them.
pub type Reached<'a> = &'a mut dyn FnMut(usize, usize, &str);

/// Whether a case can be judged so: fed at once, wide enough for one plain run to tell the noise.
pub fn can_judge(request: &Request) -> bool {
    let case = &request.case;
    let at_once = case.chunks.len() == 1 && case.inputs.packed.is_none() && case.part.is_none();
    at_once && request.expected.is_none() && draws(case) == 1
}

/// Judges a dump; nothing, if it asks for a second look.
///
/// # Errors
/// If the reference refuses the case, or a tensor cannot be decoded.
pub fn check(request: &Request, dump: &PlainDump, reached: Reached<'_>) -> Result<Option<Checked>> {
    let measured = Measured::of(request, dump, reached)?;
    let case = &request.case;
    let rows = &measured.rows;
    if measured.is_read_otherwise {
        return Ok(None);
    }
    let verdict = measured.verdict(request, dump)?;
    if !verdict.passes() {
        return Ok(None);
    }
    let mut verdict = verdict;
    let inconclusive = doubt::leave_open(&mut verdict, |name| dump.holds(name), &measured.names, &case.config);
    let near_ties = truth::near_ties(&measured.choices, &measured.routing[TRUTH], rows, case)?;
    let end_to_end = if near_ties.is_empty() { None } else { measured.end_to_end(request, dump)? };
    let held = dump.names().collect::<IndexSet<_>>();
    let Told { spans, uncatchable, .. } = what_is_lacking(&held, &measured.names, &case.config);
    let left_out = case.inputs.left_out.iter().map(|name| Recognised::new(name, "not fed (--ids-only)"));
    Ok(Some(Checked {
        verdict: verdict.with_not_held(measured.names.iter().map(String::as_str)),
        inconclusive,
        precision: dump.precision(),
        unknown: dump.unread().to_vec(),
        layouts: left_out.collect(),
        assumed: case.config.notes(case.dialect),
        near_ties,
        assumed_ties: Vec::new(),
        end_to_end,
        spans,
        hint: None,
        uncatchable,
        candidate: Trace::default(),
        case: case.clone(),
    }))
}

/// What is kept of a stage of the dump.
struct Stagewise {
    shape: Vec<usize>,
    /// Against the truth's own run.
    carried: Comparison,
    /// Against what it should be by itself.
    own: Comparison,
    /// Whether it must be bit-identical to that.
    exact: bool,
}

/// Where the dump's stages of routing are kept, those of the truth, and what each should be by itself.
const DUMP: usize = 0;
const TRUTH: usize = 1;
const OWN: usize = 2;

/// What was measured.
struct Measured {
    rows: ComparedRows,
    /// All stages of the model, in order.
    names: IndexSet<String>,
    stages: BTreeMap<String, Stagewise>,
    noise: IndexMap<String, Metrics>,
    spreads: BTreeMap<String, (Spread, f64)>,
    exact: BTreeSet<String>,
    /// Logits, choice and weights of experts, as they are.
    routing: [Trace; 3],
    /// The dump's choices that the truth followed.
    choices: Trace,
    /// Whether a tensor may be meant in another layout than it came in.
    is_read_otherwise: bool,
}

impl Measured {
    /// Runs the model.
    fn of(request: &Request, dump: &PlainDump, reached: Reached<'_>) -> Result<Self> {
        let case = &request.case;
        let routing = |name: &str| name.ends_with(".topk_indices") || name.ends_with(".router_logits");
        let held: BTreeSet<&str> = dump.names().collect();
        let wanted = |name: &str| held.contains(name) || routing(name);
        let precision = dump.precision();
        let (narrow, cache) = (plain(precision), request.cache);
        let truthful = |tap: &mut dyn AnyTap, at: &mut Waiting<'_>| {
            let settings = Settings { precision: Precision::F64, ..Settings::default() };
            Reference.show(case, &settings, tap, at)
        };
        let as_plain = |at: &mut Waiting<'_>| {
            let settings = Settings { precision: narrow, cache, plain_errors: true, ..Settings::default() };
            Reference.show(case, &settings, &mut NoTap, at)
        };
        let mut names = Names::default();
        let mut measured = Measured::nothing(ComparedRows::of(&case.inputs));
        std::thread::scope(|scope| {
            let (mut at_truth, to_truth) = station(&wanted, Precision::F64);
            let (mut at_own, to_own) = station(&wanted, Precision::F64);
            let (mut at_plain, to_plain) = station(&wanted, narrow);
            let names = &mut names;
            let runs = [
                scope.spawn(move || truthful(names, &mut at_truth)),
                scope.spawn(move || truthful(&mut NoTap, &mut at_own)),
                scope.spawn(move || as_plain(&mut at_plain)),
            ];
            let stations = [to_truth, to_own, to_plain];
            let compared = measured.step_by_step(request, dump, &stations, reached);
            // runs that still wait for an answer go on without
            drop(stations);
            let ended = runs.map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.into_iter().collect::<Result<()>>()?;
            compared
        })?;
        Ok(Measured { names: names.0, ..measured })
    }

    fn nothing(rows: ComparedRows) -> Self {
        Measured {
            rows,
            names: IndexSet::new(),
            stages: BTreeMap::new(),
            noise: IndexMap::new(),
            spreads: BTreeMap::new(),
            exact: BTreeSet::new(),
            routing: Default::default(),
            choices: Trace::default(),
            is_read_otherwise: false,
        }
    }

    /// Takes each stage from the three runs, and tells them what to go on with.
    fn step_by_step(
        &mut self,
        request: &Request,
        dump: &PlainDump,
        stations: &[Station; 3],
        reached: Reached<'_>,
    ) -> Result<()> {
        let case = &request.case;
        let mut taught = BTreeSet::new();
        // the number of stages that are waited at: those of the dump, and a few of routing
        let steps = dump.names().count();
        while let [Some((name, truth)), Some((_, own)), Some((_, plain))] = stations.each_ref().map(Station::next) {
            let got = dump.stage(&name)?;
            let held: Trace = got.iter().map(|got| (name.clone(), got.clone())).collect();

            let choice = truth::choices(&held, case, &self.rows);
            let followed = choice.get(&name).cloned();
            let truth = followed.clone().unwrap_or(truth);
            stations[TRUTH_RUN].go_on(followed.map(Arc::new));
            keep(&mut self.choices, choice);

            let model: Trace = [(name.clone(), truth)].into_iter().collect();
            let teacher = usable(&held, &model, &case.config, &self.rows);
            let lesson = teacher.get(&name).cloned().map(Arc::new);
            if lesson.is_some() {
                taught.insert(name.clone());
            }
            stations[OWN_RUN].go_on(lesson.clone());
            // a token that goes elsewhere is no noise
            let chosen = || is_choice(&name).then(|| Arc::new(own.clone()));
            stations[PLAIN_RUN].go_on(lesson.clone().or_else(chosen));

            self.compare(&name, request, dump.precision(), Seen { held, model, own, plain, taught: &taught, lesson });
            reached(self.noise.len().min(steps), steps, &name);
        }
        Ok(())
    }

    fn compare(&mut self, name: &str, request: &Request, precision: Precision, seen: Seen<'_>) {
        let Seen { held, model, own, plain, taught, lesson } = seen;
        let config = &request.case.config;
        let singly = |values: Values| -> Trace { [(name.to_owned(), values)].into_iter().collect() };
        let (own, plain) = (singly(own), singly(plain));
        let (Some(own), Some(plain), Some(truth)) = (own.get(name), plain.get(name), model.get(name)) else { return };

        if let Some(noise) = self.rows.measure(name, plain, own) {
            let mut noise = root_mean_square(&[noise.metrics]);
            noise.l2 = noise.l2.max(usual_noise(name, lesson.as_deref(), config, precision));
            self.noise.insert(name.to_owned(), noise);
        }
        let exact = lesson.is_some() && is_exact(name, |source| taught.contains(source), config, request.cache);
        let own = match (own, lesson.as_deref()) {
            (Values::Index(_), Some(chosen)) => chosen.clone(),
            (Values::Real(_, a), Some(got)) if exact => copied(precision, name, a, got, &self.rows),
            _ => own.clone(),
        };
        if exact {
            self.exact.insert(name.to_owned());
        }
        if let Some(spread) = budget::spread(name, &own, &self.rows) {
            self.spreads.insert(name.to_owned(), spread);
        }
        if let Some(got) = held.get(name) {
            let heads = config.num_attention_heads;
            self.is_read_otherwise |= !align::is_read_as_it_came(name, got, truth, &self.rows, heads);
            if !is_routing(name) {
                let against = |want: &Values| self.rows.measure(name, got, want);
                if let (Some(carried), Some(own)) = (against(truth), against(&own)) {
                    let shape = truth.shape().to_vec();
                    self.stages.insert(name.to_owned(), Stagewise { shape, carried, own, exact });
                }
            }
        }
        if is_routing(name) {
            let kept = [held, model, singly(own)];
            self.routing.iter_mut().zip(kept).for_each(|(all, one)| keep(all, one));
        }
    }

    /// What becomes of each stage, now that all budgets are known.
    fn verdict(&self, request: &Request, dump: &PlainDump) -> Result<Verdict> {
        let spread = |name: &str| self.spreads.get(name).copied();
        let config = &request.case.config;
        let from_its_inputs = |name: &str| {
            flow::sources(name, config, |name| self.names.contains(name), |name| dump.holds(name)).not_held.is_empty()
        };
        let budgets = Budgets::by_spread(&self.noise, spread, from_its_inputs, factors(dump.precision()));
        let (none, rows) = (Budgets::default(), &self.rows);
        let own = LocalTruth {
            truth: Truth { trace: &self.routing[OWN], budgets: &budgets, rows },
            exact: &self.exact,
            method: Some(request.case.config.topk_method()?),
        };
        let truth = Truth { trace: &self.routing[TRUTH], budgets: &none, rows };
        let mut verdict = judge::judge(&self.routing[DUMP], &truth, Some(&own), |_| false);
        for (name, Stagewise { shape, carried, own, exact }) in &self.stages {
            let budget = if *exact { Some(Metrics::default()) } else { budgets.get(name) };
            verdict.stages.push(judge::of_comparisons(name, shape, own.clone(), carried.clone(), budget));
        }
        verdict.stages.sort_by_key(|stage| forward_order(&stage.stage));
        Ok(verdict)
    }

    /// How far off the last stage is if the truth follows the dump's experts, and if it does not.
    fn end_to_end(&self, request: &Request, dump: &PlainDump) -> Result<Option<EndToEnd>> {
        let last = self.stages.iter().max_by_key(|(name, _)| forward_order(name));
        let Some((stage, Stagewise { carried, .. })) = last else { return Ok(None) };
        let wanted = |name: &str| name == stage;
        let settings = Settings { precision: Precision::F64, stages: Some(&wanted), ..Settings::default() };
        let free = Reference.run(&request.case, &settings, &mut NoTap)?;
        let off = |got: Values| Some(self.rows.measure(stage, &got, free.get(stage)?)?.metrics.l2);
        let free = dump.stage(stage)?.and_then(off);
        Ok(free.map(|free| EndToEnd { stage: stage.clone(), replayed: carried.metrics.l2, free }))
    }
}

/// The places of the runs.
const TRUTH_RUN: usize = 0;
const OWN_RUN: usize = 1;
const PLAIN_RUN: usize = 2;

/// A stage, as everybody has it.
struct Seen<'a> {
    /// The dump.
    held: Trace,
    /// The truth.
    model: Trace,
    /// What it should be by itself.
    own: Values,
    /// What a plain implementation makes of the same.
    plain: Values,
    /// The stages so far that the dump's took the place of.
    taught: &'a BTreeSet<String>,
    /// What takes its place.
    lesson: Option<Arc<Values>>,
}

fn is_routing(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS].contains(&stage.kind))
}

fn keep(all: &mut Trace, one: Trace) {
    let others = one.iter().map(|(name, values)| (name.to_owned(), values.clone()));
    *all = others.fold(std::mem::take(all), |all, (name, values)| all.with(&name, values));
}

#[cfg(test)]
mod tests;

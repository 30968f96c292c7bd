//! What is measured of a dump while the model is run, and kept: of a stage how far off it is, not the stage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dsv2_metrics::{Comparison, Metrics, Spread};
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::convention::place::{self, Turn};
use dsv2_reference::stage::table::{EXPERTS, MLP, ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{self, Stage, flow, forward_order};
use dsv2_reference::tap::NoTap;
use indexmap::{IndexMap, IndexSet};

use super::station::{Names, Station, Waiting, station};
use super::{PlainDump, Reached};
use crate::backend::{Backend, Reference, Settings};
use crate::budget::{self, Budgets};
use crate::check::judge::EndToEnd;
use crate::check::{Request, align, truth};
use crate::error::Result;
use crate::judge::{self, Disposition, LocalTruth, Truth, Verdict};
use crate::local::{copied, factors, is_choice, is_exact, plain, root_mean_square, usable_stage, usual_noise};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::trace::Trace;
use crate::values::Values;

/// How far a stage of the dump is off, as it was read, in one way or another.
struct Off {
    /// Against the truth's own run.
    carried: Comparison,
    /// Against what it should be by itself.
    own: Comparison,
}

/// What is kept of a stage of the dump.
struct Stagewise {
    shape: Vec<usize>,
    off: Off,
    /// How far off it is by itself by each other reading, if it is not sure that it passes by this one.
    by_others: Vec<Comparison>,
    /// Whether it must be bit-identical.
    exact: bool,
}

/// Where the dump's stages of routing are kept, those of the truth, and what each should be by itself.
pub const DUMP: usize = 0;
pub const TRUTH: usize = 1;
pub const OWN: usize = 2;

/// What was measured.
pub struct Measured {
    /// Which rows mean something.
    pub rows: ComparedRows,
    /// All stages of the model, in order.
    pub names: IndexSet<String>,
    /// The stages that must be bit-identical.
    pub exact: BTreeSet<String>,
    /// The stages of the dump that took the place of the reference's.
    pub taught: BTreeSet<String>,
    /// Logits, choice and weights of experts, as they are.
    pub routing: [Trace; 3],
    /// The dump's choices that the truth followed.
    pub choices: Trace,
    /// What was read in another way than it came, and in which.
    pub readings: Vec<(String, &'static str)>,
    /// How far the dump's experts are from its `mlp`, layer by layer, where it holds both.
    experts_as_mlp: BTreeMap<usize, Comparison>,
    /// The dump's experts of the layer at hand, until its `mlp` comes.
    experts: Option<(usize, Arc<Values>)>,
    /// Stages of routing whose shape allows another reading.
    ambiguous: BTreeSet<String>,
    stages: BTreeMap<String, Stagewise>,
    noise: IndexMap<String, Metrics>,
    spreads: BTreeMap<String, (Spread, f64)>,
}

impl Measured {
    /// Runs the model.
    ///
    /// # Errors
    /// If the reference refuses the case, or a tensor cannot be decoded.
    pub fn of(request: &Request, dump: &PlainDump, reached: Reached<'_>) -> Result<Self> {
        let case = &request.case;
        let held: BTreeSet<&str> = dump.names().collect();
        let wanted = |name: &str| held.contains(name) || is_compared_with_help_of(name);
        let (narrow, cache) = (plain(dump.precision()), request.cache);
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
            exact: BTreeSet::new(),
            taught: BTreeSet::new(),
            routing: Default::default(),
            choices: Trace::default(),
            readings: Vec::new(),
            experts_as_mlp: BTreeMap::new(),
            experts: None,
            ambiguous: BTreeSet::new(),
            stages: BTreeMap::new(),
            noise: IndexMap::new(),
            spreads: BTreeMap::new(),
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
        // the number of stages that are waited at: those of the dump, and a few of routing
        let steps = dump.names().count();
        while let [Some(name), Some(_), Some(_)] = stations.each_ref().map(Station::next) {
            if self.compare(&name, request, dump, stations)?.is_none() {
                break;
            }
            reached(self.noise.len().min(steps), steps, &name);
        }
        Ok(())
    }

    /// Compares a stage, and keeps what is kept of it. At most three copies of it are in memory beside those of the runs. Nothing,
    /// if a run has failed.
    fn compare(
        &mut self,
        name: &str,
        request: &Request,
        dump: &PlainDump,
        [to_truth, to_own, to_plain]: &[Station; 3],
    ) -> Result<Option<()>> {
        let (config, precision) = (&request.case.config, dump.precision());
        let Some(mut truth) = to_truth.show(name) else { return Ok(None) };
        let got = dump.stage(name)?.map(|got| Arc::new(self.read(name, got, &truth, config)));
        self.hold_experts_against_mlp(name, got.as_ref());
        let followed = got.as_deref().and_then(|got| self.choice(name, got, request));
        if let Some(followed) = &followed {
            truth = followed.clone();
        }
        let carried = got.as_ref().and_then(|got| self.rows.measure(name, got, &truth));
        let lesson = got.as_ref().and_then(|got| lesson(name, got, &truth, config, &self.rows));
        if lesson.is_some() {
            self.taught.insert(name.to_owned());
        }
        let truth = is_routing(name).then_some(truth);

        let Some(own) = to_own.show(name) else { return Ok(None) };
        let Some(plain) = to_plain.show(name) else { return Ok(None) };
        if let Some(noise) = self.rows.measure(name, &plain, &own) {
            let mut noise = root_mean_square(&[noise.metrics]);
            noise.l2 = noise.l2.max(usual_noise(name, lesson.as_deref(), config, precision));
            self.noise.insert(name.to_owned(), noise);
        }
        drop(plain);
        // a token that goes elsewhere is no noise
        let chosen = is_choice(name).then(|| Arc::new(own.clone()));
        let exact = lesson.is_some() && is_exact(name, |source| self.taught.contains(source), config, request.cache);
        let own = match (own, lesson.as_deref()) {
            (Values::Index(_), Some(chosen)) => chosen.clone(),
            (Values::Real(_, a), Some(got)) if exact => copied(precision, name, &a, got, &self.rows),
            (own, _) => own,
        };
        if exact {
            self.exact.insert(name.to_owned());
        }
        if let Some(spread) = budget::spread(name, &own, &self.rows) {
            self.spreads.insert(name.to_owned(), spread);
        }
        match (got, truth) {
            (got, Some(truth)) => self.keep(name, got.as_deref(), truth, own, config),
            (Some(got), None) => {
                if let (Some(carried), Some(own_off)) = (carried, self.rows.measure(name, &got, &own)) {
                    let by_others = match self.surely_passes(name, &own_off, precision) {
                        true => Vec::new(),
                        false => self.by_others(name, &got, &own, config),
                    };
                    let (shape, off) = (own.shape().to_vec(), Off { carried, own: own_off });
                    self.stages.insert(name.to_owned(), Stagewise { shape, off, by_others, exact });
                }
            }
            (None, None) => {}
        }
        to_truth.go_on(followed.map(Arc::new));
        to_own.go_on(lesson.clone());
        to_plain.go_on(lesson.or(chosen));
        Ok(Some(()))
    }

    /// A stage of the dump as the model has it.
    fn read(&mut self, name: &str, got: Values, truth: &Values, config: &DeepseekV2Config) -> Values {
        let heads = config.num_attention_heads;
        let (got, says) = align::first_reading(name, got, Some(truth), &self.rows, heads);
        self.readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
        got
    }

    /// The dump's choice of experts, if the stage is one that the truth can follow.
    fn choice(&mut self, name: &str, got: &Values, request: &Request) -> Option<Values> {
        if !is_choice(name) {
            return None;
        }
        let choices = truth::choices(&singly(name, got), &request.case, &self.rows);
        let followed = choices.get(name).cloned()?;
        put(&mut self.choices, name, followed.clone());
        Some(followed)
    }

    /// Some programs have the shared experts among the experts: then these are the `mlp`.
    fn hold_experts_against_mlp(&mut self, name: &str, got: Option<&Arc<Values>>) {
        let (Some(stage), Some(got)) = (Stage::parse(name), got) else { return };
        match (stage.kind, stage.layer) {
            (EXPERTS, Some(layer)) => self.experts = Some((layer, got.clone())),
            (MLP, Some(layer)) => {
                let experts = self.experts.take().filter(|(of, _)| *of == layer).and_then(|(_, experts)| {
                    let Values::Real(dtype, a) = &*experts else { return None };
                    let experts = Values::Real(*dtype, a.to_shape(got.shape()).ok()?.into_owned());
                    self.rows.measure(name, &experts, got)
                });
                self.experts_as_mlp.extend(experts.map(|experts| (layer, experts)));
            }
            _ => {}
        }
    }

    /// Whether the dump's experts are not its `mlp`: they are further from it than it may be from the truth.
    pub fn experts_are_not_mlp(&self, layer: usize, budgets: &Budgets) -> bool {
        let (Some(off), Some(budget)) = (self.experts_as_mlp.get(&layer), budgets.get(&stage::name(MLP, layer))) else {
            return false;
        };
        let within = off.metrics.values().iter().zip(budget.values()).all(|(off, budget)| *off <= budget);
        !within || off.nonfinite.is_some()
    }

    /// Whether a stage is off by no more than what is the least that it may be, whatever the others of its kind.
    fn surely_passes(&self, name: &str, off: &Comparison, precision: Precision) -> bool {
        let least = self.noise.get(name).map(|noise| noise.zip(&factors(precision), |noise, factor| noise * factor));
        let within = |least: Metrics| off.metrics.values().iter().zip(least.values()).all(|(off, least)| *off <= least);
        off.nonfinite.is_none() && !self.exact.contains(name) && least.is_some_and(within)
    }

    /// How far off a stage is by its other readings.
    fn by_others(&self, name: &str, got: &Values, own: &Values, config: &DeepseekV2Config) -> Vec<Comparison> {
        let readings = align::all_readings(name, got, Some(own), config.num_attention_heads);
        let others = readings.into_iter().filter(|(_, says)| !says.is_empty());
        others.filter_map(|(values, _)| self.rows.measure(name, &values, own)).collect()
    }

    /// Keeps a stage of routing.
    fn keep(&mut self, name: &str, got: Option<&Values>, truth: Values, own: Values, config: &DeepseekV2Config) {
        if let Some(got) = got {
            if align::all_readings(name, got, Some(&truth), config.num_attention_heads).len() > 1 {
                self.ambiguous.insert(name.to_owned());
            }
            put(&mut self.routing[DUMP], name, got.clone());
        }
        put(&mut self.routing[TRUTH], name, truth);
        put(&mut self.routing[OWN], name, own);
    }

    /// How far off each stage may be by itself.
    pub fn budgets(&self, dump: &PlainDump, config: &DeepseekV2Config) -> Budgets {
        let spread = |name: &str| self.spreads.get(name).copied();
        let from_its_inputs = |name: &str| {
            flow::sources(name, config, |name| self.names.contains(name), |name| dump.holds(name)).not_held.is_empty()
        };
        Budgets::by_spread(&self.noise, spread, from_its_inputs, factors(dump.precision()))
    }

    /// What becomes of each stage, now that all budgets are known.
    ///
    /// # Errors
    /// If the config's way of routing is impossible.
    pub fn verdict(&self, request: &Request, dump: &PlainDump) -> Result<Verdict> {
        let budgets = self.budgets(dump, &request.case.config);
        let mut verdict = self.of_routing(&self.routing[DUMP], request, &budgets)?;
        for (name, stage) in &self.stages {
            let Off { carried, own } = &stage.off;
            let budget = stage.budget(name, &budgets);
            verdict.stages.push(judge::of_comparisons(name, &stage.shape, own.clone(), carried.clone(), budget));
        }
        verdict.stages.sort_by_key(|stage| forward_order(&stage.stage));
        Ok(verdict)
    }

    /// What becomes of these stages of routing.
    ///
    /// # Errors
    /// If the config's way of routing is impossible.
    pub fn of_routing(&self, stages: &Trace, request: &Request, budgets: &Budgets) -> Result<Verdict> {
        let (none, rows) = (Budgets::default(), &self.rows);
        let own = LocalTruth {
            truth: Truth { trace: &self.routing[OWN], budgets, rows },
            exact: &self.exact,
            method: Some(request.case.config.topk_method()?),
        };
        let truth = Truth { trace: &self.routing[TRUTH], budgets: &none, rows };
        Ok(judge::judge(stages, &truth, Some(&own), |_| false))
    }

    /// Whether a stage may be right if it is read in another way.
    pub fn may_be_read_otherwise(&self, name: &str, budgets: &Budgets) -> bool {
        self.ambiguous.contains(name)
            || self.stages.get(name).is_some_and(|stage| {
                let budget = stage.budget(name, budgets);
                let by = |own: &Comparison| judge::of_comparisons(name, &stage.shape, own.clone(), own.clone(), budget);
                stage.by_others.iter().any(|own| by(own).disposition == Disposition::Pass)
            })
    }

    /// Whether a stage is nearer to the truth's own run than to what it should be by the dump's own inputs.
    pub fn is_nearer_to_the_truth(&self, name: &str) -> bool {
        self.stages.get(name).is_some_and(|Stagewise { off, .. }| off.carried.metrics.l2 < off.own.metrics.l2)
    }

    /// Whether of the rotated stages of a layer, which are multiplied with each other or copied, some are read in halves and some
    /// are not: no program has both.
    pub fn halves_disagree(&self, dump: &PlainDump) -> bool {
        let halves = place::says(Turn::Halves);
        let in_halves = |name: &str| self.readings.iter().any(|(read, says)| read == name && *says == halves);
        let others = |layer| align::ROTATED.map(|kind| stage::name(kind, layer));
        self.readings
            .iter()
            .filter(|(_, says)| *says == halves)
            .filter_map(|(name, _)| Stage::parse(name)?.layer)
            .any(|layer| others(layer).iter().any(|other| dump.holds(other) && !in_halves(other)))
    }

    /// How far off the last stage is if the truth follows the dump's experts, and if it does not.
    ///
    /// # Errors
    /// If the reference refuses the case, or the stage cannot be decoded.
    pub fn end_to_end(&self, request: &Request, dump: &PlainDump) -> Result<Option<EndToEnd>> {
        let last = self.stages.iter().max_by_key(|(name, _)| forward_order(name));
        let Some((stage, Stagewise { off, .. })) = last else { return Ok(None) };
        let wanted = |name: &str| name == stage;
        let settings = Settings { precision: Precision::F64, stages: Some(&wanted), ..Settings::default() };
        let free = Reference.run(&request.case, &settings, &mut NoTap)?;
        let off_by = |got: Values| Some(self.rows.measure(stage, &got, free.get(stage)?)?.metrics.l2);
        let free = dump.stage(stage)?.and_then(off_by);
        Ok(free.map(|free| EndToEnd { stage: stage.clone(), replayed: off.carried.metrics.l2, free }))
    }
}

impl Stagewise {
    fn budget(&self, name: &str, budgets: &Budgets) -> Option<Metrics> {
        if self.exact { Some(Metrics::default()) } else { budgets.get(name) }
    }
}

/// What of a stage of the dump takes the place of the reference's: all of it, where every row is compared.
fn lesson(
    name: &str,
    got: &Arc<Values>,
    truth: &Values,
    config: &DeepseekV2Config,
    rows: &ComparedRows,
) -> Option<Arc<Values>> {
    let whole = got.shape() == truth.shape() && got.real().is_some() && truth.real().is_some();
    match Stage::parse(name).filter(|_| whole).is_some_and(|stage| rows.of_stage(&stage, truth.shape()).is_none()) {
        true => Some(got.clone()),
        false => usable_stage(name, got, truth, config, rows).map(Arc::new),
    }
}

/// Weights of experts are compared with the help of the choice of experts, and that with the help of the logits.
pub fn is_compared_with_help_of(name: &str) -> bool {
    name.ends_with(".topk_indices") || name.ends_with(".router_logits")
}

fn is_routing(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS].contains(&stage.kind))
}

fn singly(name: &str, values: &Values) -> Trace {
    [(name.to_owned(), values.clone())].into_iter().collect()
}

fn put(all: &mut Trace, name: &str, values: Values) {
    *all = std::mem::take(all).with(name, values);
}

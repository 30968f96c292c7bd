//! Each stage by itself: what the reference makes of a trace's own inputs of it, and how far off a plain implementation is
//! on the same inputs.
//!
//! The reference runs once in f64 under a teacher: it computes a stage, the result is recorded, and then the trace's own
//! value takes its place, so that all stages after it are computed from what the trace holds. A stage that the trace does
//! not hold stays as computed, and the next one is then judged from further back ([`flow::sources`]). The same run in the
//! trace's own precision, against the first, gives the noise that a budget is a multiple of. Where the trace does not say which
//! experts a token went to, the second run goes where the first goes: a choice that could go either way is no noise, and must
//! not widen a budget.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use dsv2_metrics::{Comparison, Metrics, are_few};
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::table::{KV_B_PROJ, LM_HEAD, NORM, SCORE, TOPK_INDICES};
use dsv2_reference::stage::{self, Layout, Stage, flow};
use dsv2_reference::tap::NoTap;
use dsv2_reference::{DeepseekV2Config, Dtype};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, Slice};

use crate::backend::{Backend, Choice, Reference, Settings};
use crate::budget::{self, Budgets, FACTORS, LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::inputs::AttentionMask;
use crate::judge::routing::as_choice;
use crate::judge::{LocalTruth, Truth};
use crate::planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::{Assumed, storage};
use crate::trace::Trace;
use crate::values::Values;

/// The truth of each stage of a trace by itself.
pub struct Local {
    trace: Trace,
    budgets: Budgets,
    exact: BTreeSet<String>,
    /// The stages of the candidate that took the place of the reference's.
    teacher: Arc<Trace>,
    /// The stages whose truth is that of another computation than the reference's from the trace's inputs of them.
    otherwise: BTreeSet<String>,
}

impl Local {
    /// Of `candidate`, which computed in `precision` and kept its cache in `cache`. `model` holds the model's stages in their
    /// shapes; what does not fit into them is not used as an input.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn of(case: &Case, candidate: &Trace, model: &Trace, precision: Precision, cache: CacheFormat) -> Result<Self> {
        let teacher = usable(candidate, model, &case.config, &ComparedRows::of(&case.inputs));
        Self::taught_by(Arc::new(teacher), case, model, precision, cache, &Assumed::default())
    }

    /// Of the same candidate, where some tokens are taken to have gone to certain experts, of which it says nothing.
    ///
    /// # Errors
    /// As [`Local::of`].
    pub fn assuming(
        &self,
        case: &Case,
        model: &Trace,
        precision: Precision,
        cache: CacheFormat,
        assumed: &Assumed,
    ) -> Result<Self> {
        Self::taught_by(self.teacher.clone(), case, model, precision, cache, assumed)
    }

    fn taught_by(
        teacher: Arc<Trace>,
        case: &Case,
        model: &Trace,
        precision: Precision,
        cache: CacheFormat,
        assumed: &Assumed,
    ) -> Result<Self> {
        let rows = ComparedRows::of(&case.inputs);
        // weights of experts are compared with the help of the logits, even if the trace does not hold these
        let wanted = |name: &str| model.get(name).is_some() || is_choice(name);
        let plain_run = |choices: Option<&Trace>, draw| {
            let settings = Settings {
                precision: plain(precision),
                cache,
                plain_errors: true,
                draw,
                attention: form(draw, &teacher),
                stages: Some(&wanted),
                teacher: Some(&*teacher),
                replay: choices,
            };
            Reference.run(case, &settings, &mut NoTap)
        };
        let truth_run = || taught(case, &teacher, &wanted, assumed);
        let layers = 0..case.config.num_hidden_layers;
        let open = layers.filter(|layer| case.config.is_moe_layer(*layer, case.dialect));
        let all_held = open.map(|layer| stage::name(TOPK_INDICES, layer)).all(|name| teacher.get(&name).is_some());
        let (truth, first, choices) = if all_held {
            // Each run has parts that use one processor only; side by side they fill the others.
            let (truth, first) = std::thread::scope(|scope| {
                match std::thread::Builder::new().spawn_scoped(scope, || plain_run(None, 0)) {
                    Ok(first) => (truth_run(), first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
                    // There are no threads to be had.
                    Err(_) => (truth_run(), plain_run(None, 0)),
                }
            });
            (truth?, first?, None)
        } else {
            // A token that goes elsewhere is no noise: the plain run goes where the truth goes.
            let truth = truth_run()?;
            let choices = truth.choices();
            let first = plain_run(Some(&choices), 0)?;
            (truth, first, Some(choices))
        };
        let is_of_step = |name: &str| teacher.get(name).is_some_and(|got| is_cached_by_step(case, name, got.shape()));
        // of one plain run after the other it is kept how far off it is, and its cache, if that has two parts
        let (mut plain, mut off, mut run) = (Vec::new(), Vec::new(), first);
        for draw in 1..=draws(case) {
            off.push(distances(&run, &truth, &rows));
            run.retain(is_of_step);
            plain.push(std::mem::take(&mut run));
            if draw < draws(case) {
                run = plain_run(choices.as_ref(), draw)?;
            }
        }
        let mut noise = root_mean_squares(&off);
        let usual = |name: &str| usual_noise(name, teacher.get(name).and_then(Values::dtype), &case.config, precision);
        noise.iter_mut().for_each(|(name, noise)| noise.l2 = noise.l2.max(usual(name)));
        // what is cached before the new tokens has come through the whole model
        let own = factors(precision);
        let factors = if case.inputs.past() > 0 { own.zip(&FACTORS, f64::max) } else { own };

        let is_copy = |name: &str| is_exact(name, |source| teacher.get(source).is_some(), &case.config, cache);
        let copies: IndexMap<&str, Values> = teacher
            .iter()
            .filter(|(name, _)| is_copy(name))
            .filter_map(|(name, got)| {
                let copy = copied(case, precision, name, truth.get(name)?.real()?, got, &rows);
                // what was cached before the new tokens is judged as any other stage, if these are copies
                let judged = cached_before(case, name) == 0 || !is_same(name, got, &copy, &rows);
                judged.then_some((name, copy))
            })
            .collect();
        let cached = teacher
            .iter()
            .filter(|(name, got)| is_cached_by_step(case, name, got.shape()) && !copies.contains_key(name));
        let steps: IndexMap<&str, Values> = cached
            .filter_map(|(name, got)| {
                let (of_part, off) = Step { case, name, got, usual: usual(name), factors, rows: &rows }.worst(
                    truth.get(name)?,
                    &plain,
                    is_copy(name),
                )?;
                noise.insert(name.to_owned(), off);
                Some((name, of_part))
            })
            .collect();
        let exact: BTreeSet<String> = copies.keys().map(|&name| name.to_owned()).collect();
        let trace: Trace = truth
            .iter()
            .map(|(name, values)| {
                let values = match (values, teacher.get(name)) {
                    // the weights that follow are those of the trace's own choice
                    (Values::Index(_), Some(chosen)) => chosen,
                    _ => copies.get(name).or(steps.get(name)).unwrap_or(values),
                };
                (name.to_owned(), values.clone())
            })
            .collect();
        let planned = planned::stages(case, AttentionForm::Expanded, precision);
        let from_its_inputs = |name: &str| {
            let exists = |name: &str| planned.contains_key(name);
            flow::sources(name, &case.config, exists, |name| teacher.get(name).is_some()).not_held.is_empty()
        };
        let spread = |name: &str| budget::spread(name, trace.get(name)?, &rows);
        let budgets = Budgets::by_spread(&noise, spread, from_its_inputs, factors);
        Ok(Local { trace, budgets, exact, teacher, otherwise: BTreeSet::new() })
    }

    /// The stages of the candidate that took the place of the reference's.
    pub fn teacher(&self) -> &Trace {
        &self.teacher
    }

    /// What each stage should be.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// How far off it may be.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// With everything but these stages as in `other`, of the same model and trace.
    pub fn take_others_from(&mut self, other: &Local, these: &[String]) {
        let own = |name: &str| these.iter().any(|this| this == name);
        let stages = other.trace.iter().map(|(name, values)| {
            let values = self.trace.get(name).filter(|_| own(name)).unwrap_or(values);
            (name.to_owned(), values.clone())
        });
        self.trace = stages.collect();
        self.budgets = other.budgets.clone().with(&self.budgets, own);
        self.otherwise = other.otherwise.iter().chain(these).cloned().collect();
    }

    /// Judges a stage by what it is in `other`, of the same model, and allows it `budget`.
    pub fn judge_by(&mut self, other: &Local, stage: &str, budget: Metrics) {
        let Some(values) = other.trace.get(stage) else { return };
        self.trace = std::mem::take(&mut self.trace).with(stage, values.clone());
        self.budgets.put(stage, budget);
        self.otherwise.insert(stage.to_owned());
    }

    /// Judges those stages as in `other` that are judged there by another computation than the reference's.
    pub fn judge_otherwise_as(&mut self, other: &Local) {
        for stage in &other.otherwise {
            let budget = other.budget(stage).or(self.budget(stage)).unwrap_or_default();
            self.judge_by(other, stage, budget);
        }
    }

    /// What a stage should be.
    pub fn stage(&self, name: &str) -> Option<&Values> {
        self.trace.get(name)
    }

    /// How far off it may be.
    pub fn budget(&self, name: &str) -> Option<Metrics> {
        self.budgets.get(name)
    }

    /// For the judge.
    ///
    /// # Errors
    /// If the config's way of routing is impossible.
    pub fn truth<'a>(&'a self, config: &DeepseekV2Config, rows: &'a ComparedRows) -> Result<LocalTruth<'a>> {
        let truth = Truth { trace: &self.trace, budgets: &self.budgets, rows };
        Ok(LocalTruth { truth, exact: &self.exact, method: Some(config.topk_method()?) })
    }
}

/// What the f64 reference makes of a trace's own inputs of each stage for which `wanted` holds; some tokens are taken to have
/// gone to certain experts.
///
/// # Errors
/// If the reference refuses the case.
pub fn taught(case: &Case, teacher: &Trace, wanted: Choice<'_>, assumed: &Assumed) -> Result<Trace> {
    let (stages, teacher) = (Some(wanted), Some(teacher));
    let settings = Settings { precision: Precision::F64, stages, teacher, ..Settings::default() };
    Reference.run(case, &settings, &mut assumed.tap())
}

/// What rounding costs a stage in a narrow type as a rule, where the candidate has `written` it in a type.
pub(crate) fn usual_noise(name: &str, written: Option<Dtype>, config: &DeepseekV2Config, precision: Precision) -> f64 {
    let Some(narrow) = precision.narrow() else { return 0.0 };
    match precision.stored(name) == narrow {
        true => storage::usual_rounding(name, config, narrow),
        // fp32 by definition, but written in the narrow type all the same, and so may be what it is computed from
        false if written == Some(narrow) => 3.0 * storage::usual_rounding(name, config, narrow),
        false => 0.0,
    }
}

/// Whether it is a choice of experts.
pub(crate) fn is_choice(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| stage.kind == TOPK_INDICES)
}

/// How many times the noise a stage may be off by itself.
pub fn factors(precision: Precision) -> Metrics {
    if precision.narrow().is_some() { NARROW_LOCAL_FACTORS } else { LOCAL_FACTORS }
}

/// What a plain implementation computes in: an f64 candidate is held to what f32 can do, since parts of the model are fp32 by
/// definition.
pub fn plain(precision: Precision) -> Precision {
    if precision == Precision::F64 { Precision::F32 } else { precision }
}

/// The stages of `candidate` that can stand in for the model's: of its shapes, and experts that exist, none twice. Rows that
/// nobody may read hold anything, NaN as well: there, the model's own values stand.
pub fn usable(candidate: &Trace, model: &Trace, config: &DeepseekV2Config, rows: &ComparedRows) -> Trace {
    let fits = |(name, values): (&str, &Values)| {
        Some((name.to_owned(), usable_stage(name, values, model.get(name)?, config, rows)?))
    };
    candidate.iter().filter_map(fits).collect()
}

/// The same of one stage, which is the model's `own`.
pub(crate) fn usable_stage(
    name: &str,
    values: &Values,
    own: &Values,
    config: &DeepseekV2Config,
    rows: &ComparedRows,
) -> Option<Values> {
    let (stage, experts) = (Stage::parse(name)?, config.num_experts());
    match (values.fit(own.shape())?, own) {
        (Values::Index(chosen), Values::Index(own)) => {
            let chosen = rows.with_unread_of(&stage, chosen, own);
            chosen.rows().into_iter().all(|row| as_choice(row, experts).is_some()).then_some(Values::Index(chosen))
        }
        // a loss, or what a classifier pools, may read what a mask masks, and no other token reads it from these
        (values @ Values::Real(..), Values::Real(..)) if [NORM, LM_HEAD, SCORE].contains(&stage.kind) => Some(values),
        (Values::Real(dtype, a), Values::Real(_, own)) => {
            Some(Values::Real(dtype, rows.with_unread_of(&stage, a, own)))
        }
        _ => None,
    }
}

/// Whether the stage must be bit-identical: a copy of what the trace holds, kept in the type of the computation.
pub(crate) fn is_exact(name: &str, held: impl Fn(&str) -> bool, config: &DeepseekV2Config, cache: CacheFormat) -> bool {
    let kept = |source: &String| cache == CacheFormat::Plain && held(source);
    flow::is_copy(name) && flow::inputs(name, config, |_| true).iter().all(kept)
}

/// As a computation in `precision` stores the stage.
pub fn stored(precision: Precision, name: &str, a: &ArrayD<f64>) -> Values {
    let dtype = precision.stored(name);
    let tensor = dsv2_reference::Tensor::from_values(dtype, a.shape(), a.iter().copied());
    Values::Real(dtype, tensor.to_array())
}

/// What a copy of `a` should be: stored as the computation stores it, or left as it is, if that is what the trace `got`. What was
/// cached before the new tokens is no copy of anything that the trace holds: it is left as the trace has it.
pub(crate) fn copied(
    case: &Case,
    precision: Precision,
    name: &str,
    a: &ArrayD<f64>,
    got: &Values,
    rows: &ComparedRows,
) -> Values {
    let before = cached_before(case, name);
    let new = |copy: Values| match before {
        0 => copy,
        _ => with_keys_of(got, &(0..before.min(a.len_of(Axis(1)))), &copy).unwrap_or(copy),
    };
    let as_it_is = new(Values::Real(precision.stored(name), a.clone()));
    if is_same(name, got, &as_it_is, rows) { as_it_is } else { new(stored(precision, name, a)) }
}

/// A cache with some keys as the trace `got` has them; nothing, if that is of another shape.
fn with_keys_of(got: &Values, keys: &Range<usize>, cache: &Values) -> Option<Values> {
    let (Values::Real(dtype, cache), Values::Real(_, got)) = (cache, got.fit(cache.shape())?) else { return None };
    let (mut cache, keys) = (cache.clone(), Slice::from(keys.clone()));
    cache.slice_axis_mut(Axis(1), keys).assign(&got.slice_axis(Axis(1), keys));
    Some(Values::Real(*dtype, cache))
}

/// Whether a cache of this shape holds what was there before a decoding step, and what is new: they are judged by themselves, for
/// what was there before may be off by more.
pub(crate) fn is_cached_by_step(case: &Case, name: &str, shape: &[usize]) -> bool {
    let before = cached_before(case, name);
    before > 0 && flow::is_copy(name) && shape.get(1).is_some_and(|&keys| keys > before)
}

/// The cache of a decoding step.
struct Step<'a> {
    case: &'a Case,
    name: &'a str,
    got: &'a Values,
    usual: f64,
    factors: Metrics,
    rows: &'a ComparedRows,
}

impl Step<'_> {
    /// What the cache should be in the worse of its two parts, as if the trace were right in the other, and the noise there. New
    /// keys are left out if they are copies.
    fn worst(&self, truth: &Values, plain: &[Trace], are_copies: bool) -> Option<(Values, Metrics)> {
        let before = cached_before(self.case, self.name);
        let keys = self.got.shape().get(1).copied()?;
        let parts = [before..keys, 0..before].map(|right| {
            let but_these = |cache: &Values| with_keys_of(self.got, &right, cache);
            let want = but_these(truth)?;
            let measure =
                |trace: &Trace| Some(self.rows.measure(self.name, &but_these(trace.get(self.name)?)?, &want)?.metrics);
            let noise = with_usual(&plain.iter().map(measure).collect::<Option<Vec<_>>>()?, self.usual);
            let off = self.rows.measure(self.name, self.got, &want)?;
            Some((times(&off, noise.zip(&self.factors, |noise, factor| noise * factor)), want, noise))
        });
        let [was_there, new] = parts;
        let ((times, want, noise), new) = (was_there?, new?);
        Some(if !are_copies && new.0 > times { (new.1, new.2) } else { (want, noise) })
    }
}

/// How many times what it may be something is off, by the worst of the measures.
pub(crate) fn times(off: &Comparison, may_be: Metrics) -> f64 {
    let each = off.metrics.values().into_iter().zip(may_be.values());
    let most = each.map(|(off, may_be)| if off == 0.0 { 0.0 } else { off / may_be }).fold(0.0, f64::max);
    if off.nonfinite.is_some() { f64::INFINITY } else { most }
}

/// How many keys of this copy were cached before the tokens that are looked at.
fn cached_before(case: &Case, name: &str) -> usize {
    if Stage::parse(name).is_some_and(|stage| stage.layout == Layout::Keys) { case.inputs.past() } else { 0 }
}

/// Whether no number that is compared differs.
fn is_same(name: &str, got: &Values, want: &Values, rows: &ComparedRows) -> bool {
    rows.measure(name, got, want).is_some_and(|compared| !compared.differs())
}

/// The form of attention of a plain run: the candidate may have the other one, unless it holds what only this one computes.
fn form(draw: u64, teacher: &Trace) -> AttentionForm {
    let expands = |name: &str| Stage::parse(name).is_some_and(|stage| stage.kind == KV_B_PROJ);
    match draw.is_multiple_of(2) || teacher.iter().any(|(name, _)| expands(name)) {
        true => AttentionForm::Expanded,
        false => AttentionForm::Absorbed,
    }
}

/// How many plain runs tell how much noise there is: one, unless the model is so narrow, and the inputs so short, that the
/// error of some stage is that of a few numbers. (Then a run costs nothing.)
pub(crate) fn draws(case: &Case) -> u64 {
    let config = &case.config;
    let narrowest = [
        config.hidden_size,
        config.kv_lora_rank,
        config.q_lora_rank.unwrap_or(config.hidden_size),
        config.qk_rope_head_dim,
        config.num_attention_heads * config.v_head_dim,
        config.intermediate_size,
        config.moe_intermediate_size,
    ];
    let tokens = case.inputs.batch() * case.inputs.length();
    let masked = match &case.inputs.attention_mask {
        Some(AttentionMask::Padding(attend)) => attend.iter().filter(|real| !**real).count(),
        _ => 0,
    };
    let few = |width: usize| width < LEAST_WIDTH || are_few(((tokens - masked) * width) as f64);
    let few = narrowest.into_iter().min().is_some_and(few);
    let affordable = config.parameter_count() * (tokens as u64) < AFFORDABLE;
    if few && affordable { DRAWS } else { 1 }
}

/// The relative error of w sums that may all nearly cancel has a mean square only from this w on: below, the worst row of one
/// run says nothing about that of another, however many rows there are.
const LEAST_WIDTH: usize = 3;
/// How many plain runs of a small model are made.
const DRAWS: u64 = 16;
/// Weights times tokens of what is a small model.
const AFFORDABLE: u64 = 1 << 24;

/// How far each stage of the `plain` runs is from the truth, in the mean.
pub fn noise(plain: &[Trace], truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    root_mean_squares(&plain.iter().map(|plain| distances(plain, truth, rows)).collect::<Vec<_>>())
}

/// How far each stage of a run is from the truth, as far as it has them.
fn distances(run: &Trace, truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    let of = |(name, want): (&str, &Values)| Some((name.to_owned(), rows.measure(name, run.get(name)?, want)?.metrics));
    truth.iter().filter_map(of).collect()
}

/// The means of what is known of several runs, of the stages that all of them have.
fn root_mean_squares(seen: &[IndexMap<String, Metrics>]) -> IndexMap<String, Metrics> {
    let names = seen.first().into_iter().flat_map(IndexMap::keys);
    let of = |name: &String| {
        let of_all: Option<Vec<Metrics>> = seen.iter().map(|run| run.get(name).copied()).collect();
        Some((name.clone(), root_mean_square(&of_all?)))
    };
    names.filter_map(of).collect()
}

/// The same, which in one measure is no less than is `usual`.
pub(crate) fn with_usual(seen: &[Metrics], usual: f64) -> Metrics {
    let mut noise = root_mean_square(seen);
    noise.l2 = noise.l2.max(usual);
    noise
}

/// The mean of the noise of several runs.
pub(crate) fn root_mean_square(seen: &[Metrics]) -> Metrics {
    let squares = seen.iter().fold(Metrics::default(), |sum, seen| sum.zip(seen, |sum, x| sum + x * x));
    Metrics::from_values(squares.values().map(|sum| (sum / seen.len() as f64).sqrt()))
}

//! Each stage by itself: what the reference makes of a trace's own inputs of it, and how far off a plain implementation is
//! on the same inputs.
//!
//! The reference runs once in f64 under a teacher: it computes a stage, the result is recorded, and then the trace's own value
//! takes its place, so that all stages after it are computed from what the trace holds. A stage that the trace does not hold stays
//! as computed, and the next one is then judged from further back ([`flow::sources`]). The same run in the trace's own precision,
//! against the first, gives the noise that a budget is a multiple of. Where the trace does not say which experts a token went to,
//! the second run goes where the first goes: a choice that could go either way is no noise, and must not widen a budget.

mod copies;
mod noise;
mod parts;

use std::collections::BTreeSet;
use std::sync::Arc;

use dsv2_metrics::Metrics;
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::table::{LM_HEAD, NORM, SCORE, TOPK_INDICES};
use dsv2_reference::stage::{self, Stage, flow};
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;

use crate::backend::{Backend, Choice, Reference, Settings};
use crate::budget::{self, Budgets, FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::judge::routing::as_choice;
use crate::judge::{LocalTruth, Truth};
use crate::planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::Assumed;
use crate::trace::Trace;
use crate::values::Values;
pub use copies::stored;
use copies::{cached_before, is_same};
pub(crate) use copies::{copied, is_cached_by_step, is_exact};
use noise::{distances, form, root_mean_squares};
pub(crate) use noise::{draws, root_mean_square, usual_noise, with_usual};
pub use noise::{factors, noise, of_partial_sums, plain};
use parts::Step;
pub(crate) use parts::{Difference, Parts, Worst};

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
        let usual = |name: &str| usual_noise(name, teacher.get(name).and_then(Values::dtype), case, precision);
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
                let step = Step { of: (case, name), got, truth: truth.get(name)?, plain: &plain, rows: &rows };
                let (of_part, off) = step.worst(is_copy(name), usual(name), &factors)?;
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

/// Whether it is a choice of experts.
pub(crate) fn is_choice(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| stage.kind == TOPK_INDICES)
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

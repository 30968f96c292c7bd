//! Each stage by itself: what the reference makes of a trace's own inputs of it, and how far off a plain implementation is
//! on the same inputs.
//!
//! The reference runs once in f64 under a teacher: it computes a stage, the result is recorded, and then the trace's own
//! value takes its place, so that all stages after it are computed from what the trace holds. A stage that the trace does
//! not hold stays as computed, and the next one is then judged from further back ([`flow::sources`]). The same run in the
//! trace's own precision, against the first, gives the noise that a budget is a multiple of.

use std::collections::BTreeSet;

use dsv2_metrics::Metrics;
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::flow;
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;
use ndarray::ArrayD;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{Budgets, FACTORS, LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::judge::routing::as_choice;
use crate::judge::{LocalTruth, Truth};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::storage;
use crate::trace::Trace;
use crate::values::Values;

/// The truth of each stage of a trace by itself.
pub struct Local {
    trace: Trace,
    budgets: Budgets,
    exact: BTreeSet<String>,
}

impl Local {
    /// Of `candidate`, which computed in `precision` and kept its cache in `cache`. `model` holds the model's stages in their
    /// shapes; what does not fit into them is not used as an input.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn of(case: &Case, candidate: &Trace, model: &Trace, precision: Precision, cache: CacheFormat) -> Result<Self> {
        let teacher = usable(candidate, model, &case.config);
        // weights of experts are compared with the help of the logits, even if the trace does not hold these
        let wanted = |name: &str| model.get(name).is_some();
        let run = |precision, cache, plain_errors| {
            let settings = Settings {
                precision,
                cache,
                plain_errors,
                attention: AttentionForm::Expanded,
                stages: Some(&wanted),
                teacher: Some(&teacher),
                replay: None,
            };
            Reference.run(case, &settings, &mut NoTap)
        };
        // Each run has parts that use one processor only; side by side they fill the others.
        let (truth, plain) = std::thread::scope(|scope| {
            let plain = scope.spawn(|| run(plain(precision), cache, true));
            let truth = run(Precision::F64, CacheFormat::Plain, false);
            (truth, plain.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (truth, plain) = (truth?, plain?);
        let rows = ComparedRows::of(&case.inputs);
        let mut noise = noise(&plain, &truth, &rows);
        for (name, noise) in &mut noise {
            let Some(narrow) = precision.narrow() else { break };
            let written = matches!(teacher.get(name), Some(Values::Real(dtype, _)) if *dtype == narrow);
            let usual = match precision.stored(name) == narrow {
                true => storage::usual_rounding(name, &case.config, narrow),
                // fp32 by definition, but written in the narrow type all the same, and so may be what it is computed from
                false if written => 3.0 * storage::usual_rounding(name, &case.config, narrow),
                false => 0.0,
            };
            noise.l2 = noise.l2.max(usual);
        }

        let exact: BTreeSet<String> = teacher
            .iter()
            .map(|(name, _)| name)
            .filter(|name| is_exact(name, &teacher, &case.config, cache))
            // of what was cached before the new tokens the trace does not hold the source
            .filter(|name| case.inputs.past() == 0 || flow::inputs(name, &case.config, |_| true).is_empty())
            .map(str::to_owned)
            .collect();
        let trace: Trace = truth
            .iter()
            .map(|(name, values)| {
                let values = match (values, teacher.get(name)) {
                    // the weights that follow are those of the trace's own choice
                    (Values::Index(_), Some(chosen)) => chosen.clone(),
                    (Values::Real(_, a), _) if exact.contains(name) => stored(precision, name, a),
                    _ => values.clone(),
                };
                (name.to_owned(), values)
            })
            .collect();
        let factors = if precision.narrow().is_some() { NARROW_LOCAL_FACTORS } else { LOCAL_FACTORS };
        // what is cached before the new tokens has come through the whole model
        let factors = if case.inputs.past() > 0 { factors.zip(&FACTORS, f64::max) } else { factors };
        let budgets = Budgets::new(&noise, &trace, &rows, factors);
        Ok(Local { trace, budgets, exact })
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

/// What a plain implementation computes in: an f64 candidate is held to what f32 can do, since parts of the model are fp32 by
/// definition.
pub fn plain(precision: Precision) -> Precision {
    if precision == Precision::F64 { Precision::F32 } else { precision }
}

/// The stages of `candidate` that can stand in for the model's: of its shapes, and experts that exist, none twice.
pub fn usable(candidate: &Trace, model: &Trace, config: &DeepseekV2Config) -> Trace {
    let experts = config.num_experts();
    let fits = |(name, values): (&str, &Values)| {
        let values = values.fit(model.get(name)?.shape())?;
        if let Values::Index(chosen) = &values {
            let sets = chosen.rows().into_iter().all(|row| as_choice(row, experts).is_some());
            return sets.then(|| (name.to_owned(), values));
        }
        matches!(model.get(name)?, Values::Real(..)).then(|| (name.to_owned(), values))
    };
    candidate.iter().filter_map(fits).collect()
}

/// Whether the stage must be bit-identical: a copy of what the trace holds, kept in the type of the computation.
fn is_exact(name: &str, teacher: &Trace, config: &DeepseekV2Config, cache: CacheFormat) -> bool {
    let kept = |source: &String| cache == CacheFormat::Plain && teacher.get(source).is_some();
    flow::is_copy(name) && flow::inputs(name, config, |_| true).iter().all(kept)
}

/// As a computation in `precision` stores the stage.
pub fn stored(precision: Precision, name: &str, a: &ArrayD<f64>) -> Values {
    let dtype = precision.stored(name);
    let tensor = dsv2_reference::Tensor::from_values(dtype, a.shape(), a.iter().copied());
    Values::Real(dtype, tensor.to_array())
}

/// How far each stage of `plain` is from the truth.
pub fn noise(plain: &Trace, truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    let of =
        |(name, want): (&str, &Values)| Some((name.to_owned(), rows.measure(name, plain.get(name)?, want)?.metrics));
    truth.iter().filter_map(of).collect()
}

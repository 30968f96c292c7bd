//! How far a bug moves what a dump holds, beside what a right implementation of a type may differ.
//!
//! Both are measured without the judge's verdict, and without rounding in what is measured: the bug is planted in the
//! f64 reference, and each stage of the dump that this gives is held against what the f64 reference makes of the dump's
//! own values of the stages before it. What it may differ is the judge's budget: factors and floors of the error that a
//! plain implementation of the type makes there, *which follows the truth's choices of experts*: an expert that falls
//! the other way never makes room for a bug.

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::TOPK_INDICES;
use dsv2_reference::tap::NoTap;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{Budgets, LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::local::{noise, plain};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::storage;
use crate::trace::Trace;
use crate::values::Values;

/// How far something is moved, at the stage where that is most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// In budgets, by the measure that takes most of its own.
    pub budgets: f64,
    /// In errors of the plain implementation, in the Euclidean norm.
    pub noises: f64,
}

/// How far `held`, of a bug in f64, is off in a case whose candidates compute in `precision`.
///
/// # Errors
/// If the reference refuses the case.
pub fn moved(case: &Case, held: &Trace, precision: Precision) -> Result<Moved> {
    let is_choice = |name: &str| Stage::parse(name).is_some_and(|stage| stage.kind == TOPK_INDICES);
    let wanted = |name: &str| held.get(name).is_some() || is_choice(name);
    let run = |precision, replay, plain_errors| {
        let settings = Settings {
            precision,
            plain_errors,
            replay,
            teacher: Some(held),
            stages: Some(&wanted),
            ..Settings::default()
        };
        Reference.run(case, &settings, &mut NoTap)
    };
    let truth = run(Precision::F64, None, false)?;
    let plain = run(plain(precision), Some(&truth.choices()), true)?;
    let rows = ComparedRows::of(&case.inputs);
    let mut noise = noise(&[plain], &truth, &rows);
    let mut factors = LOCAL_FACTORS;
    if let Some(narrow) = precision.narrow() {
        factors = NARROW_LOCAL_FACTORS;
        for (name, noise) in noise.iter_mut().filter(|(name, _)| precision.stored(name) == narrow) {
            noise.l2 = noise.l2.max(storage::usual_rounding(name, &case.config, narrow));
        }
    }
    let budgets = Budgets::new(&noise, &truth, &rows, factors);

    let mut most = Moved::default();
    for (name, got) in held.iter() {
        let at = match (got, truth.get(name)) {
            (Values::Real(..), Some(want)) => {
                let Some((compared, budget)) = rows.measure(name, got, want).zip(budgets.get(name)) else { continue };
                match compared.nonfinite {
                    Some(_) => Moved { budgets: f64::INFINITY, noises: f64::INFINITY },
                    None => Moved {
                        budgets: compared.metrics.zip(&budget, of).values().into_iter().fold(0.0, f64::max),
                        noises: of(compared.metrics.l2, noise[name].l2),
                    },
                }
            }
            (got, Some(want)) if got != want => Moved { budgets: f64::INFINITY, noises: f64::INFINITY },
            _ => continue,
        };
        most = Moved { budgets: most.budgets.max(at.budgets), noises: most.noises.max(at.noises) };
    }
    Ok(most)
}

fn of(error: f64, whole: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / whole }
}

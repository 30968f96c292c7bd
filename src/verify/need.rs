//! How much memory a verification takes, known before it begins.
//!
//! | part | bytes |
//! |---|---|
//! | stages | the expected ones, those of the run, what takes their place, what each should be, one plain run for each draw: all as f64 |
//! | a layer's stages | three times, in the runs that are under way |
//! | weights | in bf16, twice |
//! | the backend's own | [`Backend::takes`] |
//!
//! A test compares it with what is really allocated.

use super::Plan;
use crate::backend::{Backend, Settings};
use crate::case::Case;
use crate::error::Result;
use crate::local;
use crate::memory;
use crate::planned;
use crate::precision::Precision;

/// The stages of a case as often as they are there, beside those of plain runs.
const SETS: u64 = 6;
/// What a case takes whatever its size: its files, budgets, names, reports.
const FIXED: u64 = 2 << 20;

/// Bytes that running a golden case on a backend and judging it takes, at most.
///
/// # Errors
/// If the case is impossible.
pub fn of_run(case: &Case, backend: &dyn Backend, settings: &Settings<'_>) -> Result<u64> {
    let planned = planned::stages(case, settings.attention, Precision::F64);
    let sets = SETS.saturating_add(local::draws(case));
    let parts = [
        memory::all(&planned).saturating_mul(8).saturating_mul(sets),
        memory::at_a_time(&planned).saturating_mul(24),
        case.config.parameter_count().saturating_mul(4),
        backend.takes(case, settings, &planned)?,
        FIXED,
    ];
    Ok(parts.into_iter().fold(0, u64::saturating_add))
}

/// The same for each case of a plan, whose runs come one after another.
///
/// # Errors
/// If a golden case is at fault.
pub fn of_cases(plan: &Plan<'_>) -> Result<Vec<u64>> {
    let of_case = |name: &String| {
        let case = plan.golden.outline(name)?.case;
        plan.candidates.iter().try_fold(0, |most: u64, &(backend, precision)| {
            let settings = Settings { precision, attention: plan.attention, ..Settings::default() };
            Ok(match backend.cannot_run(&case, &settings) {
                Some(_) => most,
                None => most.max(of_run(&case, backend, &settings)?),
            })
        })
    };
    plan.cases.iter().map(of_case).collect()
}

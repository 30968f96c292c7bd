//! How much memory trials take, known before they begin.
//!
//! | part | bytes |
//! |---|---|
//! | stages | as f64, as often as they are held together: what Transformers has, of the candidate as it is computed (as it came, kept, recorded, joined), cut out and judged, twice where hints or how far it moves are asked for |
//! | runs | what two of the reference hold beside that, side by side |
//! | weights | in bf16, twice; widened, for what is planted and for the known bugs that a hint tries |
//! | the search for near ties | where a dump does not say which experts its tokens went to |
//! | findings | of all cases |
//!
//! A test compares it with what is really allocated.

use dsv2_reference::model::attention::AttentionForm;

use super::dumps::ALL;
use super::{Finding, Trials};
use crate::case::Case;
use crate::check::most_kept;
use crate::error::Result;
use crate::local;
use crate::memory::{self, Need, Size};
use crate::planned;
use crate::precision::Precision;

/// The stages of a case as often as they are there, beside those of plain runs.
const SETS: u64 = 12;
/// What a case takes whatever its size: its files, budgets, names.
const FIXED: u64 = 2 << 20;
/// The names that a finding has beside itself.
const NAMES: u64 = 256;

/// Bytes that the trials on each case take, which come one after another.
///
/// # Errors
/// If a golden case is at fault.
pub fn of_cases(trials: &Trials<'_>) -> Result<Vec<u64>> {
    trials.cases.iter().map(|name| Ok(of_case(trials, &trials.golden.outline(name)?.case))).collect()
}

fn of_case(trials: &Trials<'_>, case: &Case) -> u64 {
    let planned = planned::stages(case, AttentionForm::Expanded, Precision::F64);
    let all = memory::all(&planned);
    let searched = if trials.dumps.iter().all(|kind| kind.is(&ALL)) { 0 } else { most_kept(all) };
    let numbers = [
        all.saturating_mul(SETS.saturating_add(local::draws(case))),
        searched,
        case.config.parameter_count().saturating_mul(2),
    ];
    let runs = memory::of_run(case, &planned, AttentionForm::Expanded, Precision::F64).saturating_mul(2);
    let as_stored = case.config.parameter_count().saturating_mul(4);
    numbers.into_iter().fold(0, u64::saturating_add).saturating_mul(8).saturating_add(runs).saturating_add(as_stored)
        + FIXED
}

/// How many cases may be at work at a time, and what is needed then.
///
/// # Errors
/// If a golden case is at fault.
pub fn at_a_time(trials: &Trials<'_>, there_is: Option<Size>) -> Result<(usize, Need)> {
    let findings = of_findings(trials);
    let there_is = there_is.map(|there_is| Size(there_is.0.saturating_sub(findings)));
    let (most, need) = memory::side_by_side(of_cases(trials)?, there_is);
    Ok((most, Need { size: Size(need.size.0.saturating_add(findings)), ..need }))
}

/// What is found out is kept until all of it is there.
fn of_findings(trials: &Trials<'_>) -> u64 {
    let subjects = trials.subjects.mutants.len() + trials.subjects.benign.len();
    let findings = trials.cases.len() * subjects * trials.precisions.len() * trials.dumps.len();
    findings as u64 * (size_of::<Finding>() as u64 + NAMES)
}

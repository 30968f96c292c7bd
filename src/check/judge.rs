//! The dump, in the model's layouts, against the truth.

mod expected;

use super::conclusion::Inconclusive;
use super::dump::Dump;
use super::request::Request;
use super::truth::Truth;
use crate::budget::Budgets;
use crate::error::Result;
use crate::judge::{self, Verdict};
use crate::local::Local;

/// What the judge says.
pub struct Judged {
    /// Of every stage that the dump holds.
    pub verdict: Verdict,
    /// Why the dump cannot be decided, if it cannot.
    pub inconclusive: Option<Inconclusive>,
    /// What each stage should be by itself; not, if the request says what the stages should be.
    pub local: Option<Local>,
    /// The end of the computation, if near ties fell the other way.
    pub end_to_end: Option<EndToEnd>,
}

/// How far off the last stage is if the truth follows the candidate's experts, and if it does not.
#[derive(Clone, Debug)]
pub struct EndToEnd {
    /// The stage.
    pub stage: String,
    /// The relative error with the candidate's choice of experts replayed.
    pub replayed: f64,
    /// The relative error if the truth chooses for itself.
    pub free: f64,
}

/// Judges each stage by itself, and says what its error came to; or by what the request says that it should be. `local` is
/// what each stage should be by itself, if that is known already.
///
/// # Errors
/// If the reference refuses the case, or the expected tensors are not the model's.
pub fn judge(request: &Request, dump: &Dump, truth: &Truth, local: Option<Local>) -> Result<Judged> {
    let case = &request.case;
    let (verdict, local) = match &request.expected {
        Some(expected) => (expected::judge_by(request, dump, expected, truth)?, None),
        None => {
            let budgets = Budgets::default();
            let propagated = judge::Truth { trace: &truth.trace, budgets: &budgets, rows: &truth.rows };
            let local = match local {
                Some(local) => local,
                None => Local::of(case, &dump.trace, &truth.trace, dump.precision, request.cache)?,
            };
            let own = local.truth(&case.config, &truth.rows)?;
            (judge::judge(&dump.trace, &propagated, Some(&own), |_| false), Some(local))
        }
    };
    Ok(Judged { verdict, inconclusive: None, local, end_to_end: end_to_end(dump, truth) })
}

fn end_to_end(dump: &Dump, truth: &Truth) -> Option<EndToEnd> {
    let (stage, free) = truth.free.as_ref()?.iter().next()?;
    let error = |want| Some(truth.rows.measure(stage, dump.trace.get(stage)?, want)?.metrics.l2);
    Some(EndToEnd { stage: stage.to_owned(), replayed: error(truth.trace.get(stage)?)?, free: error(free)? })
}

//! The dump, in the model's layouts, against the truth.

mod expected;

use super::conclusion::Inconclusive;
use super::doubt;
use super::dump::Dump;
use super::near_ties::{self, Followed};
use super::request::Request;
use super::truth::{self, Truth};
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
    /// Near ties that were taken to have fallen the other way.
    pub assumed: Vec<AssumedTie>,
    /// The end of the computation, if near ties fell the other way.
    pub end_to_end: Option<EndToEnd>,
}

/// A token that was taken to have gone to other experts than in the reference, because nothing else explains the dump.
#[derive(Clone, Debug, PartialEq)]
pub struct AssumedTie {
    /// The choice, which the dump does not hold.
    pub stage: String,
    /// Which sequence.
    pub sequence: usize,
    /// Which token of it.
    pub token: usize,
    /// Where it goes.
    pub experts: Vec<i64>,
    /// How far off the router's logits must be for that, in what they may be off in the mean.
    pub strain: f64,
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

/// Judges each stage by itself, and says what its error came to, by the truth that goes where the dump goes; or by what the
/// request says that it should be. `local` is what each stage should be by itself, if that is known already.
///
/// # Errors
/// If the reference refuses the case, or the expected tensors are not the model's.
pub fn judge(request: &Request, dump: &Dump, truth: Truth, local: Option<Local>) -> Result<(Judged, Truth)> {
    let case = &request.case;
    if let Some(expected) = &request.expected {
        let verdict = expected::judge_by(request, dump, expected, &truth)?;
        let end_to_end = end_to_end(dump, &truth);
        return Ok((Judged { verdict, inconclusive: None, local: None, assumed: Vec::new(), end_to_end }, truth));
    }
    let Followed { local, verdict, assumed, inconclusive } = near_ties::follow(request, dump, &truth, local)?;
    let (verdict, truth) = if assumed.is_empty() {
        (verdict, truth)
    } else {
        let truth = truth::following(request, dump, &local.trace().choices())?;
        let budgets = Budgets::default();
        let propagated = judge::Truth { trace: &truth.trace, budgets: &budgets, rows: &truth.rows };
        let own = local.truth(&case.config, &truth.rows)?;
        (judge::judge(&dump.trace, &propagated, Some(&own), |_| false), truth)
    };
    let mut verdict = if inconclusive.is_some() { near_ties::left_open(verdict) } else { verdict };
    let doubt = doubt::leave_open(&mut verdict, |name| dump.trace.get(name).is_some(), &truth.names, &case.config);
    let inconclusive = inconclusive.or(doubt);
    let end_to_end = end_to_end(dump, &truth);
    Ok((Judged { verdict, inconclusive, local: Some(local), assumed, end_to_end }, truth))
}

fn end_to_end(dump: &Dump, truth: &Truth) -> Option<EndToEnd> {
    let (stage, free) = truth.free.as_ref()?.iter().next()?;
    let error = |want| Some(truth.rows.measure(stage, dump.trace.get(stage)?, want)?.metrics.l2);
    Some(EndToEnd { stage: stage.to_owned(), replayed: error(truth.trace.get(stage)?)?, free: error(free)? })
}

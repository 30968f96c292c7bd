//! `dsv2 check`: a dump of somebody's stages against the model.
//!
//! Three runs of the reference. The first, in f64, is the truth's own; where the candidate's experts differ, it goes where
//! the candidate goes. The second, in f64 too, gets the candidate's own values as inputs of each stage: what it computes is
//! what each stage should be, given what came before it. The third does the same in the candidate's type, and shows how far
//! off a plain implementation is. A stage is judged by the last two; the first tells what its error came to.

mod expected;
mod hint;
mod uncatchable;

use dsv2_reference::Dtype;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexSet;

use crate::backend::{Backend, Precision, Reference, Settings};
use crate::budget::Budgets;
use crate::case::Case;
use crate::judge::routing::{as_choice, moved};
use crate::judge::{Truth, Verdict, judge};
use crate::layouts::{self, Recognised};
use crate::local::Local;
use crate::metrics::compare;
use crate::rows::ComparedRows;
use crate::stage::{Stage, flow, sibling};
use crate::trace::Trace;
use crate::values::{Values, fit};
use crate::{Error, Result};

/// What to check.
pub struct Request {
    /// The model and its inputs.
    pub case: Case,
    /// The dump.
    pub candidate: Trace,
    /// What it should be, if that is not for the reference to say.
    pub expected: Option<Trace>,
    /// What the candidate computed in; by the types of its tensors, if nobody says.
    pub precision: Option<Precision>,
    /// How the candidate keeps its cache.
    pub cache: CacheFormat,
}

/// What came of it.
#[derive(Debug)]
pub struct Checked {
    /// The verdict on every stage of the model.
    pub verdict: Verdict,
    /// What the candidate is taken to compute in.
    pub precision: Precision,
    /// Tensors of the candidate that no stage of this model goes by, and that nobody looked at.
    pub unknown: Vec<String>,
    /// Tensors that came in another layout, and were judged all the same.
    pub layouts: Vec<Recognised>,
    /// How many tokens of a layer go to other experts than in the truth because of a near tie, which is no fault.
    pub near_ties: Vec<(String, usize)>,
    /// The end of the computation, if near ties fell the other way.
    pub end_to_end: Option<EndToEnd>,
    /// For each stage that the dump holds and that is not judged from its very inputs: those that it lacks.
    pub spans: Vec<(String, Vec<String>)>,
    /// What the first wrong stage looks like.
    pub hint: Option<String>,
    /// Mutants that would not have been caught, because the dump lacks the stages where they show.
    pub uncatchable: Vec<&'static str>,
    /// The dump as it was judged: in the model's layouts.
    pub candidate: Trace,
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

/// Checks a dump. Stages that it does not hold are not required.
///
/// # Errors
/// If the reference refuses the case, no tensor of the dump is a stage, or the expected tensors are not the model's.
pub fn check(request: &Request) -> Result<Checked> {
    checked(request, true)
}

/// The same without a hint, for which a number of mutants have to be run.
///
/// # Errors
/// As [`check`].
pub fn check_without_hint(request: &Request) -> Result<Checked> {
    checked(request, false)
}

fn checked(request: &Request, hints: bool) -> Result<Checked> {
    let case = &request.case;
    case.check_cache(request.cache)?;
    let (candidate, mut layouts) = layouts::split_fused(&request.candidate, &case.config, case.dialect);
    let precision = request.precision.unwrap_or_else(|| precision_of(&candidate));
    if !candidate.iter().any(|(name, _)| Stage::parse(name).is_some()) {
        return Err(Error::request("--candidate", "a tensor that is named as a stage", "none"));
    }
    // weights of experts are compared with the help of the choice of experts, and that with the help of the logits
    let routing = |name: &str| name.ends_with(".topk_indices") || name.ends_with(".router_logits");
    let wanted = |name: &str| candidate.get(name).is_some() || routing(name);
    let mut names = Names::default();
    let mut run = |replay, wanted: &dyn Fn(&str) -> bool| {
        let settings = Settings { precision: Precision::F64, stages: Some(wanted), replay, ..Settings::default() };
        Reference.run(case, &settings, &mut names)
    };
    let choices = if request.expected.is_none() { choices(&candidate, case) } else { Trace::default() };
    let truth = run(Some(&choices), &wanted)?;
    let (candidate, reordered) = layouts::in_the_models(&candidate, &truth, &case.inputs);
    layouts.extend(reordered);

    let rows = ComparedRows::of(&case.inputs);
    let near_ties = near_ties(&choices, &truth, &rows, case)?;
    let last = truth.iter().filter(|(name, want)| want.real().is_some() && candidate.get(name).is_some()).last();
    let end_to_end = match last {
        Some((stage, want)) if !near_ties.is_empty() => {
            let free = run(None, &|name| name == stage)?;
            end_to_end(stage, &candidate, want, &free, &rows)
        }
        _ => None,
    };

    let mut hint = None;
    let verdict = match &request.expected {
        Some(expected) => expected::judge_by(request, &candidate, expected, &truth)?,
        None => {
            let budgets = Budgets::default();
            let propagated = Truth { trace: &truth, budgets: &budgets, rows: &rows };
            let local = Local::of(case, &candidate, &truth, precision, request.cache)?;
            let local = local.truth(&case.config, &rows)?;
            let verdict = judge(&candidate, &propagated, Some(&local), |_| false);
            if let Some(failed) = verdict.first_failure().filter(|_| hints) {
                hint = hint::hint(failed, &candidate, &local, case.inputs.batch())?;
            }
            verdict
        }
    };
    let exists = |name: &str| names.0.contains(name);
    let span = |name: &str| {
        let sources = flow::sources(name, &case.config, exists, |input| candidate.get(input).is_some());
        (name.to_owned(), sources.not_held.into_iter().collect::<Vec<_>>())
    };
    let held = || candidate.iter().map(|(name, _)| name).filter(|name| exists(name));
    Ok(Checked {
        spans: held().map(span).filter(|(_, lacking)| !lacking.is_empty()).collect(),
        unknown: candidate.iter().map(|(name, _)| name.to_owned()).filter(|name| !exists(name)).collect(),
        verdict: verdict.with_not_held(names.0.iter().map(String::as_str)),
        precision,
        layouts,
        near_ties,
        end_to_end,
        hint,
        uncatchable: uncatchable::uncatchable(&names.0, &case.config, |name| candidate.get(name).is_some()),
        candidate,
    })
}

/// The type that most of a trace is stored in.
pub fn precision_of(trace: &Trace) -> Precision {
    let count = |of: &[Dtype]| {
        trace.iter().filter(|(_, values)| matches!(values, Values::Real(dtype, _) if of.contains(dtype))).count()
    };
    let (bf16, f16, wide) = (count(&[Dtype::Bf16]), count(&[Dtype::F16]), count(&[Dtype::F32, Dtype::F64]));
    match () {
        _ if bf16 + f16 <= wide => Precision::F32,
        _ if f16 > bf16 => Precision::F16,
        _ => Precision::Bf16,
    }
}

/// The candidate's choice of experts, layer by layer, where it is one: as many as the model's, all of which exist, none twice.
fn choices(candidate: &Trace, case: &Case) -> Trace {
    let tokens = case.inputs.batch() * case.inputs.length();
    let experts = case.config.num_experts();
    let k = case.config.experts_per_token().unwrap_or(0);
    let usable = |(name, values): (&str, &Values)| {
        let chosen = values.index().filter(|_| name.ends_with(".topk_indices"))?;
        let chosen = chosen.to_shape((tokens, k)).ok().filter(|_| k > 0)?;
        let sets = chosen.rows().into_iter().all(|row| as_choice(row, experts).is_some());
        sets.then(|| (name.to_owned(), Values::Index(chosen.to_owned().into_dyn())))
    };
    candidate.iter().filter_map(usable).collect()
}

/// Where the candidate goes elsewhere than the truth would, and in how many tokens.
fn near_ties(choices: &Trace, truth: &Trace, rows: &ComparedRows, case: &Case) -> Result<Vec<(String, usize)>> {
    let method = case.config.topk_method()?;
    let of = |(name, chosen): (&str, &Values)| {
        let (chosen, logits) = (chosen.index()?, truth.get(&sibling(name, "router_logits"))?.real()?);
        let rows = rows.of_stage(&Stage::parse(name)?, chosen.shape());
        Some((name.to_owned(), moved(chosen, logits, rows.as_deref(), method)))
    };
    Ok(choices.iter().filter_map(of).filter(|(_, tokens)| *tokens > 0).collect())
}

fn end_to_end(
    stage: &str,
    candidate: &Trace,
    replayed: &Values,
    free: &Trace,
    rows: &ComparedRows,
) -> Option<EndToEnd> {
    let error = |want: &Values| {
        let (got, want) = (fit(candidate.get(stage)?.real()?, want.shape())?, want.real()?);
        let rows = rows.of_stage(&Stage::parse(stage)?, want.shape());
        Some(compare(got.view(), want.view(), rows.as_deref()).metrics.l2)
    };
    Some(EndToEnd { stage: stage.to_owned(), replayed: error(replayed)?, free: error(free.get(stage)?)? })
}

/// The names of all stages, in order.
#[derive(Default)]
struct Names(IndexSet<String>);

impl<T> Tap<T> for Names {
    fn stage(&mut self, name: &str, _: StageValue<'_, T>) {
        if !self.0.contains(name) {
            self.0.insert(name.to_owned());
        }
    }
}

//! What the stages of the model are, by the f64 reference.

use dsv2_reference::stage::{Stage, sibling};
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexSet;
use ndarray::ArrayD;

use super::dump::Dump;
use super::request::Request;
use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::error::Result;
use crate::judge::routing::{as_choice, moved};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// The truth about a dump.
pub struct Truth {
    /// The names of all stages of the model, in order.
    pub names: IndexSet<String>,
    /// What the dump holds, as it should be if the experts are the dump's.
    pub trace: Trace,
    /// The last stage of it alone, if the truth goes its own way, where the dump goes another.
    pub free: Option<Trace>,
    /// Where that is, and in how many tokens.
    pub near_ties: Vec<(String, usize)>,
    /// Which rows mean something.
    pub rows: ComparedRows,
}

/// Runs the reference; where the dump's choice of experts differs, it goes where the dump goes.
///
/// # Errors
/// If the reference refuses the case.
pub fn compute(request: &Request, dump: &Dump) -> Result<Truth> {
    following(request, dump, &Trace::default())
}

/// The same where the dump does not say everything about its choices, and `assumed` does.
///
/// # Errors
/// If the reference refuses the case.
pub fn following(request: &Request, dump: &Dump, assumed: &Trace) -> Result<Truth> {
    let (case, dump) = (&request.case, &dump.trace);
    // weights of experts are compared with the help of the choice of experts, and that with the help of the logits
    let routing = |name: &str| name.ends_with(".topk_indices") || name.ends_with(".router_logits");
    let wanted = |name: &str| dump.get(name).is_some() || routing(name);
    let mut names = Names::default();
    let mut run = |replay, wanted: &dyn Fn(&str) -> bool| {
        let settings = Settings { precision: Precision::F64, stages: Some(wanted), replay, ..Settings::default() };
        Reference.run(case, &settings, &mut names)
    };
    let rows = ComparedRows::of(&case.inputs);
    let choices = if request.expected.is_none() { choices(dump, case, &rows) } else { Trace::default() };
    let held = choices.iter().map(|(name, chosen)| (name.to_owned(), chosen.clone()));
    let not_held = assumed.iter().filter(|(name, _)| choices.get(name).is_none());
    let followed = not_held.map(|(name, chosen)| (name.to_owned(), chosen.clone())).chain(held).collect();
    let trace = run(Some(&followed), &wanted)?;

    let near_ties = near_ties(&choices, &trace, &rows, case)?;
    let last = trace.iter().filter(|(name, want)| want.real().is_some() && dump.get(name).is_some()).last();
    let last = last.filter(|_| !near_ties.is_empty() || !assumed.is_empty());
    let free = last.map(|(stage, _)| run(None, &|name| name == stage)).transpose()?;
    Ok(Truth { names: names.0, trace, free, near_ties, rows })
}

/// The candidate's choice of experts, layer by layer, where it is one: as many as the model's, all of which exist, none twice.
pub fn choices(candidate: &Trace, case: &Case, rows: &ComparedRows) -> Trace {
    let tokens = case.inputs.batch() * case.inputs.looked_at();
    let experts = case.config.num_experts();
    let k = case.config.experts_per_token().unwrap_or(0);
    let usable = |(name, values): (&str, &Values)| {
        let chosen = values.index().filter(|_| name.ends_with(".topk_indices"))?;
        let chosen = chosen.to_shape((tokens, k)).ok().filter(|_| k > 0)?.to_owned().into_dyn();
        // what nobody may read is any choice
        let any = ArrayD::from_shape_fn(chosen.raw_dim(), |at| at[1] as i64);
        let chosen = rows.with_unread_of(&Stage::parse(name)?, chosen, &any);
        let sets = chosen.rows().into_iter().all(|row| as_choice(row, experts).is_some());
        sets.then(|| (name.to_owned(), Values::Index(chosen)))
    };
    candidate.iter().filter_map(usable).collect()
}

/// Where the candidate goes elsewhere than the truth would, and in how many tokens.
pub fn near_ties(choices: &Trace, truth: &Trace, rows: &ComparedRows, case: &Case) -> Result<Vec<(String, usize)>> {
    let method = case.config.topk_method()?;
    let of = |(name, chosen): (&str, &Values)| {
        let (chosen, logits) = (chosen.index()?, truth.get(&sibling(name, "router_logits"))?.real()?);
        let rows = rows.of_stage(&Stage::parse(name)?, chosen.shape());
        Some((name.to_owned(), moved(chosen, logits, rows.as_deref(), method)))
    };
    Ok(choices.iter().filter_map(of).filter(|(_, tokens)| *tokens > 0).collect())
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

//! Numbers that are others on the way and right again where the layer goes on: brought back to the model's.
//!
//! That takes more care than another order of the same numbers does, since a factor that is left out altogether looks the
//! same at first. So a convention counts for a layer only if the stages that follow from it, which fail as the dump came,
//! pass by it. (Where a factor is left out altogether, they pass as the dump came, and fail by the convention.)

use dsv2_reference::stage::convention::value::{CONVENTIONS, Edit, Restated};
use dsv2_reference::stage::table::{EXPERTS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{self, Stage, flow};
use ndarray::{ArrayD, Axis};

use super::{Judged, Recognised};
use crate::check::dump::Dump;
use crate::check::request::Request;
use crate::check::truth::{self, Truth};
use crate::error::Result;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// A dump after a convention was found.
pub struct Found {
    pub trace: Trace,
    pub recognised: Vec<Recognised>,
    pub truth: Truth,
    pub judged: Judged,
}

/// Looks for a convention that explains why experts or their weights fail.
///
/// # Errors
/// If the reference refuses the case.
pub fn restate(request: &Request, dump: &Dump, truth: &Truth, judged: &Judged) -> Result<Option<Found>> {
    let layers = 0..request.case.config.num_hidden_layers;
    let fails = |layer: usize| [TOPK_WEIGHTS, EXPERTS].iter().any(|kind| judged.fails(&stage::name(kind, layer)));
    let layers: Vec<usize> = layers.filter(|layer| fails(*layer)).collect();
    for convention in CONVENTIONS {
        let trial = Trial { request, dump, truth, judged, convention };
        if let Some(found) = trial.run(&layers)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// One convention, tried on a dump.
struct Trial<'a> {
    request: &'a Request,
    dump: &'a Dump,
    truth: &'a Truth,
    judged: &'a Judged,
    convention: &'static Restated,
}

/// A stage that takes the place of another; of none, if there is one like it already.
struct Change {
    from: String,
    to: String,
    values: Option<Values>,
}

impl Trial<'_> {
    fn run(&self, layers: &[usize]) -> Result<Option<Found>> {
        let mut possible = Vec::new();
        for &layer in layers {
            if let Some(changes) = self.changes(layer)? {
                possible.push((layer, changes));
            }
        }
        if possible.is_empty() {
            return Ok(None);
        }
        let (trace, truth, judged) = self.changed(&possible)?;
        if !possible.iter().any(|(_, changes)| self.holds(&trace, &judged, changes)) {
            return Ok(None);
        }
        // One layer has shown that the program works so; a bug in another one is to be found there by the same rule.
        let (kept, dropped): (Vec<_>, Vec<_>) = possible
            .into_iter()
            .partition(|(_, changes)| changes.first().is_some_and(|change| judged.passes(&change.to)));
        let (trace, truth, judged) = if dropped.is_empty() { (trace, truth, judged) } else { self.changed(&kept)? };
        let says = |(_, changes): &(usize, Vec<Change>)| {
            changes.first().map(|change| Recognised::new(&change.from, self.convention.says))
        };
        Ok(Some(Found { recognised: kept.iter().filter_map(says).collect(), trace, truth, judged }))
    }

    /// What the convention does in a layer; nothing, if it does not fit there at first sight.
    fn changes(&self, layer: usize) -> Result<Option<Vec<Change>>> {
        let mut changes = Vec::new();
        for (kind, edits) in self.convention.edits {
            let name = stage::name(kind, layer);
            let Some(values) = self.dump.trace.get(&name) else { continue };
            let Some(change) = self.change(name, values, layer, edits) else { return Ok(None) };
            changes.push(change);
        }
        let Some(Change { from, to, values: Some(values) }) = changes.first() else {
            return Ok(changes.first().is_some_and(|change| self.judged.fails(&change.from)).then_some(changes));
        };
        if !self.judged.fails(from) {
            return Ok(None);
        }
        // what the first stage is computed from does not change; the choice of experts says whose a weight is
        let mut alone: Trace = [(to.clone(), values.clone())].into_iter().collect();
        let choice = stage::name(TOPK_INDICES, layer);
        if let Some(chosen) = self.dump.trace.get(&choice).filter(|_| from == to) {
            alone =
                alone.iter().map(|(name, a)| (name.to_owned(), a.clone())).chain([(choice, chosen.clone())]).collect();
        }
        let fits = from != to || self.judged.explains(self.request, self.truth, &alone, &[to.as_str()])?;
        Ok(fits.then_some(changes))
    }

    fn change(&self, from: String, values: &Values, layer: usize, edits: &[Edit]) -> Option<Change> {
        let Values::Real(dtype, a) = values else { return None };
        let (mut a, mut to) = (a.clone(), from.clone());
        for edit in edits {
            match edit {
                Edit::TimesFactor => {
                    let factor = self.request.case.config.routed_scaling_factor;
                    (factor != 1.0 && factor != 0.0).then_some(())?;
                    a *= factor;
                }
                Edit::TimesSum => {
                    let weights = self.judged.local.stage(&stage::name(TOPK_WEIGHTS, layer))?.real()?;
                    let last = Axis(weights.ndim().checked_sub(1)?);
                    let sums = weights.sum_axis(last);
                    let last = Axis(a.ndim().checked_sub(1)?);
                    (a.len() == sums.len() * a.len_of(last)).then_some(())?;
                    a.lanes_mut(last).into_iter().zip(&sums).for_each(|(mut row, sum)| row *= *sum);
                }
                Edit::ByExpert => a = self.by_choice(&a, layer)?,
                Edit::Is(kind) => to = stage::name(kind, layer),
            }
        }
        if to == from {
            return Some(Change { from, to, values: Some(Values::Real(*dtype, a)) });
        }
        match self.dump.trace.get(&to) {
            Some(own) => self.alike(&to, &a, own).then_some(Change { from, to, values: None }),
            None => {
                let tokens = [self.request.case.inputs.batch(), self.request.case.inputs.length()];
                let width = *a.shape().last()?;
                let a = a.to_shape(&[tokens[0], tokens[1], width][..]).ok()?.into_owned();
                Some(Change { from, to, values: Some(Values::Real(*dtype, a)) })
            }
        }
    }

    /// Whether `a` is as near to what the dump has for the stage as the stage must be to the truth.
    fn alike(&self, stage: &str, a: &ArrayD<f64>, own: &Values) -> bool {
        let alike = || {
            let own = own.real()?;
            let a = a.to_shape(own.shape()).ok()?.into_owned();
            let budget = self.judged.local.budget(stage)?;
            let compared = self.truth.rows.compare(&Stage::parse(stage)?, &a, own);
            let within = compared.metrics.values().iter().zip(budget.values()).all(|(error, budget)| *error <= budget);
            Some(within && compared.nonfinite.is_none())
        };
        alike().unwrap_or(false)
    }

    /// Weights of all experts, in the order of the choice; there are as many as are chosen.
    fn by_choice(&self, weights: &ArrayD<f64>, layer: usize) -> Option<ArrayD<f64>> {
        let choice = self.judged.local.stage(&stage::name(TOPK_INDICES, layer))?.index()?;
        let choice = fit(choice, weights.shape())?;
        (weights.shape().last() == Some(&self.request.case.config.num_experts())).then_some(())?;
        let last = Axis(weights.ndim().checked_sub(1)?);
        let mut ordered = weights.clone();
        for ((mut row, own), chosen) in
            ordered.lanes_mut(last).into_iter().zip(weights.lanes(last)).zip(choice.lanes(last))
        {
            for (to, expert) in row.iter_mut().zip(chosen) {
                *to = *own.get(usize::try_from(*expert).ok()?)?;
            }
        }
        Some(ordered)
    }

    /// The dump by the convention in these layers, and what comes of it.
    fn changed(&self, layers: &[(usize, Vec<Change>)]) -> Result<(Trace, Truth, Judged)> {
        let changes = || layers.iter().flat_map(|(_, changes)| changes);
        let kept = self.dump.trace.iter().filter(|(name, _)| !changes().any(|change| change.from == *name));
        let kept: Vec<_> = kept.map(|(name, values)| (name.to_owned(), values.clone())).collect();
        let new = changes().filter_map(|change| Some((change.to.clone(), change.values.clone()?)));
        let trace: Trace = kept.into_iter().chain(new).collect();
        let dump = Dump { trace, recognised: Vec::new(), pairs: Vec::new(), assumed: Vec::new(), ..*self.dump };
        let truth = truth::compute(self.request, &dump)?;
        let judged = Judged::new(self.request, &dump, &truth, &dump.trace)?;
        Ok((dump.trace, truth, judged))
    }

    /// Whether all that follows from the changed stages passes now, and did not before.
    fn holds(&self, trace: &Trace, judged: &Judged, changes: &[Change]) -> bool {
        let config = &self.request.case.config;
        let exists = |name: &str| self.truth.names.contains(name);
        let is_new = |name: &str| changes.iter().any(|change| change.to == name && change.from == name);
        let follows = |name: &str| {
            let sources = flow::sources(name, config, exists, |input| trace.get(input).is_some()).held;
            changes.iter().any(|change| sources.contains(&change.to) || (change.to == name && change.from != name))
        };
        let following: Vec<&str> =
            trace.iter().map(|(name, _)| name).filter(|name| exists(name) && !is_new(name) && follows(name)).collect();
        let passes = following.iter().all(|name| judged.passes(name));
        let failed = |name: &&str| self.judged.fails(name);
        // an output that the dump has in place of another stage's was not there to fail
        let stands_for = changes.iter().any(|change| change.from != change.to && change.values.is_some());
        let after = |name: &&&str| !stands_for || !changes.iter().any(|change| change.to == ***name);
        passes && following.iter().filter(after).any(failed)
    }
}

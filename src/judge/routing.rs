//! Routing: which experts a token goes to is compared as a set, and with which weights, by expert.

use std::collections::BTreeSet;

use dsv2_metrics::Element;
use dsv2_reference::Dtype;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::stage::{Stage, sibling};
use ndarray::{ArrayD, ArrayView1, Axis, Zip};

use super::held::{Held, Truth};
use super::near_tie::acceptable;
use super::verdict::Disposition;
use crate::precision::unit_roundoff;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// Judges `topk_indices`: the same set of experts for each token, in whatever order.
pub fn judge_experts(got: &ArrayD<i64>, want: &ArrayD<i64>, rows: Option<&[bool]>) -> Held {
    let Some(got) = fit(got, want.shape()) else { return Held::misshapen(got.shape(), want.shape()) };
    if want.ndim() == 0 {
        return Held::new(if got == *want { Disposition::Pass } else { Disposition::WrongRouting });
    }
    let width = want.shape().last().copied().unwrap_or(1);
    let elements = width * compared_tokens(&got, want, rows).count();
    if elements == 0 {
        return Held::new(Disposition::NotCompared);
    }
    match compared_tokens(&got, want, rows).find(|(_, (got, want))| sorted(*got) != sorted(*want)) {
        None => Held { elements, ..Held::new(Disposition::Pass) },
        Some((token, (got, want))) => {
            let slot = got.iter().position(|expert| !want.iter().any(|other| other == expert)).unwrap_or(0);
            let missed = want.iter().find(|&expert| !got.iter().any(|other| other == expert)).unwrap_or(&want[slot]);
            let note = format!("token {token} goes to experts {:?} in place of {:?}", sorted(got), sorted(want));
            Held {
                elements,
                element: Some(Element { index: vec![token, slot], got: got[slot] as f64, want: *missed as f64 }),
                ..Held::noted(Disposition::WrongRouting, note)
            }
        }
    }
}

/// Judges `topk_indices` by the candidate's own logits: each token's set must be what the router selects from logits that are
/// no further off than rounding explains. If the dump does not hold the logits, those of `truth` decide, and their budget.
pub fn judge_choice(
    name: &str,
    got: &ArrayD<i64>,
    candidate: &Trace,
    truth: &Truth<'_>,
    method: TopkMethod,
) -> Option<Held> {
    let known = KnownLogits::of(name, candidate, truth)?;
    let logits = &known.logits;
    let want = truth.trace.get(name)?.shape();
    let Some(got) = fit(got, want) else { return Some(Held::misshapen(got.shape(), want)) };
    let (tokens, k) = (*want.first()?, *want.last()?);
    let got = got.to_shape((tokens, k)).ok()?;
    let rows = Stage::parse(name).and_then(|stage| truth.rows.of_stage(&stage, &[tokens, k]));
    let experts = *logits.shape().last()?;
    let mut elements = 0;
    for (token, (chosen, z)) in got.rows().into_iter().zip(logits.lanes(last(logits))).enumerate() {
        if rows.as_ref().is_some_and(|rows| !rows[token]) || z.iter().any(|z| !z.is_finite()) {
            continue;
        }
        elements += k;
        let Some(set) = as_choice(chosen, experts) else {
            let note = format!("token {token} goes to experts {:?}, which are not {k} of {experts}", sorted(chosen));
            return Some(Held { elements, ..Held::noted(Disposition::WrongRouting, note) });
        };
        let z = z.to_vec();
        let epsilon = known.epsilon(&z);
        if !acceptable(method, &z, &set, epsilon) {
            let note = format!(
                "token {token} goes to experts {:?}, which the router does not select from these logits, nor from any within {epsilon:.1e}",
                sorted(chosen)
            );
            return Some(Held { elements, ..Held::noted(Disposition::WrongRouting, note) });
        }
    }
    // where no token was looked at, nothing was found right
    let disposition = if elements == 0 { Disposition::NotCompared } else { Disposition::Pass };
    Some(Held { elements, ..Held::new(disposition) })
}

/// The logits by which a choice is judged, and how well they are known: the dump's own, to within their rounding; else those
/// of the truth, to within their budget.
pub struct KnownLogits {
    /// `[B·S,E]`
    pub logits: ArrayD<f64>,
    /// Relative to the largest of a token, if the dump holds them.
    rounding: Option<f64>,
    allowed: f64,
    /// What they may be off in the mean.
    mean: f64,
}

impl KnownLogits {
    /// Those of the choice `name`.
    pub fn of(name: &str, candidate: &Trace, truth: &Truth<'_>) -> Option<Self> {
        let logits_name = sibling(name, "router_logits");
        let computed = truth.trace.get(&logits_name)?.real()?;
        let held = candidate.get(&logits_name).and_then(|values| match values {
            Values::Real(dtype, got) => Some((unit_roundoff(*dtype), fit(got, computed.shape())?)),
            _ => None,
        });
        let [allowed, mean] = allowed_error(&logits_name, computed, truth);
        let (rounding, logits) = held.map_or((None, computed.clone()), |(rounding, logits)| (Some(rounding), logits));
        Some(KnownLogits { logits, rounding, allowed, mean })
    }

    /// An error of the logits that the dump does not hold, in what they may be off in the mean.
    pub fn strain(&self, error: f64) -> f64 {
        if self.rounding.is_some() || error == 0.0 { 0.0 } else { error / self.mean }
    }

    /// How far off the logits `z` of a token may be.
    pub fn epsilon(&self, z: &[f64]) -> f64 {
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scores = error_of_scores(z, largest);
        let size = || z.iter().fold(0.0, |m: f64, z| m.max(z.abs()));
        scores + self.rounding.map_or(self.allowed, |rounding| rounding * size())
    }
}

/// How far off the logits `z` of a token may seem by the errors of its scores, which are fp32: exp(z - max) errs by the rounding
/// of z - max, and a few units of its own.
pub fn error_of_scores(z: &[f64], largest: f64) -> f64 {
    z.iter().map(|z| largest - z + 8.0).fold(0.0, f64::max) * unit_roundoff(Dtype::F32)
}

/// The experts of a token as a set, if all of them are among the model's `experts` and none is there twice.
pub fn as_choice(chosen: ArrayView1<'_, i64>, experts: usize) -> Option<BTreeSet<usize>> {
    let exists = |&expert: &i64| usize::try_from(expert).ok().filter(|&expert| expert < experts);
    let set: BTreeSet<usize> = chosen.iter().map(exists).collect::<Option<_>>()?;
    (set.len() == chosen.len()).then_some(set)
}

/// How far off a logit may be that the dump does not hold: any, and in the mean.
fn allowed_error(name: &str, logits: &ArrayD<f64>, truth: &Truth<'_>) -> [f64; 2] {
    let rms = (logits.iter().map(|z| z * z).sum::<f64>() / logits.len().max(1) as f64).sqrt();
    truth.budgets.get(name).map_or([0.0; 2], |budget| [budget.max * rms, budget.l2 * rms])
}

/// In how many tokens the choice is not the one that `logits` (of the truth) lead to.
pub fn moved(chosen: &ArrayD<i64>, logits: &ArrayD<f64>, rows: Option<&[bool]>, method: TopkMethod) -> usize {
    let other = compared_tokens(chosen, logits, rows).filter(|(_, (chosen, z))| {
        let set = chosen.iter().map(|&expert| expert as usize).collect();
        !acceptable(method, &z.to_vec(), &set, 0.0)
    });
    other.count()
}

/// The part of the compared tokens that go to other experts.
pub fn elsewhere(got: &ArrayD<i64>, want: &ArrayD<i64>, rows: Option<&[bool]>) -> f64 {
    let set = |experts: ArrayView1<'_, i64>| experts.iter().copied().collect::<BTreeSet<_>>();
    let other = compared_tokens(got, want, rows).filter(|(_, (got, want))| set(*got) != set(*want)).count();
    other as f64 / compared_tokens(got, want, rows).count().max(1) as f64
}

/// What two stages have for each token that is compared, with the token's place.
fn compared_tokens<'a, A, B>(
    a: &'a ArrayD<A>,
    b: &'a ArrayD<B>,
    rows: Option<&'a [bool]>,
) -> impl Iterator<Item = (usize, (ArrayView1<'a, A>, ArrayView1<'a, B>))> {
    let tokens = a.lanes(last(a)).into_iter().zip(b.lanes(last(b))).enumerate();
    tokens.filter(move |(token, _)| rows.is_none_or(|rows| rows[*token]))
}

fn sorted(experts: ArrayView1<'_, i64>) -> Vec<i64> {
    let mut experts = experts.to_vec();
    experts.sort_unstable();
    experts
}

fn last<A>(values: &ArrayD<A>) -> Axis {
    Axis(values.ndim().saturating_sub(1))
}

/// Brings the candidate's `topk_weights` into the truth's order of experts; a weight for an expert that the truth does
/// not choose is left out, and one that the candidate does not choose is 0. Any other stage comes back as it is, and so
/// do weights without the indices that would say whose they are.
pub fn by_expert(name: &str, got: ArrayD<f64>, candidate: &Trace, truth: &Trace) -> ArrayD<f64> {
    if !name.ends_with(".topk_weights") {
        return got;
    }
    let indices = sibling(name, "topk_indices");
    let of = |trace: &Trace| fit(trace.get(&indices)?.index()?, got.shape());
    let (Some(chosen), Some(wanted)) = (of(candidate), of(truth)) else { return got };
    let mut aligned = ArrayD::zeros(got.shape());
    let last = last(&got);
    Zip::from(aligned.lanes_mut(last)).and(got.lanes(last)).and(chosen.lanes(last)).and(wanted.lanes(last)).for_each(
        |mut aligned, got, chosen, wanted| {
            for (weight, expert) in aligned.iter_mut().zip(wanted) {
                let slot = chosen.iter().position(|other| other == expert);
                *weight = slot.map_or(0.0, |slot| got[slot]);
            }
        },
    );
    aligned
}

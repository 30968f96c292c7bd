//! The candidate's choice of experts: followed by the truth, and judged by itself.

use std::collections::BTreeSet;

use dsv2_reference::Dtype;
use ndarray::{ArrayD, Axis};

use crate::Result;
use crate::case::Case;
use crate::judge::near_tie::acceptable;
use crate::judge::{Disposition, StageVerdict, Truth, Verdict};
use crate::stage::{Stage, sibling};
use crate::trace::Trace;
use crate::values::{Values, fit};

/// The candidate's experts in each layer where they are as many as the model's, exist, and differ from `own`, the truth's own
/// choice. (If no layer differs there is nothing to follow.)
pub fn choices(candidate: &Trace, own: &Trace, case: &Case) -> Trace {
    let experts = 0..case.config.num_experts() as i64;
    let usable = |(name, want): (&str, &Values)| {
        let want = want.index()?;
        let got = fit(candidate.get(name)?.index()?, want.shape())?;
        let sets_of_k = got.lanes(last(&got)).into_iter().all(|lane| {
            lane.iter().all(|expert| experts.contains(expert))
                && lane.iter().collect::<BTreeSet<_>>().len() == lane.len()
        });
        let differ = got.lanes(last(&got)).into_iter().zip(want.lanes(last(want))).any(|(a, b)| set(a) != set(b));
        sets_of_k.then(|| (differ, name.to_owned(), Values::Index(got)))
    };
    let found: Vec<_> = own.iter().filter(|(name, _)| name.ends_with(".topk_indices")).filter_map(usable).collect();
    if found.iter().all(|(differ, ..)| !differ) {
        return Trace::default();
    }
    found.into_iter().map(|(_, name, indices)| (name, indices)).collect()
}

/// Judges the choices that the truth has followed: each must be what the router selects from logits no further off than the
/// candidate's own are on that token, or, if the dump does not hold them, than their budget allows. Returns how many tokens
/// of each layer go elsewhere than in the truth.
pub fn judge_choices(
    verdict: &mut Verdict,
    candidate: &Trace,
    truth: &Truth<'_>,
    case: &Case,
) -> Result<Vec<(String, usize)>> {
    let method = case.config.topk_method()?;
    let mut near_ties = Vec::new();
    for stage in verdict.stages.iter_mut().filter(|stage| stage.stage.ends_with(".topk_indices")) {
        let logits_name = sibling(&stage.stage, "router_logits");
        let (Some(chosen), Some(logits)) = (
            truth.trace.get(&stage.stage).and_then(Values::index),
            truth.trace.get(&logits_name).and_then(Values::real),
        ) else {
            continue;
        };
        let epsilon = epsilons(&logits_name, logits, candidate, truth);
        let rows = Stage::parse(&stage.stage).and_then(|stage| truth.rows.of_stage(&stage, chosen.shape()));
        let mut moved = 0;
        for (token, (chosen, z)) in chosen.lanes(last(chosen)).into_iter().zip(logits.lanes(last(logits))).enumerate() {
            if rows.as_ref().is_some_and(|rows| !rows[token]) {
                continue;
            }
            let (chosen, z) = (set(chosen), z.to_vec());
            if acceptable(method, &z, &chosen, 0.0) {
                continue;
            }
            moved += 1;
            if !acceptable(method, &z, &chosen, epsilon[token]) {
                *stage = wrong(&stage.stage, token, &chosen, epsilon[token]);
                break;
            }
        }
        if moved > 0 && stage.disposition == Disposition::Pass {
            near_ties.push((stage.stage.clone(), moved));
        }
    }
    Ok(near_ties)
}

/// How far off each token's logits may be.
fn epsilons(name: &str, want: &ArrayD<f64>, candidate: &Trace, truth: &Truth<'_>) -> Vec<f64> {
    let got = candidate.get(name).and_then(|values| match values {
        Values::Real(dtype, got) => Some((unit_roundoff(*dtype), fit(got, want.shape())?)),
        _ => None,
    });
    let tokens = want.lanes(last(want)).into_iter();
    match got {
        Some((rounding, got)) => {
            let error = |(got, want): (ndarray::ArrayView1<f64>, ndarray::ArrayView1<f64>)| {
                // What was stored is the logit that the candidate selected by, up to the rounding of its type.
                let each = got.iter().zip(want).map(|(got, want)| (got - want).abs() + rounding * got.abs());
                each.fold(0.0, f64::max)
            };
            got.lanes(last(&got)).into_iter().zip(tokens).map(error).collect()
        }
        None => {
            let rms = (want.iter().map(|z| z * z).sum::<f64>() / want.len().max(1) as f64).sqrt();
            tokens.map(|_| truth.budgets.get(name).map_or(0.0, |budget| budget.max * rms)).collect()
        }
    }
}

fn unit_roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => 2.0_f64.powi(-8),
        Dtype::F16 => 2.0_f64.powi(-11),
        Dtype::F32 => 2.0_f64.powi(-24),
        Dtype::F64 => 2.0_f64.powi(-53),
    }
}

fn wrong(stage: &str, token: usize, chosen: &BTreeSet<usize>, epsilon: f64) -> StageVerdict {
    let note = format!(
        "token {token} goes to experts {chosen:?}, which the router does not select from logits that are {epsilon:.1e} off"
    );
    StageVerdict {
        stage: stage.to_owned(),
        disposition: Disposition::WrongRouting,
        error: None,
        budget: None,
        element: None,
        note: Some(note),
    }
}

fn set(experts: ndarray::ArrayView1<'_, i64>) -> BTreeSet<usize> {
    experts.iter().map(|&expert| expert as usize).collect()
}

fn last<A>(values: &ArrayD<A>) -> Axis {
    Axis(values.ndim().saturating_sub(1))
}

//! Routing: which experts a token goes to is compared as a set, and with which weights, by expert.

use ndarray::{ArrayD, ArrayView1, Axis, Zip};

use super::{Disposition, StageVerdict, wrong_shape};
use crate::metrics::Element;
use crate::stage::sibling;
use crate::trace::Trace;
use crate::values::fit;

/// Judges `topk_indices`: the same set of experts for each token, in whatever order.
pub fn judge_experts(name: &str, got: &ArrayD<i64>, want: &ArrayD<i64>, rows: Option<&[bool]>) -> StageVerdict {
    let Some(got) = fit(got, want.shape()) else { return wrong_shape(name, got.shape(), want.shape()) };
    let mut verdict = StageVerdict::new(name, Disposition::Pass);
    if want.ndim() == 0 {
        return StageVerdict::new(name, if got == *want { Disposition::Pass } else { Disposition::WrongRouting });
    }
    let last = Axis(want.ndim() - 1);
    let tokens = got.lanes(last).into_iter().zip(want.lanes(last)).enumerate();
    let mut compared = tokens.filter(|(token, _)| rows.is_none_or(|rows| rows[*token])).peekable();
    if compared.peek().is_none() {
        return StageVerdict::new(name, Disposition::NotCompared);
    }
    if let Some((token, (got, want))) = compared.find(|(_, (got, want))| sorted(*got) != sorted(*want)) {
        let slot = got.iter().position(|expert| !want.iter().any(|other| other == expert)).unwrap_or(0);
        let missed = want.iter().find(|&expert| !got.iter().any(|other| other == expert)).unwrap_or(&want[slot]);
        verdict.disposition = Disposition::WrongRouting;
        verdict.element = Some(Element { index: vec![token, slot], got: got[slot] as f64, want: *missed as f64 });
        verdict.note = Some(format!("token {token} goes to experts {:?} in place of {:?}", sorted(got), sorted(want)));
    }
    verdict
}

fn sorted(experts: ArrayView1<'_, i64>) -> Vec<i64> {
    let mut experts = experts.to_vec();
    experts.sort_unstable();
    experts
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
    let last = Axis(got.ndim().saturating_sub(1));
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

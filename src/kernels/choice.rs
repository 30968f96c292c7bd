//! Choices: experts as sets, weights by expert, the best of some logits.

use std::collections::BTreeSet;

use dsv2_metrics::Element;
use ndarray::{ArrayD, ArrayView1, Axis};

use super::{Judge, OutputVerdict, in_shape, real};
use crate::error::Result;
use crate::judge::Disposition;
use crate::judge::near_tie::acceptable;
use crate::judge::routing::{as_choice, error_of_scores};
use crate::values::Values;

/// Below the largest logit of a token by so much, a score is no normal number of fp32, and may be 0: ln 2^126.
const UNDERFLOW: f64 = 87.33;

impl Judge {
    /// The same set of experts for each token, or one that other roundings of the scores lead to.
    pub(super) fn judge_experts(&self, name: &str, got: &ArrayD<i64>) -> Result<OutputVerdict> {
        let want = self.truth[name].as_index().expect("experts");
        let logits = real(&self.inputs, "router_logits");
        let experts = logits.len_of(Axis(1));
        let method = self.operator.method(&self.inputs)?;
        let tokens = got.lanes(Axis(1)).into_iter().zip(want.lanes(Axis(1))).zip(logits.lanes(Axis(1)));
        for (token, ((chosen, right), z)) in tokens.enumerate() {
            let wrong = |what: &str| {
                let at = |experts: ArrayView1<'_, i64>| experts.iter().copied().collect::<BTreeSet<_>>();
                let note = format!("token {token} goes to experts {:?} in place of {:?}{what}", at(chosen), at(right));
                Ok(OutputVerdict::noted(name, Disposition::WrongRouting, note))
            };
            let (Some(set), Some(right)) = (as_choice(chosen, experts), as_choice(right, experts)) else {
                return wrong(&format!(", which are not {} of {experts}", chosen.len()));
            };
            if set == right {
                continue;
            }
            let Some(method) = method else { return wrong("") };
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let z: Vec<f64> = z.iter().map(|z| z.max(largest - UNDERFLOW)).collect();
            if !acceptable(method, &z, &set, error_of_scores(&z, largest)) {
                return wrong("");
            }
        }
        Ok(OutputVerdict::new(name, Disposition::Pass))
    }

    /// The weights of the experts that were chosen; where none were returned, of those that should have been.
    pub(super) fn judge_weights(
        &self,
        name: &str,
        got: &ArrayD<f64>,
        chosen: Option<&Values>,
    ) -> Result<OutputVerdict> {
        let right = self.truth["topk_indices"].as_index().expect("experts");
        let experts = real(&self.inputs, "router_logits").len_of(Axis(1));
        let returned = in_shape(chosen, right.shape());
        if chosen.is_some() && returned.is_none() {
            return Ok(OutputVerdict::noted(
                name,
                Disposition::NotCompared,
                "its experts are of another shape".to_owned(),
            ));
        }
        let chosen = returned.as_ref().unwrap_or(right);
        if chosen.lanes(Axis(1)).into_iter().any(|chosen| as_choice(chosen, experts).is_none()) {
            return Ok(OutputVerdict::noted(name, Disposition::NotCompared, "its experts do not exist".to_owned()));
        }
        let of = |chosen: &ArrayD<i64>| {
            Ok::<_, crate::Error>(self.operator.weights_of(&self.inputs, chosen)?.expect("weights"))
        };
        let want = of(chosen)?;
        // a plain run may go elsewhere at a near tie: it is held against the weights of where it went, in its own order
        let mut noise = Vec::new();
        for plain in &self.plain {
            let experts = plain["topk_indices"].as_index().expect("experts");
            noise.push(&want + &(real(plain, name) - &of(experts)?));
        }
        let plain: Vec<&ArrayD<f64>> = noise.iter().collect();
        Ok(self.judge_against(name, got, &want, &plain, None))
    }

    /// The index of the largest logit, the first of equal ones; of logits that rounding does not tell apart, any.
    pub(super) fn judge_best(&self, name: &str, got: &ArrayD<i64>, logits: &str) -> OutputVerdict {
        let plain = [0, 1].map(|which| real(&self.plain[which], logits));
        let truth = real(&self.truth, logits);
        let allowed = self.budget(logits, truth, &plain, None).max;
        let rms = (truth.iter().map(|z| z * z).sum::<f64>() / truth.len().max(1) as f64).sqrt();
        for (row, (chosen, z)) in got.iter().zip(truth.lanes(Axis(1))).enumerate() {
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let best = z.iter().position(|&z| z == largest).unwrap_or(0);
            let chosen_logit = usize::try_from(*chosen).ok().and_then(|chosen| z.get(chosen));
            let first = |logit: f64| z.iter().position(|&z| z == logit);
            let right = chosen_logit.is_some_and(|&logit| {
                logit >= largest - 2.0 * allowed * rms && first(logit) == usize::try_from(*chosen).ok()
            });
            if !right {
                let worst = Element { index: vec![row, 0], got: *chosen as f64, want: best as f64 };
                let note = match chosen_logit {
                    Some(&logit) if logit == largest => "equal logits: the first one is taken".to_owned(),
                    Some(&logit) => format!("its logit is {logit:.6}, that of the best {largest:.6}"),
                    None => format!("there is no token {chosen}"),
                };
                return OutputVerdict {
                    worst: Some(worst),
                    ..OutputVerdict::noted(name, Disposition::WrongRouting, note)
                };
            }
        }
        OutputVerdict::new(name, Disposition::Pass)
    }
}

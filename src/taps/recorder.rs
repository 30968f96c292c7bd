//! Recording.

use dsv2_reference::Real;
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexMap;

use crate::precision::{Choice, Precision};
use crate::values::Values;

/// Keeps what it sees, chunk by chunk.
pub struct Recorder<'a> {
    /// Which stages to keep; all, if there is no choice.
    stages: Option<Choice<'a>>,
    precision: Precision,
    chunks: IndexMap<String, Vec<Values>>,
}

impl<'a> Recorder<'a> {
    /// A recorder for a computation in `precision`.
    pub fn new(precision: Precision, stages: Option<Choice<'a>>) -> Self {
        Recorder { stages, precision, chunks: IndexMap::new() }
    }

    /// What was recorded of each stage, in order.
    pub fn into_chunks(self) -> IndexMap<String, Vec<Values>> {
        self.chunks
    }
}

impl<T: Real> Tap<T> for Recorder<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if self.stages.is_some_and(|chosen| !chosen(name)) {
            return;
        }
        let value = recorded(self.precision, name, &value);
        self.chunks.entry(name.to_owned()).or_default().push(value);
    }
}

/// A stage as a computation in `precision` stores it.
pub fn recorded<T: Real>(precision: Precision, name: &str, value: &StageValue<'_, T>) -> Values {
    match value {
        StageValue::Real(a) => Values::Real(precision.stored(name), a.mapv(Real::to_f64)),
        StageValue::Index(a) => Values::Index(a.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_recorder_keeps_each_stage_in_its_type() {
        let chosen = |name: &str| name.starts_with("model.");
        let mut recorder = Recorder::new(Precision::Bf16, Some(&chosen));
        for name in ["model.norm", "model.rotary_emb.cos", "lm_head"] {
            let mut a = array![1.0f32];
            recorder.stage(name, StageValue::Real(a.view_mut().into_dyn()));
        }
        let kept: Vec<_> = recorder.into_chunks().into_iter().map(|(name, v)| (name, v[0].describe())).collect();
        assert_eq!(kept, [("model.norm".into(), "BF16 [1]".into()), ("model.rotary_emb.cos".into(), "F32 [1]".into())]);
    }
}

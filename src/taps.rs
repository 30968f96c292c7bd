//! The taps of the judge: recording a trace, and forcing somebody else's choice of experts.

use std::collections::HashMap;

use dsv2_reference::round::RoundingTap;
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::{Dtype, Real};
use indexmap::IndexMap;
use ndarray::{Array3, ArrayD, ArrayViewMutD, s};

use crate::backend::{Choice, Precision};
use crate::trace::Trace;
use crate::values::Values;

/// A tap for whatever type the computation has.
pub trait AnyTap: Tap<f32> + Tap<f64> {}

impl<A: Tap<f32> + Tap<f64>> AnyTap for A {}

/// The same value, for one more tap to look at.
pub fn again<'a, T>(value: &'a mut StageValue<'_, T>) -> StageValue<'a, T> {
    match value {
        StageValue::Real(a) => StageValue::Real(a.view_mut()),
        StageValue::Index(a) => StageValue::Index(a.view_mut()),
    }
}

/// Keeps what it sees, piece by piece.
pub struct Recorder<'a> {
    /// Which stages to keep; all, if there is no choice.
    stages: Option<Choice<'a>>,
    precision: Precision,
    pieces: IndexMap<String, Vec<Values>>,
}

impl<'a> Recorder<'a> {
    /// A recorder for a computation in `precision`.
    pub fn new(precision: Precision, stages: Option<Choice<'a>>) -> Self {
        Recorder { stages, precision, pieces: IndexMap::new() }
    }

    /// What was recorded of each stage, in order.
    pub fn into_pieces(self) -> IndexMap<String, Vec<Values>> {
        self.pieces
    }

    fn stored(&self, stage: &str) -> Dtype {
        match self.precision {
            Precision::F64 => Dtype::F64,
            Precision::F32 => Dtype::F32,
            Precision::Bf16 if RoundingTap::rounds(stage) => Dtype::Bf16,
            Precision::Bf16 => Dtype::F32,
        }
    }
}

impl<T: Real> Tap<T> for Recorder<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if self.stages.is_some_and(|chosen| !chosen(name)) {
            return;
        }
        let value = match value {
            StageValue::Real(a) => Values::Real(self.stored(name), a.mapv(Real::to_f64)),
            StageValue::Index(a) => Values::Index(a.to_owned()),
        };
        self.pieces.entry(name.to_owned()).or_default().push(value);
    }
}

/// Sends every token to the experts that a trace names; the weights are still the computation's own.
///
/// A flipped near tie moves everything after it by O(1) and says nothing about the arithmetic. With the choice forced, what
/// is left is the arithmetic.
#[derive(Debug, Default)]
pub struct Replay {
    /// The choices of each `topk_indices`: `[B,S,k]`.
    choices: HashMap<String, Array3<i64>>,
    /// How many tokens of each sequence are behind us.
    done: HashMap<String, usize>,
}

impl Replay {
    /// The choices that `trace` holds, of `batch` sequences.
    pub fn of(trace: &Trace, batch: usize) -> Self {
        let choice = |(name, values): (&str, &Values)| {
            let indices = values.index().filter(|_| name.ends_with(".topk_indices"))?;
            let k = *indices.shape().last()?;
            let length = indices.len().checked_div(batch * k)?;
            let choices = indices.to_shape((batch, length, k)).ok()?.to_owned();
            Some((name.to_owned(), choices))
        };
        Replay { choices: trace.iter().filter_map(choice).collect(), done: HashMap::new() }
    }

    fn force(&mut self, name: &str, mut indices: ArrayViewMutD<'_, i64>) {
        let Some(choices) = self.choices.get(name) else { return };
        let (batch, length, k) = choices.dim();
        let done = self.done.entry(name.to_owned()).or_default();
        let new = indices.len().checked_div(batch * k).unwrap_or(0);
        if *done + new > length {
            return;
        }
        let forced: ArrayD<i64> = choices.slice(s![.., *done..*done + new, ..]).to_owned().into_dyn();
        if let Ok(forced) = forced.to_shape(indices.shape()) {
            indices.assign(&forced);
        }
        *done += new;
    }
}

impl<T> Tap<T> for Replay {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if let StageValue::Index(indices) = value {
            self.force(name, indices);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn replay_goes_on_where_the_last_piece_ended() {
        let name = "model.layers.1.mlp.gate.topk_indices";
        let recorded = Values::Index(array![[0], [1], [2], [3], [4], [5]].into_dyn());
        let trace: Trace = [(name.to_owned(), recorded)].into_iter().collect();
        let mut replay = Replay::of(&trace, 2);
        let mut piece = |tokens: usize| {
            let mut indices = Array2::from_elem((tokens, 1), -1);
            Tap::<f32>::stage(&mut replay, name, StageValue::Index(indices.view_mut().into_dyn()));
            indices.into_raw_vec_and_offset().0
        };
        assert_eq!(piece(4), [0, 1, 3, 4]);
        assert_eq!(piece(2), [2, 5]);
    }

    #[test]
    fn the_recorder_keeps_each_stage_in_its_type() {
        let chosen = |name: &str| name.starts_with("model.");
        let mut recorder = Recorder::new(Precision::Bf16, Some(&chosen));
        for name in ["model.norm", "model.rotary_emb.cos", "lm_head"] {
            let mut a = array![1.0f32];
            recorder.stage(name, StageValue::Real(a.view_mut().into_dyn()));
        }
        let kept: Vec<_> = recorder.into_pieces().into_iter().map(|(name, v)| (name, v[0].describe())).collect();
        assert_eq!(kept, [("model.norm".into(), "BF16 [1]".into()), ("model.rotary_emb.cos".into(), "F32 [1]".into())]);
    }
}

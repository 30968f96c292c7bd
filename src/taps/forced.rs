//! Somebody else's values in place of the computed ones.
//!
//! Two uses. *Replay* forces only the choice of experts: a flipped near tie moves everything after it by O(1) and says nothing
//! about the arithmetic. *Teacher forcing* puts a whole dump in place: each stage is computed from the dump's own values of
//! the stages before it, so that the error of one stage cannot hide behind, or be blamed on, that of another.

use std::collections::HashMap;

use dsv2_reference::Real;
use dsv2_reference::stage::{Layout, Stage};
use dsv2_reference::tap::{StageValue, Tap};
use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Axis, Slice};

use crate::trace::Trace;
use crate::values::Values;

/// Replaces every stage that a trace holds by what the trace holds, whatever chunks the sequence is fed in. A trace of the last
/// tokens alone, which come after a cache, replaces these.
pub struct Forced<'a> {
    trace: &'a Trace,
    /// B and S: how many sequences there are, and how long they are.
    batch: usize,
    length: usize,
    /// How much of the sequence is behind us, for each stage.
    done: HashMap<String, usize>,
}

impl<'a> Forced<'a> {
    /// The stages of `trace`, of that many sequences of that length, joined and in the model's shapes.
    pub fn new(trace: &'a Trace, (batch, length): (usize, usize)) -> Self {
        Forced { trace, batch, length, done: HashMap::new() }
    }

    /// Puts the part of `whole` that the current chunk is about into `value`.
    fn put<A: Clone, V: Clone>(
        &mut self,
        name: &str,
        whole: ArrayViewD<'_, A>,
        mut value: ArrayViewMutD<'_, V>,
        convert: impl Fn(&A) -> V,
    ) {
        let layout = Stage::parse(name).map_or(Layout::Whole, |stage| stage.layout);
        let chosen = matches!(layout, Layout::Whole | Layout::Logits) && whole.shape() == value.shape();
        let done = self.done.entry(name.to_owned()).or_default();
        let (mut place, part) = match layout {
            _ if chosen => (value, whole.to_owned()),
            Layout::Keys if whole.ndim() == value.ndim() && value.ndim() > 1 => {
                // A dump may hold the cache as it was before the new tokens.
                let keys = Slice::from(..whole.len_of(Axis(1)).min(value.len_of(Axis(1))));
                let part = whole.slice_axis(Axis(1), keys).to_owned();
                value.slice_axis_inplace(Axis(1), keys);
                (value, part)
            }
            _ => {
                let Some(part) = chunk(whole, value.shape(), layout, (self.batch, self.length), done) else { return };
                (value, part)
            }
        };
        if place.shape() == part.shape() {
            place.zip_mut_with(&part, |to, from| *to = convert(from));
        }
    }
}

/// The part of `whole`, which has the last tokens of a sequence or all of them, that has `shape` and comes after the first
/// `done` tokens of the sequence.
fn chunk<A: Clone>(
    whole: ArrayViewD<'_, A>,
    shape: &[usize],
    layout: Layout,
    (batch, length): (usize, usize),
    done: &mut usize,
) -> Option<ArrayD<A>> {
    let mut next = |whole: ArrayViewD<'_, A>, axis: usize, new: usize| {
        let begins = *done;
        *done += new;
        // A dump's tensor may have too few axes.
        let held = *whole.shape().get(axis)?;
        let start = begins.checked_sub(length.saturating_sub(held))?;
        (start + new <= held).then(|| whole.slice_axis(Axis(axis), Slice::from(start..start + new)).to_owned())
    };
    let chunk = match layout {
        Layout::Tokens | Layout::Table | Layout::Logits => next(whole, 1, *shape.get(1)?)?,
        Layout::Heads => next(whole, 2, *shape.get(2)?)?,
        Layout::Scores | Layout::Weights => {
            let rows = next(whole, 2, *shape.get(2)?)?;
            let keys = *shape.get(3)?;
            let held = rows.shape().get(3).is_some_and(|&held| keys <= held);
            held.then(|| rows.slice_axis(Axis(3), Slice::from(..keys)).to_owned())?
        }
        Layout::Flat => {
            let width = *shape.get(1)?;
            let split = whole.to_shape((batch, whole.len().checked_div(batch * width)?, width)).ok()?;
            next(split.view().into_dyn(), 1, shape.first()?.checked_div(batch)?)?
        }
        Layout::Keys | Layout::Whole => return None,
    };
    chunk.to_shape(shape).ok().map(|chunk| chunk.to_owned())
}

impl<T: Real> Tap<T> for Forced<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let trace = self.trace;
        match (trace.get(name), value) {
            (Some(Values::Real(_, whole)), StageValue::Real(value)) => {
                self.put(name, whole.view(), value, |&x| T::from_f64(x));
            }
            (Some(Values::Index(whole)), StageValue::Index(value)) => self.put(name, whole.view(), value, |&x| x),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Dtype;
    use ndarray::{Array2, Array3, Array4, array};

    use super::*;

    fn trace(name: &str, values: Values) -> Trace {
        [(name.to_owned(), values)].into_iter().collect()
    }

    #[test]
    fn a_tensor_with_too_few_axes_is_put_nowhere() {
        for name in ["lm_head", "model.layers.0.self_attn.q_pe", "model.layers.0.self_attn.attn_scores"]
            .into_iter()
            .chain(["model.layers.0.mlp.experts", "past_key_values.0.k_pe", "model.rotary_emb.cos", "loss"])
        {
            for shape in [vec![], vec![3], vec![3, 1]] {
                let dump = trace(name, Values::Real(Dtype::F32, ArrayD::ones(shape)));
                let mut value = Array4::<f64>::zeros((1, 2, 3, 4));
                Forced::new(&dump, (1, 3)).stage(name, StageValue::Real(value.view_mut().into_dyn()));
                assert!(value.iter().all(|x| *x == 0.0), "{name}");
            }
        }
    }

    #[test]
    fn forcing_goes_on_where_the_last_chunk_ended() {
        let name = "model.layers.1.mlp.gate.topk_indices";
        let trace = trace(name, Values::Index(array![[0], [1], [2], [3], [4], [5]].into_dyn()));
        let mut forced = Forced::new(&trace, (2, 3));
        let mut chunk = |tokens: usize| {
            let mut indices = Array2::from_elem((tokens, 1), -1);
            Tap::<f32>::stage(&mut forced, name, StageValue::Index(indices.view_mut().into_dyn()));
            indices.into_raw_vec_and_offset().0
        };
        assert_eq!(chunk(4), [0, 1, 3, 4]);
        assert_eq!(chunk(2), [2, 5]);
    }

    #[test]
    fn scores_are_forced_row_by_row_and_the_cache_from_its_start() {
        let scores = "model.layers.0.self_attn.attn_scores";
        let whole = Array4::from_shape_fn((1, 1, 3, 3), |(_, _, s, t)| (10 * s + t) as f64);
        let scores_trace = trace(scores, Values::Real(Dtype::F64, whole.into_dyn()));
        let mut forced = Forced::new(&scores_trace, (1, 3));
        let mut chunk = |rows: usize, keys: usize| {
            let mut value = Array4::<f64>::zeros((1, 1, rows, keys));
            forced.stage(scores, StageValue::Real(value.view_mut().into_dyn()));
            value.into_raw_vec_and_offset().0
        };
        assert_eq!(chunk(2, 2), [0.0, 1.0, 10.0, 11.0]);
        assert_eq!(chunk(1, 3), [20.0, 21.0, 22.0]);

        let keys = "past_key_values.0.k_pe";
        let keys_trace = trace(keys, Values::Real(Dtype::F64, array![[[1.0], [2.0], [3.0]]].into_dyn()));
        let mut forced = Forced::new(&keys_trace, (1, 3));
        for length in [2, 3] {
            let mut value = Array3::<f64>::zeros((1, length, 1));
            forced.stage(keys, StageValue::Real(value.view_mut().into_dyn()));
            assert_eq!(value.into_raw_vec_and_offset().0, [1.0, 2.0, 3.0][..length]);
        }
    }

    #[test]
    fn a_trace_of_the_new_tokens_begins_with_them() {
        let norm = "model.norm";
        let new = trace(norm, Values::Real(Dtype::F64, array![[[7.0], [8.0]]].into_dyn()));
        let mut forced = Forced::new(&new, (1, 4));
        for expected in [[0.0, 0.0], [7.0, 8.0]] {
            let mut value = Array3::<f64>::zeros((1, 2, 1));
            forced.stage(norm, StageValue::Real(value.view_mut().into_dyn()));
            assert_eq!(value.into_raw_vec_and_offset().0, expected);
        }
        let keys = "past_key_values.0.k_pe";
        let before = trace(keys, Values::Real(Dtype::F64, array![[[1.0], [2.0]]].into_dyn()));
        let mut forced = Forced::new(&before, (1, 3));
        let mut value = Array3::<f64>::zeros((1, 3, 1));
        forced.stage(keys, StageValue::Real(value.view_mut().into_dyn()));
        assert_eq!(value.into_raw_vec_and_offset().0, [1.0, 2.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_left_alone() {
        let trace = trace("model.norm", Values::Real(Dtype::F64, array![[[1.0], [2.0]]].into_dyn()));
        let mut forced = Forced::new(&trace, (1, 3));
        let mut value = Array3::<f64>::zeros((1, 3, 1));
        forced.stage("model.norm", StageValue::Real(value.view_mut().into_dyn()));
        assert_eq!(value, Array3::<f64>::zeros((1, 3, 1)));
    }
}

//! A trace: the stages of one forward pass, each in the type it was computed in.

use std::path::Path;

use dsv2_reference::Dtype;
use dsv2_reference::stage::{Layout, Stage, canonical, forward_order};
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, concatenate};

use crate::error::{Error, Result};
use crate::values::{self, Values};

/// The stages of a forward pass by name, in forward order.
#[derive(Clone, Debug, Default)]
pub struct Trace(IndexMap<String, Values>);

impl Trace {
    /// A stage, or nothing if the trace does not hold it.
    pub fn get(&self, stage: &str) -> Option<&Values> {
        self.0.get(stage)
    }

    /// Name and tensor of every stage, in forward order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Values)> {
        self.0.iter().map(|(name, values)| (name.as_str(), values))
    }

    /// The same with another tensor for a stage.
    #[must_use]
    pub fn with(mut self, stage: &str, values: Values) -> Self {
        self.0.insert(stage.to_owned(), values);
        self
    }

    /// Keeps the stages whose name is wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| wanted(name));
    }

    /// How many stages there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The choices of experts alone.
    pub fn choices(&self) -> Trace {
        let choices = self.iter().filter(|(name, _)| name.ends_with(".topk_indices"));
        choices.map(|(name, values)| (name.to_owned(), values.clone())).collect()
    }

    /// A trace or a dump from a safetensors file. Tensors that are no stage are kept, after all others.
    ///
    /// # Errors
    /// If the file cannot be read or is no safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(values::read(path)?.into_iter().collect())
    }

    /// The same of a file that lies in memory; `path` is for messages.
    ///
    /// # Errors
    /// If it is no safetensors file.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Ok(values::parse(path, bytes)?.into_iter().collect())
    }

    /// Writes a safetensors file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let tensors: Vec<_> = self.iter().map(|(name, values)| (name.to_owned(), Data::from(values))).collect();
        Ok(write_safetensors(path, &tensors)?)
    }

    /// Joins the chunks in which a sequence was fed, in order; `batch` is the number of sequences.
    ///
    /// # Errors
    /// If chunks of one stage do not fit together.
    pub fn join(chunks: IndexMap<String, Vec<Values>>, batch: usize) -> Result<Self> {
        let join = |(name, chunks): (String, Vec<Values>)| {
            let layout = Stage::parse(&name).map_or(Layout::Whole, |stage| stage.layout);
            let joined = join(chunks, layout, batch)
                .ok_or_else(|| Error::request("--chunks", format!("chunks of `{name}` that fit together"), "others"))?;
            Ok((name, joined))
        };
        chunks.into_iter().map(join).collect()
    }
}

impl FromIterator<(String, Values)> for Trace {
    fn from_iter<I: IntoIterator<Item = (String, Values)>>(stages: I) -> Self {
        let named = stages.into_iter().map(|(name, values)| {
            let scores = Stage::parse(&name).is_some_and(|stage| stage.layout == Layout::Scores);
            (canonical(&name).to_owned(), if scores { with_infinities(values) } else { values })
        });
        let mut stages: IndexMap<String, Values> = named.collect();
        stages.sort_by_key(|name, _| forward_order(name));
        Trace(stages)
    }
}

/// Masked scores are minus infinity; many programs use the lowest number of their type, or thereabouts.
fn with_infinities(scores: Values) -> Values {
    let Values::Real(dtype, a) = scores else { return scores };
    let lowest = if dtype == Dtype::F16 { half::f16::MIN.to_f32() } else { f32::MIN };
    let forbidden = f64::from(lowest) / 2.0;
    Values::Real(dtype, a.mapv_into(|x| if x <= forbidden { f64::NEG_INFINITY } else { x }))
}

fn join(mut chunks: Vec<Values>, layout: Layout, batch: usize) -> Option<Values> {
    if chunks.len() < 2 {
        return chunks.pop();
    }
    match chunks.last()? {
        Values::Real(dtype, _) => {
            let dtype = *dtype;
            let take = |chunk| if let Values::Real(_, a) = chunk { Some(a) } else { None };
            let fill = if layout == Layout::Scores { f64::NEG_INFINITY } else { 0.0 };
            Some(Values::Real(
                dtype,
                join_arrays(chunks.into_iter().map(take).collect::<Option<_>>()?, layout, batch, fill)?,
            ))
        }
        Values::Index(_) => {
            let take = |chunk| if let Values::Index(a) = chunk { Some(a) } else { None };
            Some(Values::Index(join_arrays(chunks.into_iter().map(take).collect::<Option<_>>()?, layout, batch, 0)?))
        }
        Values::Bool(_) => None,
    }
}

fn join_arrays<T: Clone>(mut chunks: Vec<ArrayD<T>>, layout: Layout, batch: usize, fill: T) -> Option<ArrayD<T>> {
    let along = |axis: usize, chunks: &[ArrayD<T>]| {
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        concatenate(Axis(axis), &views).ok()
    };
    match layout {
        Layout::Tokens | Layout::Table | Layout::Logits => along(1, &chunks),
        Layout::Heads => along(2, &chunks),
        Layout::Scores | Layout::Weights => {
            let keys = chunks.last()?.shape().last().copied()?;
            let padded: Option<Vec<_>> = chunks.into_iter().map(|chunk| pad_last_axis(chunk, keys, &fill)).collect();
            along(2, &padded?)
        }
        Layout::Flat => {
            let split = chunks.into_iter().map(|chunk| split_first_axis(chunk, batch)).collect::<Option<Vec<_>>>()?;
            merge_first_axes(along(1, &split)?)
        }
        Layout::Keys | Layout::Whole => chunks.pop(),
    }
}

fn pad_last_axis<T: Clone>(a: ArrayD<T>, length: usize, fill: &T) -> Option<ArrayD<T>> {
    let axis = Axis(a.ndim().checked_sub(1)?);
    let mut shape = a.shape().to_vec();
    shape[axis.0] = length.checked_sub(a.len_of(axis))?;
    concatenate(axis, &[a.view(), ArrayD::from_elem(shape, fill.clone()).view()]).ok()
}

/// `[B·S, ..]` to `[B, S, ..]`
fn split_first_axis<T: Clone>(a: ArrayD<T>, batch: usize) -> Option<ArrayD<T>> {
    let mut shape = a.shape().to_vec();
    let tokens = *shape.first()?;
    shape[0] = tokens.checked_div(batch)?;
    shape.insert(0, batch);
    a.to_shape(shape).ok().map(|a| a.to_owned())
}

/// `[B, S, ..]` to `[B·S, ..]`
fn merge_first_axes<T: Clone>(a: ArrayD<T>) -> Option<ArrayD<T>> {
    let mut shape = a.shape().to_vec();
    let batch = shape.remove(0);
    *shape.first_mut()? *= batch;
    a.to_shape(shape).ok().map(|a| a.to_owned())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn joined(name: &str, chunks: Vec<ArrayD<f64>>, batch: usize) -> ArrayD<f64> {
        let chunks = chunks.into_iter().map(|a| Values::Real(Dtype::F64, a)).collect();
        let trace = Trace::join(IndexMap::from([(name.to_owned(), chunks)]), batch).unwrap();
        match trace.get(canonical(name)).unwrap() {
            Values::Real(_, a) => a.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chunks_join_along_the_sequence() {
        let tokens =
            joined("model.norm", vec![array![[[1.0]], [[2.0]]].into_dyn(), array![[[3.0]], [[4.0]]].into_dyn()], 2);
        assert_eq!(tokens, array![[[1.0], [3.0]], [[2.0], [4.0]]].into_dyn());
    }

    #[test]
    fn flat_stages_join_sequence_by_sequence() {
        let name = "model.layers.1.mlp.experts";
        let flat =
            joined(name, vec![array![[0.0], [1.0], [10.0], [11.0]].into_dyn(), array![[2.0], [12.0]].into_dyn()], 2);
        assert_eq!(flat, array![[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]].into_dyn());
    }

    #[test]
    fn scores_of_keys_to_come_are_minus_infinity_and_weights_zero() {
        let chunks = || vec![array![[[[1.0]]]].into_dyn(), array![[[[2.0, 3.0]]]].into_dyn()];
        let scores = joined("model.layers.0.self_attn.attn_scores", chunks(), 1);
        assert_eq!(scores, array![[[[1.0, f64::NEG_INFINITY], [2.0, 3.0]]]].into_dyn());
        let weights = joined("model.layers.0.self_attn.attn_weights", chunks(), 1);
        assert_eq!(weights, array![[[[1.0, 0.0], [2.0, 3.0]]]].into_dyn());
    }

    #[test]
    fn keys_are_those_of_the_last_chunk() {
        let name = "model.layers.0.self_attn.kv_b_proj";
        assert_eq!(
            joined(name, vec![array![1.0].into_dyn(), array![1.0, 2.0].into_dyn()], 1),
            array![1.0, 2.0].into_dyn()
        );
    }

    #[test]
    fn a_trace_is_in_forward_order_and_knows_logits() {
        let one = || Values::Index(array![1].into_dyn());
        let names = ["noise", "logits", "model.layers.1", "model.embed_tokens"];
        let trace: Trace = names.into_iter().map(|name| (name.to_owned(), one())).collect();
        let order: Vec<_> = trace.iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["model.embed_tokens", "model.layers.1", "lm_head", "noise"]);
    }
}

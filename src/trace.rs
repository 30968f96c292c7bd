//! A trace: the stages of one forward pass, each in the type it was computed in.

mod stream;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use dsv2_reference::Dtype;
use dsv2_reference::stage::convention::name::{other_name, unwrapped};
use dsv2_reference::stage::table::{COS, SIN};
use dsv2_reference::stage::{Layout, Stage, canonical, flow, forward_order};
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, Slice, concatenate};

use crate::error::{Error, Result};
use crate::files::{Decoded, TensorFile};
use crate::values::Values;
pub use stream::Stream;

/// The stages of a forward pass by name, in forward order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    stages: IndexMap<String, Values>,
    unread: Vec<String>,
    notes: Vec<(String, String)>,
}

/// What complex rotary tables are called, cos + i sin: the output of Transformers' module, and a name of its own.
const COMPLEX_TABLES: [&str; 4] = ["model.rotary_emb", "model.rotary_emb.freqs_cis", "model.freqs_cis", "freqs_cis"];

/// Whether a tensor of this name may be a stage, or hold some.
pub(crate) fn is_named(name: &str) -> bool {
    let as_it_is = Stage::parse(name).is_some() || other_name(name).is_some() || COMPLEX_TABLES.contains(&name);
    as_it_is || unwrapped(name).is_some()
}

/// Whether a tensor of this name holds experts; some programs save everything as floating-point numbers.
fn is_choice(name: &str) -> bool {
    name.ends_with(".topk_indices")
}

impl Trace {
    /// A stage, or nothing if the trace does not hold it.
    pub fn get(&self, stage: &str) -> Option<&Values> {
        self.stages.get(stage)
    }

    /// Name and tensor of every stage, in forward order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Values)> {
        self.stages.iter().map(|(name, values)| (name.as_str(), values))
    }

    /// The same with another tensor for a stage.
    #[must_use]
    pub fn with(mut self, stage: &str, values: Values) -> Self {
        self.stages.insert(stage.to_owned(), values);
        self
    }

    /// Keeps the stages whose name is wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.stages.retain(|name, _| wanted(name));
    }

    /// How many stages there are.
    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// The choices of experts alone.
    pub fn choices(&self) -> Trace {
        let choices = self.iter().filter(|(name, _)| name.ends_with(".topk_indices"));
        choices.map(|(name, values)| (name.to_owned(), values.clone())).collect()
    }

    /// The tensors of its file that nobody looked at, since they are named as no stage.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// Which tensors of its file came in another form than a stage has, and in which.
    pub fn notes(&self) -> &[(String, String)] {
        &self.notes
    }

    /// The same stages, of which this is to be said.
    pub fn with_notes(mut self, unread: Vec<String>, notes: Vec<(String, String)>) -> Self {
        self.unread.extend(unread);
        self.notes.extend(notes);
        self
    }

    /// A trace or a dump from a file of any [format](crate::files). A tensor that is named as no stage is not decoded, of
    /// whatever type it is; it is listed in [`Trace::unread`].
    ///
    /// # Errors
    /// If the file cannot be read, is of no format that is known, or holds a stage in a type that none has.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_but(path, |_, _| false)
    }

    /// The same without the tensors that are `left` undecoded, by their name and how many elements they have: as if they were named
    /// as no stage.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub(crate) fn read_but(path: &Path, left: impl Fn(&str, u64) -> bool) -> Result<Self> {
        Self::of_file(path, &TensorFile::open(path)?, left)
    }

    /// The same of a file that lies in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::of_file(path, &TensorFile::from_bytes(path, Arc::new(bytes))?, |_, _| false)
    }

    fn of_file(path: &Path, file: &TensorFile, left: impl Fn(&str, u64) -> bool) -> Result<Self> {
        let (mut stages, mut unread, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let elements = |shape: Vec<usize>| shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64));
        let is_left = |name| file.lies_as(name).is_some_and(|(_, shape)| left(name, elements(shape)));
        for name in file.names() {
            if !is_named(name) || is_left(name) {
                unread.push(name.clone());
                continue;
            }
            let table = COMPLEX_TABLES.contains(&name.as_str());
            match file.tensor(name)? {
                Decoded::Complex(dtype, parts) if table => {
                    notes.push((name.clone(), "complex rotary tables: cos + i sin".to_owned()));
                    let parts = [COS, SIN].into_iter().zip(parts);
                    stages.extend(parts.map(|(stage, a)| (stage.to_owned(), Values::Real(dtype, a))));
                }
                Decoded::Complex(..) => {
                    let expected = format!("real numbers in `{name}` (complex rotary tables are called `freqs_cis`)");
                    return Err(Error::file(path, expected, "complex ones"));
                }
                _ if table => unread.push(name.clone()),
                Decoded::Narrow(stored, a) => {
                    notes.push((name.clone(), format!("stored as {stored}, without a scale")));
                    stages.push((name.clone(), Values::Real(Dtype::Bf16, a)));
                }
                Decoded::Values(Values::Real(dtype, a)) if is_choice(name) && a.iter().all(|x| x.fract() == 0.0) => {
                    let stored = format!("{dtype:?}").to_uppercase();
                    notes.push((name.clone(), format!("whole numbers, stored as {stored}")));
                    stages.push((name.clone(), Values::Index(a.mapv(|x| x as i64))));
                }
                Decoded::Values(values) => stages.push((name.clone(), values)),
            }
        }
        if stages.iter().filter(|(name, _)| name == COS || name == SIN).count() > 2 {
            return Err(Error::file(path, format!("`{COS}` and `{SIN}` once"), "them again, in complex tables"));
        }
        let mut firsts = HashMap::new();
        for (name, values) in &stages {
            let (first, of_first) = *firsts.entry(canonical(name)).or_insert((name, values));
            if !of_first.identical(values) {
                let found = format!("`{first}` and `{name}`, which differ");
                return Err(Error::file(path, format!("one tensor for {}", canonical(name)), found));
            }
        }
        Ok(stages.into_iter().collect::<Trace>().with_notes(unread, notes))
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
            let joined = match layout {
                Layout::Keys if flow::is_copy(&name) => {
                    new_keys(chunks).and_then(|chunks| join(chunks, Layout::Tokens, batch))
                }
                layout => join(chunks, layout, batch),
            };
            let joined = joined
                .ok_or_else(|| Error::request("--chunks", format!("chunks of `{name}` that fit together"), "others"))?;
            Ok((name, joined))
        };
        chunks.into_iter().map(join).collect()
    }
}

impl FromIterator<(String, Values)> for Trace {
    fn from_iter<I: IntoIterator<Item = (String, Values)>>(stages: I) -> Self {
        let named = stages.into_iter().map(|(name, values)| {
            let values = as_held(&name, values);
            (canonical(&name).to_owned(), values)
        });
        let mut stages: IndexMap<String, Values> = named.collect();
        stages.sort_by_key(|name, _| forward_order(name));
        Trace { stages, ..Trace::default() }
    }
}

/// A stage as a trace holds it.
pub(crate) fn as_held(stage: &str, values: Values) -> Values {
    let scores = Stage::parse(stage).is_some_and(|stage| stage.layout == Layout::Scores);
    if scores { with_infinities(values) } else { values }
}

/// Masked scores are minus infinity; many programs use the lowest number of their type, or thereabouts.
fn with_infinities(scores: Values) -> Values {
    let Values::Real(dtype, a) = scores else { return scores };
    Values::Real(dtype, a.mapv_into(|x| with_infinity(dtype, x)))
}

fn with_infinity(dtype: Dtype, score: f64) -> f64 {
    let lowest = if dtype == Dtype::F16 { half::f16::MIN.to_f32() } else { f32::MIN };
    if score <= f64::from(lowest) / 2.0 { f64::NEG_INFINITY } else { score }
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

/// Of what was cached chunk by chunk, what each chunk added: behind it something else may have taken its place, and the chunks
/// that follow have that.
fn new_keys(chunks: Vec<Values>) -> Option<Vec<Values>> {
    let mut before = 0;
    let new = |chunk| {
        let Values::Real(dtype, a) = chunk else { return None };
        let keys = *a.shape().get(1)?;
        let new = (before <= keys).then(|| a.slice_axis(Axis(1), Slice::from(before..)).to_owned())?;
        before = keys;
        Some(Values::Real(dtype, new))
    };
    chunks.into_iter().map(new).collect()
}

fn join_arrays<T: Clone>(mut chunks: Vec<ArrayD<T>>, layout: Layout, batch: usize, fill: T) -> Option<ArrayD<T>> {
    let along = |axis: usize, chunks: &[ArrayD<T>]| {
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        concatenate(Axis(axis), &views).ok()
    };
    match (layout, axis_of_tokens(layout)) {
        (_, None) => chunks.pop(),
        (Layout::Flat, Some(axis)) => {
            let split = chunks.into_iter().map(|chunk| split_first_axis(chunk, batch)).collect::<Option<Vec<_>>>()?;
            merge_first_axes(along(axis + 1, &split)?)
        }
        (Layout::Scores | Layout::Weights, Some(axis)) => {
            let keys = chunks.last()?.shape().last().copied()?;
            let padded: Option<Vec<_>> = chunks.into_iter().map(|chunk| pad_last_axis(chunk, keys, &fill)).collect();
            along(axis, &padded?)
        }
        (_, Some(axis)) => along(axis, &chunks),
    }
}

/// The axis of a stage's tokens, along which its chunks are joined; nothing, if the last chunk has it all.
fn axis_of_tokens(layout: Layout) -> Option<usize> {
    match layout {
        // of all sequences, one after another
        Layout::Flat => Some(0),
        Layout::Tokens | Layout::Table | Layout::Logits => Some(1),
        Layout::Heads | Layout::Scores | Layout::Weights => Some(2),
        Layout::Keys | Layout::Whole => None,
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
    fn of_what_is_cached_each_chunk_has_what_it_added() {
        let name = "past_key_values.0.k_pe";
        let chunks = vec![array![[[1.0]], [[2.0]]].into_dyn(), array![[[9.0], [3.0]], [[9.0], [4.0]]].into_dyn()];
        assert_eq!(joined(name, chunks, 2), array![[[1.0], [3.0]], [[2.0], [4.0]]].into_dyn());
    }

    #[test]
    fn a_trace_is_in_forward_order_and_knows_logits() {
        let one = || Values::Index(array![1].into_dyn());
        let names = ["noise", "logits", "model.layers.1", "model.embed_tokens"];
        let trace: Trace = names.into_iter().map(|name| (name.to_owned(), one())).collect();
        let order: Vec<_> = trace.iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["model.embed_tokens", "model.layers.1", "lm_head", "noise"]);
    }

    #[test]
    fn logits_under_two_names_must_be_the_same() {
        let read = |logits: f64| {
            let of = |name: &str, from: usize| {
                format!(r#""{name}":{{"dtype":"F64","shape":[1],"data_offsets":[{from},{}]}}"#, from + 8)
            };
            let header = format!("{{{},{}}}", of("lm_head", 0), of("logits", 8));
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.bytes().chain(1f64.to_le_bytes().into_iter().chain(logits.to_le_bytes())));
            Trace::parse(Path::new("dump.safetensors"), file)
        };
        assert_eq!(read(1.0).unwrap().len(), 1);
        let message = read(2.0).unwrap_err().to_string();
        assert!(message.contains("one tensor for lm_head") && message.contains("`logits`"), "{message}");
    }

    #[test]
    fn experts_may_be_stored_as_whole_numbers_of_any_type() {
        let read = |expert: f64| {
            let header =
                r#"{"model.layers.1.mlp.gate.topk_indices":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]}}"#;
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.bytes().chain(expert.to_le_bytes()));
            Trace::parse(Path::new("dump.safetensors"), file).unwrap()
        };
        let (name, whole) = ("model.layers.1.mlp.gate.topk_indices", read(3.0));
        assert_eq!(whole.get(name).and_then(Values::index), Some(&array![[3]].into_dyn()));
        assert_eq!(whole.notes(), [(name.to_owned(), "whole numbers, stored as F64".to_owned())]);
        assert!(read(3.5).get(name).unwrap().index().is_none() && read(f64::NAN).get(name).unwrap().index().is_none());
    }
}

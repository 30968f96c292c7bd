//! What an implementation knows when it computes a stage: the model, the inputs, and the values of the stages before.

use std::collections::HashMap;

use dsv2_reference::model::mask;
use dsv2_reference::model::mask::{attention_bias, default_position_ids};
use dsv2_reference::model::rope::softmax_scale;
use dsv2_reference::stage::{self, table};
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::{Array2, Array3, Array4, ArrayD, Axis, Ix2, Ix3, Ix4};

use super::arithmetic;
use super::weights::Wide;
use crate::case::Case;
use crate::error::Result;
use crate::inputs::{AttentionMask, Inputs};
use crate::precision::Precision;

/// A value as it is kept, and as it was before it was rounded for keeping.
struct Remembered {
    kept: ArrayD<f64>,
    unrounded: ArrayD<f64>,
}

/// Everything that a stage can be computed from, in one chunk of a sequence.
pub struct Scene<'a> {
    weights: &'a Wide<'a>,
    precision: Precision,
    chunks: Vec<Inputs>,
    /// Which chunk this is, counted from 1; 0 before the first.
    chunk: usize,
    reals: HashMap<String, Remembered>,
    indices: HashMap<String, ArrayD<i64>>,
}

impl<'a> Scene<'a> {
    /// Before anything has been computed, in `precision`.
    ///
    /// # Errors
    /// If the chunks of the case do not fit its inputs.
    pub fn new(weights: &'a Wide<'a>, precision: Precision) -> Result<Self> {
        let case = weights.case();
        let chunks = case.inputs.chunks(&case.chunks)?;
        Ok(Scene { weights, precision, chunks, chunk: 0, reals: HashMap::new(), indices: HashMap::new() })
    }

    /// The next chunk begins: what was computed is forgotten.
    pub fn next_chunk(&mut self) {
        self.chunk += 1;
        self.reals.clear();
        self.indices.clear();
    }

    /// Keeps the numbers of a stage.
    pub fn remember(&mut self, name: &str, unrounded: ArrayD<f64>, kept: ArrayD<f64>) {
        self.reals.insert(name.to_owned(), Remembered { kept, unrounded });
    }

    /// Keeps the indices of a stage.
    pub fn remember_index(&mut self, name: &str, indices: ArrayD<i64>) {
        self.indices.insert(name.to_owned(), indices);
    }

    /// The case.
    pub fn case(&self) -> &'a Case {
        self.weights.case()
    }

    /// Its config.
    pub fn config(&self) -> &'a DeepseekV2Config {
        &self.case().config
    }

    /// Its dialect.
    pub fn dialect(&self) -> Dialect {
        self.case().dialect
    }

    /// Its weights.
    pub fn weights(&self) -> &'a Wide<'a> {
        self.weights
    }

    /// What is computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A number as most stages keep it.
    pub fn keep(&self, x: f64) -> f64 {
        arithmetic::rounded(self.precision.stored(table::LAYER), x)
    }

    /// The inputs of the chunk.
    pub fn inputs(&self) -> &Inputs {
        &self.chunks[self.chunk.clamp(1, self.chunks.len()) - 1]
    }

    /// How many tokens of each sequence came before the chunk.
    pub fn past(&self) -> usize {
        self.chunks[..self.chunk.saturating_sub(1).min(self.chunks.len())].iter().map(Inputs::length).sum()
    }

    /// B, S and T: sequences, new tokens, and all tokens so far.
    pub fn dims(&self) -> (usize, usize, usize) {
        let inputs = self.inputs();
        (inputs.batch(), inputs.length(), self.past() + inputs.length())
    }

    /// The numbers of a stage as they are kept.
    pub fn real(&self, kind: &str, layer: usize) -> Option<&ArrayD<f64>> {
        Some(&self.reals.get(&stage::name(kind, layer))?.kept)
    }

    /// The numbers of a stage as they were before they were rounded for keeping.
    pub fn unrounded(&self, kind: &str, layer: usize) -> Option<&ArrayD<f64>> {
        Some(&self.reals.get(&stage::name(kind, layer))?.unrounded)
    }

    /// The indices of a stage, `[N,k]`.
    pub fn index(&self, kind: &str, layer: usize) -> Option<Array2<i64>> {
        self.indices.get(&stage::name(kind, layer))?.clone().into_dimensionality::<Ix2>().ok()
    }

    /// The rows of a stage: `[N, width]`.
    pub fn rows(&self, kind: &str, layer: usize) -> Option<Array2<f64>> {
        rows(self.real(kind, layer)?)
    }

    /// A stage with three axes.
    pub fn real3(&self, kind: &str, layer: usize) -> Option<Array3<f64>> {
        self.real(kind, layer)?.clone().into_dimensionality::<Ix3>().ok()
    }

    /// A stage with four axes.
    pub fn real4(&self, kind: &str, layer: usize) -> Option<Array4<f64>> {
        self.real(kind, layer)?.clone().into_dimensionality::<Ix4>().ok()
    }

    /// The positions of the new tokens, `[1 or B,S]`.
    pub fn positions(&self) -> Array2<i64> {
        let given = self.inputs().position_ids.clone();
        given.unwrap_or_else(|| default_position_ids(self.inputs().length(), self.past()))
    }

    /// The positions of all tokens so far, `[1 or B,T]`.
    pub fn all_positions(&self) -> Array2<i64> {
        let (_, _, keys) = self.dims();
        match &self.case().inputs.position_ids {
            Some(positions) => positions.slice_axis(Axis(1), ndarray::Slice::from(..keys)).to_owned(),
            None => default_position_ids(keys, 0),
        }
    }

    /// The factor in front of the scores.
    pub fn softmax_scale(&self) -> Option<f64> {
        softmax_scale(self.config(), self.dialect()).ok()
    }

    /// What is added to the scores, `[1 or B,1 or H,S,T]`.
    pub fn bias(&self) -> Option<Array4<f64>> {
        let (batch, length, keys) = self.dims();
        let inputs = self.inputs();
        let mask = inputs.attention_mask.as_ref().map(|mask| match mask {
            AttentionMask::Padding(attend) => mask::AttentionMask::Padding(attend.clone()),
            AttentionMask::Additive(added) => mask::AttentionMask::Additive(added.mapv(f64::from)),
        });
        let packed = if self.case().use_cache || mask.is_some() { None } else { inputs.position_ids.as_ref() };
        let heads = self.config().num_attention_heads;
        attention_bias(mask.as_ref(), packed, (batch, heads, length, keys - length)).ok()
    }

    /// Which of all tokens so far are real, `[B,T]`; all, if the mask does not say.
    pub fn attend(&self) -> Array2<bool> {
        let (batch, _, keys) = self.dims();
        match &self.inputs().attention_mask {
            Some(AttentionMask::Padding(attend)) => attend.clone(),
            _ => Array2::from_elem((batch, keys), true),
        }
    }
}

/// A tensor as rows along its last axis.
pub fn rows(a: &ArrayD<f64>) -> Option<Array2<f64>> {
    let width = *a.shape().last()?;
    a.to_shape((a.len().checked_div(width)?, width)).ok().map(|a| a.to_owned())
}

/// Numbers in the shape of `like`.
pub fn shaped<D: ndarray::Dimension>(a: ndarray::Array<f64, D>, like: &ArrayD<f64>) -> Option<ArrayD<f64>> {
    a.to_shape(like.raw_dim()).ok().map(|a| a.to_owned())
}

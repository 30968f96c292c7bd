//! One sequence of feeds, run on the device and on the reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Device, Element, Result, Tensor};
use dsv2_reference::model::causal_lm::{CausalLmInput as ReferenceInput, LogitsToKeep};
use dsv2_reference::{
    AttentionForm, AttentionMask, DeepseekV2ForCausalLM, LatentCache as ReferenceCache, ModelInput, Real, Run,
    StageValue, Tokens,
};
use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn, concatenate, s};
use proptest::prelude::*;

use super::tiny::{Tiny, right};

/// What is fed at once, and what happens to the cache before.
#[derive(Debug, Clone, Default)]
pub struct Feed {
    pub ids: Array2<i64>,
    pub mask: Option<Array2<bool>>,
    pub positions: Option<Array2<i64>>,
    /// All sequences keep so many tokens.
    pub crop: Option<usize>,
    /// Then they change places.
    pub reorder: Option<Vec<usize>>,
}

/// A program that runs feeds on a model, with a cache of pages of some size.
pub type Program = dyn Fn(&Tiny, &[Feed], usize) -> Result<Played>;

/// The model on a device.
pub fn on(device: Arc<dyn Device>) -> impl Fn(&Tiny, &[Feed], usize) -> Result<Played> {
    move |tiny, feeds, page_size| play(&device, tiny, feeds, tiny.form, page_size)
}

/// The same, fed with something else.
pub fn fed(change: impl Fn(&mut Feed)) -> impl Fn(&Tiny, &[Feed], usize) -> Result<Played> {
    let device = right();
    move |tiny, feeds, page_size| {
        let mut feeds = feeds.to_vec();
        feeds.iter_mut().for_each(&change);
        play(&device, tiny, &feeds, tiny.form, page_size)
    }
}

impl Feed {
    pub fn ids(ids: Array2<i64>) -> Self {
        Feed { ids, ..Feed::default() }
    }

    pub fn input<T>(&self) -> ModelInput<T> {
        ModelInput {
            tokens: Tokens::InputIds(self.ids.clone()),
            attention_mask: self.mask.clone().map(AttentionMask::Padding),
            position_ids: self.positions.clone(),
        }
    }
}

/// Lengths of pieces of a prompt.
pub fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..=4_usize, 1..=3)
}

/// The prompt cut into these pieces.
pub fn cut(ids: &Array2<i64>, pieces: &[usize]) -> Vec<Feed> {
    let mut start = 0;
    let mut piece = |length: &usize| {
        start += length;
        Feed::ids(ids.slice(s![.., start - length..start]).to_owned())
    };
    pieces.iter().map(&mut piece).collect()
}

/// What came of a run: the logits \[B,S,V\] of all feeds (empty if the batch changed), and stages of the last by name.
pub struct Played {
    pub logits: ArrayD<f64>,
    /// Those of the last feed.
    pub last: ArrayD<f64>,
    pub stages: BTreeMap<String, ArrayD<f64>>,
}

fn wanted(name: &str) -> bool {
    ["router_logits", "topk_indices", "mlp.experts"].iter().any(|end| name.ends_with(end)) || name.starts_with("past_")
}

/// Keeps stages.
#[derive(Default)]
struct Recorder(BTreeMap<String, ArrayD<f64>>);

impl Tap for Recorder {
    fn wants(&self, stage: &str) -> bool {
        wanted(stage)
    }

    fn stage(&mut self, name: &str, value: &Tensor) -> Result<bool> {
        self.0.insert(name.into(), read(value)?);
        Ok(false)
    }
}

fn read(value: &Tensor) -> Result<ArrayD<f64>> {
    let numbers: Vec<f64> = match value.element() {
        Element::I32 => value.to_i32()?.into_iter().map(f64::from).collect(),
        _ => value.to_f32()?.into_iter().map(f64::from).collect(),
    };
    Ok(ArrayD::from_shape_vec(value.shape(), numbers).expect("as many as the shape says"))
}

/// An empty cache with room.
pub fn cache(model: &CausalLm, batch: usize, tokens: usize, page_size: usize) -> LatentCache {
    let (model, element) = (model.model(), model.model().settings().element);
    LatentCache::new(model.config(), model.device(), element, batch, tokens, page_size).expect("room")
}

/// The logits of one input.
pub fn logits(
    model: &CausalLm,
    input: ModelInput<f32>,
    cache: Option<&mut LatentCache>,
    form: AttentionForm,
) -> Result<ArrayD<f64>> {
    let input = CausalLmInput { input, logits_to_keep: LogitsToKeep::default(), labels: None };
    read(&model.forward(&input, cache, form, None)?.0)
}

/// On a device, with a cache of pages of this size.
pub fn play(
    device: &Arc<dyn Device>,
    tiny: &Tiny,
    feeds: &[Feed],
    form: AttentionForm,
    page_size: usize,
) -> Result<Played> {
    play_with(&tiny.on(device), feeds, form, page_size)
}

/// The same with a model that is there already.
pub fn play_with(model: &CausalLm, feeds: &[Feed], form: AttentionForm, page_size: usize) -> Result<Played> {
    let total = feeds.iter().map(|feed| feed.ids.ncols()).sum();
    let mut cache = cache(model, feeds[0].ids.nrows(), total, page_size);
    let (mut parts, mut tap) = (vec![], Recorder::default());
    for feed in feeds {
        if let Some(length) = feed.crop {
            cache.crop(&vec![length; cache.batch()]);
        }
        if let Some(from) = &feed.reorder {
            cache.reorder(from)?;
        }
        let input = CausalLmInput { input: feed.input(), logits_to_keep: LogitsToKeep::default(), labels: None };
        let (logits, _) = model.forward(&input, Some(&mut cache), form, Some(&mut tap))?;
        parts.push(read(&logits)?);
    }
    Ok(Played::new(&parts, tap.0))
}

/// On the reference.
pub fn reference<T: Real>(tiny: &Tiny, feeds: &[Feed], form: AttentionForm) -> Played {
    let model =
        DeepseekV2ForCausalLM::<T>::load(&tiny.config, tiny.dialect, &tiny.weights()).expect("a possible model");
    let mut cache = ReferenceCache::new(&tiny.config, feeds[0].ids.nrows());
    let run = Run { attention: form, ..Run::default() };
    let (mut parts, mut stages) = (vec![], BTreeMap::new());
    for feed in feeds {
        if let Some(length) = feed.crop {
            cache.crop(length as i64).expect("so many tokens");
        }
        if let Some(from) = &feed.reorder {
            cache.reorder(from).expect("such sequences");
        }
        let mut tap = |name: &str, value: StageValue<T>| {
            let value = match value {
                StageValue::Real(value) if wanted(name) => value.mapv(Real::to_f64),
                StageValue::Index(value) if wanted(name) => value.mapv(|index| index as f64),
                _ => return,
            };
            stages.insert(name.to_owned(), value);
        };
        let input = ReferenceInput { input: feed.input(), logits_to_keep: LogitsToKeep::default(), labels: None };
        let output = model.forward(&input, Some(&mut cache), &run, &mut tap).expect("a possible input");
        parts.push(output.logits.mapv(Real::to_f64).into_dyn());
    }
    for (i, layer) in cache.layers().iter().enumerate() {
        let name = |part: &str| format!("past_key_values.{i}.{part}");
        stages.insert(name("compressed_kv"), layer.compressed_kv().mapv(Real::to_f64).into_dyn());
        stages.insert(name("k_pe"), layer.k_pe().mapv(Real::to_f64).into_dyn());
    }
    Played::new(&parts, stages)
}

impl Played {
    fn new(parts: &[ArrayD<f64>], stages: BTreeMap<String, ArrayD<f64>>) -> Self {
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        // No array holds them where a fork has changed the batch.
        let logits = concatenate(Axis(1), &views).unwrap_or_default();
        Played { logits, last: parts.last().cloned().unwrap_or_default(), stages }
    }
}

/// The bits of numbers that were fp32.
pub fn bits<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<u32> {
    values.into_iter().map(|x| (*x as f32).to_bits()).collect()
}

/// Rows of one sequence, from a token on.
pub fn rows(logits: &ArrayD<f64>, sequence: usize, tokens: std::ops::Range<usize>) -> Vec<u32> {
    let logits: Array3<f64> = logits.clone().into_dimensionality().expect("[B,S,V]");
    bits(logits.slice(s![sequence, tokens, ..]))
}

/// Shape and numbers.
pub fn array(shape: &[usize], numbers: Vec<f64>) -> ArrayD<f64> {
    ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many as the shape says")
}

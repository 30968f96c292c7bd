//! One sequence of feeds, run on the device and on the reference; and how far two runs may be apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsv2_metrics::{FACTORS, Metrics, NAMES, Spread, compare, with_floors};
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Device, Element, Result, Tensor};
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::causal_lm::{CausalLmInput as ReferenceInput, LogitsToKeep};
use dsv2_reference::{
    AttentionForm, AttentionMask, DeepseekV2ForCausalLM, LatentCache as ReferenceCache, ModelInput, Real, Run,
    StageValue, Tokens,
};
use ndarray::{Array2, Array3, ArrayD, ArrayView1, Axis, IxDyn, concatenate, s};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

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

/// The truth, and what fp32 may make of it.
pub struct Truth {
    pub exact: Played,
    plain: [Played; 2],
}

impl Truth {
    pub fn of(tiny: &Tiny, feeds: &[Feed]) -> Self {
        let plain = [AttentionForm::Expanded, AttentionForm::Absorbed].map(|form| reference::<f32>(tiny, feeds, form));
        Truth { exact: reference::<f64>(tiny, feeds, AttentionForm::Expanded), plain }
    }

    /// The same with the last feed's logits only.
    pub fn of_last(tiny: &Tiny, feeds: &[Feed]) -> Self {
        Truth::of(tiny, feeds).with_logits(|played| played.last.clone())
    }

    /// With the logits of some positions only, of all runs.
    pub fn from(self, start: usize) -> Self {
        self.with_logits(|played| played.logits.slice_axis(Axis(1), (start..).into()).to_owned())
    }

    fn with_logits(mut self, of: impl Fn(&Played) -> ArrayD<f64>) -> Self {
        for played in self.plain.iter_mut().chain([&mut self.exact]) {
            played.logits = of(played);
        }
        self
    }

    /// The same fp32 runs, judged by another truth.
    pub fn by(self, exact: Played) -> Self {
        Truth { exact, ..self }
    }

    /// Whether the router's choice hangs on less than what fp32 may err.
    pub fn is_near_tie(&self, tiny: &Tiny) -> bool {
        let routers = self.exact.stages.iter().filter(|(name, _)| name.ends_with("router_logits"));
        routers.into_iter().any(|(name, truth)| {
            let budget = self.budget(name);
            let rms = (truth.iter().map(|x| x * x).sum::<f64>() / truth.len() as f64).sqrt();
            // Two logits may move towards each other.
            let margin = 2.0 * budget.max * rms;
            truth.rows().into_iter().any(|row| gap(tiny, row) <= margin)
        })
    }

    /// The budget of a stage, or of the logits (``).
    fn budget(&self, name: &str) -> Metrics {
        let part = |played: &Played| if name.is_empty() { played.logits.clone() } else { played.stages[name].clone() };
        let truth = part(&self.exact);
        let error = |of: &Played| compare(part(of).view(), truth.view(), None).metrics;
        let spread = Spread::of(truth.view(), None);
        let both = error(&self.plain[0]).zip(&error(&self.plain[1]), |a, b| a + b);
        with_floors(both, spread, rows_that_count(&truth)).zip(&FACTORS, |noise, factor| noise * factor)
    }

    /// That the logits of a run are near.
    pub fn judge(&self, what: &str, got: &ArrayD<f64>) -> TestCaseResult {
        self.compare(what, "", got, &self.exact.logits)
    }

    /// That a stage is near.
    pub fn judge_stage(&self, what: &str, name: &str, got: &ArrayD<f64>) -> TestCaseResult {
        self.compare(what, name, got, &self.exact.stages[name])
    }

    /// That two results are no farther apart than one may be from the truth.
    pub fn compare(&self, what: &str, name: &str, got: &ArrayD<f64>, want: &ArrayD<f64>) -> TestCaseResult {
        prop_assert_eq!(got.shape(), want.shape(), "{} {}", what, name);
        let found = compare(got.view(), want.view(), None);
        prop_assert!(found.nonfinite.is_none(), "{what} {name}: {:?}", found.nonfinite);
        for (metric, (error, budget)) in NAMES.iter().zip(found.metrics.values().iter().zip(self.budget(name).values()))
        {
            prop_assert!(*error <= budget, "{what} {name}: {metric} {error:.2e} of {budget:.2e}; {:?}", found.worst);
        }
        Ok(())
    }
}

/// How many rows of one size would have the norms' spread: where one is much larger than the others, 1.
///
/// The errors of rows cancel out in the metric `gain`, but not those of one row.
fn rows_that_count(of: &ArrayD<f64>) -> usize {
    let squares: Vec<f64> = of.rows().into_iter().map(|row| row.iter().map(|x| x * x).sum()).collect();
    let (sum, of_squares) = squares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    if of_squares > 0.0 { (sum * sum / of_squares) as usize } else { 1 }
}

/// How much nearer the router's logits could come to each other before another expert were chosen.
fn gap(tiny: &Tiny, logits: ArrayView1<f64>) -> f64 {
    let k = tiny.config.experts_per_token().expect("experts");
    let mut scores: Vec<f64> = logits.to_vec();
    let mut least = f64::INFINITY;
    if let TopkMethod::GroupLimitedGreedy { n_group, topk_group } = tiny.config.topk_method().expect("a method") {
        let size = scores.len() / n_group;
        let best = |group: &[f64]| group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut groups: Vec<&[f64]> = scores.chunks(size).collect();
        groups.sort_by(|a, b| best(b).total_cmp(&best(a)));
        if topk_group < n_group {
            least = best(groups[topk_group - 1]) - best(groups[topk_group]);
        }
        scores = groups[..topk_group].concat();
    }
    scores.sort_by(|a, b| b.total_cmp(a));
    // Experts that are chosen stand in the order of their scores.
    (0..k.min(scores.len() - 1)).map(|i| scores[i] - scores[i + 1]).fold(least, f64::min)
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

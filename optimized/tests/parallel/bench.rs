//! A small model, and how it is run on one device and on several ranks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use dsv2_metrics::{FACTORS, Metrics, Spread, compare, with_floors};
use dsv2_optimized::collective::emulated::Ranks;
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::parallel::{Homes, Layout};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::model::causal_lm::{CausalLmInput as ReferenceInput, LogitsToKeep};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{AttentionForm, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, ModelInput, Real, Run};
use ndarray::{Array2, ArrayD, s};
use serde_json::{Value, json};

thread_local! {
    /// Devices of a test: they know the kernels that they have run.
    static DEVICES: RefCell<Vec<Arc<Emulated>>> = const { RefCell::new(Vec::new()) };
}

/// Ranks on emulated devices.
pub fn ranks(count: usize) -> Ranks {
    DEVICES.with_borrow_mut(|devices| {
        devices.resize_with(devices.len().max(count), || Emulated::new(Library::embedded()));
        Ranks::new(devices[..count].to_vec())
    })
}

/// A dense layer and two of experts; all sizes are multiples of 4. `change` overrides fields.
pub fn config(change: Value) -> DeepseekV2Config {
    let mut all = json!({"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 24, "moe_intermediate_size": 12, "n_routed_experts": 12, "num_experts_per_tok": 3,
        "n_shared_experts": 1, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 8, "routed_scaling_factor": 2.0});
    let fields = change.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    DeepseekV2Config::from_value(all).unwrap()
}

pub fn weights() -> GeneratedWeights {
    let rules = json!([{"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
        {"suffix": "embed_tokens.weight", "std": 1.0}, {"suffix": "lm_head.weight", "gain": 2.0},
        {"suffix": "weight", "gain": 1.3}, {"suffix": "bias", "std": 0.3}]);
    serde_json::from_value(json!({"seed": 6, "rules": rules})).unwrap()
}

pub const fn layout(tensor: usize, experts: usize, homes: Homes) -> Layout {
    Layout { tensor, experts, homes }
}

/// Sequences, and what is fed at once: a prompt, then a token and another.
pub const BATCH: usize = 4;
const FEEDS: [std::ops::Range<usize>; 3] = [0..3, 3..4, 4..5];

fn ids() -> Array2<i64> {
    Array2::from_shape_fn((BATCH, 5), |(b, s)| (17 * b as i64 + 11 * s as i64 + 5) % 40)
}

/// The stages of all passes, by the number of the pass and name: the bits of their numbers.
pub type Stages = BTreeMap<(usize, String), Vec<u32>>;

struct Recorder {
    pass: usize,
    stages: Stages,
}

impl Tap for Recorder {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn stage(&mut self, name: &str, value: &Tensor) -> Result<bool> {
        let bits = match value.element() {
            Element::I32 => value.to_i32()?.into_iter().map(|x| x as u32).collect(),
            _ => value.to_f32()?.into_iter().map(f32::to_bits).collect(),
        };
        self.stages.insert((self.pass, name.to_owned()), bits);
        Ok(false)
    }
}

/// A prompt and two tokens of some sequences, in both forms of attention: the prompt expanded, the tokens absorbed.
pub fn play(model: &CausalLm, sequences: std::ops::Range<usize>) -> Result<Stages> {
    let (element, device) = (model.model().settings().element, model.model().device());
    let mut cache = LatentCache::new(model.model().config(), device, element, sequences.len(), 5, 4)?;
    let mut recorder = Recorder { pass: 0, stages: Stages::new() };
    for (pass, tokens) in FEEDS.into_iter().enumerate() {
        recorder.pass = pass;
        let form = if pass == 0 { AttentionForm::Expanded } else { AttentionForm::Absorbed };
        let input = ModelInput::ids(ids().slice(s![sequences.clone(), tokens]).to_owned());
        let input = CausalLmInput { input, logits_to_keep: LogitsToKeep::default(), labels: None };
        model.forward(&input, Some(&mut cache), form, Some(&mut recorder))?;
    }
    Ok(recorder.stages)
}

pub fn on_one_device(config: &DeepseekV2Config, element: Element) -> Stages {
    let device: Arc<dyn Device> = Emulated::new(Library::embedded());
    let settings = Settings::new(element, Variant::Tuned);
    let model = CausalLm::load(config, Dialect::Hf, &weights(), &device, settings, &mut |_| ()).unwrap();
    play(&model, 0..BATCH).unwrap()
}

/// What each rank saw: all sequences, or its own.
pub fn on_ranks(config: &DeepseekV2Config, element: Element, layout: Layout, ranks: Ranks) -> Result<Vec<Stages>> {
    on_ranks_with(&|_, name, shape| weights().tensor(name, shape), config, element, layout, ranks)
}

/// The weights that a rank is given.
pub type Given<'a> = dyn Fn(usize, &str, &[usize]) -> dsv2_reference::Result<dsv2_reference::Tensor> + Sync + 'a;

struct OfRank<'a>(usize, &'a Given<'a>);

impl WeightSource for OfRank<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> dsv2_reference::Result<dsv2_reference::Tensor> {
        (self.1)(self.0, name, shape)
    }

    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

pub fn on_ranks_with(
    given: &Given<'_>,
    config: &DeepseekV2Config,
    element: Element,
    layout: Layout,
    ranks: Ranks,
) -> Result<Vec<Stages>> {
    ranks.run(|rank| {
        let (settings, source) = (Settings::new(element, Variant::Tuned), OfRank(rank.index(), given));
        let part = (rank, layout);
        let model = CausalLm::load_share(config, Dialect::Hf, &source, part, settings, &mut |_| ())?;
        let sequences = match layout.homes {
            Homes::Every => 0..BATCH,
            Homes::Own => {
                let each = BATCH / layout.experts;
                let first = rank.index() / layout.tensor * each;
                first..first + each
            }
        };
        play(&model, sequences)
    })
}

/// The logits of all tokens as `[B,5,V]`.
fn logits(stages: &Stages, vocab: usize) -> ArrayD<f64> {
    let mut all = ndarray::Array3::zeros((BATCH, 5, vocab));
    for (pass, tokens) in FEEDS.into_iter().enumerate() {
        let bits = &stages[&(pass, "lm_head".to_owned())];
        let values = bits.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
        let part = ndarray::Array3::from_shape_vec((BATCH, tokens.len(), vocab), values).unwrap();
        all.slice_mut(s![.., tokens, ..]).assign(&part);
    }
    all.into_dyn()
}

/// How far logits may be from the truth: as far as the reference errs in fp32, times the factors of the golden cases.
pub struct Budget {
    truth: ArrayD<f64>,
    most: Metrics,
    vocab: usize,
}

impl Budget {
    pub fn of(config: &DeepseekV2Config) -> Self {
        let truth = reference::<f64>(config, AttentionForm::Expanded);
        let error = |form| compare(reference::<f32>(config, form).view(), truth.view(), None).metrics;
        let noise = error(AttentionForm::Expanded).zip(&error(AttentionForm::Absorbed), |a, b| a + b);
        let noise = with_floors(noise, Spread::of(truth.view(), None), (BATCH * 5) as f64);
        Budget { most: noise.zip(&FACTORS, |noise, factor| noise * factor), truth, vocab: config.vocab_size }
    }

    /// Whether a rank's logits are within it.
    pub fn holds(&self, stages: &Stages) -> bool {
        let found = compare(logits(stages, self.vocab).view(), self.truth.view(), None);
        let within = found.metrics.values().into_iter().zip(self.most.values()).all(|(error, most)| error <= most);
        within && found.nonfinite.is_none()
    }
}

fn reference<T: Real>(config: &DeepseekV2Config, form: AttentionForm) -> ArrayD<f64> {
    let model = DeepseekV2ForCausalLM::<T>::load(config, Dialect::Hf, &weights()).unwrap();
    let input = ReferenceInput { input: ModelInput::ids(ids()), logits_to_keep: LogitsToKeep::default(), labels: None };
    let run = Run { attention: form, ..Run::default() };
    let output = model.forward(&input, None, &run, &mut |_: &str, _: dsv2_reference::StageValue<T>| ()).unwrap();
    output.logits.mapv(Real::to_f64).into_dyn()
}

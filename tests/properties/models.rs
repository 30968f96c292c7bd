//! Tiny models with attention of every shape, and what may be done with them: the cases of the laws about attention
//! and its cache.

use std::collections::BTreeMap;

use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{
    AttentionForm, DeepseekV2Config, DeepseekV2Model, Dialect, LatentCache, ModelInput, Run, StageValue,
};
use dsv2_testing::hot_weights;
use ndarray::{Array2, Array3, ArrayD, ArrayViewMutD, Axis, concatenate, s};
use proptest::prelude::*;
use serde_json::json;

/// The sizes of a model with dense layers, the seed of its weights and tokens, and how its attention is computed.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub layers: usize,
    pub heads: usize,
    pub q_lora_rank: Option<usize>,
    pub c: usize,
    pub n: usize,
    pub r: usize,
    pub v: usize,
    pub yarn: bool,
    pub form: AttentionForm,
    pub seed: u64,
}

pub const HIDDEN: usize = 12;
const VOCAB: u64 = 20;

/// Small models of all kinds; the simplest one has one layer, one head and the smallest sizes.
pub fn tiny() -> impl Strategy<Value = Tiny> {
    let sizes = (1..=2_usize, 1..=4_usize, 2..=9_usize, 1..=5_usize, 1..=3_usize, 1..=5_usize);
    let form = prop_oneof![Just(AttentionForm::Expanded), Just(AttentionForm::Absorbed)];
    (sizes, prop::option::of(3..=6_usize), any::<bool>(), form, 0..1000_u64).prop_map(
        |((layers, heads, c, n, half_r, v), q_lora_rank, yarn, form, seed)| Tiny {
            layers,
            heads,
            q_lora_rank,
            c,
            n,
            r: 2 * half_r,
            v,
            yarn,
            form,
            seed,
        },
    )
}

impl Tiny {
    pub fn config(&self) -> DeepseekV2Config {
        let yarn = json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "beta_fast": 32,
                          "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707});
        DeepseekV2Config::from_value(json!({
            "model_type": "deepseek_v2", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 12,
            "num_hidden_layers": self.layers, "first_k_dense_replace": self.layers, "num_attention_heads": self.heads,
            "q_lora_rank": self.q_lora_rank, "kv_lora_rank": self.c, "qk_nope_head_dim": self.n,
            "qk_rope_head_dim": self.r, "v_head_dim": self.v, "max_position_embeddings": 256,
            "rope_scaling": self.yarn.then_some(yarn),
        }))
        .expect("a possible config")
    }

    pub fn weights(&self) -> GeneratedWeights {
        hot_weights(self.seed)
    }

    /// Token ids \[B,S\]; the first ones are the same for every S.
    pub fn ids(&self, batch: usize, length: usize) -> Array2<i64> {
        Array2::from_shape_fn((batch, length), |(b, s)| (splitmix64(self.seed + (1000 * b + s) as u64) % VOCAB) as i64)
    }

    /// Another id than `id`.
    pub fn other(id: i64) -> i64 {
        (id + 7) % VOCAB as i64
    }
}

/// A stage: o, the heads' outputs side by side.
pub const ATTN_OUTPUT: &str = "model.layers.0.self_attn.attn_output";

/// What is done with a model and its cache.
#[derive(Debug, Clone)]
pub enum Step {
    Feed(Box<ModelInput<f64>>),
    Crop(i64),
    Reorder(Vec<usize>),
}

pub fn feed(ids: &Array2<i64>) -> Step {
    feed_input(ModelInput::ids(ids.clone()))
}

pub fn feed_input(input: ModelInput<f64>) -> Step {
    Step::Feed(Box::new(input))
}

/// Lengths of pieces of a prompt.
pub fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..=3_usize, 1..=4)
}

/// The prompt cut into these pieces.
pub fn cut(ids: &Array2<i64>, pieces: &[usize]) -> Vec<Step> {
    let starts = pieces.iter().scan(0, |end, piece| {
        *end += piece;
        Some(*end - piece)
    });
    starts.zip(pieces).map(|(start, piece)| feed(&ids.slice(s![.., start..start + piece]).to_owned())).collect()
}

/// What came of it.
pub struct Played {
    /// The last hidden state \[B,S,D\] of each feed.
    pub outputs: Vec<Array3<f64>>,
    /// The stages of the last feed.
    pub stages: BTreeMap<String, ArrayD<f64>>,
    pub cache: LatentCache<f64>,
}

impl Played {
    /// The outputs of all feeds, one after the other.
    pub fn joined(&self) -> Array3<f64> {
        let views: Vec<_> = self.outputs.iter().map(|output| output.view()).collect();
        concatenate(Axis(1), &views).expect("one batch")
    }

    pub fn last(&self) -> &Array3<f64> {
        self.outputs.last().expect("a feed")
    }

    pub fn stage<D: ndarray::Dimension>(&self, name: &str) -> ndarray::Array<f64, D> {
        self.stages[name].clone().into_dimensionality().expect("the stage's number of axes")
    }
}

/// A program that runs steps on a model, beginning with an empty cache.
pub type Program = dyn Fn(&Tiny, &[Step]) -> Played;

/// The reference.
pub fn reference(tiny: &Tiny, steps: &[Step]) -> Played {
    play(tiny, &tiny.weights(), CacheFormat::Plain, steps, &mut |_, _| {})
}

/// The reference, with what a tap does to its stages.
pub fn tapped(change: impl Fn(&Tiny, &str, ArrayViewMutD<f64>)) -> impl Fn(&Tiny, &[Step]) -> Played {
    move |tiny, steps| {
        play(tiny, &tiny.weights(), CacheFormat::Plain, steps, &mut |name, value| change(tiny, name, value))
    }
}

/// The reference that is fed other inputs: what `change` makes of the tokens cached so far and the input.
pub fn fed(change: impl Fn(usize, &mut ModelInput<f64>)) -> impl Fn(&Tiny, &[Step]) -> Played {
    move |tiny, steps| {
        let mut steps = steps.to_vec();
        let mut cached: usize = 0;
        for step in &mut steps {
            match step {
                Step::Feed(input) => {
                    let length = input.tokens.dim().1;
                    change(cached, input);
                    cached += length;
                }
                Step::Crop(length) if *length < 0 => cached -= length.unsigned_abs() as usize,
                Step::Crop(length) => cached = *length as usize,
                Step::Reorder(_) => {}
            }
        }
        reference(tiny, &steps)
    }
}

/// The reference that takes other steps.
pub fn altered(change: impl Fn(&Step) -> Step) -> impl Fn(&Tiny, &[Step]) -> Played {
    move |tiny, steps| reference(tiny, &steps.iter().map(&change).collect::<Vec<_>>())
}

/// The reference without a rotation of its keys.
pub fn rotates_no_key(tiny: &Tiny, steps: &[Step]) -> Played {
    let mut unrotated = Vec::new();
    play(tiny, &tiny.weights(), CacheFormat::Plain, steps, &mut |name, mut value| {
        if name.ends_with(".kv_a_proj_with_mqa") {
            unrotated = value.slice(s![.., .., tiny.c..]).iter().copied().collect();
        }
        if name.ends_with(".self_attn.k_pe") {
            value.iter_mut().zip(&unrotated).for_each(|(x, unrotated)| *x = *unrotated);
        }
    })
}

/// Runs `steps` on the model of `weights`.
pub fn play(
    tiny: &Tiny,
    weights: &dyn WeightSource,
    format: CacheFormat,
    steps: &[Step],
    change: &mut dyn FnMut(&str, ArrayViewMutD<f64>),
) -> Played {
    let model = DeepseekV2Model::<f64>::load(&tiny.config(), Dialect::Hf, weights).expect("a possible model");
    let batch = steps.iter().find_map(|step| match step {
        Step::Feed(input) => Some(input.tokens.dim().0),
        _ => None,
    });
    let mut cache = LatentCache::with_format(model.config(), batch.unwrap_or(1), format);
    let run = Run { attention: tiny.form, ..Run::default() };
    let (mut outputs, mut stages) = (Vec::new(), BTreeMap::new());
    for step in steps {
        match step {
            Step::Crop(length) => cache.crop(*length).expect("so many tokens are cached"),
            Step::Reorder(rows) => cache.reorder(rows).expect("rows of the batch"),
            Step::Feed(input) => {
                stages.clear();
                let mut tap = |name: &str, value: StageValue<f64>| {
                    if let StageValue::Real(mut value) = value {
                        change(name, value.view_mut());
                        stages.insert(name.to_owned(), value.to_owned());
                    }
                };
                let output = model.forward(input, Some(&mut cache), &run, &mut tap).expect("a possible input");
                outputs.push(output.last_hidden_state);
            }
        }
    }
    Played { outputs, stages, cache }
}

/// The largest difference, relative to the largest number.
pub fn distance<D: ndarray::Dimension>(a: &ndarray::Array<f64, D>, b: &ndarray::Array<f64, D>) -> f64 {
    let largest = b.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    let difference = a.iter().zip(b).fold(0.0, |difference: f64, (a, b)| difference.max((a - b).abs()));
    // NaN anywhere is far away; `max` would lose it.
    if a.iter().chain(b).all(|x| x.is_finite()) { difference / largest.max(f64::MIN_POSITIVE) } else { f64::INFINITY }
}

//! A tiny DeepSeek-V2 that uses every part of the architecture, and the ways to run it.
//!
//! Its sizes are small and different from each other, so that a mixed-up axis shows.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dsv2_reference::round::RoundingTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{
    AttentionMask, CausalLmInput, CausalLmOutput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Dtype, LatentCache,
    LogitsToKeep, ModelInput, NoTap, Real, Run, StageValue, Tap, Tokens,
};
use dsv2_testing::{Exchanged, hot_weights};
use ndarray::{Array2, Array3, ArrayD, ArrayView1, Dimension, Ix2, Ix3, Ix4};
use serde_json::{Value, json};

/// config.json of the tiny model (V2's structure), with the values of `patch` instead of its own.
pub fn tiny(patch: Value) -> Value {
    let mut config = json!({
        "model_type": "deepseek_v2", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40,
        "moe_intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 256,
        "q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 10,
        "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64,
                         "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    });
    for (key, value) in patch.as_object().expect("a patch is an object") {
        config[key] = value.clone();
    }
    config
}

/// The tiny model's configuration.
pub fn config(patch: Value) -> DeepseekV2Config {
    DeepseekV2Config::from_value(tiny(patch)).expect("a possible configuration")
}

/// Why the tiny model with these values is refused, at the latest when it is loaded.
pub fn refusal(dialect: Dialect, patch: Value) -> String {
    let refused = DeepseekV2Config::from_value(tiny(patch))
        .and_then(|config| DeepseekV2ForCausalLM::<f64>::load(&config, dialect, &weights()).map(|_| ()));
    refused.expect_err("an impossible configuration").to_string()
}

/// The hot weights.
pub fn weights() -> GeneratedWeights {
    hot_weights(11)
}

/// The names of the tensors that loading the tiny model asks for.
pub fn asked_for(patch: Value) -> Vec<String> {
    let names = RefCell::new(Vec::new());
    let recorder = Exchanged(weights(), |name: &str, _: &[usize]| {
        names.borrow_mut().push(name.to_owned());
        None
    });
    DeepseekV2ForCausalLM::<f64>::load(&config(patch), Dialect::Hf, &recorder).expect("a possible model");
    names.into_inner()
}

/// One of the hot weights as a matrix \[out,in\].
pub fn weight(name: &str, shape: [usize; 2]) -> Array2<f64> {
    weights().tensor(name, &shape).expect("a weight").to_array()
}

/// The tiny model in a dialect.
pub fn model_in<T: Real>(dialect: Dialect, patch: Value) -> DeepseekV2ForCausalLM<T> {
    DeepseekV2ForCausalLM::load(&config(patch), dialect, &weights()).expect("a possible model")
}

/// The tiny model in dialect `hf`.
pub fn model<T: Real>(patch: Value) -> DeepseekV2ForCausalLM<T> {
    model_in(Dialect::Hf, patch)
}

/// Some token ids \[B,S\], without an apparent pattern.
pub fn ids(batch: usize, length: usize) -> Array2<i64> {
    Array2::from_shape_fn((batch, length), |(b, s)| ((17 * s * s + 31 * s + 23 * b + 5) % 50) as i64)
}

/// Token ids as an input.
pub fn input<T>(ids: Array2<i64>) -> CausalLmInput<T> {
    CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::default(), labels: None }
}

/// Token ids with a mask and positions as an input.
pub fn input_with<T>(
    ids: Array2<i64>,
    attention_mask: Option<AttentionMask<T>>,
    position_ids: Option<Array2<i64>>,
) -> CausalLmInput<T> {
    let input = ModelInput { tokens: Tokens::InputIds(ids), attention_mask, position_ids };
    CausalLmInput { input, logits_to_keep: LogitsToKeep::default(), labels: None }
}

/// The logits \[B,S,V\] of an input, without a cache.
pub fn logits<T: Real>(model: &DeepseekV2ForCausalLM<T>, input: &CausalLmInput<T>) -> Array3<T> {
    model.forward(input, None, &Run::default(), &mut NoTap).expect("a possible input").logits
}

/// The logits of an input after what the cache holds.
pub fn logits_after<T: Real>(
    model: &DeepseekV2ForCausalLM<T>,
    cache: &mut LatentCache<T>,
    input: &CausalLmInput<T>,
) -> Array3<T> {
    model.forward(input, Some(cache), &Run::default(), &mut NoTap).expect("a possible input").logits
}

/// Why an input is refused.
pub fn input_refusal<T: Real>(model: &DeepseekV2ForCausalLM<T>, input: &CausalLmInput<T>) -> String {
    model.forward(input, None, &Run::default(), &mut NoTap).expect_err("an impossible input").to_string()
}

/// The stages of a forward pass, by name.
#[derive(Default)]
pub struct Stages<T> {
    real: BTreeMap<String, ArrayD<T>>,
    index: BTreeMap<String, ArrayD<i64>>,
}

impl<T: Real> Stages<T> {
    /// Runs the model and keeps every stage, after `tap` has had it.
    pub fn of(
        model: &DeepseekV2ForCausalLM<T>,
        input: &CausalLmInput<T>,
        run: &Run,
        mut tap: impl FnMut(&str, StageValue<T>),
    ) -> (CausalLmOutput<T>, Self) {
        let (mut real, mut index) = (BTreeMap::new(), BTreeMap::new());
        let mut keep = |name: &str, value: StageValue<T>| match value {
            StageValue::Real(mut value) => {
                tap(name, StageValue::Real(value.view_mut()));
                real.insert(name.to_owned(), value.to_owned());
            }
            StageValue::Index(mut value) => {
                tap(name, StageValue::Index(value.view_mut()));
                index.insert(name.to_owned(), value.to_owned());
            }
        };
        let mut cache = LatentCache::new(model.model().config(), input.input.tokens.dim().0);
        let output = model.forward(input, Some(&mut cache), run, &mut keep).expect("a possible input");
        (output, Stages { real, index })
    }

    /// The same with every stage rounded to `dtype`.
    pub fn rounded(
        model: &DeepseekV2ForCausalLM<T>,
        input: &CausalLmInput<T>,
        dtype: Dtype,
    ) -> (CausalLmOutput<T>, Self) {
        let mut rounding = RoundingTap(dtype);
        Stages::of(model, input, &Run::default(), |name, value| rounding.stage(name, value))
    }

    /// Every stage of these ids.
    pub fn of_ids(model: &DeepseekV2ForCausalLM<T>, ids: Array2<i64>) -> Self {
        Stages::of(model, &input(ids), &Run::default(), |_, _| {}).1
    }

    /// Is there a stage of this name?
    pub fn has(&self, name: &str) -> bool {
        self.real.contains_key(name) || self.index.contains_key(name)
    }

    /// All numbers, by stage.
    pub fn all(&self) -> &BTreeMap<String, ArrayD<T>> {
        &self.real
    }

    fn get<D: Dimension>(&self, name: &str) -> ndarray::Array<T, D> {
        let stage = self.real.get(name).unwrap_or_else(|| panic!("no stage {name}"));
        stage.clone().into_dimensionality().expect("the stage's number of axes")
    }

    /// A stage with two axes.
    pub fn d2(&self, name: &str) -> ndarray::Array<T, Ix2> {
        self.get(name)
    }
    /// A stage with three axes.
    pub fn d3(&self, name: &str) -> ndarray::Array<T, Ix3> {
        self.get(name)
    }
    /// A stage with four axes.
    pub fn d4(&self, name: &str) -> ndarray::Array<T, Ix4> {
        self.get(name)
    }
    /// Indices \[N,k\].
    pub fn indices(&self, name: &str) -> Array2<i64> {
        self.index[name].clone().into_dimensionality().expect("two axes")
    }
}

/// The largest absolute difference.
pub fn difference<D: Dimension>(a: &ndarray::Array<f64, D>, b: &ndarray::Array<f64, D>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// -log softmax(z)\[y\].
pub fn nll(z: ArrayView1<f64>, y: i64) -> f64 {
    z.iter().map(|x| x.exp()).sum::<f64>().ln() - z[y as usize]
}

//! DeepSeek-V3's module for multi-token prediction: which inputs its outputs depend on.

use dsv2_reference::deepseek_v3::mtp::MultiTokenPrediction;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dtype, Tensor};
use dsv2_testing::{Exchanged, for_all};
use ndarray::{Array2, Array3, Axis, Ix2, s};
use proptest::prelude::*;
use serde_json::json;

use crate::models::distance;

/// A module for multi-token prediction, and the length and seed of what it is fed.
#[derive(Clone, Debug)]
struct Module {
    seed: u64,
    length: usize,
}

/// D, and V.
const WIDTH: usize = 8;
const VOCAB: usize = 20;

fn modules() -> impl Strategy<Value = Module> {
    (0..1000_u64, 2..=6_usize).prop_map(|(seed, length)| Module { seed, length })
}

impl Module {
    fn config(&self) -> DeepseekV2Config {
        DeepseekV2Config::from_value(json!({
            "model_type": "deepseek_v2", "vocab_size": VOCAB, "hidden_size": WIDTH, "moe_intermediate_size": 4,
            "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": null, "kv_lora_rank": 5,
            "qk_nope_head_dim": 3, "qk_rope_head_dim": 4, "v_head_dim": 3, "n_routed_experts": 4,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "norm_topk_prob": true,
            "routed_scaling_factor": 2.5,
        }))
        .expect("a possible config")
    }

    fn weights(&self) -> GeneratedWeights {
        serde_json::from_value(json!({"seed": self.seed, "rules": [
            {"suffix": "norm.weight", "mean": 1.0, "std": 0.2},
            {"suffix": "embed_tokens.weight", "std": 1.0},
            {"suffix": "e_score_correction_bias", "std": 0.2},
            {"suffix": "weight", "gain": 1.2},
        ]}))
        .expect("rules")
    }

    /// t_0 to t_S.
    fn ids(&self) -> Vec<usize> {
        (0..=self.length).map(|i| splitmix64(self.seed + i as u64) as usize % VOCAB).collect()
    }

    /// h_0 to h_{S-1}: \[1,S,D\].
    fn hidden(&self) -> Array3<f64> {
        let number = |i: u64| (splitmix64(self.seed ^ 0xabcd ^ i) % 257) as f64 / 64.0 - 2.0;
        Array3::from_shape_fn((1, self.length, WIDTH), |(_, i, d)| number((i * WIDTH + d) as u64))
    }
}

/// A program that runs the module: weights, tokens t_0 to t_S, hidden states h_0 to h_{S-1} -> \[1,S,D\].
type Predictor = dyn Fn(&Module, &dyn WeightSource, &[usize], &Array3<f64>) -> Array3<f64>;

/// The module on the embeddings of tokens `first` to `first + S - 1`.
fn predict(module: &Module, weights: &dyn WeightSource, ids: &[usize], hidden: &Array3<f64>) -> Array3<f64> {
    let embeddings: Array2<f64> = weights.tensor("model.embed_tokens.weight", &[VOCAB, WIDTH]).unwrap().to_array();
    let embeds = embeddings.select(Axis(0), ids).insert_axis(Axis(0));
    MultiTokenPrediction::load(&module.config(), 2, weights)
        .unwrap()
        .forward(embeds.view(), hidden.view(), None)
        .unwrap()
}

fn next_tokens(module: &Module, weights: &dyn WeightSource, ids: &[usize], hidden: &Array3<f64>) -> Array3<f64> {
    predict(module, weights, &ids[1..], hidden)
}

#[test]
fn row_i_of_the_module_sees_states_up_to_i_and_tokens_up_to_i_plus_1() {
    // To the bit; and it does see both of them.
    for_all((modules(), any::<prop::sample::Index>()), |predictor: &Predictor, (module, at)| {
        let (weights, ids, hidden) = (module.weights(), module.ids(), module.hidden());
        let before = predictor(&module, &weights, &ids, &hidden);
        let at = at.index(module.length);

        let mut other_hidden = hidden.clone();
        other_hidden.slice_mut(s![.., at, ..]).mapv_inplace(|x| 1.0 - x * x);
        let mut other_ids = ids.clone();
        other_ids[at + 1] = (ids[at + 1] + 7) % VOCAB;
        let after =
            [predictor(&module, &weights, &ids, &other_hidden), predictor(&module, &weights, &other_ids, &hidden)];
        for after in after {
            prop_assert_eq!(after.slice(s![.., ..at, ..]), before.slice(s![.., ..at, ..]));
            prop_assert!(after.slice(s![.., at, ..]) != before.slice(s![.., at, ..]), "row {} does not see it", at);
        }
        Ok(())
    })
    .tried(64)
    .holds_for(&next_tokens)
    .fails_for("the token itself is embedded, not the next one", &|module, weights, ids, hidden| {
        predict(module, weights, &ids[..module.length], hidden)
    })
    .fails_for("the token after the next is embedded", &|module, weights, ids, hidden| {
        let ids: Vec<usize> = ids[2..].iter().chain(ids.last()).copied().collect();
        predict(module, weights, &ids, hidden)
    })
    .fails_for("the hidden states are shifted with the tokens", &|module, weights, ids, hidden| {
        let order: Vec<usize> = (1..module.length).chain([module.length - 1]).collect();
        next_tokens(module, weights, ids, &hidden.select(Axis(1), &order))
    });
}

/// Weights whose `eh_proj` is changed.
fn with_eh_proj(module: &Module, change: impl Fn(Array2<f64>) -> Array2<f64>) -> impl WeightSource {
    let weights = module.weights();
    Exchanged(module.weights(), move |name: &str, shape: &[usize]| {
        let eh_proj = || change(weights.tensor(name, shape).unwrap().to_array::<f64, Ix2>());
        name.ends_with("eh_proj.weight").then(|| Tensor::from_values(Dtype::F64, shape, eh_proj()))
    })
}

#[test]
fn the_first_half_of_eh_proj_is_the_tokens_and_the_second_the_hidden_states() {
    // Without one half, the other input is all that matters.
    for_all((modules(), any::<bool>()), |predictor: &Predictor, (module, tokens_only)| {
        let half = if tokens_only { WIDTH.. } else { 0.. };
        let weights = with_eh_proj(&module, |mut eh_proj| {
            eh_proj.slice_mut(s![.., half.clone()]).slice_mut(s![.., ..WIDTH]).fill(0.0);
            eh_proj
        });
        let (ids, hidden) = (module.ids(), module.hidden());
        let before = predictor(&module, &weights, &ids, &hidden);
        let other_hidden = predictor(&module, &weights, &ids, &hidden.mapv(|x| 1.0 - x * x));
        let other_ids: Vec<usize> = ids.iter().map(|id| (id + 7) % VOCAB).collect();
        let other_ids = predictor(&module, &weights, &other_ids, &hidden);
        prop_assert_eq!(other_hidden == before, tokens_only);
        prop_assert_eq!(other_ids == before, !tokens_only);
        Ok(())
    })
    .tried(48)
    .holds_for(&next_tokens)
    .fails_for("the hidden state comes first, as the report writes it", &|module, weights, ids, hidden| {
        let eh_proj = weights.tensor("model.layers.2.eh_proj.weight", &[WIDTH, 2 * WIDTH]).unwrap();
        let eh_proj = eh_proj.to_array::<f64, Ix2>();
        let order: Vec<usize> = (WIDTH..2 * WIDTH).chain(0..WIDTH).collect();
        let swapped = with_eh_proj(module, move |_| eh_proj.select(Axis(1), &order));
        next_tokens(module, &swapped, ids, hidden)
    });
}

#[test]
fn the_size_of_the_hidden_states_does_not_matter() {
    // `hnorm`: up to its epsilon, 1e-6 of the mean square (about 1 here). Measured: 8e-7.
    for_all((modules(), 1..=4_i32), |predictor: &Predictor, (module, exponent)| {
        let (weights, ids, hidden) = (module.weights(), module.ids(), module.hidden());
        let before = predictor(&module, &weights, &ids, &hidden);
        let error = distance(&predictor(&module, &weights, &ids, &(hidden * f64::from(exponent).exp2())), &before);
        prop_assert!(error < 1e-4, "{error:e}");
        Ok(())
    })
    .tried(48)
    .holds_for(&next_tokens)
    .fails_for("hnorm is left out", &|module, _, ids, hidden| {
        // The norm undone: its input's root mean square goes behind it.
        let rms = (hidden.mapv(|x| x * x).sum() / hidden.len() as f64).sqrt();
        let loud = with_eh_proj(module, |mut eh_proj| {
            eh_proj.slice_mut(s![.., WIDTH..]).mapv_inplace(|w| w * rms);
            eh_proj
        });
        next_tokens(module, &loud, ids, hidden)
    });
}

//! The extensions of `deepseek_v3` against Transformers' DeepSeek-V3 (`golden/deepseek_v3`, made by
//! `golden/export/dsv2_export/deepseek_v3.py`).

use std::fs;
use std::path::PathBuf;

use dsv2_reference::deepseek_v3::config_from_value;
use dsv2_reference::deepseek_v3::mtp::MultiTokenPrediction;
use dsv2_reference::deepseek_v3::router::BiasCorrectedRule;
use dsv2_reference::model::linear::Linear;
use dsv2_reference::model::router::Groups;
use dsv2_reference::model::router::selection::{best, experts_of_best_groups, highest};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{Dtype, Real, Tensor};
use ndarray::{Array, Array1, Array2, Array3, Dimension, IntoDimension, s};
use safetensors::SafeTensors;
use serde_json::{Value, json};

struct Golden {
    cases: Value,
    tensors: Vec<u8>,
}

impl Golden {
    fn read() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../golden/deepseek_v3");
        let file = |name: &str| fs::read(folder.join(name)).unwrap();
        Golden { cases: serde_json::from_slice(&file("cases.json")).unwrap(), tensors: file("expected.safetensors") }
    }

    /// Name and description of all `routers` or `modules`.
    fn all(&self, kind: &str) -> Vec<(String, Value)> {
        let cases = self.cases[kind].as_object().unwrap();
        assert!(cases.len() >= 2);
        cases.iter().map(|(name, case)| (format!("{kind}.{name}"), case.clone())).collect()
    }

    /// Shape and little-endian numbers of `size` bytes.
    fn tensor<const SIZE: usize, D: Dimension, V>(&self, name: &str, number: impl Fn([u8; SIZE]) -> V) -> Array<V, D> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = file.tensor(name).unwrap();
        let (numbers, rest) = tensor.data().as_chunks::<SIZE>();
        assert!(rest.is_empty() && tensor.dtype().bitsize() == 8 * SIZE);
        let numbers = numbers.iter().map(|bytes| number(*bytes)).collect();
        Array::from_shape_vec(tensor.shape().into_dimension(), numbers).unwrap().into_dimensionality().unwrap()
    }

    fn real<T: Real, D: Dimension>(&self, name: &str) -> Array<T, D> {
        self.tensor(name, |bytes| T::from_f32(f32::from_le_bytes(bytes)))
    }

    fn index<D: Dimension>(&self, name: &str) -> Array<i64, D> {
        self.tensor(name, i64::from_le_bytes)
    }
}

/// |found - expected| / |expected|.
fn relative_error<T: Real, D: Dimension>(found: &Array<T, D>, expected: &Array<T, D>) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| Real::to_f64(*a) - Real::to_f64(*b)));
    difference / norm(&mut expected.iter().map(|b| Real::to_f64(*b)))
}

fn routes_like_transformers<T: Real>() {
    let golden = Golden::read();
    for (name, fields) in golden.all("routers") {
        let config = config_from_value(fields).unwrap();
        let rule = BiasCorrectedRule::<T>::from_config(&config).unwrap();
        let bias: Array1<T> = golden.real(&format!("{name}.e_score_correction_bias"));
        let weight: Array2<f64> = golden.real(&format!("{name}.weight"));
        let gate = Linear::<T>::new(Tensor::from_values(Dtype::F32, weight.shape(), weight.iter().copied()), None);
        let hidden: Array2<T> = golden.real(&format!("{name}.hidden"));

        let routing = rule.route(gate.forward(hidden.view()), bias.view()).unwrap();
        assert_eq!(routing.topk_indices, golden.index(&format!("{name}.topk_indices")), "{name}");
        let error = relative_error(&routing.router_logits, &golden.real(&format!("{name}.router_logits")));
        assert!(error < 2e-7, "{name}: router_logits {error:e}");
        let error = relative_error(&routing.topk_weights, &golden.real(&format!("{name}.topk_weights")));
        // e^-x of x near 47 turns the rounding of a logit, 47 u, into as much of the weight.
        assert!(error < if name.ends_with("tiny-scores") { 2e-6 } else { 2e-7 }, "{name}: topk_weights {error:e}");
    }
}

#[test]
fn the_router_routes_like_transformers() {
    routes_like_transformers::<f64>();
    routes_like_transformers::<f32>();
}

#[test]
fn the_goldens_choose_otherwise_without_biases_and_by_the_best_of_a_group() {
    // Else they would prove little.
    let golden = Golden::read();
    let mut by_best = 0;
    for (name, fields) in golden.all("routers") {
        let config = config_from_value(fields.clone()).unwrap();
        let rule = BiasCorrectedRule::<f64>::from_config(&config).unwrap();
        let logits: Array2<f64> = golden.real(&format!("{name}.router_logits"));
        let bias: Array1<f64> = golden.real(&format!("{name}.e_score_correction_bias"));
        let chosen: Array2<i64> = golden.index(&format!("{name}.topk_indices"));

        let unbiased = rule.route(logits.clone(), Array1::zeros(bias.len()).view()).unwrap().topk_indices;
        assert!(unbiased.rows().into_iter().zip(chosen.rows()).any(|(a, b)| a != b), "{name}: biases do not matter");

        let groups = Groups::contiguous(bias.len(), config.n_group.unwrap()).unwrap();
        for (logits, chosen) in logits.rows().into_iter().zip(chosen.rows()) {
            let choice = logits.mapv(|z| 1.0 / (1.0 + (-z).exp())) + &bias;
            let candidates = experts_of_best_groups(&groups, choice.view(), config.topk_group.unwrap(), best);
            let wrong = highest(candidates, choice.view(), chosen.len());
            by_best += usize::from(wrong.iter().map(|&e| e as i64).ne(chosen.iter().copied()));
        }
    }
    assert!(by_best >= 20, "V2's score of a group chooses otherwise for {by_best} tokens only");
}

/// What a module computes from Transformers' own hidden states: what goes into the head, and the logits.
fn module<T: Real>(
    golden: &Golden,
    name: &str,
    case: &Value,
    positions: Option<&Array2<i64>>,
) -> (Array3<T>, Array3<T>) {
    let config = config_from_value(case["config"].clone()).unwrap();
    let weights: GeneratedWeights = serde_json::from_value(case["weights"].clone()).unwrap();
    let module = MultiTokenPrediction::<T>::load(&config, config.num_hidden_layers, &weights).unwrap();
    let (vocab, width) = (config.vocab_size, config.hidden_size);
    let embeddings: Array2<T> = weights.tensor("model.embed_tokens.weight", &[vocab, width]).unwrap().to_array();
    let ids: Array2<i64> = golden.index(&format!("{name}.input_ids"));
    let next = ids.slice(s![.., 1..]);
    let embeds = Array3::from_shape_fn((2, next.ncols(), width), |(b, i, d)| embeddings[[next[[b, i]] as usize, d]]);
    let hidden: Array3<T> = golden.real(&format!("{name}.last_hidden_states"));
    let hidden = module.forward(embeds.view(), hidden.view(), positions).unwrap();
    let lm_head = Linear::load(&weights, "lm_head", vocab, width, false).unwrap();
    let logits = lm_head.forward_3d(hidden.view());
    (hidden, logits)
}

fn predicts_like_transformers<T: Real>(bound: f64) {
    let golden = Golden::read();
    for (name, case) in golden.all("modules") {
        let positions: Array2<i64> = golden.index(&format!("{name}.position_ids"));
        // Positions may count from 0 as well: only their differences matter.
        for positions in [Some(&positions), None] {
            let (hidden, logits) = module::<T>(&golden, &name, &case, positions);
            let error = relative_error(&hidden, &golden.real(&format!("{name}.hidden_states")));
            assert!(error < bound, "{name}: hidden_states {error:e}");
            let error = relative_error(&logits, &golden.real(&format!("{name}.logits")));
            assert!(error < bound, "{name}: logits {error:e}");
        }
    }
}

#[test]
fn the_module_for_multi_token_prediction_computes_what_transformers_computes() {
    predicts_like_transformers::<f64>(1e-6); // 4.4e-7
    predicts_like_transformers::<f32>(1e-6);
}

#[test]
fn a_wrong_shape_is_refused_in_one_line() {
    let golden = Golden::read();
    let case = &golden.cases["modules"]["like-v3"];
    let config = config_from_value(case["config"].clone()).unwrap();
    let weights: GeneratedWeights = serde_json::from_value(case["weights"].clone()).unwrap();
    let module = MultiTokenPrediction::<f64>::load(&config, 2, &weights).unwrap();
    let zeros = |length, width| Array3::<f64>::zeros((1, length, width));
    for (embeds, hidden, refusal) in [
        (
            zeros(3, 32),
            zeros(3, 8),
            "input `hidden`: expected shape [B, S, 32] of one token or more, found shape [1, 3, 8]",
        ),
        (
            zeros(2, 32),
            zeros(3, 32),
            "input `embeds`: expected shape [1, 3, 32], as the hidden states, found shape [1, 2, 32]",
        ),
    ] {
        assert_eq!(module.forward(embeds.view(), hidden.view(), None).unwrap_err().to_string(), refusal);
    }
    let refused = config_from_value(json!({"model_type": "deepseek_v3", "topk_method": "greedy"})).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "config: topk_method: expected \"noaux_tc\" in a DeepSeek-V3 with the parts that are here, found \"greedy\""
    );
}

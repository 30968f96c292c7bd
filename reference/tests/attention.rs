//! Checklist items 26 to 33: multi-head latent attention.

use crate::common::{Stages, asked_for, config, difference, ids, input, logits, model, weight, weights};
use approx::assert_abs_diff_eq;
use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{AttentionForm, Dialect, LatentCache, NoTap, Run};
use ndarray::{Array1, Array3, Array4, ArrayView1, s};
use serde_json::{Value, json};

pub const ABSORBED: Run = Run {
    attention: AttentionForm::Absorbed,
    output_hidden_states: false,
    output_attentions: false,
    output_router_logits: false,
};

/// softmax(q k^T s) v for one head, one number at a time: no matrix product, no mask, no cache.
fn attend(q: &[Array1<f64>], k: &[Array1<f64>], v: &[ArrayView1<f64>], scale: f64) -> Vec<Array1<f64>> {
    let one = |t: usize| {
        let scores: Vec<f64> =
            (0..=t).map(|j| scale * q[t].iter().zip(&k[j]).map(|(q, k)| q * k).sum::<f64>()).collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        (0..=t).fold(Array1::zeros(v[0].len()), |o, j| o + &v[j].mapv(|v| v * scores[j].exp() / sum))
    };
    (0..q.len()).map(one).collect()
}

/// The output of layer 0's attention, computed from its input (stage `input_layernorm`) with nothing but the weights.
fn attention_by_hand(patch: &Value, stages: &Stages<f64>) -> Array3<f64> {
    let config = config(patch.clone());
    let (h, n, r, c) = (4, config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank);
    let v = config.v_head_dim;
    let x = stages.d3("model.layers.0.input_layernorm");
    let (cos, sin) = (stages.d3("model.rotary_emb.cos"), stages.d3("model.rotary_emb.sin"));
    let path = |name: &str| format!("model.layers.0.self_attn.{name}");
    let w = |name: &str, rows, columns| weight(&path(&format!("{name}.weight")), [rows, columns]);
    let bias = |name: &str, len: usize| -> Array1<f64> {
        let bias = || weights().tensor(&path(&format!("{name}.bias")), &[len]).unwrap().to_array();
        if config.attention_bias { bias() } else { Array1::zeros(len) }
    };
    let rms = |x: Array1<f64>, name: &str| {
        let gain: Array1<f64> = weights().tensor(&path(&format!("{name}.weight")), &[x.len()]).unwrap().to_array();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x / (mean + 1e-6).sqrt() * gain
    };
    let turn = |x: ArrayView1<f64>, t: usize| {
        Array1::from_shape_fn(r, |e| {
            let (i, (cos, sin)) = (e / 2 * 2, (cos[[0, t, e / 2]], sin[[0, t, e / 2]]));
            if e % 2 == 0 { x[i] * cos - x[i + 1] * sin } else { x[i] * sin + x[i + 1] * cos }
        })
    };
    let scale = dsv2_reference::model::rope::softmax_scale(&config, Dialect::Hf).unwrap();

    let mut output = Array3::zeros(x.dim());
    for b in 0..x.dim().0 {
        let mut queries = vec![Vec::new(); h];
        let mut keys = vec![Vec::new(); h];
        let mut expanded = Vec::new();
        for t in 0..x.dim().1 {
            let x = x.slice(s![b, t, ..]);
            let q = match config.q_lora_rank {
                None => w("q_proj", h * (n + r), 32).dot(&x),
                Some(rank) => {
                    let latent = w("q_a_proj", rank, 32).dot(&x) + bias("q_a_proj", rank);
                    w("q_b_proj", h * (n + r), rank).dot(&rms(latent, "q_a_layernorm"))
                }
            };
            let kv_a = w("kv_a_proj_with_mqa", c + r, 32).dot(&x) + bias("kv_a_proj_with_mqa", c + r);
            let kv = w("kv_b_proj", h * (n + v), c).dot(&rms(kv_a.slice(s![..c]).to_owned(), "kv_a_layernorm"));
            let k_pe = turn(kv_a.slice(s![c..]), t);
            for head in 0..h {
                let q = q.slice(s![head * (n + r)..(head + 1) * (n + r)]);
                let k_nope = kv.slice(s![head * (n + v)..head * (n + v) + n]);
                queries[head].push(q.slice(s![..n]).iter().copied().chain(turn(q.slice(s![n..]), t)).collect());
                keys[head].push(k_nope.iter().copied().chain(k_pe.clone()).collect());
            }
            expanded.push(kv);
        }
        let mut heads = vec![Vec::new(); x.dim().1];
        for head in 0..h {
            let values: Vec<_> =
                expanded.iter().map(|kv| kv.slice(s![head * (n + v) + n..(head + 1) * (n + v)])).collect();
            let attended = attend(&queries[head], &keys[head], &values, scale);
            heads.iter_mut().zip(attended).for_each(|(heads, one)| heads.extend(one));
        }
        for (t, heads) in heads.into_iter().enumerate() {
            let o = w("o_proj", 32, h * v).dot(&Array1::from_vec(heads)) + bias("o_proj", 32);
            output.slice_mut(s![b, t, ..]).assign(&o);
        }
    }
    output
}

#[test]
fn attention_is_the_papers_formula_with_and_without_query_compression_and_bias() {
    for patch in [
        json!({}),
        json!({"q_lora_rank": null}),
        json!({"attention_bias": true}),
        json!({"attention_bias": true, "q_lora_rank": null}),
        json!({"v_head_dim": 3}),
        json!({"v_head_dim": 21, "rms_norm_eps": 0.5}),
    ] {
        let model = model::<f64>(patch.clone());
        for run in [Run::default(), ABSORBED] {
            let (_, stages) = Stages::of(&model, &input(ids(2, 7)), &run, |_, _| {});
            let expected = attention_by_hand(&patch, &stages);
            let found = stages.d3("model.layers.0.self_attn.o_proj");
            assert_abs_diff_eq!(found, expected, epsilon = 1e-12);
            assert!(found.iter().any(|x| x.abs() > 0.5), "the weights are hot");
        }
    }
}

#[test]
fn a_query_is_compressed_if_and_only_if_q_lora_rank_is_set() {
    let has = |patch: Value, stage: &str| {
        Stages::of_ids(&model::<f64>(patch), ids(1, 2)).has(&format!("model.layers.0.self_attn.{stage}"))
    };
    for stage in ["q_a_proj", "q_a_layernorm", "q_b_proj"] {
        assert!(has(json!({}), stage) && !has(json!({"q_lora_rank": null}), stage));
    }
    assert!(!has(json!({}), "q_proj") && has(json!({"q_lora_rank": null}), "q_proj"));
}

#[test]
fn attention_bias_is_on_exactly_three_projections() {
    let biases = |patch: Value| -> Vec<String> {
        let ours = |name: &String| name.starts_with("model.layers.0.") && name.ends_with(".bias");
        let mut biases: Vec<_> = asked_for(patch.clone()).into_iter().filter(ours).collect();
        biases.sort();
        let listed = config(patch).weight_shapes(Head::CausalLm, Dialect::Hf).into_iter().map(|(name, _)| name);
        let mut listed: Vec<_> = listed.filter(ours).collect();
        listed.sort();
        assert_eq!(biases, listed);
        biases
    };
    let at = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("model.layers.0.self_attn.{name}.bias")).collect()
    };
    assert_eq!(biases(json!({"attention_bias": true})), at(&["kv_a_proj_with_mqa", "o_proj", "q_a_proj"]));
    assert_eq!(biases(json!({"attention_bias": true, "q_lora_rank": null})), at(&["kv_a_proj_with_mqa", "o_proj"]));
    assert_eq!(biases(json!({})), at(&[]));
}

#[test]
fn the_norms_of_the_latents_keep_their_epsilon_whatever_rms_norm_eps_is() {
    let stages = Stages::of_ids(&model::<f64>(json!({"rms_norm_eps": 0.5})), ids(1, 4));
    // What a norm multiplies its input by, besides the gain.
    let scale = |x: ArrayView1<f64>, y: ArrayView1<f64>, gain: &Array1<f64>| y[0] / (x[0] * gain[0]);
    let gain = |name: &str, len: usize| -> Array1<f64> {
        weights().tensor(&format!("model.layers.0.{name}.weight"), &[len]).unwrap().to_array()
    };
    let inverse_root = |x: ArrayView1<f64>, eps: f64| (x.dot(&x) / x.len() as f64 + eps).powf(-0.5);
    let at = |name: &str| stages.d3(&format!("model.layers.0.self_attn.{name}"));
    let (q_a, q_normed) = (at("q_a_proj"), at("q_a_layernorm"));
    let (kv_a, kv_normed) = (at("kv_a_proj_with_mqa"), at("kv_a_layernorm"));
    let (embedded, normed) = (stages.d3("model.embed_tokens"), stages.d3("model.layers.0.input_layernorm"));
    for t in 0..4 {
        let (x, y) = (q_a.slice(s![0, t, ..]), q_normed.slice(s![0, t, ..]));
        assert_abs_diff_eq!(scale(x, y, &gain("self_attn.q_a_layernorm", 14)), inverse_root(x, 1e-6), epsilon = 1e-13);
        let (x, y) = (kv_a.slice(s![0, t, ..12]), kv_normed.slice(s![0, t, ..]));
        assert_abs_diff_eq!(scale(x, y, &gain("self_attn.kv_a_layernorm", 12)), inverse_root(x, 1e-6), epsilon = 1e-13);
        let (x, y) = (embedded.slice(s![0, t, ..]), normed.slice(s![0, t, ..]));
        assert_abs_diff_eq!(scale(x, y, &gain("input_layernorm", 32)), inverse_root(x, 0.5), epsilon = 1e-13);
    }
}

#[test]
fn a_value_may_be_narrower_or_wider_than_a_key() {
    for v in [1, 14, 30] {
        let model = model::<f64>(json!({"v_head_dim": v}));
        let stages = Stages::of_ids(&model, ids(1, 3));
        assert_eq!(stages.d3("model.layers.0.self_attn.attn_output").dim(), (1, 3, 4 * v));
    }
}

#[test]
fn absorbed_and_expanded_attention_are_the_same_function() {
    for patch in [json!({}), json!({"q_lora_rank": null, "v_head_dim": 3}), json!({"num_attention_heads": 8})] {
        let model = model::<f64>(patch);
        let (expanded, _) = Stages::of(&model, &input(ids(2, 11)), &Run::default(), |_, _| {});
        let (absorbed, stages) = Stages::of(&model, &input(ids(2, 11)), &ABSORBED, |_, _| {});
        assert_abs_diff_eq!(expanded.logits, absorbed.logits, epsilon = 1e-13);
        assert!(difference(&expanded.logits, &absorbed.logits) > 0.0, "the forms are computed differently");
        assert!(!stages.has("model.layers.0.self_attn.kv_b_proj"));
    }
}

#[test]
fn absorbed_and_expanded_agree_to_1e_13_in_each_layer() {
    let model = model::<f64>(json!({}));
    let (_, expanded) = Stages::of(&model, &input(ids(2, 11)), &Run::default(), |_, _| {});
    let (_, absorbed) = Stages::of(&model, &input(ids(2, 11)), &ABSORBED, |_, _| {});
    for layer in 0..3 {
        let name = format!("model.layers.{layer}.self_attn.attn_weights");
        assert_abs_diff_eq!(expanded.d4(&name), absorbed.d4(&name), epsilon = 1e-13);
        let name = format!("model.layers.{layer}.self_attn.attn_output");
        assert_abs_diff_eq!(expanded.d3(&name), absorbed.d3(&name), epsilon = 1e-13);
    }
}

#[test]
fn both_forms_may_take_turns_over_one_cache() {
    let model = model::<f64>(json!({}));
    let whole = logits(&model, &input(ids(2, 6)));
    let mut cache = LatentCache::new(model.model().config(), 2);
    for t in 0..6 {
        let token = ids(2, 6).slice(s![.., t..t + 1]).to_owned();
        let run = if t % 2 == 0 { ABSORBED } else { Run::default() };
        let step = model.forward(&input(token), Some(&mut cache), &run, &mut NoTap).unwrap().logits;
        assert_abs_diff_eq!(step, whole.slice(s![.., t..t + 1, ..]), epsilon = 1e-12);
    }
}

#[test]
fn attention_weights_are_a_distribution_over_past_tokens() {
    let run = Run { output_attentions: true, ..Run::default() };
    let (output, stages) = Stages::of(&model::<f64>(json!({})), &input(ids(2, 9)), &run, |_, _| {});
    let attentions = output.attentions.unwrap();
    assert_eq!(attentions.len(), 3);
    for (layer, weights) in attentions.iter().enumerate() {
        assert_eq!(weights.dim(), (2, 4, 9, 9));
        for ((_, _, q, t), &p) in weights.indexed_iter() {
            assert!(if t > q { p == 0.0 } else { p > 0.0 && p <= 1.0 });
        }
        weights.rows().into_iter().for_each(|row| assert_abs_diff_eq!(row.sum(), 1.0, epsilon = 1e-14));
        assert_eq!(weights, stages.d4(&format!("model.layers.{layer}.self_attn.attn_weights")));
        let sharp = weights.slice(s![.., .., 8, ..]).iter().copied().fold(0.0, f64::max);
        assert!(sharp > 0.4, "hot weights make sharp attention, {sharp}");
    }
}

#[test]
fn dropout_is_for_training_and_has_no_effect() {
    let without = logits(&model::<f64>(json!({})), &input(ids(1, 5)));
    assert_eq!(logits(&model::<f64>(json!({"attention_dropout": 0.9})), &input(ids(1, 5))), without);
}

#[test]
fn the_scores_are_scaled_products_of_both_parts_of_queries_and_keys() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(1, 5));
    let at = |name: &str| format!("model.layers.1.self_attn.{name}");
    let (q, q_pe) = (stages.d3(&at("q_b_proj")), stages.d4(&at("q_pe")));
    let (kv, k_pe) = (stages.d3(&at("kv_b_proj")), stages.d4(&at("k_pe")));
    let mscale = 0.1 * 0.707 * 40_f64.ln() + 1.0;
    let scale = mscale * mscale / 14_f64.sqrt();
    let by_hand = Array4::from_shape_fn((1, 4, 5, 5), |(_, h, i, j)| {
        if j > i {
            return f64::NEG_INFINITY;
        }
        let nope: f64 = (0..6).map(|e| q[[0, i, 14 * h + e]] * kv[[0, j, 16 * h + e]]).sum();
        let rope: f64 = (0..8).map(|e| q_pe[[0, h, i, e]] * k_pe[[0, 0, j, e]]).sum();
        scale * (nope + rope)
    });
    let found = stages.d4(&at("attn_scores"));
    for (found, by_hand) in found.iter().zip(&by_hand) {
        assert!(found == by_hand || (found - by_hand).abs() < 1e-13, "{found} {by_hand}");
    }
}

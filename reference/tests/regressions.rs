//! One test for each bug that was found in this crate.

use crate::common::{config, ids, input, input_with, logits_after, model, weights};
use dsv2_reference::{
    CausalLmInput, CausalLmLabels, ClassificationLabels, DeepseekV2ForSequenceClassification, Dialect, LatentCache,
    ModelInput, NoTap, Run, StageValue,
};
use ndarray::{Array2, array};
use serde_json::json;

#[test]
fn a_failed_pass_does_not_move_the_state_of_dynamic_rope() {
    let rope = json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8});
    let model = model::<f64>(rope);
    let mut cache = LatentCache::new(model.model().config(), 1);
    logits_after(&model, &mut cache, &input(ids(1, 4)));
    let mut untouched = cache.clone();
    let labels = Some(CausalLmLabels::new(Array2::from_elem((1, 20), 99)));
    let impossible = CausalLmInput { labels, ..input(ids(1, 20)) };
    assert!(model.forward(&impossible, Some(&mut cache), &Run::default(), &mut NoTap).is_err());
    let next = input(ids(1, 5));
    assert_eq!(logits_after(&model, &mut cache, &next), logits_after(&model, &mut untouched, &next));
}

#[test]
fn a_failed_pass_of_the_classifier_leaves_the_cache_as_it_was() {
    let config = config(json!({"num_labels": 3}));
    let model = DeepseekV2ForSequenceClassification::<f64>::load(&config, Dialect::Hf, &weights()).unwrap();
    let mut cache = LatentCache::new(&config, 1);
    let labels = ClassificationLabels::Class(array![7]);
    let result =
        model.forward(&ModelInput::ids(ids(1, 4)), Some(&labels), Some(&mut cache), &Run::default(), &mut NoTap);
    assert!(result.is_err());
    assert_eq!(cache.len(), 0);
}

#[test]
fn a_router_logit_that_is_no_number_is_not_hidden() {
    let model = model::<f64>(json!({"num_hidden_layers": 2}));
    let mut spoil = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Real(mut value)) = (name.ends_with("router_logits"), value) {
            value.fill(f64::NAN);
        }
    };
    let output = model.forward(&input(ids(1, 3)), None, &Run::default(), &mut spoil).unwrap();
    assert!(output.logits.iter().all(|x| x.is_nan()));
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(&config(json!({"kv_lora_rank": 10})), 1);
    let error = model.forward(&input(ids(1, 3)), Some(&mut cache), &Run::default(), &mut NoTap).unwrap_err();
    assert!(error.to_string().starts_with("input `past_key_values`: expected "), "{error}");
}

#[test]
fn the_largest_position_does_not_overflow() {
    let model = model::<f64>(json!({}));
    let input = input_with(ids(1, 1), None, Some(array![[i64::MAX]]));
    model.forward(&input, None, &Run::default(), &mut NoTap).unwrap();
}

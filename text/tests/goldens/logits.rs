use dsv2_text::{GenerationConfig, Lengths, LogitsProcessors, Sampler};
use serde_json::{Value, json};

use super::{golden, ids, list, object, text};

fn logits(values: &Value) -> Vec<f32> {
    let number = |value: &Value| match value.as_str() {
        Some("-inf") => f32::NEG_INFINITY,
        _ => value.as_f64().unwrap() as f32,
    };
    list(values).iter().map(number).collect()
}

#[test]
fn after_each_processor_logits_are_those_of_transformers_to_the_bit() {
    for case in list(&golden("logits.json")) {
        let mut settings = object(&case["settings"]).clone();
        settings.insert("max_new_tokens".into(), 10.into());
        let config = GenerationConfig::from_json(object(&json!({"eos_token_id": [3, 2]})), &settings).unwrap();
        let lengths = Lengths::new(&config, case["prompt"].as_u64().unwrap() as usize, Some(64)).unwrap();
        let padding = case["padding"].as_u64().unwrap() as usize;
        let mut current = logits(&case["logits"]);
        let processors = LogitsProcessors::new(&config, &lengths, padding, current.len()).unwrap();
        let row = ids(&case["row"]);
        // Where `min_new_tokens` is set, Transformers has two that do the same.
        let expected: Vec<&Value> = list(&case["after"])
            .iter()
            .filter(|after| text(&after[0]) != "MinNewTokensLengthLogitsProcessor")
            .collect();
        let names: Vec<&str> = expected.iter().map(|after| text(&after[0])).collect();
        assert_eq!(
            processors.list().iter().map(|processor| processor.name()).collect::<Vec<_>>(),
            names,
            "{settings:?}"
        );
        for (processor, after) in processors.list().iter().zip(expected) {
            processor.apply(&row, &mut current);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&current), bits(&logits(&after[1])), "{settings:?}: {}", text(&after[0]));
        }
        let mut at_once = logits(&case["logits"]);
        processors.apply(&row, &mut at_once).unwrap();
        assert_eq!(at_once, current);
        assert_eq!(Sampler::Greedy.choose(&current, 0, 0).unwrap(), case["argmax"].as_i64().unwrap(), "{settings:?}");
    }
}

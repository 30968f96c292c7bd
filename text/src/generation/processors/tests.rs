use super::*;
use serde_json::json;

#[test]
fn what_has_no_sense_is_refused_in_one_line() {
    let config = |settings: serde_json::Value| {
        GenerationConfig::from_json(settings.as_object().unwrap(), &serde_json::Map::new()).unwrap()
    };
    let plain = config(json!({}));
    let lengths = Lengths::new(&plain, 2, None).unwrap();
    let biased = config(json!({"sequence_bias": [[[1, 9], 0.5]]}));
    let refused = LogitsProcessors::new(&biased, &lengths, 0, 9).unwrap_err().to_string();
    assert_eq!(refused, "generation config: `sequence_bias`: expected tokens below 9, found 9");
    let processors = LogitsProcessors::new(&plain, &lengths, 0, 2).unwrap();
    let refused = processors.apply(&[1, 2], &mut [0.0, f32::NAN]).unwrap_err().to_string();
    assert_eq!(refused, "logits: expected numbers, found NaN for token 1");
}

#[test]
fn tokens_of_a_row_that_are_in_no_vocabulary_change_nothing() {
    let penalty = LogitsProcessor::RepetitionPenalty { penalty: 2.0, padding_ends: 0 };
    let mut logits = [1.0, -1.0, 3.0];
    penalty.apply(&[0, 1, 1, 99, -5], &mut logits);
    assert_eq!(logits, [0.5, -2.0, 3.0]);
    LogitsProcessor::SuppressTokens(vec![2, 99]).apply(&[], &mut logits);
    assert_eq!(logits, [0.5, -2.0, f32::NEG_INFINITY]);
}

use std::fs;

use dsv2_text::{FinishReason, StopStrings, Tokenizer};
use serde_json::Value;

use super::{folder, golden, ids, list, text};

/// How many tokens it takes, which string stops, and the text before it.
fn stopped(tokenizer: &Tokenizer, tokens: &[i64], strings: &[String]) -> (Option<usize>, Option<String>, String) {
    let mut answer = StopStrings::new(tokenizer, strings, true);
    let mut said = String::new();
    for (count, token) in (1..).zip(tokens) {
        let piece = answer.push(*token).unwrap();
        said += &piece.text;
        if let Some(FinishReason::StopString(string)) = piece.stopped {
            return (Some(count), Some(string), said);
        }
    }
    said += &answer.finish().unwrap();
    (None, None, said)
}

#[test]
fn answers_stop_at_the_token_at_which_transformers_stops() {
    let tokenizer = fs::read(folder().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes(&tokenizer, None).unwrap();
    for case in list(&golden("stops.json")) {
        let strings: Vec<String> = list(&case["strings"]).iter().map(|string| text(string).to_owned()).collect();
        let (count, string, said) = stopped(&tokenizer, &ids(&case["ids"]), &strings);
        assert_eq!(count, case["stopped"].as_u64().map(|count| count as usize), "{case}");
        assert_eq!(string.map_or(Value::Null, Value::String), case["string"], "{case}");
        assert_eq!(said, text(&case["text"]), "{case}");
    }
}

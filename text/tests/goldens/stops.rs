use std::fs;

use dsv2_text::{FinishReason, StopStrings, Tokenizer};
use serde_json::Value;

use super::{folder, golden, ids, list, text};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(&fs::read(folder().join("tokenizer.json")).unwrap(), None).unwrap()
}

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
    let tokenizer = tokenizer();
    for case in list(&golden("stops.json")) {
        let strings: Vec<String> = list(&case["strings"]).iter().map(|string| text(string).to_owned()).collect();
        let (count, string, said) = stopped(&tokenizer, &ids(&case["ids"]), &strings);
        assert_eq!(count, case["stopped"].as_u64().map(|count| count as usize), "{case}");
        assert_eq!(string.map_or(Value::Null, Value::String), case["string"], "{case}");
        assert_eq!(said, text(&case["text"]), "{case}");
    }
}

#[test]
fn nothing_comes_after_a_stop_string_and_all_comes_without_one() {
    let tokenizer = tokenizer();
    let said = |text: &str, stop: &[&str]| {
        let strings: Vec<String> = stop.iter().map(|string| (*string).to_owned()).collect();
        let mut answer = StopStrings::new(&tokenizer, &strings, true);
        let mut said = String::new();
        for id in tokenizer.encode(text, false).unwrap() {
            let piece = answer.push(id).unwrap();
            said += &piece.text;
            if piece.stopped.is_some() {
                break;
            }
        }
        said + &answer.finish().unwrap()
    };
    assert_eq!(said("a 😀 b", &["😀"]), "a ");
    assert_eq!(said("a 😀 b sto", &["stop"]), "a 😀 b sto");
    assert_eq!(said("a 😀 b", &[]), "a 😀 b");
}

//! What is no transcript, or an odd one.

use serde_json::{Value, json};

use super::super::judge::{Outcome, Part};
use super::{Model, Transcript, judged};
use crate::precision::Precision;
use crate::transcripts::record::Taken;

const VOCABULARY: usize = 1024;
/// " gives", which follows "The router".
const GIVES: i64 = 626;

/// A right transcript of a token, and what is changed of it.
fn line(change: impl FnOnce(&mut Value)) -> String {
    let mut transcript = json!({
        "request": {"prompt": "The router", "max_tokens": 1, "temperature": 0},
        "response": {
            "choices": [{"text": " gives", "token_ids": [GIVES], "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        },
    });
    change(&mut transcript);
    transcript.to_string()
}

fn choice(transcript: &mut Value) -> &mut Value {
    &mut transcript["response"]["choices"][0]
}

#[test]
fn what_is_no_transcript_is_refused_with_what_was_expected_and_found() {
    let request = |name: &'static str, value: Value| line(move |t| t["request"][name] = value);
    let nested = format!("{{\"request\": {}1{}}}", "[".repeat(300), "]".repeat(300));
    let refused = [
        "NaN".to_owned(),
        "[]".to_owned(),
        "{\"request\": {}}".to_owned(),
        nested,
        line(|t| t["response"] = json!("<html>")),
        line(|t| t["response"]["choices"] = json!([{}, {}])),
        line(|t| t["response"]["choices"] = Value::Null),
        line(|t| choice(t)["token_ids"] = json!([1.5])),
        line(|t| choice(t)["token_ids"] = json!(["1"])),
        line(|t| choice(t)["logprobs"] = json!({"content": [{"token": "a", "logprob": "NaN"}]})),
        line(|t| choice(t)["text"] = json!("?")).replace("?", "\\ud800"),
        line(|t| t["response"]["usage"]["prompt_tokens"] = json!(-1)),
        line(|_| ()).replace("\"temperature\":0", "\"temperature\":1e999"),
        request("n", json!(2)),
        request("temperature", json!("NaN")),
        request("max_tokens", json!(-1)),
    ];
    for line in refused {
        let (expected, found) = Transcript::from_json(&line, VOCABULARY).expect_err(&line);
        assert!(!expected.is_empty() && !found.is_empty(), "{line}");
    }
}

#[test]
fn a_line_whose_request_or_answer_is_at_fault_says_so_and_ends_nothing() {
    let request = |name: &'static str, value: Value| line(move |t| t["request"][name] = value);
    let impossible = [
        request("prompt", Value::Null),
        request("prompt", json!([])),
        request("prompt", json!([-1])),
        request("prompt", json!([VOCABULARY])),
        request("messages", json!([])),
        request("n", json!(0)),
        request("temperature", json!(-1)),
        request("temperature", json!(1e-300)),
        request("top_p", json!(2)),
        request("min_p", json!(-0.5)),
        request("repetition_penalty", json!(0)),
        request("presence_penalty", json!(0.5)),
        request("logit_bias", json!({"x": 1})),
        request("logit_bias", json!({"1024": 1})),
        request("logit_bias", json!({"1": 1e300})),
        request("stop", json!("")),
        request("response_format", json!({"type": "json_object"})),
        request("best_of", json!(4)),
        request("suffix", json!(" of it")),
        request("guided_regex", json!("a*")),
    ];
    for line in impossible {
        let taken = Transcript::from_json(&line, VOCABULARY).unwrap();
        assert!(matches!(&taken, Taken::NotJudged(why) if why.contains("expected")), "{line}: {taken:?}");
    }
    let errors = [
        (line(|t| t["response"] = json!({"error": {"message": "out of memory", "code": 500}})), "out of memory"),
        (line(|t| t["response"] = json!({"error": "out of memory"})), "out of memory"),
        (line(|t| t["response"]["choices"] = json!([])), "without choices"),
        (line(|t| t["response"] = json!({})), "without choices"),
    ];
    for (line, says) in errors {
        let taken = Transcript::from_json(&line, VOCABULARY).unwrap();
        assert!(matches!(&taken, Taken::NoAnswer(why) if why.contains(says)), "{line}: {taken:?}");
    }
}

#[test]
fn settings_that_say_nothing_of_the_answer_are_taken() {
    let neutral = line(|t| {
        let more = json!({
            "model": "tiny", "seed": 7, "stream": false, "user": null, "best_of": 1, "suffix": "", "guided_regex": null,
            "response_format": {"type": "text"}, "return_token_ids": true,
        });
        more.as_object().unwrap().iter().for_each(|(key, value)| t["request"][key] = value.clone());
    });
    assert_eq!(Transcript::from_json(&neutral, VOCABULARY).unwrap().answers().len(), 1);
}

#[test]
fn odd_answers_fail_or_are_not_judged() {
    let model = Model::new();
    let judge = model.judge(Precision::F32, None);
    let outcome = |line: &str, part| {
        let transcript = Transcript::from_json(line, VOCABULARY).unwrap().answers().remove(0);
        judged(&judge, &transcript)
            .parts
            .into_iter()
            .find(|verdict| verdict.part == part)
            .map(|verdict| verdict.outcome)
    };
    let right = line(|_| ());
    for part in [Part::Tokens, Part::FinishReason, Part::Text, Part::Usage] {
        assert_eq!(outcome(&right, part), Some(Outcome::Pass), "{part}");
    }
    let token = |id: Value| line(move |t| choice(t)["token_ids"] = id);
    let logprobs = |content: Value| line(move |t| choice(t)["logprobs"] = json!({"content": content}));
    let told = |logprob: Value| logprobs(json!([{"id": GIVES, "logprob": logprob}]));
    let asked = |logprobs: Value| {
        line(move |t| {
            t["request"]["logprobs"] = json!(1);
            choice(t)["logprobs"] = logprobs;
        })
    };
    let usage = |name: &'static str| line(move |t| t["response"]["usage"][name] = json!(u64::MAX));
    let fail = [
        (token(json!([-1])), Part::Tokens),
        (token(json!([VOCABULARY])), Part::Tokens),
        (token(json!([i64::MAX])), Part::Tokens),
        (token(json!([i64::MIN])), Part::Tokens),
        (token(json!([GIVES + 1])), Part::Tokens),
        (token(json!([GIVES, GIVES])), Part::FinishReason),
        (told(json!(0)), Part::Logprobs),
        (told(json!(-9999)), Part::Logprobs),
        (told(json!(1e308)), Part::Logprobs),
        (told(json!(-1e308)), Part::Logprobs),
        (asked(json!({"content": [{"id": GIVES, "logprob": null}]})), Part::Logprobs),
        (asked(json!({"tokens": [" gives"], "token_logprobs": [null]})), Part::Logprobs),
        (asked(json!({"tokens": [" gives"], "token_logprobs": []})), Part::Logprobs),
        (line(|t| choice(t)["finish_reason"] = json!("banana")), Part::FinishReason),
        (line(|t| choice(t)["stop_reason"] = json!(1)), Part::FinishReason),
        (line(|t| choice(t)["stop_reason"] = json!("gives")), Part::FinishReason),
        (line(|t| choice(t)["text"] = json!("\u{0}\u{202e}")), Part::Text),
        (line(|t| choice(t)["prompt_token_ids"] = json!([])), Part::Tokenization),
        (line(|t| choice(t)["prompt_token_ids"] = json!([-1])), Part::Tokenization),
        (usage("prompt_tokens"), Part::Usage),
        (usage("completion_tokens"), Part::Usage),
        (usage("total_tokens"), Part::Usage),
    ];
    for (line, part) in fail {
        let found = outcome(&line, part);
        assert!(matches!(found, Some(Outcome::Fail { .. })), "{line}: {part} {found:?}");
    }
    let not_judged = [
        (token(json!([])), Part::Tokens),
        (token(Value::Null), Part::Tokens),
        (line(|t| choice(t)["logprobs"] = Value::Null), Part::Logprobs),
        (logprobs(json!([])), Part::Logprobs),
        (told(Value::Null), Part::Logprobs),
        (asked(Value::Null), Part::Logprobs),
        (asked(json!({"tokens": [" gives"]})), Part::Logprobs),
        (line(|t| choice(t)["finish_reason"] = Value::Null), Part::FinishReason),
        (line(|t| choice(t)["text"] = Value::Null), Part::Text),
        (line(|t| t["response"]["usage"] = Value::Null), Part::Usage),
        (line(|t| t["response"]["usage"] = json!({})), Part::Usage),
        (right, Part::Tokenization),
    ];
    for (line, part) in not_judged {
        let found = outcome(&line, part);
        assert!(matches!(found, Some(Outcome::NotJudged(_))), "{line}: {part} {found:?}");
    }
}

#[test]
fn several_answers_are_taken_apart_by_their_index() {
    let line = json!({
        "request": {"prompt": ["a", "b"], "n": 2},
        "response": {"choices": [{"index": 3, "text": "3"}, {"index": 0}, {"index": 2}, {"index": 1}]},
    });
    let several = Transcript::from_json(&line.to_string(), VOCABULARY).unwrap().answers();
    let prompts: Vec<Value> = several.iter().map(|one| json!(format!("{:?}", one.request.prompt))).collect();
    assert_eq!(prompts, ["b", "a", "b", "a"].map(|text| json!(format!("Some(Text({text:?}))"))));
    assert_eq!(several[0].text(), Some("3"));
    let twice = line.to_string().replace("\"index\":3", "\"index\":0");
    assert!(Transcript::from_json(&twice, VOCABULARY).is_err());
}

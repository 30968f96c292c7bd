//! Sequences that join and leave.

use std::time::Duration;

use dsv2::generate::{ModelFolder, need};
use dsv2::precision::Precision;
use dsv2_reference::Dialect;
use serde_json::{Value, json};

use crate::answers::long_prompt;
use crate::client::{Server, with};

/// Requests of many kinds, all of which say the same whenever they are asked.
fn requests() -> Vec<Value> {
    let prompts =
        [json!("DeepSeek-V2 is"), json!(long_prompt()), json!([5]), json!("What is MLA?"), json!("a b c d e f g")];
    let of = |number: usize| {
        let body = json!({"prompt": prompts[number % 5], "max_tokens": 3 + 7 * (number % 7), "logprobs": 2, "ignore_eos": true,
            "return_token_ids": true, "seed": number, "temperature": if number.is_multiple_of(2) { 0.0 } else { 0.9 }});
        match number % 4 {
            0 => with(&body, json!({"echo": true})),
            1 => with(&body, json!({"n": 2, "repetition_penalty": 1.1})),
            _ => body,
        }
    };
    (0..20).map(of).collect()
}

#[test]
fn whoever_joins_and_leaves_meanwhile_changes_no_bit() {
    let alone = Server::start(&["--max-batch", "1"]);
    let expected: Vec<Value> = requests().into_iter().map(|body| alone.complete(body)["choices"].clone()).collect();
    let server = Server::start(&["--max-batch", "6"]);
    std::thread::scope(|scope| {
        // some that leave before they are done
        for number in 0..4 {
            let body = json!({"prompt": "The", "max_tokens": 900, "ignore_eos": true});
            let server = &server;
            scope.spawn(move || server.stream("/v1/completions", &body).take(5 + 20 * number).for_each(drop));
        }
        let asked: Vec<_> = requests()
            .into_iter()
            .enumerate()
            .map(|(number, body)| {
                let server = &server;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(40 * (number as u64 % 6)));
                    server.complete(body)["choices"].clone()
                })
            })
            .collect();
        // they are in company indeed
        let mut most = 0;
        while asked.iter().any(|asked| !asked.is_finished()) {
            most = most.max(server.api.engine.load().0);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(most, 6);
        for (number, (asked, expected)) in asked.into_iter().zip(&expected).enumerate() {
            assert_eq!(asked.join().unwrap(), *expected, "request {number}");
        }
    });
    server.until(0, 0);
}

#[test]
fn a_client_that_leaves_makes_room() {
    let server = Server::start(&["--max-batch", "1"]);
    let long = json!({"prompt": "The", "max_tokens": 1000, "ignore_eos": true});
    let mut parts = server.stream("/v1/completions", &long);
    parts.next().unwrap();
    assert_eq!(server.api.engine.load().0, 1);
    drop(parts);
    server.until(0, 0);
    // one that hears nothing before the end, and leaves while it waits for it
    use std::io::Write;
    let mut silent = server.connect();
    silent.write_all(&crate::client::request("/v1/completions", &long)).unwrap();
    server.until(1, 0);
    let mut waiting = server.connect();
    waiting.write_all(&crate::client::request("/v1/completions", &long)).unwrap();
    server.until(1, 1);
    drop((silent, waiting));
    server.until(0, 0);
}

#[test]
fn a_full_queue_is_said_and_everything_else_is_answered() {
    let server = Server::start(&["--max-batch", "1", "--queue", "1"]);
    let long = json!({"prompt": "The", "max_tokens": 1000, "ignore_eos": true});
    let mut running = server.stream("/v1/completions", &long);
    running.next().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| server.complete(json!({"prompt": "The", "max_tokens": 2})));
        server.until(1, 1);
        let refused = server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 2}));
        assert_eq!(refused.error().0, 429);
        assert!(refused.head.contains("retry-after: 1") && refused.body.contains("queue_full"), "{}", refused.head);
        let never = server.post("/v1/completions", &json!({"prompt": ["a", "b", "c"], "max_tokens": 2})).error();
        assert!(never.0 == 400 && never.1.contains("at most 2 sequences"), "{never:?}");
        drop(running);
        assert_eq!(waits.join().unwrap()["usage"]["completion_tokens"], 2);
    });
}

#[test]
fn memory_is_counted_before_it_is_taken() {
    // room for a short sequence and not for a long one, nor for two short ones at a time
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    let one = need::in_pool(&folder, Precision::F32, 2, 250, 2);
    let fixed = need::of_pool(&folder, Precision::F32, 4);
    let limit = fixed.0 + (one.kept.0 + one.reading.0) * 3 / 2;
    let server = Server::start(&["--max-batch", "4", "--memory-limit", &limit.to_string()]);
    let long = server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 1000})).error();
    assert!(long.0 == 400 && long.1.contains("insufficient_memory"), "{long:?}");
    std::thread::scope(|scope| {
        let short = || server.complete(json!({"prompt": "The", "max_tokens": 250, "ignore_eos": true}));
        let both = [scope.spawn(short), scope.spawn(short)];
        server.until(1, 1);
        for answer in both {
            assert_eq!(answer.join().unwrap()["usage"]["completion_tokens"], 250);
        }
    });
}

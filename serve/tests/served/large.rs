//! Texts that are far too long: what can be known of them is known at once, and what takes its time keeps nobody waiting.

use std::path::Path;
use std::time::{Duration, Instant};

use dsv2_text::embedded;
use serde_json::{Value, json};

use crate::client::Server;
use crate::folder::folder;

/// Whose tokenizer changes what it reads, so that nothing is certain before it has read all.
fn of_a_tokenizer_that_strips(at: &Path, flags: &[&str]) -> Server {
    let folder = folder(at, "{{ messages[0].content }}", &json!({}));
    let mut tokenizer: Value = serde_json::from_str(embedded::TOKENIZER).unwrap();
    tokenizer["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    std::fs::write(Path::new(&folder).join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Server::start(&[&["--model", &folder], flags].concat())
}

/// So that it is known that one is being read.
fn until_one_is_read(server: &Server) {
    let begun = Instant::now();
    while server.api.reading.available_permits() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no large body is being read");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_made_into_tokens() {
    let server = Server::start(&[]);
    for text in ["1234567890".repeat(400_000), "word ".repeat(800_000), " ".repeat(4_000_000)] {
        let (status, error) = server.post("/v1/completions", &json!({"prompt": ["a", text], "max_tokens": 1})).error();
        // without their number
        let says = r#""context_length_exceeded" "prompt" this model's context has 1024 tokens, the prompt more"#;
        assert_eq!((status, &*error), (400, says));
        let messages = json!({"messages": [{"role": "user", "content": text}]});
        let (status, error) = server.post("/v1/chat/completions", &messages).error();
        assert_eq!((status, error), (400, says.replace("prompt\"", "messages\"")));
    }
    let (status, error) = server.post("/v1/completions", &json!({"prompt": vec!["7".repeat(900); 4000]})).error();
    assert!(status == 400 && error.contains("expected at most 288 sequences"), "{error}");
}

#[test]
fn a_text_that_fits_once_it_is_stripped_is_answered() {
    let place = tempfile::tempdir().unwrap();
    let server = of_a_tokenizer_that_strips(place.path(), &[]);
    let body =
        |prompt: String| json!({"model": "Tiny-Chat", "prompt": prompt, "max_tokens": 1, "return_token_ids": true});
    let ids = |prompt: String| server.complete(body(prompt))["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(ids(format!("hello{}", " ".repeat(50_000))), ids("hello".to_owned()));
}

#[test]
fn a_large_text_keeps_no_small_one_waiting() {
    let place = tempfile::tempdir().unwrap();
    let server = of_a_tokenizer_that_strips(place.path(), &[]);
    let large = json!({"model": "Tiny-Chat", "prompt": "1234567890".repeat(20_000)});
    std::thread::scope(|scope| {
        let large: Vec<_> = (0..6).map(|_| scope.spawn(|| server.post("/v1/completions", &large))).collect();
        until_one_is_read(&server);
        server.complete(json!({"model": "Tiny-Chat", "prompt": "hello", "max_tokens": 1}));
        let answered = large.iter().filter(|large| large.is_finished()).count();
        assert!(answered < 2, "{answered} large ones were read before a small one");
        for large in large {
            assert!(large.join().unwrap().error().1.contains("context_length_exceeded"));
        }
    });
}

#[test]
fn a_text_that_takes_too_long_is_not_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let server = of_a_tokenizer_that_strips(place.path(), &["--timeout", "0.2"]);
    let large = json!({"model": "Tiny-Chat", "prompt": "1234567890".repeat(100_000)});
    let (status, error) = server.post("/v1/completions", &large).error();
    assert!(status == 504 && error.contains("timeout"), "{status} {error}");
    assert_eq!(server.api.reading.available_permits(), 0, "its thread goes on");
    // one that waits for its turn until then
    assert_eq!(server.post("/v1/completions", &large).error().0, 504);
}

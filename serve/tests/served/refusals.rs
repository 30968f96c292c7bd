//! What is refused is refused in OpenAI's shape, with a status that says whose fault it is.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::client::{Server, raw};

#[test]
fn what_is_wrong_is_named() {
    let server = Server::start(&[]);
    let completion: &[(Value, &str)] = &[
        (json!({}), r#"null "prompt" `prompt`: expected, not found"#),
        (json!({"prompt": ""}), "found an empty one"),
        (json!({"prompt": []}), "expected a text, a list of texts"),
        (json!({"prompt": [1, "a"]}), "expected a text, a list of texts"),
        (json!({"prompt": ["a", 1]}), "expected a text, a list of texts"),
        (json!({"prompt": [-1]}), "expected tokens 0 to 1023, found -1"),
        (json!({"prompt": [[1024]]}), "expected tokens 0 to 1023, found 1024"),
        (json!({"prompt": "a", "max_tokens": 0}), "expected at least 1 (0 only with `echo`)"),
        (json!({"prompt": "a", "max_tokens": -1}), r#""max_tokens" `max_tokens`: invalid value"#),
        (
            json!({"prompt": "a", "max_tokens": 1024}),
            r#""context_length_exceeded" "prompt" this model's context has 1024 tokens"#,
        ),
        (json!({"prompt": "word ".repeat(2000)}), "context_length_exceeded"),
        (
            json!({"prompt": "a", "temperature": -1}),
            r#""temperature" `temperature`: expected 0, or a number of at least"#,
        ),
        (json!({"prompt": "a", "temperature": "hot"}), r#""temperature" `temperature`: invalid type"#),
        (json!({"prompt": "a", "temperature": 0, "top_p": 2}), r#""top_p" `top_p`: expected a number from 0 to 1"#),
        (json!({"prompt": "a", "repetition_penalty": 0}), "repetition_penalty"),
        (json!({"prompt": "a", "frequency_penalty": 0.5}), r#""unsupported_parameter" "frequency_penalty""#),
        (json!({"prompt": "a", "suffix": "b"}), r#""unsupported_parameter" "suffix""#),
        (json!({"prompt": "a", "best_of": 2}), r#""unsupported_parameter" "best_of""#),
        (json!({"prompt": "a", "logit_bias": {"a": 1}}), r#""logit_bias" `logit_bias`: expected ids"#),
        (json!({"prompt": "a", "logit_bias": {"1024": 1}}), r#""logit_bias" `logit_bias`: expected tokens below 1024"#),
        (json!({"prompt": "a", "logit_bias": {"1": 101}}), "numbers from -100 to 100"),
        (json!({"prompt": "a", "logit_bias": {"01": 1}}), r#"numbers from -100 to 100, found "01": 1"#),
        (json!({"prompt": "a", "stop": vec!["word"; 3000]}), "expected at most 16384 bytes of JSON, found 21001"),
        // nothing is added, and yet there is no room
        (
            json!({"prompt": vec![5; 1025], "max_tokens": 0, "echo": true}),
            r#""context_length_exceeded" "prompt" this model's context has 1024 tokens"#,
        ),
        (json!({"prompt": "a", "stop": ["a", ""]}), r#""stop" `stop`: expected"#),
        (json!({"prompt": "a", "logprobs": 21}), "expected 0 to 20"),
        (json!({"prompt": "a", "n": 0}), "expected 1 to 128"),
        (json!({"prompt": "a", "stream_options": {"include_usage": true}}), "it without `stream`"),
        (json!({"prompt": "a", "stream": true, "stream_options": {"x": 1}}), "found `x`"),
        (
            json!({"prompt": "a", "beam\u{1b}[31m": 2}),
            r#""unknown_parameter" "beam\u001b[31m" `beam\u{1b}[31m`: this field is not known"#,
        ),
        (json!({"prompt": "a", "min_tokens": 30, "max_tokens": 20, "stream": true}), "min_tokens"),
    ];
    for (body, expected) in completion {
        let (status, error) = server.post("/v1/completions", body).error();
        assert!(status == 400 && error.contains(expected), "{body}: {status} {error}");
    }
    let said = |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let chat: &[(Value, &str)] = &[
        (json!({}), r#""messages" `messages`: expected, not found"#),
        (json!({"messages": []}), "expected at least one message"),
        (json!({"messages": "hello"}), "`messages`: invalid type"),
        (json!({"messages": ["hello"]}), "message 1: expected an object"),
        (said("wizard", json!("x")), r#"message 1: expected a role of system, user, assistant, tool, found "wizard""#),
        (json!({"messages": [{"content": "x"}]}), "message 1: expected a role, found none"),
        (said("tool", json!("x")), "not by tool"),
        (said("user", image), "message 1: expected content of texts alone"),
        (said("user", json!(5)), "message 1: expected content that is a text, found 5"),
        (json!({"messages": [{"role": "user"}]}), "found none"),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "tools": tool}),
            r#""tools" `tools`: the model's chat template has no place"#,
        ),
        (json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}), "unsupported_parameter"),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}}),
            "unsupported_parameter",
        ),
        (json!({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}), "expected with `logprobs`"),
        (json!({"messages": [{"role": "user", "content": "x".repeat(9000)}]}), "context_length_exceeded"),
    ];
    for (body, expected) in chat {
        let (status, error) = server.post("/v1/chat/completions", body).error();
        assert!(status == 400 && error.contains(expected), "{body}: {status} {error}");
    }
}

#[test]
fn bodies_that_are_none_and_paths_that_lead_nowhere_are_refused() {
    let server = Server::start(&["--max-body", "1KB"]);
    for body in [&b"{\"model\""[..], b"[]", b"", b"{\"model\": \"\xff\xfe\"}", b"\x00", "[".repeat(900).as_bytes()] {
        let (status, error) = server.send(&raw("/v1/completions", "", body)).error();
        assert!(status == 400 && error.contains("invalid_json"), "{status} {error}");
    }
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(1000));
    assert_eq!(server.send(&raw("/v1/completions", "", large.as_bytes())).error().0, 413);
    // without a length, in one chunk
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    assert_eq!(server.send(chunked.as_bytes()).error().0, 413);
    let other = server.post("/v1/completions", &json!({"model": "gpt-4\n", "prompt": "a"})).error();
    assert!(other.0 == 404 && other.1.contains(r#""model_not_found" "model""#), "{other:?}");
    assert_eq!(server.get("/v1/models/gpt-4").error().0, 404);
    assert_eq!(server.get("/v1/models/%ff").error().0, 404);
    let long = json!({"prompt": "a", "x".repeat(900): 1});
    let told = server.post("/v1/completions", &long).json()["error"]["param"].as_str().unwrap().len();
    assert_eq!(told, 100);
    assert_eq!(server.get("/v1/files").error().0, 404);
    assert_eq!(server.get("/v1/completions").error().0, 405);
}

#[test]
fn who_does_not_know_the_key_is_told_so_before_anything_is_read() {
    let server = Server::start(&["--api-key", "secret"]);
    let body = json!({"model": "dsv2-embedded", "prompt": "a", "max_tokens": 1}).to_string();
    for header in
        ["", "authorization: Bearer secre\r\n", "authorization: Bearer secrets\r\n", "authorization: secret\r\n"]
    {
        let refused = server.send(&raw("/v1/completions", header, body.as_bytes()));
        assert_eq!(refused.error().0, 401);
        assert!(refused.body.contains("invalid_api_key") && !refused.body.contains("secret"), "{}", refused.body);
    }
    assert_eq!(server.send(&raw("/v1/completions", "authorization: bearer secret\r\n", body.as_bytes())).status, 200);
    assert_eq!(server.get("/v1/models").error().0, 401);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.send(&raw("/v1/completions", "authorization: Bearer secret\r\n", body.as_bytes())).status, 200);
    // a head without its body
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").unwrap();
    let mut heard = [0; 12];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"HTTP/1.1 401");
}

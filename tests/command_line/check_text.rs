//! `dsv2 check-text`: right and wrong transcripts, servers that do what servers do, and what is refused.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Ran, dsv2, run};

/// What the small model says, as a transcript.
fn transcript() -> Value {
    let printed = run(&mut dsv2(["generate", "--prompt", "The router", "--greedy", "--max-new-tokens", "8"])).passes();
    let said: Value = serde_json::from_str(&printed).unwrap();
    let tokens = said["tokens"].as_array().unwrap().iter().zip(said["logprobs"].as_array().unwrap());
    let content: Vec<Value> = tokens.map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
    let made = content.len();
    json!({
        "request": {"prompt": "The router", "temperature": 0, "max_tokens": 8},
        "response": {
            "choices": [{"text": said["text"], "finish_reason": said["finish_reason"], "logprobs": {"content": content}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": 3 + made},
        },
    })
}

fn file(folder: &TempDir, lines: &[&str]) -> PathBuf {
    let path = folder.path().join("transcripts.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn check(path: &Path) -> Ran {
    run(&mut dsv2([Path::new("check-text"), path, Path::new("--dtype"), Path::new("f32")]))
}

#[test]
fn right_transcripts_pass_and_the_first_wrong_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let right = transcript();
    let mut wrong = right.clone();
    wrong["response"]["choices"][0]["finish_reason"] = json!("stop");
    let (right, wrong) = (right.to_string(), wrong.to_string());
    let passes = check(&file(&folder, &[&right, "", &right])).passes();
    assert!(passes.contains("2 transcripts: 2 pass"), "{passes}");
    let fails = check(&file(&folder, &[&right, &wrong])).fails();
    assert!(fails.contains("line 2 (completion, greedy): FAIL") && fails.contains("(reason-swapped)"), "{fails}");
    let path = file(&folder, &[&wrong]);
    let report = run(&mut dsv2([Path::new("check-text"), &path, Path::new("--json")])).fails();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["verdict"], "fail");
    assert_eq!(report["transcripts"][0]["first_failing_part"], "finish_reason");
    assert_eq!(
        report["transcripts"][0]["parts"][0],
        json!({
            "part": "tokenization", "disposition": "not_judged", "compared": 0, "ratio": null, "expected": null, "found": null,
            "reason": "needs prompt_token_ids", "hints": [],
        })
    );
}

#[test]
fn a_transcript_that_tells_nothing_of_the_model_is_not_judged_and_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    let line = json!({"request": {"prompt": "The router"}, "response": {"choices": [{"text": " gives", "finish_reason": "stop"}]}});
    let said = check(&file(&folder, &[&line.to_string()])).fails();
    assert!(said.contains("1 transcript: 1 not judged") && said.contains("needs token_ids"), "{said}");
}

#[test]
fn a_line_of_which_nothing_can_be_said_does_not_end_the_others_and_is_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    let right = transcript();
    let with = |request: Value, response: Value| json!({"request": request, "response": response}).to_string();
    let answered = json!({"choices": [{}]});
    let lines = [
        right.to_string(),
        with(json!({"messages": [{"role": "pirate", "content": "?"}]}), answered.clone()),
        with(json!({"prompt": vec![5; 2000]}), answered.clone()),
        with(json!({"prompt": "?", "presence_penalty": 0.5}), answered.clone()),
        with(json!({"prompt": "?", "response_format": {"type": "json_object"}}), answered),
        with(json!({"prompt": "?"}), json!({"error": {"message": "out of memory"}})),
    ];
    let said = check(&file(&folder, &lines.each_ref().map(String::as_str))).fails();
    for says in [
        "line 2: not judged: ",
        "pirate",
        "line 3: not judged: ",
        "max_position_embeddings",
        "presence_penalty",
        "response_format",
        "line 6: not answered: out of memory",
        "1 transcript: 1 pass; requests without a verdict: 1 not answered, 4 not judged",
    ] {
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn a_type_that_nobody_names_is_f32_unless_something_is_off_in_f32_alone() {
    let folder = tempfile::tempdir().unwrap();
    let right = transcript();
    let off = |by: f64| {
        let mut transcript = right.clone();
        let content = transcript["response"]["choices"][0]["logprobs"]["content"].as_array_mut().unwrap();
        content[3]["logprob"] = json!(content[3]["logprob"].as_f64().unwrap() + by);
        transcript.to_string()
    };
    let judged = |line: &str, dtype: &[&str]| {
        let path = file(&folder, &[line]);
        let ran = run(&mut dsv2([Path::new("check-text"), &path].into_iter().chain(dtype.iter().map(Path::new))));
        let passes = ran.code == Some(0);
        let said = if passes { ran.passes() } else { ran.fails() };
        (passes, said.lines().find(|line| line.starts_with("held against")).unwrap().to_owned())
    };
    let (coarse, wrong) = (off(1e-3), off(1.0));
    for (line, dtype, passes, says) in [
        (&right.to_string(), vec![], true, "in f32 (--dtype does not say so)"),
        (&coarse, vec![], true, "in bf16 (--dtype does not say so: line 1 is off in f32)"),
        (&wrong, vec![], false, "in f32 (--dtype does not say so)"),
        (&coarse, vec!["--dtype", "f32"], false, "(line 1 is off, and would not be in bf16: "),
        (&coarse, vec!["--dtype", "bf16"], true, "in bf16"),
        (&right.to_string(), vec!["--dtype", "bf16"], true, "(all are within the budget of f32, too: "),
        (&right.to_string(), vec!["--dtype", "f32"], true, "the small model in the program, as of an engine in f32"),
    ] {
        let (passed, said) = judged(line, &dtype);
        assert_eq!(passed, passes, "{dtype:?}: {said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn files_that_are_no_transcripts_are_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let right = transcript().to_string();
    for (lines, says) in [(vec![""], "transcripts, one in each line"), (vec![&right, "{"], "in line 2")] {
        let line = check(&file(&folder, &lines)).refused();
        assert!(line.contains(says), "{says}: {line}");
    }
    assert!(check(&folder.path().join("none")).refused().contains("none"));
    for (arguments, says) in [
        (vec!["--endpoint", "https://example.org"], "http://"),
        (vec!["--endpoint", "http://127.0.0.1:1", "--timeout", "5"], "127.0.0.1:1/v1/models"),
        (vec!["--endpoint", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (vec!["--save", "x"], "--endpoint"),
        (vec!["x.jsonl", "--save", "x"], "--save"),
        (vec!["x.jsonl", "--requests", "x"], "--requests"),
        (vec!["x.jsonl", "--served-model", "x"], "--served-model"),
        (vec!["x.jsonl", "--api-key-env", "PATH"], "--api-key-env"),
        (vec!["x.jsonl", "--timeout", "5"], "--timeout"),
        (vec![], "TRANSCRIPTS"),
    ] {
        let line = run(&mut dsv2(["check-text"].into_iter().chain(arguments))).refused();
        assert!(line.contains(says), "{says}: {line}");
    }
}

/// A server on loopback, to which `answer` says what it sends for a path and a body; its URL.
fn server(answer: impl Fn(&str, &Value, &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut got = Vec::new();
            let mut byte = [0];
            while !got.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                got.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&got).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            answer(&path, &serde_json::from_slice(&body).unwrap_or_default(), &mut stream);
        }
    });
    url
}

fn send(stream: &mut TcpStream, status: &str, body: &str) {
    // who has left misses nothing
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
}

const MODELS: &str = r#"{"object": "list", "data": [{"id": "tiny"}]}"#;

#[test]
fn a_server_is_asked_and_what_it_does_not_answer_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (requests, saved) = (folder.path().join("requests.jsonl"), folder.path().join("saved.jsonl"));
    let right = transcript();
    let refused = json!({"prompt": "?"});
    fs::write(&requests, format!("{}\n{refused}\n", right["request"])).unwrap();
    let response = right["response"].to_string();
    let url = server(move |path, body, stream| match path {
        "/v1/models" => send(stream, "200 OK", MODELS),
        // as servers do that know no other keys than OpenAI's
        _ if body.get("return_token_ids").is_some() => send(stream, "400 Bad Request", "{}"),
        _ if body["prompt"] == "?" => send(stream, "422 No", r#"{"error": {"message": "no questions"}}"#),
        _ => {
            assert_eq!((&body["model"], &body["logprobs"]), (&json!("tiny"), &json!(5)));
            send(stream, "200 OK", &response);
        }
    });
    let arguments =
        [Path::new("check-text"), Path::new("--endpoint"), Path::new(&url), Path::new("--dtype"), Path::new("f32")];
    let files = [Path::new("--requests"), &requests, Path::new("--save"), &saved];
    let said = run(&mut dsv2(arguments.into_iter().chain(files))).fails();
    assert!(said.contains("request 2: not answered: status 422: no questions"), "{said}");
    let counts = "1 transcript: 1 pass; requests without a verdict: 1 not answered";
    assert!(said.contains(counts), "{said}");
    let again = check(&saved).fails();
    assert!(again.contains("line 2: not answered: status 422: no questions") && again.contains(counts), "{again}");
}

#[test]
fn what_a_server_answered_is_saved_with_the_same_meaning_and_nothing_that_a_terminal_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let (requests, saved) = (folder.path().join("requests.jsonl"), folder.path().join("saved.jsonl"));
    let mut right = transcript();
    let nasty = "\u{1b}[2J\u{9b}2J\u{202e}\u{200b}";
    right["response"]["system_fingerprint"] = json!(nasty);
    fs::write(&requests, right["request"].to_string()).unwrap();
    let response = right["response"].to_string();
    let url = server(move |path, _, stream| match path {
        "/v1/models" => send(stream, "200 OK", MODELS),
        _ => send(stream, "200 OK", &response),
    });
    let mut command = dsv2(["check-text", "--dtype", "f32", "--endpoint", &url]);
    run(command.arg("--requests").arg(&requests).arg("--save").arg(&saved)).passes();
    let text = fs::read_to_string(&saved).unwrap();
    assert!(!text.chars().any(|c| c != '\n' && dsv2_foreign::is_harmful(c)), "{text:?}");
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["response"]["system_fingerprint"], nasty);
}

#[test]
fn a_server_that_knows_one_of_the_keys_for_token_ids_is_asked_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let requests = folder.path().join("requests.jsonl");
    let right = transcript();
    fs::write(&requests, right["request"].to_string()).unwrap();
    let response = right["response"].to_string();
    let url = server(move |path, body, stream| match path {
        "/v1/models" => send(stream, "200 OK", MODELS),
        // as dsv2-serve does
        _ if body.get("return_tokens_as_token_ids").is_some() => send(stream, "400 Bad Request", "{}"),
        _ if body["return_token_ids"] == true => send(stream, "200 OK", &response),
        _ => send(stream, "422 No", "{}"),
    });
    let arguments = ["check-text", "--endpoint", &url, "--dtype", "f32", "--requests"].map(Path::new);
    let said = run(&mut dsv2(arguments.into_iter().chain([&*requests]))).passes();
    assert!(said.contains("1 transcript: 1 pass"), "{said}");
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_logprobs_is_asked_without() {
    let folder = tempfile::tempdir().unwrap();
    let requests = folder.path().join("requests.jsonl");
    let right = transcript();
    fs::write(&requests, right["request"].to_string()).unwrap();
    let mut response = right["response"].clone();
    response["choices"][0]["token_ids"] = response["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["id"].clone())
        .collect();
    response["choices"][0]["logprobs"] = Value::Null;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let url = server(move |path, body, stream| match path {
        "/v1/models" => send(stream, "200 OK", MODELS),
        _ if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 => {
            send(stream, "429 Too Many Requests\r\nretry-after: 1", "{}");
        }
        _ if body.get("logprobs").is_some() => send(stream, "400 Bad Request", "{}"),
        _ => send(stream, "200 OK", &response.to_string()),
    });
    let arguments = ["check-text", "--endpoint", &url, "--dtype", "f32", "--requests"].map(Path::new);
    let said = run(&mut dsv2(arguments.into_iter().chain([&*requests]))).passes();
    assert!(said.contains("1 transcript: 1 pass"), "{said}");
}

#[test]
fn a_server_that_is_none_or_hangs_is_one_line() {
    let models = |stream: &mut TcpStream| send(stream, "200 OK", MODELS);
    let html = server(|_, _, stream| send(stream, "200 OK", "<html><body>hello</body></html>"));
    let half = server(move |path, _, stream| match path {
        "/v1/models" => models(stream),
        _ => drop(write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{{\"choices\"")),
    });
    let odd = server(move |path, _, stream| match path {
        "/v1/models" => models(stream),
        _ => send(stream, "200 OK", "{\"choices\": [{}, {}]}"),
    });
    let hangs = server(move |path, _, stream| match path {
        "/v1/models" => models(stream),
        _ => thread::sleep(std::time::Duration::from_secs(20)),
    });
    let long = server(move |path, _, stream| match path {
        "/v1/models" => models(stream),
        _ => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
        }
    });
    let key = server(move |path, _, stream| match path {
        "/v1/models" => models(stream),
        _ => send(stream, "401 Unauthorized", "{}"),
    });
    for (url, says) in [
        (html, "expected JSON"),
        (half, "/v1/chat/completions"),
        (odd, "1 choice"),
        (hangs, "timeout"),
        (long, "at most 67108864 bytes"),
        (key, "--api-key-env"),
    ] {
        let line = run(&mut dsv2(["check-text", "--endpoint", &url, "--timeout", "3"])).refused();
        assert!(line.contains(says), "{says}: {line}");
    }
}

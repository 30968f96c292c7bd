//! Clients that are slow, half, or many; and how the server ends.

use std::io::{Read, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Server, request};

fn long() -> Value {
    json!({"prompt": "The", "max_tokens": 1000, "ignore_eos": true})
}

#[test]
fn half_a_request_is_not_waited_for_for_ever() {
    let server = Server::start(&["--read-timeout", "0.3"]);
    let whole = request("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}));
    let head = whole.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    // within the head, and one that says nothing at all
    for half in [&whole[..head / 2], b""] {
        let (mut stream, begun) = (server.connect(), Instant::now());
        stream.write_all(half).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    // within the body
    let slow = server.send(&whole[..whole.len() - 5]);
    assert!(slow.error().0 == 408 && slow.body.contains("read_timeout"), "{}", slow.body);
    // one that breaks off within the body
    let mut stream = server.connect();
    stream.write_all(&whole[..whole.len() - 5]).unwrap();
    drop(stream);
    assert_eq!(server.send(&whole).status, 200);
}

#[test]
fn connections_beyond_the_most_wait_and_are_served() {
    let server = Server::start(&["--max-connections", "1", "--read-timeout", "0.5"]);
    let idle = server.connect();
    let begun = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(begun.elapsed() > Duration::from_millis(300), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    for _ in 0..2 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            heard.push(byte[0]);
        }
        assert!(heard.starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn a_request_that_takes_too_long_ends() {
    let server = Server::start(&["--timeout", "0.2"]);
    let whole = server.post("/v1/completions", &long());
    assert!(whole.error().0 == 504 && whole.body.contains("timeout"), "{}", whole.body);
    let last = server.stream("/v1/completions", &long()).last().unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    server.until(0, 0);
}

#[test]
fn when_it_is_told_to_end_it_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start(&[]);
    let mut running = server.stream("/v1/completions", &long());
    running.next().unwrap();
    let mut late = server.connect();
    server.tell_to_end();
    // a connection that was accepted before, and has not been read, may be closed without an answer
    while !server.api.stopping.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.get("/health").status, 503);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "a"})).error().0, 503);
    // a connection on which nothing was said is closed, not kept
    let mut heard = Vec::new();
    late.read_to_end(&mut heard).unwrap();
    assert_eq!(running.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(server.ended());
}

#[test]
fn what_takes_too_long_when_it_is_told_to_end_is_broken_off() {
    let mut server = Server::start(&["--grace", "0.1"]);
    let mut running = server.stream("/v1/completions", &long());
    running.next().unwrap();
    server.tell_to_end();
    let engine = server.api.engine.clone();
    assert!(!server.ended());
    let begun = Instant::now();
    while engine.load().0 > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_takes_nothing_is_not_waited_for_for_ever() {
    let server = Server::start(&["--max-connections", "1", "--read-timeout", "0.5"]);
    let mut deaf = server.connect();
    // more than a socket holds
    let prompt: Vec<usize> = (0..1000).map(|token| 2 + token % 1000).collect();
    let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 20, "n": 8});
    deaf.write_all(&request("/v1/completions", &body)).unwrap();
    server.until(8, 0);
    assert_eq!(server.get("/health").status, 200);
    let mut heard = Vec::new();
    let broken_off = deaf.read_to_end(&mut heard).is_err() || !heard.ends_with(b"}");
    assert!(broken_off, "{} bytes were taken", heard.len());
}

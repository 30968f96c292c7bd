//! A server in this process, and a client that can do what no decent client does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use dsv2_serve::api::Api;
use dsv2_serve::options::{EMBEDDED, Options};
use dsv2_serve::server;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

pub struct Server {
    pub address: SocketAddr,
    pub api: Arc<Api>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Server {
    pub fn start(flags: &[&str]) -> Self {
        let all = ["dsv2-serve", "--port", "0"].iter().chain(flags);
        let options = Options::try_parse_from(all).unwrap();
        let api = options.api().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let serving = api.clone();
        let thread = std::thread::spawn(move || {
            server::runtime().unwrap().block_on(async {
                let listener = server::listen(options.address()).await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let stop = async { stopped.await.unwrap_or(()) };
                server::serve(listener, serving, options.connections(), stop).await
            })
        });
        Server { address: told.recv().unwrap(), api, stop: Some(stop), thread: Some(thread) }
    }

    /// Says that it is to end.
    pub fn tell_to_end(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Whether all requests had ended in time.
    pub fn ended(mut self) -> bool {
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes())
    }

    /// Posts what is said of the model that is served.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&request(path, body))
    }

    /// The whole answer to some bytes.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        Answer::parse(&heard)
    }

    /// The parts of an answer as they come.
    pub fn stream(&self, path: &str, body: &Value) -> Parts {
        let mut stream = self.connect();
        let body = with(body, json!({"stream": true}));
        stream.write_all(&request(path, &body)).unwrap();
        Parts(BufReader::new(stream))
    }

    pub fn complete(&self, body: Value) -> Value {
        self.post("/v1/completions", &body).ok()
    }

    /// Waits until so many sequences are computed and so many wait.
    pub fn until(&self, running: usize, waiting: usize) {
        let begun = Instant::now();
        while self.api.engine.load() != (running, waiting) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?} are computed and wait", self.api.engine.load());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One object above another.
pub fn with(body: &Value, more: Value) -> Value {
    let mut all: Map<String, Value> = body.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    Value::Object(all)
}

/// A whole request, for the model that is served if the body does not name one.
pub fn request(path: &str, body: &Value) -> Vec<u8> {
    let body = with(&json!({"model": EMBEDDED}), body.clone()).to_string();
    raw(path, "", body.as_bytes())
}

pub fn raw(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn parse(heard: &[u8]) -> Self {
        let heard = String::from_utf8(heard.to_vec()).expect("an answer is UTF-8");
        let (head, body) = heard.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer, but {heard:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON, but {}", self.body))
    }

    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Status, code, field and message of a refusal in OpenAI's shape.
    pub fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["type"].is_string() && error["message"].is_string(), "{}", self.body);
        assert!(error.as_object().unwrap().contains_key("param") && error.as_object().unwrap().contains_key("code"));
        let message = error["message"].as_str().unwrap();
        assert!(!message.contains('\n') && message.len() < 1000, "{message}");
        (self.status, format!("{} {} {message}", error["code"], error["param"]))
    }
}

pub struct Parts(BufReader<TcpStream>);

impl Iterator for Parts {
    type Item = Value;

    /// The next event; none after `[DONE]`.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream broke off");
            match line.trim().strip_prefix("data: ") {
                Some("[DONE]") => return None,
                Some(event) => return Some(serde_json::from_str(event).unwrap()),
                None => {}
            }
        }
    }
}

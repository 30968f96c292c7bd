//! The program itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

fn program(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsv2-serve"));
    command.args(flags).env_remove("DSV2_API_KEY").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn it_says_where_it_listens_and_ends_when_it_is_told_to() {
    let mut running = program(&["--port", "0"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(running.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    assert!(heard.starts_with("HTTP/1.1 200 OK"), "{heard}");
    assert!(Command::new("kill").arg(running.id().to_string()).status().unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn what_it_cannot_do_it_says_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["--port", &port], "--port: expected an address to listen at, found 127.0.0.1:"),
        (&["--model", "no\u{1b}[31msuch"], "no\\u{1b}[31msuch"),
        (&["--dtype", "fp8"], "--dtype: expected f64, f32, f16 or bf16, found fp8"),
        (&["--memory-limit", "1KB"], "memory: expected more than"),
        (&["--api-key", ""], "--api-key: expected a key of printable ASCII"),
        (&["--timeout", "0"], "seconds: expected a number above 0"),
        (&["--max-body", "2GB"], "--max-body: expected a size up to 1GiB"),
        (&["--backend", "cuda"], "unexpected argument '--backend'"),
    ];
    for (flags, expected) in cases {
        let ended = program(flags).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(
            said.contains(expected) && said.trim().lines().count() == 1 && !said.contains('\u{1b}'),
            "{flags:?}: {said}"
        );
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(2), 0), "{flags:?}");
    }
}

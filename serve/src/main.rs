//! The command line of `dsv2-serve`. Exit status: 0 ended as it was told; 2 the request or a file is at fault, which one line on stderr
//! says.

#[path = "../../src/no_memory.rs"]
mod no_memory;
#[path = "../../src/threads.rs"]
mod threads;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use dsv2::{Error, Result};
use dsv2_foreign::Text;
use dsv2_serve::options::Options;
use dsv2_serve::server;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(asked) if !asked.use_stderr() => {
            return say(&Text::lines(&asked.to_string()));
        }
        Err(error) => {
            let text = error.to_string();
            return refuse(text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: "));
        }
    };
    match threads::make().and_then(|()| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error.to_string()),
    }
}

fn run(options: &Options) -> Result<()> {
    let api = options.api()?;
    api.folder.notes.iter().for_each(|note| note_that(&format!("note: {note}")));
    if !options.host.is_loopback() {
        let key = if options.api_key.is_some() { "and knows the key " } else { "" };
        note_that(&format!(
            "warning: {} is not an address of this machine alone: whoever reaches it {key}can use the model, and reads along, since nothing is encrypted",
            options.host
        ));
    }
    let runtime = server::runtime().map_err(|refused| Error::request("threads", "some from the system", refused))?;
    let in_time = runtime.block_on(async {
        let refused = |error: std::io::Error| {
            Error::request("--port", "an address to listen at", format!("{} ({error})", options.address()))
        };
        let listener = server::listen(options.address()).await.map_err(refused)?;
        let at = listener.local_addr().map_err(refused)?;
        let stop = ending()?;
        say(&Text::lines(&format!("listening on http://{at}")));
        Ok::<_, Error>(server::serve(listener, api, options.connections(), stop).await)
    })?;
    if !in_time {
        note_that("some requests took longer than --grace, and were broken off");
    }
    runtime.shutdown_background();
    Ok(())
}

/// Waits for a signal that ends the program. A second one ends it at once.
fn ending() -> Result<impl Future<Output = ()>> {
    let of = |kind| signal(kind).map_err(Error::io("signals", "wait for"));
    let (mut interrupt, mut terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
    let (told, heard) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut one = async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        one().await;
        note_that("ending: no new requests are taken; a second signal ends at once");
        let _ = told.send(());
        one().await;
        std::process::exit(1);
    });
    Ok(async {
        let _ = heard.await;
    })
}

fn say(text: &Text) -> ExitCode {
    // whoever does not listen finds out by the port
    let _ = writeln!(std::io::stdout(), "{}", text.as_str().trim_end_matches('\n'));
    let _ = std::io::stdout().flush();
    ExitCode::SUCCESS
}

fn note_that(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", Text::message(text).as_str());
}

fn refuse(line: &str) -> ExitCode {
    note_that(&format!("dsv2-serve: {line}"));
    ExitCode::from(2)
}

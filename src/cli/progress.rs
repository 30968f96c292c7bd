//! How far it is: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of a known number of steps, on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    done: usize,
    steps: usize,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(steps: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
            ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, done: 0, steps }
    }

    /// One more step is done: `what`.
    pub fn step(&mut self, what: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_message(what.to_owned());
                bar.inc(1);
            }
            None => {
                let width = self.steps.to_string().len();
                let _ = writeln!(std::io::stderr(), "[{:width$}/{}] {what}", self.done, self.steps);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

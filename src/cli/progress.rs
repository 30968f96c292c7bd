//! How far it is: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use dsv2_foreign::Text;
use dsv2_reference::tap::{StageValue, Tap};
use indicatif::{ProgressBar, ProgressStyle};

/// Progress of a known number of steps, on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    done: usize,
    steps: usize,
    /// When to speak next, if not at every step.
    quiet_until: Option<Instant>,
}

/// How long something may take before it is slow, and how long a slow thing is quiet on a plain stderr.
const QUIET: Duration = Duration::from_secs(2);

impl Progress {
    /// Nothing done yet.
    pub fn new(steps: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
            ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, done: 0, steps, quiet_until: None }
    }

    /// Nothing done yet of many small steps, which are told of only if they take their time.
    pub fn of_something_slow() -> Self {
        Progress { bar: None, done: 0, steps: 0, quiet_until: Some(Instant::now() + QUIET) }
    }

    /// Takes what is said off the screen, for others to write there.
    pub fn hide(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// So many of so many steps are done, the last of which was `what`.
    pub fn reached(&mut self, done: usize, steps: usize, what: &str) {
        let now = Instant::now();
        if self.quiet_until.is_some_and(|until| now < until) {
            return;
        }
        if self.bar.is_none() {
            self.bar = Progress::new(steps).bar.take();
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(steps as u64);
                bar.set_position(done as u64);
                bar.set_message(Text::message(what).to_string());
                self.quiet_until = None;
            }
            None => {
                let _ = writeln!(std::io::stderr(), "[{done}/{steps}] {}", Text::message(what));
                self.quiet_until = Some(now + QUIET);
            }
        }
    }

    /// One more step is done: `what`.
    pub fn step(&mut self, what: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_message(Text::message(what).to_string());
                bar.inc(1);
            }
            None => {
                let width = self.steps.to_string().len();
                let _ = writeln!(std::io::stderr(), "[{:width$}/{}] {}", self.done, self.steps, Text::message(what));
            }
        }
    }
}

/// Does something that has no steps to count, and says how long it has been under way if it takes its time.
pub fn during<V>(what: &str, work: impl FnOnce() -> V) -> V {
    thread::scope(|scope| {
        let (done, is_done) = channel();
        // Where there are no threads to be had, nothing is said.
        let _ = thread::Builder::new().spawn_scoped(scope, || tell_until(what, is_done));
        let value = work();
        drop(done);
        value
    })
}

/// How often a plain stderr hears of something that has no steps.
const NEWS: Duration = Duration::from_secs(10);

fn tell_until(what: &str, is_done: Receiver<()>) {
    let begun = Instant::now();
    let mut wait = QUIET;
    let mut spinner = None;
    while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        wait = NEWS;
        if std::io::stderr().is_terminal() {
            spinner.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{spinner} {msg}: {elapsed}");
                let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
                let spinner = ProgressBar::new_spinner().with_style(style).with_elapsed(begun.elapsed());
                spinner.set_message(Text::message(what).to_string());
                spinner.enable_steady_tick(Duration::from_millis(200));
                spinner
            });
        } else {
            let _ = writeln!(std::io::stderr(), "{}: {} s", Text::message(what), begun.elapsed().as_secs());
        }
    }
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
}

/// Tells of the stages of a run, if it takes its time.
pub struct Told<'a> {
    progress: Progress,
    wanted: &'a dyn Fn(&str) -> bool,
    done: usize,
    stages: usize,
}

impl<'a> Told<'a> {
    /// Of so many stages, which are `wanted`.
    pub fn new(stages: usize, wanted: &'a dyn Fn(&str) -> bool) -> Self {
        Told { progress: Progress::of_something_slow(), wanted, done: 0, stages }
    }
}

impl<T> Tap<T> for Told<'_> {
    fn stage(&mut self, name: &str, _: StageValue<'_, T>) {
        self.done = (self.done + usize::from((self.wanted)(name))).min(self.stages);
        self.progress.reached(self.done, self.stages, name);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.hide();
    }
}

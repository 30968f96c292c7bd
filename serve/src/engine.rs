//! The thread that computes: sequences join and leave while others decode.
//!
//! A round is: those whose client has left or whose time is over leave; those that wait join, in the order in which they came, as far
//! as there is room in the batch and memory for all that they may become; [`CHUNK`] tokens of prompts that are not read yet are
//! read, those of the first ones; all others take one step together. So a long prompt holds up those that decode for one chunk at a
//! time, and they hold it up for one step at a time. What a sequence says depends on nothing of this:
//! its bits are the same in any company ([`Pool`]).

mod places;
mod running;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use dsv2::generate::need;
use dsv2::generate::pool::{CHUNK, Pool};
use dsv2::generate::{ModelFolder, Rules};
use dsv2::memory::{self, Size};
use dsv2::precision::Precision;
use dsv2_reference::Real;
use dsv2_text::FinishReason;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::{ApiError, Result};
pub use places::Place;
use running::Running;

/// A sequence that is to be computed.
pub struct Job {
    /// The tokens of the prompt.
    pub prompt: Vec<i64>,
    /// How it goes on.
    pub rules: Arc<Rules>,
    /// How many tokens may be added; if none, the prompt is only read.
    pub new: usize,
    /// How many likely tokens are told beside each one, if logarithms are wanted.
    pub logprobs: Option<usize>,
    /// Whether those of the prompt's tokens are wanted too.
    pub scores_prompt: bool,
    /// When it has taken too long.
    pub deadline: Instant,
    /// Which one of its request it is.
    pub index: usize,
    /// Where it is heard.
    pub events: UnboundedSender<(usize, Event)>,
    /// Its place in the batch or in the queue.
    pub place: Place,
}

/// What happens to a sequence.
#[derive(Clone, Debug)]
pub enum Event {
    /// Its prompt was read: what is known of each token but the first.
    Prompt(Vec<Scored>),
    /// There is one more token, and so the text goes on.
    Token {
        /// Its id.
        id: i64,
        /// What became known of the text; often nothing.
        text: String,
        /// If it was asked for.
        scored: Option<Scored>,
    },
    /// There are no more.
    End {
        /// What the text ends with.
        text: String,
        /// Why.
        finish: FinishReason,
    },
    /// It cannot go on.
    Failed(ApiError),
}

/// A token and its likelihood by the model's own logits: before penalties, biases and temperature.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The token.
    pub id: i64,
    /// The logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens.
    pub top: Vec<(i64, f64)>,
}

/// How much is computed and held at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that are computed.
    pub batch: usize,
    /// Sequences that wait.
    pub queue: usize,
    /// Bytes.
    pub memory: Option<Size>,
}

/// Takes jobs.
#[derive(Clone)]
pub struct Engine {
    jobs: UnboundedSender<Job>,
    places: Arc<Semaphore>,
    folder: Arc<ModelFolder>,
    precision: Precision,
    limits: Limits,
    room: u64,
    state: Arc<State>,
}

/// What others may know and say.
#[derive(Default)]
struct State {
    abandoned: AtomicBool,
    running: AtomicUsize,
    waiting: AtomicUsize,
}

impl Engine {
    /// Loads a model, and begins to wait for jobs.
    ///
    /// # Errors
    /// If there is not the memory for it, or a weight is missing or of another shape.
    pub fn start(folder: Arc<ModelFolder>, precision: Precision, limits: Limits) -> dsv2::Result<Self> {
        let fixed = need::of_pool(&folder, precision, limits.batch);
        let free = memory::within(limits.memory);
        let room = free.map_or(u64::MAX, |free| free.0).checked_sub(fixed.0).ok_or_else(|| {
            let found = format!("{}; a smaller --max-batch takes less", free.unwrap_or(Size(0)));
            dsv2::Error::request("memory", format!("more than {fixed} that is free"), found)
        })?;
        let (jobs, incoming) = unbounded_channel();
        let places = Arc::new(Semaphore::new(limits.batch + limits.queue));
        let state = Arc::new(State::default());
        let engine = Engine { jobs, places, folder: folder.clone(), precision, limits, room, state };
        match precision {
            Precision::F64 => engine.compute(Pool::<f64>::load(&folder, precision)?, incoming),
            _ => engine.compute(Pool::<f32>::load(&folder, precision)?, incoming),
        }?;
        Ok(engine)
    }

    /// Takes a job.
    ///
    /// # Errors
    /// If nobody computes any more.
    pub fn submit(&self, job: Job) -> Result<()> {
        self.state.waiting.fetch_add(1, Relaxed);
        self.jobs.send(job).map_err(|_| ApiError::stopping())
    }

    /// How many sequences are computed, and how many wait.
    pub fn load(&self) -> (usize, usize) {
        (self.state.running.load(Relaxed), self.state.waiting.load(Relaxed))
    }

    /// Lets go of all sequences.
    pub fn abandon(&self) {
        self.state.abandoned.store(true, Relaxed);
    }

    /// Begins a thread that computes what comes, until nothing can come any more.
    fn compute<T: Real>(&self, pool: Pool<T>, incoming: UnboundedReceiver<Job>) -> dsv2::Result<()> {
        let Engine { folder, limits, room, state, .. } = self.clone();
        let run = move || Rounds { folder: &folder, pool, limits, room, state: &state }.run(incoming);
        let thread = std::thread::Builder::new().name("engine".to_owned());
        thread.spawn(run).map_err(|refused| dsv2::Error::request("threads", "some from the system", refused))?;
        Ok(())
    }
}

struct Rounds<'a, T> {
    folder: &'a ModelFolder,
    pool: Pool<T>,
    limits: Limits,
    room: u64,
    state: &'a State,
}

impl<T: Real> Rounds<'_, T> {
    fn run(&self, mut incoming: UnboundedReceiver<Job>) {
        let (mut waiting, mut running) = (VecDeque::new(), Vec::new());
        loop {
            if waiting.is_empty() && running.is_empty() {
                match incoming.blocking_recv() {
                    Some(job) => waiting.push_back(job),
                    None => return,
                }
            }
            while let Ok(job) = incoming.try_recv() {
                waiting.push_back(job);
            }
            self.let_go(&mut waiting, &mut running);
            self.join(&mut waiting, &mut running);
            self.state.running.store(running.len(), Relaxed);
            self.state.waiting.store(waiting.len(), Relaxed);
            let mut budget = CHUNK;
            for reading in running.iter_mut().filter(|running: &&mut Running<T>| running.is_reading()) {
                budget -= reading.read(&self.pool, budget).min(budget);
                if budget == 0 {
                    break;
                }
            }
            running.retain(|running| !running.is_over());
            self.step(&mut running);
            running.retain(|running| !running.is_over());
            self.state.running.store(running.len(), Relaxed);
        }
    }

    /// Those that nobody waits for any more leave.
    fn let_go(&self, waiting: &mut VecDeque<Job>, running: &mut Vec<Running<T>>) {
        let now = Instant::now();
        let stays = |job: &Job| {
            let ended = match self.state.abandoned.load(Relaxed) {
                true => Some(ApiError::stopping()),
                false => (job.deadline <= now).then(ApiError::timeout),
            };
            if let Some(error) = &ended {
                let _ = job.events.send((job.index, Event::Failed(error.clone())));
            }
            ended.is_none() && !job.events.is_closed()
        };
        waiting.retain(&stays);
        running.retain(|running| stays(running.job()));
    }

    /// Those for whom there is room join, in their order: nobody is overtaken.
    fn join<'a>(&'a self, waiting: &mut VecDeque<Job>, running: &mut Vec<Running<'a, T>>) {
        while let Some(job) = waiting.front().filter(|_| running.len() < self.limits.batch) {
            let need = job.place.need;
            let kept = running.iter().fold(need.kept.0, |sum, running| sum.saturating_add(running.need().kept.0));
            let reading = running.iter().map(|running| running.need().reading.0).max().unwrap_or(0).max(need.reading.0);
            if !running.is_empty() && kept.saturating_add(reading) > self.room {
                return;
            }
            if let Some(job) = waiting.pop_front() {
                running.extend(Running::new(self.folder, &self.pool, job));
            }
        }
    }

    /// One more token of each that has read its prompt.
    fn step(&self, running: &mut [Running<T>]) {
        let mut decoding: Vec<_> = running.iter_mut().filter(|running| !running.is_reading()).collect();
        if decoding.is_empty() {
            return;
        }
        let tokens: Vec<i64> = decoding.iter().map(|running| running.last()).collect();
        let mut known: Vec<_> = decoding.iter_mut().map(|running| running.known()).collect();
        match self.pool.step(&mut known, &tokens) {
            Ok(logits) => decoding.iter_mut().zip(logits.rows()).for_each(|(running, logits)| running.take(logits)),
            Err(error) => decoding.iter_mut().for_each(|running| running.fail(error.to_string())),
        }
    }
}

//! A sequence that is being computed.

use axum::http::StatusCode;
use dsv2::generate::need::InPool;
use dsv2::generate::pool::{Known, Pool};
use dsv2::generate::{ModelFolder, Sequence};
use dsv2::memory::Size;
use dsv2_foreign::Text;
use dsv2_reference::Real;
use dsv2_text::generation::sampler::LogProbabilities;
use dsv2_text::{FinishReason, Lengths};
use ndarray::ArrayView1;

use super::{Event, Job, Scored};
use crate::error::ApiError;

pub(super) struct Running<'a, T> {
    job: Job,
    known: Known<T>,
    sequence: Sequence<'a>,
    /// Of the prompt's tokens but the first.
    prompt: Vec<Scored>,
    last: i64,
    over: bool,
}

impl<'a, T: Real> Running<'a, T> {
    /// None if it is refused, which its client was told.
    pub(super) fn new(folder: &'a ModelFolder, pool: &Pool<T>, job: Job) -> Option<Self> {
        let length = job.prompt.len();
        let mut rules = (*job.rules).clone();
        rules.config.max_new_tokens = Some(job.new.max(1));
        let sequence = Lengths::new(&rules.config, length, Some(folder.config.max_position_embeddings))
            .map_err(Into::into)
            .and_then(|lengths| Sequence::new(folder, job.prompt.clone(), length, &lengths, &rules));
        match sequence {
            Ok(sequence) => {
                let known = pool.begin(length);
                Some(Running { job, known, sequence, prompt: Vec::new(), last: 0, over: false })
            }
            Err(error) => {
                let _ = job.events.send((job.index, Event::Failed(error.into())));
                None
            }
        }
    }

    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// What it takes from now on.
    pub(super) fn need(&self) -> InPool {
        let need = self.job.place.need;
        InPool { reading: if self.is_reading() { need.reading } else { Size(0) }, ..need }
    }

    pub(super) fn is_reading(&self) -> bool {
        self.known.tokens() < self.job.prompt.len()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The token that was chosen last, which is fed next.
    pub(super) fn last(&self) -> i64 {
        self.last
    }

    pub(super) fn known(&mut self) -> &mut Known<T> {
        &mut self.known
    }

    /// Reads the next tokens of the prompt, `most` if it can be cut, and says how many; after the last ones, the first token is
    /// chosen.
    pub(super) fn read(&mut self, pool: &Pool<T>, most: usize) -> usize {
        let begin = self.known.tokens();
        let tokens = pool.next_chunk(self.job.prompt.len() - begin, most);
        self.read_chunk(pool, begin, begin + tokens);
        tokens
    }

    fn read_chunk(&mut self, pool: &Pool<T>, begin: usize, end: usize) {
        let logits = match pool.read(&mut self.known, &self.job.prompt[begin..end], self.job.scores_prompt) {
            Ok(logits) => logits,
            Err(error) => return self.fail(error.to_string()),
        };
        if self.job.scores_prompt {
            // a row tells of the token after its own
            for (logits, id) in logits.rows().into_iter().zip(&self.job.prompt[begin + 1..]) {
                self.prompt.push(scored(&logits.to_vec(), *id, self.job.logprobs.unwrap_or(0)));
            }
        }
        if self.is_reading() {
            return;
        }
        if self.job.scores_prompt {
            let scores = std::mem::take(&mut self.prompt);
            self.tell(Event::Prompt(scores));
        }
        if self.job.new == 0 {
            return self.end(FinishReason::Length);
        }
        self.take(logits.row(logits.nrows() - 1));
    }

    /// Chooses the next token by its logits.
    pub(super) fn take(&mut self, logits: ArrayView1<f32>) {
        let (chosen, text) = match self.sequence.choose(logits, self.job.index) {
            Ok(chosen) => chosen,
            Err(error) => return self.refuse(error.into()),
        };
        let scored = self.job.logprobs.map(|top| scored(&logits.to_vec(), chosen.id, top));
        self.last = chosen.id;
        self.tell(Event::Token { id: chosen.id, text, scored });
        if let Some(finish) = self.sequence.finish().cloned() {
            self.end(finish);
        }
    }

    fn end(&mut self, finish: FinishReason) {
        match self.sequence.last_text() {
            Ok(text) => self.tell(Event::End { text, finish }),
            Err(error) => self.fail(error.to_string()),
        }
        self.over = true;
    }

    /// What goes wrong with the model is no client's fault.
    pub(super) fn fail(&mut self, message: String) {
        eprintln!("{}", Text::message(&format!("dsv2-serve: {message}")).as_str());
        self.refuse(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, None, message));
    }

    /// By the client's settings, no token may come.
    fn refuse(&mut self, error: ApiError) {
        self.tell(Event::Failed(error));
        self.over = true;
    }

    fn tell(&mut self, event: Event) {
        // who has left hears nothing
        self.over |= self.job.events.send((self.job.index, event)).is_err();
    }
}

fn scored(logits: &[f32], id: i64, top: usize) -> Scored {
    let likely = LogProbabilities::new(logits);
    let top = likely.likeliest(top).into_iter().map(|(token, logprob)| (token as i64, logprob)).collect();
    Scored { id, logprob: likely.of(id as usize), top }
}

//! The streams of all ranks, and who does the work in them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dsv2_reference::weights::generator::splitmix64;

use super::emulated::{Fault, Interference};
use super::stream::Step;
use super::{Call, Posted, transfer};
use crate::device::Device;
use crate::{Emulated, Error, Result};

/// All streams.
pub(super) struct World {
    devices: Vec<Arc<Emulated>>,
    state: Mutex<State>,
    /// Something was done, or asked for.
    changed: Condvar,
    pub(super) limit: Duration,
    pub(super) interference: Option<Interference>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("ranks", &self.ranks()).finish_non_exhaustive()
    }
}

struct State {
    streams: Vec<Stream>,
    fault: Option<Fault>,
    random: u64,
}

#[derive(Default)]
struct Stream {
    steps: VecDeque<Step>,
    /// Its first step is being done.
    busy: bool,
    /// Its rank waits for all of it.
    waited_for: bool,
    ended: bool,
}

/// What can be done next.
enum Next {
    /// The first step of a rank.
    Of(usize),
    /// That of all ranks of a group: one collective.
    Together(Arc<[usize]>),
}

impl World {
    pub(super) fn new(devices: Vec<Arc<Emulated>>, limit: Duration) -> Self {
        let streams = devices.iter().map(|_| Stream::default()).collect();
        let state = Mutex::new(State { streams, fault: None, random: 0 });
        World { devices, state, changed: Condvar::new(), limit, interference: None }
    }

    pub(super) fn shuffle(&self, seed: u64) {
        self.lock().random = seed;
    }

    pub(super) fn ranks(&self) -> usize {
        self.devices.len()
    }

    pub(super) fn device(&self, rank: usize) -> &Emulated {
        &self.devices[rank]
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first fault is the one that all are told.
    pub(super) fn fail(&self, fault: Fault) {
        self.lock().fault.get_or_insert(fault);
        self.changed.notify_all();
    }

    /// What all were told, if there was something.
    pub(super) fn check(&self) -> Result<()> {
        self.lock().fault.clone().map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// A rank asks for nothing any more.
    pub(super) fn end(&self, rank: usize) {
        self.lock().streams[rank].ended = true;
        self.changed.notify_all();
    }

    /// Gives back what still waits for it when all ranks have ended.
    pub(super) fn clear(&self) {
        for (stream, device) in self.lock().streams.iter_mut().zip(&self.devices) {
            for step in stream.steps.drain(..) {
                if let Step::Free(address) = step {
                    device.free(address);
                }
            }
        }
    }

    /// Puts a step on a stream.
    pub(super) fn push(&self, rank: usize, step: Step) {
        self.lock().streams[rank].steps.push_back(step);
        self.changed.notify_all();
    }

    /// Puts a call on a stream.
    pub(super) fn post(&self, rank: usize, call: Call) -> Result<()> {
        let calls = match &self.interference {
            Some(interference) => interference(rank, call),
            None => vec![call],
        };
        for call in &calls {
            call.check()?;
            self.push(rank, Step::Collective(Posted::from(call)));
        }
        Ok(())
    }

    /// Waits until all is done that a rank has asked for, and does what can be done meanwhile, for all ranks.
    pub(super) fn wait(&self, rank: usize) -> Result<()> {
        let mut state = self.lock();
        state.streams[rank].waited_for = true;
        let mut since = Instant::now();
        let waited = loop {
            if let Some(fault) = &state.fault {
                break Err(fault.clone().into());
            }
            if state.streams[rank].steps.is_empty() {
                break Ok(());
            }
            if let Some(next) = state.next() {
                state = self.perform(state, next);
                since = Instant::now();
                continue;
            }
            let left = self.limit.saturating_sub(since.elapsed());
            let fault = state.in_vain().or_else(|| left.is_zero().then(|| state.late(rank, self.limit)).flatten());
            if let Some(fault) = fault {
                state.fault.get_or_insert(fault);
                self.changed.notify_all();
                continue;
            }
            // Even if nothing tells of it, time goes by.
            let left = left.max(Duration::from_millis(1));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.streams[rank].waited_for = false;
        waited
    }

    /// Does a step, or a collective of several streams, while others may go on.
    fn perform<'a>(&'a self, mut state: MutexGuard<'a, State>, next: Next) -> MutexGuard<'a, State> {
        let ranks = match next {
            Next::Of(rank) => Arc::from([rank]),
            Next::Together(ranks) => ranks,
        };
        let steps: Vec<Step> = ranks.iter().filter_map(|rank| state.streams[*rank].take()).collect();
        drop(state);
        let done = match &steps[..] {
            [step] if !matches!(step, Step::Collective(_)) => {
                step.perform(self.device(ranks[0])).map_err(|error| Fault::new(ranks[0], step, "success", error))
            }
            steps => self.exchange(&ranks, steps),
        };
        let mut state = self.lock();
        ranks.iter().for_each(|rank| state.streams[*rank].done());
        if let Err(fault) = done {
            state.fault.get_or_insert(fault);
        }
        self.changed.notify_all();
        state
    }

    fn exchange(&self, ranks: &[usize], steps: &[Step]) -> std::result::Result<(), Fault> {
        let calls: Vec<&Posted> = steps.iter().filter_map(Step::call).collect();
        transfer::agree(&calls)?;
        let failed = |rank, call: &Posted, error: Error| Fault::new(rank, call, "numbers to send", error);
        let mut sent = Vec::with_capacity(calls.len());
        for (rank, call) in ranks.iter().zip(&calls) {
            let mut bytes = vec![0; call.send.1.iter().sum::<usize>() * call.element.bytes()];
            self.device(*rank).read(call.send.0, &mut bytes).map_err(|error| failed(*rank, call, error))?;
            sent.push(bytes);
        }
        for ((rank, call), bytes) in ranks.iter().zip(&calls).zip(transfer::results(&calls, &sent)) {
            self.device(*rank).write(call.receive.0, &bytes).map_err(|error| failed(*rank, call, error))?;
        }
        Ok(())
    }
}

impl Stream {
    /// The collective that is next, if one is.
    fn call(&self) -> Option<&Posted> {
        self.steps.front().and_then(Step::call)
    }

    /// Takes the first step; a placeholder stays until it is done.
    fn take(&mut self) -> Option<Step> {
        self.busy = true;
        self.steps.front_mut().map(|step| std::mem::replace(step, Step::Free(0)))
    }

    fn done(&mut self) {
        self.busy = false;
        self.steps.pop_front();
    }

    /// Whether its rank asks for nothing more before the stream has gone on.
    fn stands(&self) -> bool {
        !self.busy && (self.ended || (self.waited_for && !self.steps.is_empty()))
    }
}

impl State {
    /// Something that can be done, chosen by the seed.
    fn next(&mut self) -> Option<Next> {
        let can_go_on = |rank: usize| match self.streams[rank].steps.front() {
            None => None,
            Some(_) if self.streams[rank].busy => None,
            Some(Step::Collective(call)) => {
                let comes = |member: &usize| {
                    let stream = &self.streams[*member];
                    !stream.busy && stream.call().is_some_and(|other| other.ranks == call.ranks)
                };
                call.ranks.iter().all(comes).then(|| Next::Together(call.ranks.clone()))
            }
            Some(_) => Some(Next::Of(rank)),
        };
        let mut able: Vec<Next> = (0..self.streams.len()).filter_map(can_go_on).collect();
        if able.is_empty() {
            return None;
        }
        self.random = splitmix64(self.random);
        Some(able.swap_remove((self.random % able.len() as u64) as usize))
    }

    /// What is wrong if no stream can go on any more.
    fn in_vain(&self) -> Option<Fault> {
        if !self.streams.iter().all(Stream::stands) {
            return None;
        }
        // Who has ended says more than who waits for somebody else.
        let waiting = || (0..self.streams.len()).filter_map(|rank| Some((rank, self.streams[rank].call()?)));
        let missing = |ended: bool| {
            waiting().find_map(|(rank, call)| {
                let absent = |other: &&usize| self.streams[**other].call().is_none_or(|it| it.ranks != call.ranks);
                let ends = |other: &&usize| !ended || self.streams[**other].steps.is_empty();
                Some((rank, call, *call.ranks.iter().filter(absent).find(ends)?))
            })
        };
        let (rank, call, other) = missing(true).or_else(|| missing(false))?;
        let found = match self.streams[other].call() {
            None => format!("that rank {other} has ended"),
            Some(call) => format!("rank {other} in {call}"),
        };
        Some(Fault { rank, call: call.to_string(), expected: format!("rank {other} to come to it"), found })
    }

    /// What a rank has waited for too long.
    fn late(&self, rank: usize, limit: Duration) -> Option<Fault> {
        let call = self.streams[rank].call()?;
        let absent = |other: &&usize| self.streams[**other].call().is_none_or(|it| it.ranks != call.ranks);
        let other = call.ranks.iter().find(absent)?;
        let expected = format!("rank {other} to come to it within {limit:?}");
        Some(Fault { rank, call: call.to_string(), expected, found: "nothing of it".into() })
    }
}

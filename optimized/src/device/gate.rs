//! Whether a graph is being captured, and who may ask for what meanwhile.
//!
//! While one thread captures, what it asks for is written down and not done. What cannot be written down is refused, and
//! so is whatever another thread asks for: it would become a part of the graph.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, ThreadId};

use crate::{Error, Result};

/// Everything that is asked of a device goes through it. Nobody may pass it twice at a time.
#[derive(Debug, Default)]
pub(super) struct Gate(RwLock<Option<Capture>>);

/// A capture that is under way.
#[derive(Debug)]
struct Capture {
    thread: ThreadId,
    launches: AtomicUsize,
    freed: AtomicBool,
}

/// While somebody has one, no capture begins or ends.
pub(super) struct Pass<'a>(RwLockReadGuard<'a, Option<Capture>>);

impl Pass<'_> {
    /// Whether what is asked for becomes a part of a graph.
    pub(super) fn captures(&self) -> bool {
        self.0.is_some()
    }

    /// A kernel became a part of the graph.
    pub(super) fn count_launch(&self) {
        if let Some(capture) = &*self.0 {
            capture.launches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Gate {
    /// For what a graph cannot hold.
    pub(super) fn outside(&self, what: &str) -> Result<Pass<'_>> {
        let pass = self.read();
        if pass.captures() { Err(Error::Capturing { what: what.into() }) } else { Ok(pass) }
    }

    /// For what a graph can hold.
    pub(super) fn inside(&self, what: &str) -> Result<Pass<'_>> {
        let pass = self.read();
        let foreign = pass.0.as_ref().is_some_and(|capture| capture.thread != thread::current().id());
        if foreign { Err(Error::Capturing { what: what.into() }) } else { Ok(pass) }
    }

    /// Memory is given back: a graph could no longer use it.
    pub(super) fn frees(&self) {
        if let Some(capture) = &*self.read().0
            && capture.thread == thread::current().id()
        {
            capture.freed.store(true, Ordering::Relaxed);
        }
    }

    /// Does `work` between `begin` and `end`, which are called once each, also if `work` panics. What `end` makes, and how
    /// many launches are in it.
    pub(super) fn capture<T>(
        &self,
        begin: impl FnOnce() -> Result<()>,
        work: &mut dyn FnMut() -> Result<()>,
        end: impl FnOnce() -> Result<T>,
    ) -> Result<(T, usize)> {
        let mut state = self.write();
        if state.is_some() {
            return Err(Error::Capturing { what: "a capture".into() });
        }
        begin()?;
        *state = Some(Capture {
            thread: thread::current().id(),
            launches: AtomicUsize::new(0),
            freed: AtomicBool::new(false),
        });
        drop(state);
        let outcome = catch_unwind(AssertUnwindSafe(work));
        let mut state = self.write();
        let made = end();
        let capture = state.take();
        drop(state);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        let (launches, freed) =
            capture.map_or((0, false), |capture| (capture.launches.into_inner(), capture.freed.into_inner()));
        if freed {
            return Err(Error::Capturing { what: "giving memory back".into() });
        }
        Ok((made?, launches))
    }

    fn read(&self) -> Pass<'_> {
        Pass(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Capture>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Streams and events.
//!
//! A stream that was not made as non-blocking waits for the default stream, and that for it: they share one queue here.

use std::ffi::c_uint;
use std::thread::ThreadId;

use crate::driver::{Answer, DEFAULT, Driver, entry, give};
use crate::faults::Fate;
use crate::status::Status;
use crate::work::{Entry, Work};

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;

/// A stream.
pub(crate) struct Stream {
    /// Where its work waits.
    queue: usize,
    /// What is captured of it, while it is.
    pub(crate) capture: Option<Capture>,
}

/// A capture that is under way.
pub(crate) struct Capture {
    pub(crate) work: Vec<Entry>,
    /// `CUstreamCaptureMode`: 0 global, 1 of the thread, 2 relaxed.
    pub(crate) mode: c_uint,
    pub(crate) thread: ThreadId,
    /// Something was asked for that no graph can hold.
    pub(crate) invalid: bool,
}

/// An event.
#[derive(Default)]
pub(crate) struct Event {
    /// The last record that was asked of it.
    recorded: Option<usize>,
    /// When that was done.
    time: Option<f64>,
}

impl Event {
    /// A record is done. If another one was asked for since, it says nothing.
    pub(crate) fn done(&mut self, number: usize, now: f64) {
        if self.recorded == Some(number) {
            self.time = Some(now);
        }
    }

    fn time(&self) -> Answer<f64> {
        self.recorded.ok_or(Status::ERROR_INVALID_HANDLE)?;
        self.time.ok_or(Status::ERROR_NOT_READY)
    }
}

entry! {
    /// Makes a stream.
    Context fn cuStreamCreate(place: *mut usize, flags: c_uint) |driver, _| {
        if flags > NON_BLOCKING {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        let handle = driver.handle();
        let queue = if flags == NON_BLOCKING { handle } else { DEFAULT };
        driver.streams.insert(handle, Stream { queue, capture: None });
        // SAFETY: as the manual wants it.
        unsafe { give(place, handle) }
    }

    /// Gives it back at once. What it was asked for is done all the same.
    Context fn cuStreamDestroy_v2(stream: usize) |driver, _| {
        driver.streams.remove(&stream).map(|_| ()).ok_or(Status::ERROR_INVALID_HANDLE)
    }

    /// Waits for what it was asked for.
    Context fn cuStreamSynchronize(stream: usize) |driver, _| {
        driver.not_captured(stream)?;
        let queue = driver.queue(stream)?;
        driver.wait_for(queue)
    }

    /// The stream goes on when what was asked for before an event is done.
    Context fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) |driver, fate| {
        let event = driver.events.get(&event).ok_or(Status::ERROR_INVALID_HANDLE)?;
        match event.recorded {
            Some(number) => driver.later(stream, fate, Work::Wait { number }),
            None => Ok(()),
        }
    }

    /// Makes an event.
    Context fn cuEventCreate(place: *mut usize, _flags: c_uint) |driver, _| {
        let handle = driver.handle();
        driver.events.insert(handle, Event::default());
        // SAFETY: as the manual wants it.
        unsafe { give(place, handle) }
    }

    /// Gives it back.
    Context fn cuEventDestroy_v2(event: usize) |driver, _| {
        driver.events.remove(&event).map(|_| ()).ok_or(Status::ERROR_INVALID_HANDLE)
    }

    /// The stream writes the time into it when it comes by.
    Context fn cuEventRecord(event: usize, stream: usize) |driver, fate| {
        let number = driver.handle();
        let found = driver.events.get_mut(&event).ok_or(Status::ERROR_INVALID_HANDLE)?;
        (found.recorded, found.time) = (Some(number), None);
        driver.later(stream, fate, Work::Record { event, number })
    }

    /// Waits for it.
    Context fn cuEventSynchronize(event: usize) |driver, _| {
        let event = driver.events.get(&event).ok_or(Status::ERROR_INVALID_HANDLE)?;
        event.recorded.map_or(Ok(()), |number| driver.wait_for_record(number))
    }

    /// Milliseconds from one event to another.
    Context fn cuEventElapsedTime(place: *mut f32, start: usize, end: usize) |driver, _| {
        let time = |event: usize| driver.events.get(&event).ok_or(Status::ERROR_INVALID_HANDLE)?.time();
        let elapsed = (time(end)? - time(start)?) / 1e3;
        // SAFETY: as the manual wants it.
        unsafe { give(place, elapsed as f32) }
    }
}

impl Driver {
    /// The queue of a stream.
    pub(crate) fn queue(&self, stream: usize) -> Answer<usize> {
        match stream {
            0 => Ok(DEFAULT),
            _ => self.streams.get(&stream).map(|stream| stream.queue).ok_or(Status::ERROR_INVALID_HANDLE),
        }
    }

    /// Work for a stream. If the stream is captured, it becomes a part of the graph.
    pub(crate) fn later(&mut self, stream: usize, fate: Fate, work: Work) -> Answer {
        let queue = self.queue(stream)?;
        if let Some(capture) = self.streams.get_mut(&stream).and_then(|stream| stream.capture.as_mut()) {
            // An event within a graph orders work between streams, and has no time.
            if !matches!(work, Work::Record { .. }) {
                capture.work.push(Entry { work, fault: fate.later });
            }
            return if capture.invalid { Err(Status::ERROR_STREAM_CAPTURE_INVALIDATED) } else { Ok(()) };
        }
        self.queues.entry(queue).or_default().push_back(Entry { work, fault: fate.later });
        Ok(())
    }

    /// What cannot be asked of a stream while it is captured spoils the capture.
    fn not_captured(&mut self, stream: usize) -> Answer {
        match self.streams.get_mut(&stream).and_then(|stream| stream.capture.as_mut()) {
            Some(capture) => {
                capture.invalid = true;
                Err(Status::ERROR_STREAM_CAPTURE_UNSUPPORTED)
            }
            None => Ok(()),
        }
    }

    /// Calls that may wait for the device are refused while a capture forbids them, and spoil it.
    pub(crate) fn unsafe_while_capturing(&mut self) -> Answer {
        let here = std::thread::current().id();
        let captures = self.streams.values_mut().filter_map(|stream| stream.capture.as_mut());
        let mut refused = false;
        for capture in captures.filter(|capture| capture.mode == 0 || capture.mode == 1 && capture.thread == here) {
            capture.invalid = true;
            refused = true;
        }
        if refused { Err(Status::ERROR_STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }
}

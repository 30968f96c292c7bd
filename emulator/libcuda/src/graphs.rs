//! Capture of streams, and graphs.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Arc;

use crate::driver::{entry, give};
use crate::status::Status;
use crate::streams::Capture;
use crate::work::Work;

entry! {
    /// From now on what the stream is asked for is written down.
    Context fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) |driver, _| {
        if mode > 2 {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        if stream == 0 {
            return Err(Status::ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        let found = driver.streams.get_mut(&stream).ok_or(Status::ERROR_INVALID_HANDLE)?;
        if found.capture.is_some() {
            return Err(Status::ERROR_ILLEGAL_STATE);
        }
        found.capture = Some(Capture { work: vec![], mode, thread: std::thread::current().id(), invalid: false });
        Ok(())
    }

    /// What was written down, as a graph.
    Context fn cuStreamEndCapture(stream: usize, place: *mut usize) |driver, _| {
        let found = driver.streams.get_mut(&stream).ok_or(Status::ERROR_INVALID_HANDLE)?;
        let capture = found.capture.take().ok_or(Status::ERROR_ILLEGAL_STATE)?;
        if capture.mode != 2 && capture.thread != std::thread::current().id() {
            found.capture = Some(capture);
            return Err(Status::ERROR_STREAM_CAPTURE_WRONG_THREAD);
        }
        if capture.invalid {
            // SAFETY: as the manual wants it.
            unsafe { give(place, 0) }?;
            return Err(Status::ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        let handle = driver.handle();
        driver.graphs.insert(handle, Arc::from(capture.work));
        // SAFETY: as the manual wants it.
        unsafe { give(place, handle) }
    }

    /// Makes of a graph something that can be launched.
    Context fn cuGraphInstantiateWithFlags(place: *mut usize, graph: usize, _flags: c_ulonglong) |driver, _| {
        let work = driver.graphs.get(&graph).cloned().ok_or(Status::ERROR_INVALID_VALUE)?;
        let handle = driver.handle();
        driver.executables.insert(handle, work);
        // SAFETY: as the manual wants it.
        unsafe { give(place, handle) }
    }

    /// Asks a stream for all of it.
    Context fn cuGraphLaunch(executable: usize, stream: usize) |driver, fate| {
        let work = driver.executables.get(&executable).cloned().ok_or(Status::ERROR_INVALID_VALUE)?;
        driver.later(stream, fate, Work::Graph(work))
    }

    /// Gives a graph back.
    Context fn cuGraphDestroy(graph: usize) |driver, _| {
        driver.graphs.remove(&graph).map(|_| ()).ok_or(Status::ERROR_INVALID_VALUE)
    }

    /// Gives back what was made of it. What is under way ends first.
    Context fn cuGraphExecDestroy(executable: usize) |driver, _| {
        driver.executables.remove(&executable).map(|_| ()).ok_or(Status::ERROR_INVALID_VALUE)
    }
}

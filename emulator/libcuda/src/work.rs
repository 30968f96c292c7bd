//! What streams are asked for, and how it is done: as late as the manual allows, that is when somebody waits for it.

use std::slice;
use std::sync::Arc;

use ptx_emulator::{Arg, Cause, DevicePointer, Error, Grid, Module, Options};

use crate::driver::{Answer, Driver};
use crate::status::Status;

/// Something that a stream does.
#[derive(Clone)]
pub(crate) enum Work {
    Launch {
        module: usize,
        code: Arc<Module>,
        entry: String,
        grid: Grid,
        args: Vec<Arg>,
    },
    Upload {
        to: u64,
        from: HostRange,
    },
    Download {
        from: u64,
        to: HostRange,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
    Fill {
        address: u64,
        byte: u8,
        bytes: usize,
    },
    /// The event gets the time, if this is the last that was asked of it.
    Record {
        event: usize,
        number: usize,
    },
    /// What another stream was asked for before that record is done first.
    Wait {
        number: usize,
    },
    Graph(Arc<[Entry]>),
}

/// Memory of the host; if it was pinned when it was named, the pinned memory's address and number.
#[derive(Clone, Copy)]
pub(crate) struct HostRange {
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) pinned: Option<(usize, usize)>,
}

/// Something in a queue, or in a graph.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) work: Work,
    /// It was asked to fail.
    pub(crate) fault: Option<Status>,
}

/// What went wrong, and what is said about it.
struct Failure(Status, String);

impl Driver {
    /// Does all that is in a queue.
    pub(crate) fn wait_for(&mut self, queue: usize) -> Answer {
        while let Some(entry) = self.queues.get_mut(&queue).and_then(std::collections::VecDeque::pop_front) {
            self.finish(entry)?;
        }
        Ok(())
    }

    /// Does all that was ever asked for.
    pub(crate) fn wait_for_all(&mut self) -> Answer {
        let mut queues: Vec<usize> = self.queues.keys().copied().collect();
        queues.sort_unstable();
        queues.into_iter().try_for_each(|queue| self.wait_for(queue))
    }

    /// Does what was asked for before a record, and the record.
    pub(crate) fn wait_for_record(&mut self, number: usize) -> Answer {
        let is_it = |entry: &Entry| matches!(entry.work, Work::Record { number: other, .. } if other == number);
        let Some(queue) = self.queues.iter().find(|(_, entries)| entries.iter().any(is_it)).map(|(queue, _)| *queue)
        else {
            // It is done.
            return Ok(());
        };
        loop {
            let Some(entry) = self.queues.get_mut(&queue).and_then(std::collections::VecDeque::pop_front) else {
                return Ok(());
            };
            let last = is_it(&entry);
            self.finish(entry)?;
            if last {
                return Ok(());
            }
        }
    }

    fn finish(&mut self, entry: Entry) -> Answer {
        self.attempt(&entry).map_err(|Failure(status, said)| {
            // The text is the driver's own, and then what the emulator knows.
            let usual = status.texts().map_or(String::new(), |(_, text)| text.to_string_lossy().into_owned());
            self.stick(status, Some(format!("{usual}: {said}")));
            status
        })
    }

    fn attempt(&mut self, entry: &Entry) -> Result<(), Failure> {
        match entry.fault {
            Some(status) => Err(Failure(status, format!("{} was asked to fail", entry.work.name()))),
            None => self.perform(&entry.work),
        }
    }

    fn perform(&mut self, work: &Work) -> Result<(), Failure> {
        let pointer = DevicePointer::from_address;
        match work {
            Work::Launch { module, code, entry, grid, args } => {
                if !self.modules.contains_key(module) {
                    let said = format!("{entry}: its module was unloaded before it ran");
                    return Err(Failure(Status::ERROR_ILLEGAL_ADDRESS, said));
                }
                self.microseconds += 5.0;
                self.emulator.launch(code, entry, *grid, args, Options::default())?;
            }
            Work::Upload { to, from } => {
                self.check(from)?;
                // SAFETY: the caller promised that so many bytes can be read until the copy is done; pinned memory was
                // just looked at.
                let data = unsafe { slice::from_raw_parts(from.start as *const u8, from.bytes) };
                self.microseconds += 1.0;
                self.emulator.write(pointer(*to), data)?;
            }
            Work::Download { from, to } => {
                self.check(to)?;
                let data = self.emulator.read_bytes(pointer(*from), to.bytes as u64)?;
                self.microseconds += 1.0;
                // SAFETY: as above, of writing.
                unsafe { slice::from_raw_parts_mut(to.start as *mut u8, to.bytes) }.copy_from_slice(&data);
            }
            Work::Copy { from, to, bytes } => {
                let data = self.emulator.read_bytes(pointer(*from), *bytes as u64)?;
                self.microseconds += 1.0;
                self.emulator.write(pointer(*to), &data)?;
            }
            Work::Fill { address, byte, bytes } => {
                self.microseconds += 1.0;
                self.emulator.write(pointer(*address), &vec![*byte; *bytes])?;
            }
            Work::Record { event, number } => {
                let now = self.microseconds;
                if let Some(event) = self.events.get_mut(event) {
                    event.done(*number, now);
                }
            }
            Work::Wait { number } => {
                let waited = self.wait_for_record(*number);
                waited.map_err(|status| Failure(status, "what was waited for".into()))?;
            }
            Work::Graph(all) => return all.iter().try_for_each(|entry| self.attempt(entry)),
        }
        Ok(())
    }

    /// Pinned memory must still be there when a copy is done.
    fn check(&self, range: &HostRange) -> Result<(), Failure> {
        let Some((address, number)) = range.pinned else { return Ok(()) };
        if self.pinned.get(&address).is_some_and(|pinned| pinned.number == number) {
            return Ok(());
        }
        let said = "pinned memory was given back before a copy was done".into();
        Err(Failure(Status::ERROR_ILLEGAL_ADDRESS, said))
    }
}

impl Work {
    fn name(&self) -> &str {
        match self {
            Work::Launch { entry, .. } => entry,
            Work::Upload { .. } | Work::Download { .. } | Work::Copy { .. } => "a copy",
            Work::Fill { .. } => "a fill",
            Work::Record { .. } | Work::Wait { .. } => "an event",
            Work::Graph(_) => "a graph",
        }
    }
}

impl From<Error> for Failure {
    /// The driver's number for what the emulator found.
    fn from(error: Error) -> Self {
        let by_cause = |cause: &Cause| match cause {
            Cause::Misaligned { .. } => Status::ERROR_MISALIGNED_ADDRESS,
            Cause::Assertion { .. } => Status::ERROR_ASSERT,
            Cause::Trap => Status::ERROR_LAUNCH_FAILED,
            Cause::Endless { .. } => Status::ERROR_LAUNCH_TIMEOUT,
            // Of unwritten bytes a GPU says nothing; there is no number for them.
            _ => Status::ERROR_ILLEGAL_ADDRESS,
        };
        let status = match &error {
            Error::Fault(fault) => by_cause(&fault.cause),
            Error::Memory(cause) => by_cause(cause),
            Error::Stuck(_) => Status::ERROR_LAUNCH_TIMEOUT,
            _ => Status::ERROR_LAUNCH_FAILED,
        };
        Failure(status, error.to_string())
    }
}

//! The driver: all that it holds, and the way that each call takes.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CString;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ptx_emulator::{Emulator, Module};

use crate::faults::{Fate, Settings};
use crate::status::Status;
use crate::streams::{Event, Stream};
use crate::work::Entry;

/// The handle of the one context that there is.
pub(crate) const CONTEXT: usize = 0x1000;
/// The queue of the default stream, and of every stream that waits for it.
pub(crate) const DEFAULT: usize = 0;

thread_local! {
    /// The context that is current on this thread.
    pub(crate) static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// All that the driver holds.
pub(crate) struct Driver {
    pub(crate) settings: Settings,
    pub(crate) initialised: bool,
    /// How often the context is retained.
    pub(crate) retained: u32,
    pub(crate) emulator: Emulator,
    /// Device memory that was given out, to tell what was never given back.
    pub(crate) taken: HashMap<u64, usize>,
    /// Pinned memory of the host: from its address, its size, its number, and itself.
    pub(crate) pinned: BTreeMap<usize, Pinned>,
    pub(crate) modules: HashMap<usize, Arc<Module>>,
    pub(crate) functions: HashMap<usize, crate::modules::Function>,
    pub(crate) streams: HashMap<usize, Stream>,
    /// What was asked for and not done yet, in order; by queue.
    pub(crate) queues: HashMap<usize, VecDeque<Entry>>,
    pub(crate) events: HashMap<usize, Event>,
    pub(crate) graphs: HashMap<usize, Arc<[Entry]>>,
    pub(crate) executables: HashMap<usize, Arc<[Entry]>>,
    /// The error after which nothing else is answered.
    pub(crate) sticky: Option<Status>,
    /// What the emulator said about it.
    pub(crate) explanation: Option<CString>,
    /// The time of the GPU: an amount of work.
    pub(crate) microseconds: f64,
    next: usize,
}

/// Pinned memory.
pub(crate) struct Pinned {
    pub(crate) number: usize,
    /// Nobody reads it here: its address was given out.
    pub(crate) _memory: Box<[u64]>,
    pub(crate) bytes: usize,
}

/// What a call needs before it can do anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    Nothing,
    Initialisation,
    Context,
}

/// What a call answers.
pub(crate) type Answer<T = ()> = Result<T, Status>;

fn driver() -> &'static Mutex<Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::from_environment()))
}

/// Whether the library has such a call.
pub(crate) fn is_call(name: &str) -> bool {
    use crate::{context, device, graphs, memory, modules, streams};
    let calls = [context::CALLS, device::CALLS, graphs::CALLS, memory::CALLS, modules::CALLS, streams::CALLS];
    calls.concat().contains(&name)
}

/// The way of every call: whether it was asked to fail, whether an error sticks, whether it has what it needs, and then
/// what it does. `Fate` says whether the work that it asks for is to fail.
pub(crate) fn call(name: &'static str, needs: Needs, act: impl FnOnce(&mut Driver, Fate) -> Answer) -> i32 {
    let driver = &mut *driver().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(trace) = &mut driver.settings.trace {
        // A test that reads it sees what is missing.
        let _ = writeln!(trace, "{name}");
    }
    let fate = driver.settings.faults.fate(name);
    if let Some(status) = fate.now {
        if status.is_sticky() {
            driver.stick(status, None);
        }
        return status.0;
    }
    let answer = driver.ready(needs).and_then(|()| act(driver, fate));
    answer.map_or_else(|status| status.0, |()| Status::SUCCESS.0)
}

impl Driver {
    /// As the environment wants it. If that asks for what nobody understands, the driver begins with an error that sticks: a
    /// panic could not leave the library.
    fn from_environment() -> Self {
        match Settings::from_environment() {
            Ok(settings) => Driver::new(settings),
            Err(refused) => {
                let mut driver = Driver::new(Settings::default());
                driver.stick(Status::ERROR_INVALID_VALUE, Some(format!("invalid argument: {refused}")));
                driver
            }
        }
    }

    fn new(settings: Settings) -> Self {
        Driver {
            initialised: false,
            retained: 0,
            emulator: Emulator::with_memory(settings.memory),
            taken: HashMap::new(),
            pinned: BTreeMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            queues: HashMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            sticky: None,
            explanation: None,
            microseconds: 0.0,
            next: 1,
            settings,
        }
    }

    fn ready(&self, needs: Needs) -> Answer {
        if needs >= Needs::Initialisation && !self.initialised {
            return Err(Status::ERROR_NOT_INITIALIZED);
        }
        if needs == Needs::Context {
            if let Some(status) = self.sticky {
                return Err(status);
            }
            if CURRENT.get() != CONTEXT || self.retained == 0 {
                return Err(Status::ERROR_INVALID_CONTEXT);
            }
        }
        Ok(())
    }

    /// From now on nothing else is answered, and what was asked for is never done.
    pub(crate) fn stick(&mut self, status: Status, explanation: Option<String>) {
        self.sticky = Some(status);
        // One line, as every explanation is.
        let line = explanation.map(|text| text.lines().map(str::trim).collect::<Vec<_>>().join("; "));
        self.explanation = line.and_then(|line| CString::new(line).ok());
        self.queues.values_mut().for_each(VecDeque::clear);
    }

    /// A handle that nobody has.
    pub(crate) fn handle(&mut self) -> usize {
        self.next += 1;
        CONTEXT + 0x10 * self.next
    }

    /// The context is released for the last time: all that it held goes with it. What was not given back is told.
    pub(crate) fn close(&mut self) {
        let unfinished: usize = self.queues.values().map(VecDeque::len).sum();
        let left = [
            ("device memory", self.taken.len()),
            ("pinned memory", self.pinned.len()),
            ("modules", self.modules.len()),
            ("streams", self.streams.len()),
            ("events", self.events.len()),
            ("graphs", self.graphs.len() + self.executables.len()),
            ("calls whose work was never waited for", unfinished),
        ];
        let left: Vec<String> =
            left.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {count}")).collect();
        // After an error that sticks nothing can be given back.
        if !left.is_empty() && self.sticky.is_none() {
            eprintln!("emulated libcuda: not given back: {}", left.join(", "));
        }
        for address in std::mem::take(&mut self.taken).into_keys() {
            let _ = self.emulator.free(ptx_emulator::DevicePointer::from_address(address));
        }
        self.pinned.clear();
        self.modules.clear();
        self.functions.clear();
        self.streams.clear();
        self.queues.clear();
        self.events.clear();
        self.graphs.clear();
        self.executables.clear();
    }
}

/// Puts a result where the caller wants it.
///
/// # Safety
/// The place is null or can be written.
pub(crate) unsafe fn give<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(Status::ERROR_INVALID_VALUE);
    }
    // SAFETY: as above.
    unsafe { place.write(value) };
    Ok(())
}

/// An entry of the library, under the name that `cuda.h` gives it.
macro_rules! entry {
    ($($(#[$attribute:meta])* $needs:ident fn $name:ident($($argument:ident: $type:ty),* $(,)?) $act:expr)*) => { $(
        $(#[$attribute])*
        ///
        /// # Safety
        /// As the manual of the driver API wants the arguments.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
            $crate::driver::call(stringify!($name), $crate::driver::Needs::$needs, $act)
        }
    )*
        /// The entries here, by their names.
        pub(crate) const CALLS: &[&str] = &[$(stringify!($name)),*];
    };
}
pub(crate) use entry;

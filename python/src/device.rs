//! The emulated device: memory and launches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ptx_emulator::profile::Profile;
use ptx_emulator::race::{Race, RaceDetector};
use ptx_emulator::{Arg, DevicePointer, Emulator, Error, Grid, Options, Report, Unwritten};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

use crate::errors::{LaunchError, guarded, internal, of_emulator};
use crate::watch::Watchers;
use crate::{module, profile, races};

/// How often a signal is looked for.
const SIGNALS: Duration = Duration::from_millis(50);

/// Memory that lives from launch to launch.
#[pyclass(frozen, module = "dsv2._dsv2")]
pub struct Device {
    emulator: Mutex<Emulator>,
    interrupt: Arc<AtomicBool>,
}

/// What came of a launch.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Launched {
    warp_instructions: u64,
    thread_instructions: u64,
    /// The races, if they were looked for.
    races: Option<Vec<Py<races::Race>>>,
    /// Races of stores that store the same, if races were looked for.
    equal_stores: Option<Vec<Py<races::Race>>>,
    /// Races of stores in one instruction that store the same but for rounding.
    rounded_stores: Option<Vec<Py<races::Race>>>,
    /// Races of reads whose value is thrown away.
    unused_reads: Option<Vec<Py<races::Race>>>,
    /// Where bytes that nobody wrote decided something, if they were followed.
    unwritten: Vec<Py<races::Use>>,
    /// The profile, if it was asked for.
    profile: Option<Py<profile::Profile>>,
}

/// Waits for an answer, and for Ctrl-C. Nothing, if there will be no answer.
pub fn wait<T: Send>(py: Python<'_>, answer: &mut Receiver<T>) -> PyResult<Option<T>> {
    loop {
        let answer = &mut *answer;
        match py.detach(move || answer.recv_timeout(SIGNALS)) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
        }
    }
}

impl Device {
    /// Another thread of Python may be waiting for the lock with the interpreter in its hands, so it is let go.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Emulator) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        py.detach(|| guarded(|| work(&mut self.lock())))?.map_err(|error| of_emulator(py, &error))
    }

    fn lock(&self) -> MutexGuard<'_, Emulator> {
        self.emulator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The arguments of a launch that are not the kernel's.
struct Request {
    module: Arc<ptx_emulator::Module>,
    kernel: String,
    grid: Grid,
    args: Vec<Arg>,
    options: Options,
    races: bool,
    profile: bool,
}

/// What came of it.
struct Done {
    report: Report,
    races: Option<[Vec<Race>; 4]>,
    profile: Option<Profile>,
}

impl Request {
    fn run(&self, emulator: &mut Emulator) -> Result<Done, Error> {
        let Self { module, kernel, grid, args, options, races, profile } = self;
        if !races && !profile {
            let report = emulator.launch(module, kernel, *grid, args, *options)?;
            return Ok(Done { report, races: None, profile: None });
        }
        let mut watchers =
            Watchers { races: races.then(RaceDetector::new), profile: profile.then(Profile::new), counted: None };
        let report = emulator.launch_watched(module, kernel, *grid, args, *options, &mut watchers)?;
        let Watchers { races, profile, .. } = watchers;
        let classes = |seen: RaceDetector| {
            [seen.races(), seen.equal_stores(), seen.rounded_stores(), seen.unused_reads()].map(<[Race]>::to_vec)
        };
        Ok(Done { report, races: races.map(classes), profile })
    }
}

#[pymethods]
impl Device {
    /// A device with so many bytes of memory, which the host provides as they are allocated.
    #[new]
    fn new(memory: u64) -> Self {
        let emulator = Emulator::with_memory(memory);
        Self { interrupt: emulator.interrupter(), emulator: Mutex::new(emulator) }
    }

    /// Allocates memory that nobody wrote yet, and gives its address.
    fn allocate(&self, py: Python<'_>, bytes: u64, name: &str) -> PyResult<u64> {
        self.with(py, |emulator| emulator.allocate_named(name, bytes)).map(DevicePointer::address)
    }

    /// Gives an allocation back.
    fn free(&self, py: Python<'_>, address: u64) -> PyResult<()> {
        self.with(py, |emulator| emulator.free(DevicePointer::from_address(address)))
    }

    /// Copies the bytes of a buffer to the device.
    fn write(&self, py: Python<'_>, address: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        self.with(py, |emulator| emulator.write(DevicePointer::from_address(address), &bytes))
    }

    /// Copies the next bytes of the device into a buffer, those that were written; how many were.
    fn read_written(&self, py: Python<'_>, address: u64, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let buffer = PyBuffer::<u8>::get(data)?;
        let mut bytes = buffer.to_vec(py)?;
        let count =
            self.with(py, |emulator| emulator.read_written(DevicePointer::from_address(address), &mut bytes))?;
        buffer.copy_from_slice(py, &bytes)?;
        Ok(count)
    }

    /// The bytes from an address on. It is an error if some were never written.
    fn read(&self, py: Python<'_>, address: u64, bytes: u64) -> PyResult<Vec<u8>> {
        self.with(py, |emulator| emulator.read_bytes(DevicePointer::from_address(address), bytes))
    }

    /// What the last launch printed, also one that failed; once.
    fn printed(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |emulator| Ok(emulator.printed()))
    }

    /// Bytes that are taken, and bytes that there are.
    #[getter]
    fn memory(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.with(py, |emulator| Ok(emulator.memory()))
    }

    /// Runs a kernel and waits for its end, or for Ctrl-C.
    ///
    /// `unwritten` says what happens when bytes are read that nobody wrote: `stop`, `follow` or `ignore`.
    #[pyo3(signature = (module, kernel, *, grid, block, shared, args, unwritten, races, profile, threads, limit, cooperative))]
    #[expect(clippy::too_many_arguments, reason = "by name, and from one place")]
    fn launch(
        &self,
        py: Python<'_>,
        module: &module::Module,
        kernel: String,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: Vec<Vec<u8>>,
        unwritten: &str,
        races: bool,
        profile: bool,
        threads: usize,
        limit: u64,
        cooperative: bool,
    ) -> PyResult<Launched> {
        let (checked, unwritten) = match unwritten {
            "stop" => (true, Unwritten::Stop),
            "follow" => (true, Unwritten::Follow),
            "ignore" => (false, Unwritten::Stop),
            other => {
                return Err(LaunchError::new_err(format!(
                    "unwritten: expected stop, follow or ignore, found {other:?}"
                )));
            }
        };
        let request = Request {
            module: Arc::clone(&module.0),
            kernel,
            grid: Grid { blocks: grid, threads: block, shared },
            args: args.iter().map(|bytes| Arg::bytes(bytes)).collect(),
            options: Options { checked, unwritten, threads, limit, cooperative, ..Options::default() },
            races,
            profile,
        };
        let Done { report, races, profile } = self.run(py, &request)?.map_err(|error| of_emulator(py, &error))?;
        let race = |race: &Race| Py::new(py, races::Race::new(py, race)?);
        let all = |races: Vec<Race>| races.iter().map(race).collect::<PyResult<Vec<_>>>();
        let [races, equal, rounded, unused] = races.map_or([const { None }; 4], |classes| classes.map(Some));
        let uses = report.unwritten.iter().map(|used| Py::new(py, races::Use::new(used)));
        Ok(Launched {
            warp_instructions: report.warp_instructions,
            thread_instructions: report.thread_instructions,
            races: races.map(all).transpose()?,
            equal_stores: equal.map(all).transpose()?,
            rounded_stores: rounded.map(all).transpose()?,
            unused_reads: unused.map(all).transpose()?,
            unwritten: uses.collect::<PyResult<_>>()?,
            profile: profile.map(|profile| Py::new(py, profile::Profile(profile))).transpose()?,
        })
    }
}

impl Device {
    /// Runs a launch on a thread of its own, while this one looks for signals.
    fn run(&self, py: Python<'_>, request: &Request) -> PyResult<Result<Done, Error>> {
        let (send, mut receive) = channel();
        std::thread::scope(|scope| {
            let work = std::thread::Builder::new().spawn_scoped(scope, move || {
                let done = request.run(&mut self.lock());
                // Who waits for it is there until it came.
                let _ = send.send(done);
            });
            let work = work.map_err(|error| LaunchError::new_err(format!("no thread for the launch: {error}")))?;
            let answer = wait(py, &mut receive);
            if answer.is_err() {
                self.interrupt.store(true, Ordering::Relaxed);
            }
            let joined = py.detach(|| work.join());
            self.interrupt.store(false, Ordering::Relaxed);
            match (answer?, joined) {
                (Some(done), _) => Ok(done),
                (None, Err(panic)) => Err(internal(&*panic)),
                (None, Ok(())) => Err(internal(&"no answer")),
            }
        })
    }
}

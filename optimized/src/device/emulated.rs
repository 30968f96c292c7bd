//! The emulator as a device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ptx_emulator::profile::Profile;
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, DevicePointer, Emulator, Grid, Options};

use super::counts::{Counter, Counts};
use super::gate::Gate;
use super::{Device, Graph, check_grid};
use crate::{Error, Kernel, Library, Result, Summation};

/// Runs kernels on the CPU. Bounds, alignment and uninitialised memory are checked always.
#[derive(Debug)]
pub struct Emulated {
    library: Library,
    options: Options,
    watch: Watch,
    state: Mutex<State>,
    gate: Gate,
    counter: Counter,
}

/// What else is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Watch {
    #[default]
    Nothing,
    Races,
    Profile,
}

#[derive(Debug, Default)]
struct State {
    emulator: Emulator,
    profiles: Vec<(String, Profile)>,
    /// What was written down of a graph that is being captured.
    captured: Vec<Step>,
}

/// Something that a graph can hold.
#[derive(Debug)]
enum Step {
    Launch(Kernel, Grid, Vec<Arg>),
    Copy { from: u64, to: u64, bytes: usize },
    Fill { address: u64, byte: u8, bytes: usize },
}

/// A graph: what was written down.
#[derive(Debug)]
struct Recorded {
    device: Arc<Emulated>,
    steps: Vec<Step>,
    launches: usize,
}

impl Emulated {
    /// A device with 4 GiB of memory, taken from the host as it is used.
    pub fn new(library: Library) -> Arc<Self> {
        Arc::new(Emulated::with(library, Watch::Nothing))
    }

    /// A device with so many bytes of memory: how it is tried what happens where memory ends.
    pub fn with_memory(library: Library, bytes: u64) -> Arc<Self> {
        let state = State { emulator: Emulator::with_memory(bytes), ..State::default() };
        Arc::new(Emulated { state: Mutex::new(state), ..Emulated::with(library, Watch::Nothing) })
    }

    /// A device that refuses a launch in which two threads race. About ten times slower.
    pub fn watching_races(library: Library) -> Arc<Self> {
        Arc::new(Emulated::with(library, Watch::Races))
    }

    /// A device whose tensor cores add up as is said: no card documents how its own do.
    pub fn with_sums(library: Library, summation: Summation) -> Arc<Self> {
        let options = Options { summation, ..Options::default() };
        Arc::new(Emulated { options, ..Emulated::with(library, Watch::Nothing) })
    }

    /// A device that counts what each launch does; see [`Emulated::profiles`].
    pub fn profiling(library: Library) -> Arc<Self> {
        Arc::new(Emulated::with(library, Watch::Profile))
    }

    fn with(library: Library, watch: Watch) -> Self {
        let (state, gate, counter) = (Mutex::default(), Gate::default(), Counter::default());
        Emulated { library, options: Options::default(), watch, state, gate, counter }
    }

    /// The profiles of all launches so far, each with its kernel's name. Empty unless the device is a profiling one.
    pub fn profiles(&self) -> Vec<(String, Profile)> {
        std::mem::take(&mut self.state().profiles)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something, or writes it down if a graph is being captured.
    fn ask(&self, what: &str, step: Step) -> Result<()> {
        let pass = self.gate.inside(what)?;
        if !pass.captures() {
            return self.perform(&step);
        }
        if let Step::Launch(kernel, ..) = &step {
            self.library.find(kernel)?;
            pass.count_launch();
        }
        self.state().captured.push(step);
        Ok(())
    }

    fn perform(&self, step: &Step) -> Result<()> {
        match step {
            Step::Launch(kernel, grid, args) => {
                self.counter.launches.add(1);
                self.run(kernel, *grid, args)
            }
            Step::Copy { from, to, bytes } => {
                self.counter.copies.add(1);
                let emulator = &mut self.state().emulator;
                let data = emulator.read_bytes(DevicePointer::from_address(*from), *bytes as u64)?;
                Ok(emulator.write(DevicePointer::from_address(*to), &data)?)
            }
            Step::Fill { address, byte, bytes } => {
                self.counter.copies.add(1);
                Ok(self.state().emulator.write(DevicePointer::from_address(*address), &vec![*byte; *bytes])?)
            }
        }
    }

    fn run(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let module = self.library.module(kernel)?;
        let state = &mut *self.state();
        let (emulator, options) = (&mut state.emulator, self.options);
        match self.watch {
            Watch::Nothing => {
                emulator.launch(module, &kernel.entry, grid, args, options)?;
            }
            Watch::Races => {
                let mut races = RaceDetector::new();
                emulator.launch_watched(module, &kernel.entry, grid, args, options, &mut races)?;
                // In kernels of our own, races that do not matter are not wanted either.
                let classes = [races.races(), races.equal_stores(), races.rounded_stores(), races.unused_reads()];
                let races: Vec<String> = classes.into_iter().flatten().map(ToString::to_string).collect();
                if !races.is_empty() {
                    return Err(Error::Races { kernel: kernel.entry.clone(), races: races.join("; ") });
                }
            }
            Watch::Profile => {
                let mut profile = Profile::new();
                emulator.launch_watched(module, &kernel.entry, grid, args, options, &mut profile)?;
                state.profiles.push((kernel.entry.clone(), profile));
            }
        }
        Ok(())
    }
}

impl Device for Emulated {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _pass = self.gate.outside("an allocation")?;
        self.counter.allocations.add(1);
        Ok(self.state().emulator.allocate(bytes as u64)?.address())
    }

    fn free(&self, address: u64) {
        self.gate.frees();
        // The only error is an address that was never given out.
        let _ = self.state().emulator.free(DevicePointer::from_address(address));
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        let _pass = self.gate.outside("a copy from the host")?;
        self.counter.uploads.add(1);
        Ok(self.state().emulator.write(DevicePointer::from_address(address), data)?)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let _pass = self.gate.outside("a copy to the host")?;
        self.counter.downloads.add(1);
        self.counter.synchronizations.add(1);
        let bytes = self.state().emulator.read_bytes(DevicePointer::from_address(address), data.len() as u64)?;
        data.copy_from_slice(&bytes);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.ask("a copy on the device", Step::Copy { from, to, bytes })
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.ask("filling memory", Step::Fill { address, byte, bytes })
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        check_grid(kernel, grid)?;
        self.ask(&kernel.entry, Step::Launch(kernel.clone(), grid, args.to_vec()))
    }

    fn synchronize(&self) -> Result<()> {
        let _pass = self.gate.outside("waiting")?;
        self.counter.synchronizations.add(1);
        Ok(())
    }

    fn capture(self: Arc<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        let take = || Ok(std::mem::take(&mut self.state().captured));
        let (steps, launches) = self.gate.capture(|| Ok(()), work, take)?;
        Ok(Box::new(Recorded { steps, launches, device: self }))
    }

    fn counts(&self) -> Counts {
        self.counter.take()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let (used, total) = self.state().emulator.memory();
        Ok(((total - used) as usize, total as usize))
    }
}

impl Graph for Recorded {
    fn launch(&self) -> Result<()> {
        let _pass = self.device.gate.outside("launching a graph")?;
        self.device.counter.graphs.add(1);
        self.steps.iter().try_for_each(|step| self.device.perform(step))
    }

    fn launches(&self) -> usize {
        self.launches
    }
}

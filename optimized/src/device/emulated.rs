//! The emulator as a device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ptx_emulator::profile::Profile;
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, DevicePointer, Emulator, Grid, Module, Options};

use super::Device;
use crate::{Error, Kernel, Library, Result};

/// Runs kernels on the CPU. Bounds, alignment and uninitialised memory are checked always.
#[derive(Debug)]
pub struct Emulated {
    library: Library,
    options: Options,
    watch: Watch,
    state: Mutex<State>,
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
    /// By the number of the PTX in the library.
    modules: HashMap<usize, Arc<Module>>,
    profiles: Vec<(String, Profile)>,
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

    /// A device that counts what each launch does; see [`Emulated::profiles`].
    pub fn profiling(library: Library) -> Arc<Self> {
        Arc::new(Emulated::with(library, Watch::Profile))
    }

    fn with(library: Library, watch: Watch) -> Self {
        Emulated { library, options: Options::default(), watch, state: Mutex::default() }
    }

    /// The profiles of all launches so far, each with its kernel's name. Empty unless the device is a profiling one.
    pub fn profiles(&self) -> Vec<(String, Profile)> {
        std::mem::take(&mut self.state().profiles)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Emulated {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        Ok(self.state().emulator.allocate(bytes as u64)?.address())
    }

    fn free(&self, address: u64) {
        // The only error is an address that was never given out.
        let _ = self.state().emulator.free(DevicePointer::from_address(address));
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        Ok(self.state().emulator.write(DevicePointer::from_address(address), data)?)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let bytes = self.state().emulator.read_bytes(DevicePointer::from_address(address), data.len() as u64)?;
        data.copy_from_slice(&bytes);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let mut state = self.state();
        let data = state.emulator.read_bytes(DevicePointer::from_address(from), bytes as u64)?;
        Ok(state.emulator.write(DevicePointer::from_address(to), &data)?)
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.write(address, &vec![byte; bytes])
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let (number, text) = self.library.find(kernel)?;
        let state = &mut *self.state();
        let module = match state.modules.get(&number) {
            Some(module) => module.clone(),
            None => {
                let module = Arc::new(Module::parse(text)?);
                state.modules.insert(number, module.clone());
                module
            }
        };
        let (emulator, options) = (&mut state.emulator, self.options);
        match self.watch {
            Watch::Nothing => {
                emulator.launch(&module, &kernel.entry, grid, args, options)?;
            }
            Watch::Races => {
                let mut races = RaceDetector::new();
                emulator.launch_watched(&module, &kernel.entry, grid, args, options, &mut races)?;
                // In kernels of our own, races that do not matter are not wanted either.
                let classes = [races.races(), races.equal_stores(), races.rounded_stores(), races.unused_reads()];
                let races: Vec<String> = classes.into_iter().flatten().map(ToString::to_string).collect();
                if !races.is_empty() {
                    return Err(Error::Races { kernel: kernel.entry.clone(), races: races.join("; ") });
                }
            }
            Watch::Profile => {
                let mut profile = Profile::new();
                emulator.launch_watched(&module, &kernel.entry, grid, args, options, &mut profile)?;
                state.profiles.push((kernel.entry.clone(), profile));
            }
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let (used, total) = self.state().emulator.memory();
        Ok(((total - used) as usize, total as usize))
    }
}

//! A device for predictions: the emulator, which keeps what each block does; or nothing but a list of what is launched.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use dsv2_optimized::device::{Counts, Graph};
use dsv2_optimized::{Arg, Device, Error, Grid, Kernel, Library, Result};
use dsv2_reference::weights::generator::splitmix64;
use ptx_emulator::{DevicePointer, Emulator, Options};

use crate::key::{Captured, Key, Launch, Taken};
use crate::sectors::Sectors;
use crate::work::Watch;

/// More than any machine has: what cannot be had is refused by the machine.
const MEMORY: u64 = 1 << 46;
/// The words that memory holds before anything is written there; they come again and again.
const WORDS: usize = 1 << 20;

/// What a device does with a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Runs it.
    All,
    /// Runs it if it is a part of a graph.
    Graphs,
    /// Nothing: not even memory is taken.
    Nothing,
}

/// What is run of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The launches that are not known yet.
    New,
    /// Those that take the sequences a token further.
    Advance,
}

/// The device.
#[derive(Debug)]
pub struct Sketch {
    library: Library,
    does: Does,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    emulator: Emulator,
    launches: Vec<Launch>,
    written: Sectors,
    capturing: Option<Vec<Captured>>,
    graph: Vec<Key>,
    part: Part,
    taken: Taken,
    /// How often something was taken.
    times: u64,
}

#[derive(Debug)]
struct Recorded {
    device: Arc<Sketch>,
    steps: Vec<Captured>,
}

impl Sketch {
    /// Runs every launch, and keeps what it did.
    pub fn running() -> Arc<Self> {
        Sketch::new(Does::All)
    }

    /// Runs and keeps what graphs hold. Nothing else is run: memory that was never written holds words that are small numbers
    /// as bf16, and tokens as integers.
    pub(crate) fn of_graphs() -> Arc<Self> {
        Sketch::new(Does::Graphs)
    }

    /// Only writes down what a graph holds.
    pub(crate) fn on_paper() -> Arc<Self> {
        Sketch::new(Does::Nothing)
    }

    fn new(does: Does) -> Arc<Self> {
        let state = State {
            emulator: Emulator::with_memory(MEMORY),
            launches: vec![],
            written: Sectors::default(),
            capturing: None,
            graph: vec![],
            part: Part::New,
            taken: Taken::default(),
            times: 0,
        };
        Arc::new(Sketch { library: Library::embedded(), does, state: Mutex::new(state) })
    }

    /// What was run since this was called last.
    pub fn launches(&self) -> Vec<Launch> {
        std::mem::take(&mut self.state().launches)
    }

    /// Takes these as known: what has the key of one of them is not run again.
    pub(crate) fn knows(&self, launches: Vec<Launch>) {
        self.state().launches = launches;
    }

    /// What the last graph holds.
    pub(crate) fn graph(&self) -> Vec<Key> {
        self.state().graph.clone()
    }

    /// What is to be run of graphs.
    pub(crate) fn runs(&self, part: Part) {
        self.state().part = part;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what a graph cannot hold, and what nobody could say the time of.
    fn outside(&self, what: &str) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.capturing.is_some() { Err(Error::Capturing { what: what.into() }) } else { Ok(state) }
    }

    fn run(&self, state: &mut State, launch: &Captured, keep: bool) -> Result<()> {
        let (kernel, grid, args) = launch;
        let module = self.library.module(kernel)?;
        if !keep {
            state.emulator.launch(module, &kernel.entry, *grid, args, Options::default())?;
            return Ok(());
        }
        let mut watch = Watch::default();
        state.emulator.launch_watched(module, &kernel.entry, *grid, args, Options::default(), &mut watch)?;
        let work = watch.finish(&kernel.entry, *grid, &state.written);
        state.written.add_all(&watch.written);
        state.launches.push(Launch { key: state.taken.key(launch), profile: watch.profile, work });
        Ok(())
    }
}

/// Words that are a token (of a vocabulary of 50,000) as an integer, and as two numbers of bf16 one of -2 to 2 and zero.
fn words() -> Vec<u8> {
    let word = |at: usize| {
        let random = splitmix64(at as u64);
        let (sign, rest) = (random >> 63, random >> 40 & 0x3ff);
        (0x3c00 | (sign << 15) | rest) as u32
    };
    (0..WORDS).flat_map(|at| word(at).to_le_bytes()).collect()
}

impl Device for Sketch {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let state = &mut *self.outside("an allocation")?;
        state.times += 1;
        let address = match self.does {
            // As far apart as on the emulator, and as far from multiples of 2^36: two sizes side by side are no address.
            Does::Nothing => (state.times << 36) + (1 << 32),
            _ => state.emulator.allocate(bytes as u64)?.address(),
        };
        state.taken.add(address, bytes as u64);
        if self.does == Does::Graphs {
            static TABLE: LazyLock<Vec<u8>> = LazyLock::new(words);
            for at in (0..bytes).step_by(TABLE.len()) {
                let place = DevicePointer::from_address(address + at as u64);
                state.emulator.write(place, &TABLE[..TABLE.len().min(bytes - at)])?;
            }
        }
        Ok(address)
    }

    fn free(&self, address: u64) {
        let mut state = self.state();
        state.taken.remove(address);
        if self.does != Does::Nothing {
            // The only error is an address that was never given out.
            let _ = state.emulator.free(DevicePointer::from_address(address));
        }
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        let mut state = self.outside("a copy from the host")?;
        match self.does {
            Does::Nothing => Ok(()),
            _ => Ok(state.emulator.write(DevicePointer::from_address(address), data)?),
        }
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let state = self.outside("a copy to the host")?;
        match self.does {
            Does::Nothing => data.fill(0),
            _ => {
                let bytes = state.emulator.read_bytes(DevicePointer::from_address(address), data.len() as u64)?;
                data.copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let state = &mut *self.outside("a copy on the device")?;
        if self.does == Does::Nothing {
            return Ok(());
        }
        let data = state.emulator.read_bytes(DevicePointer::from_address(from), bytes as u64)?;
        Ok(state.emulator.write(DevicePointer::from_address(to), &data)?)
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        drop(self.outside("filling memory")?);
        self.write(address, &vec![byte; bytes])
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let state = &mut *self.state();
        let captured = (kernel.clone(), grid, args.to_vec());
        match &mut state.capturing {
            Some(steps) => {
                steps.push(captured);
                Ok(())
            }
            None if self.does == Does::All => self.run(state, &captured, true),
            None => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.outside("waiting").map(drop)
    }

    fn capture(self: Arc<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.outside("a capture")?.capturing = Some(vec![]);
        let done = work();
        let steps = self.state().capturing.take().unwrap_or_default();
        done?;
        let mut state = self.state();
        state.graph = steps.iter().map(|step| state.taken.key(step)).collect();
        drop(state);
        Ok(Box::new(Recorded { device: self, steps }))
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((MEMORY as usize, MEMORY as usize))
    }
}

impl Graph for Recorded {
    fn launch(&self) -> Result<()> {
        let state = &mut *self.device.state();
        if self.device.does == Does::Nothing {
            return Ok(());
        }
        // Otherwise the context would stay as it is, and nobody would see it.
        if state.part == Part::Advance && self.steps.iter().all(|(kernel, ..)| kernel.module != "advance") {
            return Err(Error::operand("Step", "launch", "one of the module advance", "none"));
        }
        let known: Vec<Key> = state.launches.iter().map(|launch| launch.key.clone()).collect();
        for step in &self.steps {
            match state.part {
                Part::Advance if step.0.module == "advance" => self.device.run(state, step, false)?,
                Part::New if !known.contains(&state.taken.key(step)) => self.device.run(state, step, true)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn launches(&self) -> usize {
        self.steps.len()
    }
}

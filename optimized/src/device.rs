//! What a kernel needs of a device: memory, copies, launches. One implementation drives an NVIDIA GPU, the other emulates
//! one on the CPU.
//!
//! Work is done in the order in which it was asked for. [`Device::read`] and [`Device::synchronize`] wait for it.
//!
//! **Graphs.** Work that is the same every time is captured once ([`Device::capture`]) and then launched as a whole: one call
//! in place of hundreds. A graph knows addresses, not tensors. Whoever captures keeps the tensors, and puts new values
//! into the same places.

mod counts;
pub mod cuda;
pub mod emulated;
mod gate;
mod pool;
pub mod products;

use std::fmt::Debug;
use std::sync::Arc;

use ptx_emulator::{Arg, Grid};

use crate::{Error, Kernel, Result};
pub use counts::Counts;
use products::MatrixLibrary;

/// A device with memory of its own.
pub trait Device: Debug + Send + Sync {
    /// What it is, for reports.
    fn name(&self) -> String;

    /// Takes memory; what is in it is undefined. The address is a multiple of 256.
    ///
    /// # Errors
    /// If there is not so much.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back, once all work on it is done. Who takes it next finds it undefined again.
    fn free(&self, address: u64);

    /// Copies from the host.
    ///
    /// # Errors
    /// If the place is not within one allocation.
    fn write(&self, address: u64, data: &[u8]) -> Result<()>;

    /// Waits for all work, then copies to the host.
    ///
    /// # Errors
    /// If the place is not within one allocation, the work failed, or (on the emulator) a byte was never written.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Errors
    /// If a place is not within one allocation.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// If the place is not within one allocation.
    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// If the kernel is unknown, the grid or the arguments do not fit, or (at once on the emulator, later on a GPU) the
    /// kernel failed.
    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()>;

    /// Waits for all work.
    ///
    /// # Errors
    /// If a kernel failed.
    fn synchronize(&self) -> Result<()>;

    /// Writes down what `work` asks for (launches, copies within the device, fills) and does none of it.
    ///
    /// Everything else is refused while this lasts: memory, copies from and to the host, waiting; and all that other threads
    /// ask for.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use dsv2_optimized::{Device, Emulated, Error, Library};
    /// let device: Arc<dyn Device> = Emulated::new(Library::embedded());
    /// let place = device.allocate(4)?;
    /// let graph = device.clone().capture(&mut || device.fill(place, 7, 4))?;
    /// let mut bytes = [0; 4];
    /// assert!(device.read(place, &mut bytes).is_err(), "nothing was done yet");
    /// graph.launch()?;
    /// device.read(place, &mut bytes)?;
    /// assert_eq!(bytes, [7; 4]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// If `work` failed, asked for what a graph cannot hold, or gave memory back.
    fn capture(self: Arc<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>>;

    /// How often it was asked for what since this was called last.
    fn counts(&self) -> Counts;

    /// Free and total bytes of memory.
    ///
    /// # Errors
    /// If the driver does not say.
    fn memory(&self) -> Result<(usize, usize)>;

    /// The vendor's library of matrix products.
    ///
    /// # Errors
    /// If the device has none.
    fn products(&self) -> Result<&dyn MatrixLibrary> {
        Err(Error::operand("products", "library", "a GPU with cuBLASLt", self.name()))
    }
}

/// What every GPU takes: blocks of a grid in x, y and z, threads of a block in each, and all threads of a block.
const MOST_BLOCKS: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MOST_THREADS: [u32; 3] = [1024, 1024, 64];
const MOST_IN_BLOCK: u64 = 1024;

/// Whether a GPU takes such a grid: asked for every launch of either device.
fn check_grid(kernel: &Kernel, grid: Grid) -> Result<()> {
    let within = |sizes: [u32; 3], most: [u32; 3]| sizes.iter().zip(most).all(|(size, most)| (1..=most).contains(size));
    let threads: u64 = grid.threads.iter().map(|size| u64::from(*size)).product();
    if within(grid.blocks, MOST_BLOCKS) && within(grid.threads, MOST_THREADS) && threads <= MOST_IN_BLOCK {
        return Ok(());
    }
    Err(Error::Grid { kernel: kernel.entry.clone(), blocks: grid.blocks, threads: grid.threads })
}

/// Work that was captured, and can be done any number of times.
pub trait Graph: Debug + Send + Sync {
    /// Does all of it, after what was asked for before.
    ///
    /// # Errors
    /// As of the calls that it is made of.
    fn launch(&self) -> Result<()>;

    /// How many kernels are in it.
    fn launches(&self) -> usize;
}

/// Memory that is given back when nobody uses it any more.
#[derive(Debug)]
pub struct Allocation {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Allocation {
    /// Takes memory of a device.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Arc<Self>> {
        // A tensor may be empty, and still has an address.
        let address = device.allocate(bytes.max(1))?;
        Ok(Arc::new(Allocation { device: device.clone(), address, bytes }))
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

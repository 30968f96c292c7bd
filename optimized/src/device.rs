//! What a kernel needs of a device: memory, copies, launches. One implementation drives an NVIDIA GPU, the other emulates
//! one on the CPU.
//!
//! Work is done in the order in which it was asked for. [`Device::read`] and [`Device::synchronize`] wait for it.

pub mod cuda;
pub mod emulated;
mod pool;
pub mod products;

use std::fmt::Debug;
use std::sync::Arc;

use ptx_emulator::{Arg, Grid};

use crate::{Error, Kernel, Result};
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

//! An NVIDIA GPU as a device, through the driver alone: no CUDA toolkit, at no time.
//!
//! **Trap.** `cudarc` loads the driver's library when it is first needed, and panics if it is not there. So it is asked
//! for first ([`Cuda::new`]), and for all that it must have: a machine without a GPU, or with a library that is none, gets an
//! error, which callers report as "not run".

mod clock;
mod context;
mod cublaslt;
mod graph;
mod memory;
mod modules;
mod queue;

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use ptx_emulator::{Arg, Grid};

use super::counts::{Counter, Counts};
use super::gate::Gate;
use super::pool::Pool;
use super::products::MatrixLibrary;
use super::{Device, Graph, check_grid};
use crate::{Kernel, Library, Result};
use clock::Clock;
pub use clock::KernelTime;
use context::{Context, failed};
use cublaslt::CublasLt;
use memory::Driver;
use modules::Modules;
use queue::Queue;

/// The first GPU of this machine.
#[derive(Debug)]
pub struct Cuda {
    library: Library,
    modules: Mutex<Modules>,
    pool: Mutex<Pool>,
    /// Opened when it is first asked for; or why it cannot be.
    products: OnceLock<std::result::Result<CublasLt, String>>,
    /// Only in a device that measures.
    clock: Option<Mutex<Clock>>,
    gate: Gate,
    counter: Counter,
    queue: Queue,
    context: Context,
}

// SAFETY: the driver's handles may be used from any thread; each use makes the context current on its thread first.
unsafe impl Send for Cuda {}
// SAFETY: as above, and the maps of loaded modules, the pool and the pinned memory are behind locks.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// [`NoCuda`](crate::Error::NoCuda) if there is no driver, no GPU, or only one that is too old: then what needs a GPU is not run.
    pub fn new(library: Library) -> Result<Arc<Self>> {
        Cuda::open(library, None)
    }

    /// The first GPU, as a device that measures each launch; see [`Cuda::timings`].
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn timing(library: Library) -> Result<Arc<Self>> {
        Cuda::open(library, Some(Mutex::default()))
    }

    /// The time of all launches since the last call, by kernel, the longest first. Empty unless the device is a measuring
    /// one.
    ///
    /// **Trap.** The time runs from before a launch to after the kernel. If the GPU has nothing else to do, that includes
    /// the launch itself: some microseconds, which are most of what a small kernel shows.
    ///
    /// # Errors
    /// If a kernel failed.
    pub fn timings(&self) -> Result<Vec<KernelTime>> {
        let Some(clock) = &self.clock else { return Ok(vec![]) };
        let clock = &mut *clock.lock().unwrap_or_else(PoisonError::into_inner);
        let _pass = self.gate.outside("the times of launches")?;
        self.with_context("the times of launches", || clock.take(&self.queue))
    }

    fn open(library: Library, clock: Option<Mutex<Clock>>) -> Result<Arc<Self>> {
        let context = Context::open()?;
        let queue = context.run(Queue::open).map_err(failed("a stream and pinned memory"))?;
        let (modules, pool, products) = (Mutex::default(), Mutex::default(), OnceLock::new());
        let (gate, counter) = (Gate::default(), Counter::default());
        Ok(Arc::new(Cuda { library, modules, pool, products, clock, gate, counter, queue, context }))
    }

    /// A call into the driver, with the words that an error needs.
    fn with_context<T>(&self, what: &str, call: impl FnOnce() -> std::result::Result<T, DriverError>) -> Result<T> {
        self.context.run(call).map_err(failed(what))
    }

    /// Launches something, and measures it if this is a measuring device.
    fn timed(&self, name: &str, launch: impl FnOnce() -> std::result::Result<(), DriverError>) -> Result<()> {
        let Some(clock) = &self.clock else { return self.with_context(name, launch) };
        let clock = &mut *clock.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_context(name, || clock.around(name, &self.queue, launch))
    }

    /// The same, for what a graph can hold: that is measured with its graph.
    fn queued(&self, name: &str, launch: impl FnOnce() -> std::result::Result<(), DriverError>) -> Result<()> {
        let pass = self.gate.inside(name)?;
        if pass.captures() {
            self.with_context(name, launch)?;
            pass.count_launch();
            return Ok(());
        }
        self.counter.launches.add(1);
        self.timed(name, launch)
    }

    /// A copy or a fill on the GPU.
    fn moved(&self, what: &str, call: impl FnOnce() -> std::result::Result<(), DriverError>) -> Result<()> {
        let pass = self.gate.inside(what)?;
        if !pass.captures() {
            self.counter.copies.add(1);
        }
        self.with_context(what, call)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        self.context.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _pass = self.gate.outside("an allocation")?;
        self.counter.allocations.add(1);
        let taken = self.pool().take(bytes, &mut Driver(self));
        taken.map_err(|error| failed(&format!("an allocation of {bytes} bytes"))(error))
    }

    fn free(&self, address: u64) {
        self.gate.frees();
        self.pool().give_back(address);
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        let _pass = self.gate.outside("a copy from the host")?;
        self.counter.uploads.add(1);
        let waited = self.with_context("a copy to the GPU", || self.queue.upload(address, data))?;
        self.counter.synchronizations.add(usize::from(waited));
        Ok(())
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        let _pass = self.gate.outside("a copy to the host")?;
        self.counter.downloads.add(1);
        self.counter.synchronizations.add(1);
        self.with_context("the work before, or a copy from the GPU", || self.queue.download(address, data))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the driver checks that both ranges are allocated.
        self.moved("a copy on the GPU", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.queue.stream) })
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the driver checks that the range is allocated.
        self.moved("filling memory", || unsafe { result::memset_d8_async(address, byte, bytes, self.queue.stream) })
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        check_grid(kernel, grid)?;
        let function = {
            let modules = &mut *self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            modules.function(&self.context, &self.library, kernel, grid.shared)?
        };
        // Eight-byte words, so that every argument is aligned.
        let mut words: Vec<Vec<u64>> = args
            .iter()
            .map(|arg| {
                let padded = arg.as_bytes().chunks(8).map(|bytes| {
                    let mut word = [0; 8];
                    word[..bytes.len()].copy_from_slice(bytes);
                    u64::from_ne_bytes(word)
                });
                padded.collect()
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
        let ([bx, by, bz], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let launch = || {
            // SAFETY: the arguments are read before this returns; that they fit the kernel is the operators' care, and
            // the emulator checks it on every machine.
            unsafe {
                let stream = self.queue.stream;
                result::launch_kernel(function, (bx, by, bz), (tx, ty, tz), grid.shared, stream, &mut pointers)
            }
        };
        self.queued(&kernel.entry, launch)
    }

    fn synchronize(&self) -> Result<()> {
        let _pass = self.gate.outside("waiting")?;
        self.counter.synchronizations.add(1);
        self.with_context("the work before", || self.queue.wait())
    }

    fn capture(self: Arc<Self>, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        Ok(Box::new(graph::Captured::make(self, work)?))
    }

    fn counts(&self) -> Counts {
        self.counter.take()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        // Nobody may take or give back between the two numbers.
        let pool = self.pool();
        let (free, total) = self.with_context("the amount of memory", result::mem_get_info)?;
        Ok((free + pool.kept(), total))
    }

    fn products(&self) -> Result<&dyn MatrixLibrary> {
        self.cublaslt().map(|_| self as _)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // The events of launches that nobody asked about are given back.
        if let Some(clock) = &mut self.clock {
            let clock = clock.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = self.context.run(|| {
                clock.close();
                Ok(())
            });
        }
        let (products, mut pool) = (self.products.take(), std::mem::take(&mut *self.pool()));
        let _ = self.context.run(|| {
            drop(products);
            Ok(())
        });
        pool.release(&mut Driver(self));
        self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).clear(&self.context);
        let _ = self.context.run(|| {
            self.queue.close();
            Ok(())
        });
    }
}

//! An NVIDIA GPU as a device, through the driver alone: no CUDA toolkit, at no time.
//!
//! **Trap.** `cudarc` loads the driver's library when it is first needed, and panics if it is not there. So it is asked
//! for first ([`Cuda::new`]), and for all that it must have: a machine without a GPU, or with a library that is none, gets an
//! error, which callers report as "not run".

mod clock;
mod cublaslt;
mod memory;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use ptx_emulator::{Arg, Grid};

use super::Device;
use super::pool::Pool;
use super::products::MatrixLibrary;
use crate::{Error, Kernel, Library, Result};
use clock::Clock;
pub use clock::KernelTime;
use cublaslt::CublasLt;
use memory::Driver;

/// The oldest GPU that the kernels run on, as its compute capability.
const OLDEST: (i32, i32) = (8, 0);
/// What a block may have of dynamic shared memory before it has to be asked for.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// What is called in the driver's library. `cudarc` looks each up when it is first called, and panics if it is not there.
const SYMBOLS: [&str; 27] = [
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD8_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
];

/// The first GPU of this machine.
#[derive(Debug)]
pub struct Cuda {
    library: Library,
    name: String,
    context: sys::CUcontext,
    device: sys::CUdevice,
    loaded: Mutex<Loaded>,
    pool: Mutex<Pool>,
    /// Opened when it is first asked for; or why it cannot be.
    products: OnceLock<std::result::Result<CublasLt, String>>,
    /// Only in a device that measures.
    clock: Option<Mutex<Clock>>,
}

// SAFETY: the driver's handles may be used from any thread; each use makes the context current on its thread first.
unsafe impl Send for Cuda {}
// SAFETY: as above, and the maps of loaded modules are behind a lock.
unsafe impl Sync for Cuda {}

/// Modules by their number in the library, and the kernels found in them.
#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<usize, sys::CUmodule>,
    kernels: HashMap<Kernel, sys::CUfunction>,
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// [`Error::NoCuda`] if there is no driver, no GPU, or only one that is too old: then what needs a GPU is not run.
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
        self.with_context("the times of launches", || clock.take())
    }

    fn open(library: Library, clock: Option<Mutex<Clock>>) -> Result<Arc<Self>> {
        let none = |reason: String| Error::NoCuda(reason);
        // SAFETY: this opens the driver's library, if there is one, and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(none("the driver's library libcuda is not installed".into()));
        }
        // SAFETY: the library is there; a symbol is looked up and not called.
        let lacks = |symbol: &&&str| unsafe { sys::culib().get::<*const ()>(symbol.as_bytes()) }.is_err();
        if let Some(symbol) = SYMBOLS.iter().find(lacks) {
            return Err(none(format!("the driver's library libcuda has no `{symbol}`: it is too old, or no driver")));
        }
        result::init().map_err(|error| none(describe(&error)))?;
        if result::device::get_count().map_err(|error| none(describe(&error)))? == 0 {
            return Err(none("the driver knows no GPU".into()));
        }
        let device = result::device::get(0).map_err(|error| none(describe(&error)))?;
        let attribute = |which| {
            // SAFETY: the device exists.
            unsafe { result::device::get_attribute(device, which) }.map_err(|error| none(describe(&error)))
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let capability = (attribute(MAJOR)?, attribute(MINOR)?);
        let name = result::device::get_name(device).map_err(|error| none(describe(&error)))?;
        if capability < OLDEST {
            let ((major, minor), (needed, _)) = (capability, OLDEST);
            return Err(none(format!("{name} has compute capability {major}.{minor}, the kernels need {needed}.0")));
        }
        // SAFETY: the device exists; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("the GPU's context"))?;
        let (loaded, pool, products) = (Mutex::default(), Mutex::default(), OnceLock::new());
        Ok(Arc::new(Cuda { library, name, context, device, loaded, pool, products, clock }))
    }

    /// Every call into the driver goes through here.
    fn in_context<T>(
        &self,
        call: impl FnOnce() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, DriverError> {
        // SAFETY: the context is retained as long as this lives.
        unsafe { result::ctx::set_current(self.context) }.and_then(|()| call())
    }

    /// The same, with the words that an error needs.
    fn with_context<T>(&self, what: &str, call: impl FnOnce() -> std::result::Result<T, DriverError>) -> Result<T> {
        self.in_context(call).map_err(failed(what))
    }

    /// Launches something, and measures it if this is a measuring device.
    fn timed(&self, name: &str, launch: impl FnOnce() -> std::result::Result<(), DriverError>) -> Result<()> {
        let Some(clock) = &self.clock else { return self.with_context(name, launch) };
        let clock = &mut *clock.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_context(name, || clock.around(name, launch))
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self, kernel: &Kernel, shared: u32) -> Result<sys::CUfunction> {
        let loaded = &mut *self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match loaded.kernels.get(kernel) {
            Some(function) => *function,
            None => {
                let (number, text) = self.library.find(kernel)?;
                let module = match loaded.modules.get(&number) {
                    Some(module) => *module,
                    None => {
                        let text = c_string(text)?;
                        let load = || {
                            // SAFETY: the text ends in a NUL and is PTX, which the driver checks.
                            unsafe { result::module::load_data(text.as_ptr().cast::<c_void>()) }
                        };
                        let module = self.with_context(&format!("module {}", kernel.module), load)?;
                        loaded.modules.insert(number, module);
                        module
                    }
                };
                let entry = c_string(&kernel.entry)?;
                // SAFETY: the module stays loaded as long as this lives.
                let find = || unsafe { result::module::get_function(module, entry) };
                let function = self.with_context(&kernel.entry, find)?;
                loaded.kernels.insert(kernel.clone(), function);
                function
            }
        };
        if shared > SHARED_WITHOUT_ASKING {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX;
            // SAFETY: the function belongs to a loaded module.
            let ask = || unsafe { result::function::set_function_attribute(function, MAX, shared as i32) };
            self.with_context(&format!("{kernel}: {shared} bytes of shared memory"), ask)?;
        }
        Ok(function)
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let taken = self.pool().take(bytes, &mut Driver(self));
        taken.map_err(|error| failed(&format!("an allocation of {bytes} bytes"))(error))
    }

    fn free(&self, address: u64) {
        self.pool().give_back(address);
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        // SAFETY: the driver checks that the range is allocated, and has read `data` when it returns.
        self.with_context("a copy to the GPU", || unsafe { result::memcpy_htod_sync(address, data) })
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the driver checks that the range is allocated, and has filled `data` when it returns.
        self.with_context("a copy from the GPU", || unsafe { result::memcpy_dtoh_sync(data, address) })
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the driver checks that both ranges are allocated.
        self.with_context("a copy on the GPU", || unsafe { result::memcpy_dtod_sync(to, from, bytes) })
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the driver checks that the range is allocated.
        self.with_context("filling memory", || unsafe { result::memset_d8_sync(address, byte, bytes) })
    }

    fn launch(&self, kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let function = self.function(kernel, grid.shared)?;
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
                let stream = result::stream::null();
                result::launch_kernel(function, (bx, by, bz), (tx, ty, tz), grid.shared, stream, &mut pointers)
            }
        };
        self.timed(&kernel.entry, launch)
    }

    fn synchronize(&self) -> Result<()> {
        self.with_context("the work before", result::ctx::synchronize)
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
        let _ = self.timings();
        let (products, mut pool) = (self.products.take(), std::mem::take(&mut *self.pool()));
        let _ = self.in_context(|| {
            drop(products);
            Ok(())
        });
        pool.release(&mut Driver(self));
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in std::mem::take(&mut loaded.modules).into_values() {
            // SAFETY: loaded by `function`, and its kernels go with this.
            let _ = self.with_context("unloading a module", || unsafe { result::module::unload(module) });
        }
        // SAFETY: retained by `new`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

fn c_string(text: &str) -> Result<CString> {
    let error = |_| Error::Driver { what: "a name or PTX for the driver".into(), message: "it contains a NUL".into() };
    CString::new(text).map_err(error)
}

fn failed(what: &str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Driver { what: what.into(), message: describe(&error) }
}

/// The driver's name for an error, and its explanation.
fn describe(error: &DriverError) -> String {
    let text = |found: std::result::Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}

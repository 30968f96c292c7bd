//! The driver, and the context of the first GPU.

use std::ffi::CStr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::{Error, Result};

/// The oldest GPU that the kernels run on, as its compute capability.
const OLDEST: (i32, i32) = (8, 0);

/// What is called in the driver's library. `cudarc` looks each up when it is first called, and panics if it is not there.
const SYMBOLS: [&str; 37] = [
    "cuCtxSetCurrent",
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
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// The context of the first GPU; retained as long as this lives.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) name: String,
    handle: sys::CUcontext,
    device: sys::CUdevice,
}

impl Context {
    /// Opens the driver's library and its first GPU.
    pub(super) fn open() -> Result<Self> {
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
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(failed("the GPU's context"))?;
        Ok(Context { name, handle, device })
    }

    /// Every call into the driver goes through here.
    pub(super) fn run<T>(
        &self,
        call: impl FnOnce() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, DriverError> {
        // SAFETY: the context is retained as long as this lives.
        unsafe { result::ctx::set_current(self.handle) }.and_then(|()| call())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The error of a call, with the words that it needs.
pub(super) fn failed(what: &str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Driver { what: what.into(), message: describe(&error) }
}

/// The driver's name for an error (its number, if it has no name for it), and its explanation.
fn describe(error: &DriverError) -> String {
    let text =
        |found: std::result::Result<&CStr, DriverError>| found.map(|text| text.to_string_lossy().into_owned()).ok();
    let name = text(error.error_name()).unwrap_or_else(|| format!("CUDA_ERROR {}", error.0 as i32));
    text(error.error_string()).map_or_else(|| name.clone(), |explanation| format!("{name} ({explanation})"))
}

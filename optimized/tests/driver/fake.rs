//! A library that has the symbols of libcuda and libcublasLt that are called, and no others: a GPU that computes nothing.
//! Built by the test beside it, with nothing but `rustc`. None of them
//! calls another one: each is taken away in turn.

#![allow(missing_docs, non_snake_case)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr::copy_nonoverlapping;

/// A call that needs to do nothing.
macro_rules! nothing {
    ($($name:ident)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            0
        }
    )* };
}

nothing! {
    cuInit cuCtxSetCurrent cuDevicePrimaryCtxRelease_v2
    cuEventDestroy_v2 cuEventRecord cuFuncSetAttribute cuGraphDestroy cuGraphExecDestroy cuGraphLaunch cuLaunchKernel
    cuMemFreeHost cuMemFree_v2 cuModuleUnload cuStreamBeginCapture_v2 cuStreamDestroy_v2 cuStreamSynchronize
    cublasLtDestroy cublasLtMatmul cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute
    cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute cublasLtMatrixLayoutDestroy
}

/// A call that hands out something by its first argument.
macro_rules! hands_out {
    ($($name:ident: $type:ty = $value:expr;)*) => { $(
        /// # Safety
        /// The first argument is a place for what is handed out.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(place: *mut $type) -> c_int {
            // SAFETY: as above.
            unsafe { place.write($value) };
            0
        }
    )* };
}

hands_out! {
    cuDeviceGetCount: c_int = 1;
    cuDeviceGet: c_int = 0;
    // compute capability 9.9
    cuDeviceGetAttribute: c_int = 9;
    cuDevicePrimaryCtxRetain: usize = 1;
    cuEventCreate: usize = 1;
    cuEventElapsedTime: f32 = 1.0;
    cuGraphInstantiateWithFlags: usize = 1;
    cuModuleLoadDataEx: usize = 1;
    cuStreamCreate: usize = 1;
    cuModuleGetFunction: usize = 1;
    cublasLtCreate: usize = 1;
    cublasLtMatmulDescCreate: usize = 1;
    cublasLtMatmulPreferenceCreate: usize = 1;
    cublasLtMatrixLayoutCreate: usize = 1;
}

/// More than the fake has.
const TOO_MUCH: usize = 1 << 40;

/// # Safety
/// The first argument is a place for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(place: *mut u64, bytes: usize) -> c_int {
    if bytes >= TOO_MUCH {
        return 2;
    }
    // SAFETY: as above. What is handed out is never given back.
    unsafe { place.write(vec![0_u8; bytes].leak().as_mut_ptr() as u64) };
    0
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(place: *mut u64, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { place.write(vec![0_u8; bytes].leak().as_mut_ptr() as u64) };
    0
}

/// # Safety
/// The second argument is a place for a graph.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(_: usize, place: *mut usize) -> c_int {
    // SAFETY: as above.
    unsafe { place.write(1) };
    0
}

/// # Safety
/// Both are places for numbers.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    // SAFETY: as above.
    unsafe { (free.write(1 << 30), total.write(1 << 30)) };
    0
}

/// # Safety
/// All are ranges of so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: *mut u8, from: *const u8, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { copy_nonoverlapping(from, to, bytes) };
    0
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: *const u8, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { copy_nonoverlapping(from, to, bytes) };
    0
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: *mut u8, from: *const u8, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { copy_nonoverlapping(from, to, bytes) };
    0
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(to: *mut u8, byte: u8, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { to.write_bytes(byte, bytes) };
    0
}

/// # Safety
/// The first argument is a place for so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, _: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { copy_nonoverlapping(c"a fake".as_ptr(), name, 7) };
    0
}

/// # Safety
/// The second argument is a place for a text.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(_: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: as above.
    unsafe { text.write(c"FAKE".as_ptr()) };
    0
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: as above.
    unsafe { text.write(c"it is a fake".as_ptr()) };
    0
}

/// # Safety
/// The last arguments are a place for one kernel and a place for a number.
#[unsafe(no_mangle)]
#[rustfmt::skip]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _: *const c_void, _: *const c_void, _: *const c_void, _: *const c_void, _: *const c_void, _: *const c_void,
    _: *const c_void, _: c_int, kernel: *mut [u8; 96], found: *mut c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe { (kernel.write([0; 96]), found.write(1)) };
    0
}

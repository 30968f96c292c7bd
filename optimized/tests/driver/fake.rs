//! A library that has the symbols of libcublasLt that are called, and no others: it computes nothing. Built by the test
//! beside it, with nothing but `rustc`. None of them calls another one: each is taken away in turn.

#![allow(missing_docs, non_snake_case)]

use std::ffi::{c_int, c_void};

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
    cublasLtCreate: usize = 1;
    cublasLtMatmulDescCreate: usize = 1;
    cublasLtMatmulPreferenceCreate: usize = 1;
    cublasLtMatrixLayoutCreate: usize = 1;
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

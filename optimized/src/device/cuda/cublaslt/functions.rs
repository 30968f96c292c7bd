//! The functions of cuBLASLt that are called.
//!
//! **Trap.** `cudarc` would load them itself, but for driver 12 it does not look for version 13 of the library, and panics
//! where one is missing.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtHandle_t as Handle, cublasLtMatmulAlgo_t as Algorithm,
    cublasLtMatmulDesc_t as Description, cublasLtMatmulDescAttributes_t as DescriptionAttribute,
    cublasLtMatmulHeuristicResult_t as Found, cublasLtMatmulPreference_t as Preference,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t as Layout,
    cublasStatus_t as Status, cudaDataType as NumberType,
};
use cudarc::driver::sys::CUstream as Stream;
use libloading::Library;

/// The library's names, the newest first. Version 11 knows the same functions, but not every driver's GPUs.
const NAMES: [&str; 5] =
    ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "cublasLt64_13.dll", "cublasLt64_12.dll"];

/// Functions by their names in the library.
macro_rules! functions {
    ($($field:ident = $name:ident($($argument:ty),* $(,)?);)*) => {
        /// The functions, as the library has them; it stays loaded.
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            fn look_up(library: &Library) -> Result<Self, String> {
                Ok(Functions { $($field: {
                    let name = stringify!($name);
                    // SAFETY: the type is that of cublasLt.h.
                    let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> Status>(name) };
                    *found.map_err(|_| format!("libcublasLt has no `{name}`"))?
                },)* })
            }
        }
    };
}

functions! {
    create = cublasLtCreate(*mut Handle);
    destroy = cublasLtDestroy(Handle);
    multiply = cublasLtMatmul(
        Handle, Description, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void, *const c_void,
        Layout, *mut c_void, Layout, *const Algorithm, *mut c_void, usize, Stream,
    );
    choose = cublasLtMatmulAlgoGetHeuristic(
        Handle, Description, Layout, Layout, Layout, Layout, Preference, c_int, *mut Found, *mut c_int,
    );
    create_description = cublasLtMatmulDescCreate(*mut Description, Compute, NumberType);
    destroy_description = cublasLtMatmulDescDestroy(Description);
    describe = cublasLtMatmulDescSetAttribute(Description, DescriptionAttribute, *const c_void, usize);
    create_preference = cublasLtMatmulPreferenceCreate(*mut Preference);
    destroy_preference = cublasLtMatmulPreferenceDestroy(Preference);
    prefer = cublasLtMatmulPreferenceSetAttribute(Preference, PreferenceAttribute, *const c_void, usize);
    create_layout = cublasLtMatrixLayoutCreate(*mut Layout, NumberType, u64, u64, i64);
    destroy_layout = cublasLtMatrixLayoutDestroy(Layout);
}

impl Functions {
    /// The library, loaded once; or why not.
    pub(super) fn load() -> Result<&'static Functions, String> {
        static LOADED: OnceLock<Result<(Functions, Library), String>> = OnceLock::new();
        let load = || {
            // SAFETY: NVIDIA's library does nothing when it is loaded.
            let found = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
            let library = found.ok_or("no libcublasLt")?;
            Ok((Functions::look_up(&library)?, library))
        };
        LOADED.get_or_init(load).as_ref().map(|(functions, _)| functions).map_err(Clone::clone)
    }
}

//! Modules and kernels: PTX is given to the driver when a kernel of it is first launched.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result;
use cudarc::driver::sys;

use super::context::{Context, failed};
use crate::{Error, Kernel, Library, Result};

/// What a block may have of dynamic shared memory before it has to be asked for.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
/// Room for what the driver's compiler has to say about PTX that it refuses.
const LOG: usize = 4096;

/// Modules by their number in the library, and the kernels found in them.
#[derive(Debug, Default)]
pub(super) struct Modules {
    modules: HashMap<usize, sys::CUmodule>,
    kernels: HashMap<Kernel, sys::CUfunction>,
}

impl Modules {
    /// A kernel that may have so much shared memory.
    pub(super) fn function(
        &mut self,
        context: &Context,
        library: &Library,
        kernel: &Kernel,
        shared: u32,
    ) -> Result<sys::CUfunction> {
        let function = match self.kernels.get(kernel) {
            Some(function) => *function,
            None => {
                let (number, text) = library.find(kernel)?;
                let module = match self.modules.get(&number) {
                    Some(module) => *module,
                    None => {
                        let module = load(context, kernel.module, text)?;
                        self.modules.insert(number, module);
                        module
                    }
                };
                let entry = c_string(&kernel.entry)?;
                // SAFETY: the module stays loaded as long as this lives.
                let find = || unsafe { result::module::get_function(module, entry) };
                let function = context.run(find).map_err(failed(&kernel.entry))?;
                self.kernels.insert(kernel.clone(), function);
                function
            }
        };
        if shared > SHARED_WITHOUT_ASKING {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX;
            // SAFETY: the function belongs to a loaded module.
            let ask = || unsafe { result::function::set_function_attribute(function, MAX, shared as i32) };
            context.run(ask).map_err(failed(&format!("{kernel}: {shared} bytes of shared memory")))?;
        }
        Ok(function)
    }

    /// Unloads them all.
    pub(super) fn clear(&mut self, context: &Context) {
        self.kernels.clear();
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded by `function`, and its kernels were just forgotten.
            let _ = context.run(|| unsafe { result::module::unload(module) });
        }
    }
}

/// Compiles and loads PTX. If the driver refuses it, its compiler's first line says why.
fn load(context: &Context, name: &str, text: &str) -> Result<sys::CUmodule> {
    let text = c_string(text)?;
    let mut log = [0_u8; LOG];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // A number stands where a pointer would.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG as *mut c_void];
    let mut module = std::ptr::null_mut();
    let load = || {
        // SAFETY: the text ends in a NUL and is PTX, which the driver checks; the log has as many bytes as is said.
        unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        }
        .result()
    };
    let loaded = context.run(load).map_err(failed(&format!("module {name}")));
    loaded.map(|()| module).map_err(|error| match (error, first_line(&log)) {
        (Error::Driver { what, message }, Some(line)) => Error::Driver { what, message: format!("{message}: {line}") },
        (error, _) => error,
    })
}

fn first_line(log: &[u8]) -> Option<String> {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

fn c_string(text: &str) -> Result<CString> {
    let error = |_| Error::Driver { what: "a name or PTX for the driver".into(), message: "it contains a NUL".into() };
    CString::new(text).map_err(error)
}

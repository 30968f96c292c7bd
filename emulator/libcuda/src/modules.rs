//! Modules of PTX, their functions, and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::slice;
use std::sync::Arc;

use ptx_emulator::{Arg, Grid, Module};

use crate::driver::{Answer, Driver, entry, give};
use crate::status::Status;
use crate::work::Work;

/// Shared memory that a block may have without asking, and the most that can be asked for.
const USUAL_SHARED: u64 = 48 << 10;
pub(crate) const MOST_SHARED: u64 = 227 << 10;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_JIT_ERROR_LOG_BUFFER` and `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

/// A function of a module.
pub(crate) struct Function {
    module: usize,
    code: Arc<Module>,
    entry: String,
    /// The sizes of its parameters.
    parameters: Vec<u64>,
    shared: u64,
    /// Dynamic shared memory that it may have.
    dynamic: u64,
}

entry! {
    /// Compiles and loads PTX.
    Context fn cuModuleLoadData(place: *mut usize, image: *const c_char) |driver, _| {
        // SAFETY: as the manual wants it.
        let handle = unsafe { driver.load(image) }.map_err(|(status, _)| status)?;
        // SAFETY: as above.
        unsafe { give(place, handle) }
    }

    /// The same, with a place for what the compiler has to say.
    Context fn cuModuleLoadDataEx(
        place: *mut usize,
        image: *const c_char,
        count: c_uint,
        options: *const c_uint,
        values: *const *mut c_void,
    ) |driver, _| {
        let (options, values) = match count {
            0 => (&[][..], &[][..]),
            // SAFETY: as the manual wants it.
            _ => unsafe { (slice::from_raw_parts(options, count as usize), slice::from_raw_parts(values, count as usize)) },
        };
        let option = |wanted| options.iter().position(|option| *option == wanted).map(|at| values[at]);
        // SAFETY: as the manual wants it.
        let loaded = unsafe { driver.load(image) };
        if let (Err((_, said)), Some(log), Some(room)) = (&loaded, option(ERROR_LOG), option(ERROR_LOG_BYTES)) {
            // A number stands where a pointer would.
            let bytes = said.len().min((room as usize).saturating_sub(1));
            // SAFETY: the log has as many bytes as is said.
            unsafe {
                log.cast::<u8>().copy_from_nonoverlapping(said.as_ptr(), bytes);
                log.cast::<u8>().add(bytes).write(0);
            }
        }
        // SAFETY: as the manual wants it.
        unsafe { give(place, loaded.map_err(|(status, _)| status)?) }
    }

    /// Unloads it, at once.
    Context fn cuModuleUnload(module: usize) |driver, _| {
        driver.unsafe_while_capturing()?;
        driver.functions.retain(|_, function| function.module != module);
        driver.modules.remove(&module).map(|_| ()).ok_or(Status::ERROR_INVALID_HANDLE)
    }

    /// A function by its name.
    Context fn cuModuleGetFunction(place: *mut usize, module: usize, name: *const c_char) |driver, _| {
        let code = driver.modules.get(&module).cloned().ok_or(Status::ERROR_INVALID_HANDLE)?;
        // SAFETY: as the manual wants it.
        let entry = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let parameters = code.parameters(&entry).map_err(|_| Status::ERROR_NOT_FOUND)?;
        let shared = code.shared_bytes(&entry).map_err(|_| Status::ERROR_INVALID_PTX)?;
        let parameters = parameters.iter().map(|parameter| parameter.bytes).collect();
        let dynamic = USUAL_SHARED.saturating_sub(shared);
        let handle = driver.handle();
        driver.functions.insert(handle, Function { module, code, entry, parameters, shared, dynamic });
        // SAFETY: as above.
        unsafe { give(place, handle) }
    }

    /// Asks for more dynamic shared memory.
    Context fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) |driver, _| {
        let function = driver.functions.get_mut(&function).ok_or(Status::ERROR_INVALID_HANDLE)?;
        let bytes = u64::try_from(value).map_err(|_| Status::ERROR_INVALID_VALUE)?;
        if attribute != MAX_DYNAMIC_SHARED || function.shared + bytes > MOST_SHARED {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        function.dynamic = bytes;
        Ok(())
    }

    /// Asks a stream for a launch. The arguments are read now.
    Context fn cuLaunchKernel(
        function: usize,
        blocks_x: c_uint,
        blocks_y: c_uint,
        blocks_z: c_uint,
        threads_x: c_uint,
        threads_y: c_uint,
        threads_z: c_uint,
        shared: c_uint,
        stream: usize,
        arguments: *const *const u8,
        _extra: *const *const c_void,
    ) |driver, fate| {
        let function = driver.functions.get(&function).ok_or(Status::ERROR_INVALID_HANDLE)?;
        let (blocks, threads) = ([blocks_x, blocks_y, blocks_z], [threads_x, threads_y, threads_z]);
        let within = |sizes: [u32; 3], most: [u32; 3]| sizes.iter().zip(most).all(|(size, most)| (1..=most).contains(size));
        let fits = within(blocks, [i32::MAX as u32, 65535, 65535])
            && within(threads, [1024, 1024, 64])
            && threads.iter().map(|size| u64::from(*size)).product::<u64>() <= 1024
            && u64::from(shared) <= function.dynamic;
        if !fits || arguments.is_null() && !function.parameters.is_empty() {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        let args = function.parameters.iter().enumerate().map(|(index, bytes)| {
            // SAFETY: as the manual wants it: a pointer for each parameter, each to as many bytes as it has.
            Arg::bytes(unsafe { slice::from_raw_parts(*arguments.add(index), *bytes as usize) })
        });
        let args = args.collect();
        let Function { module, code, entry, .. } = function;
        let grid = Grid { blocks, threads, shared };
        let work = Work::Launch { module: *module, code: code.clone(), entry: entry.clone(), grid, args };
        driver.later(stream, fate, work)
    }
}

impl Driver {
    /// Compiles PTX; or says why not, as the driver's compiler would.
    ///
    /// # Safety
    /// The image is a text that ends in a NUL.
    unsafe fn load(&mut self, image: *const c_char) -> Result<usize, (Status, String)> {
        let bare = |answer: Answer| answer.map_err(|status| (status, String::new()));
        bare(self.unsafe_while_capturing())?;
        if image.is_null() {
            return Err((Status::ERROR_INVALID_VALUE, String::new()));
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(image) }.to_str();
        let text = text.map_err(|_| (Status::ERROR_INVALID_IMAGE, "not a text of PTX".to_string()))?;
        let module =
            Module::parse(text).map_err(|error| (Status::ERROR_INVALID_PTX, format!("ptxas fatal   : {error}")))?;
        let (version, newest) = (module.version(), self.settings.ptx);
        if version > newest {
            let ((major, minor), (new_major, new_minor)) = (version, newest);
            let said = format!(
                "ptxas fatal   : Unsupported .version {major}.{minor}; current version is '{new_major}.{new_minor}'"
            );
            return Err((Status::ERROR_UNSUPPORTED_PTX_VERSION, said));
        }
        let handle = self.handle();
        self.modules.insert(handle, Arc::new(module));
        Ok(handle)
    }
}

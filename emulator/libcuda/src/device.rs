//! Initialisation, devices, and the texts of errors.

use std::ffi::{CStr, c_char, c_int, c_uint};

use crate::driver::{Answer, Driver, entry, give};
use crate::status::Status;

/// The only device's name.
const NAME: &CStr = c"emulated GPU";

entry! {
    /// Initialises the driver, if there was no error before that.
    Nothing fn cuInit(_flags: c_uint) |driver, _| {
        if let (false, Some(status)) = (driver.initialised, driver.sticky) {
            return Err(status);
        }
        driver.initialised = true;
        Ok(())
    }

    /// How many GPUs there are.
    Initialisation fn cuDeviceGetCount(count: *mut c_int) |driver, _| {
        // SAFETY: as the manual wants it.
        unsafe { give(count, driver.settings.devices) }
    }

    /// A GPU by its number.
    Initialisation fn cuDeviceGet(device: *mut c_int, ordinal: c_int) |driver, _| {
        known(driver, ordinal)?;
        // SAFETY: as the manual wants it.
        unsafe { give(device, ordinal) }
    }

    /// Its name.
    Initialisation fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) |driver, _| {
        known(driver, device)?;
        let bytes = NAME.to_bytes_with_nul();
        if name.is_null() || (length as usize) < bytes.len() {
            return Err(Status::ERROR_INVALID_VALUE);
        }
        // SAFETY: as the manual wants it, and as was just asked.
        unsafe { name.copy_from_nonoverlapping(NAME.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// What it can do.
    Initialisation fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) |driver, _| {
        known(driver, device)?;
        let number = match attribute {
            1 => 1024,      // threads of a block
            10 => 32,       // a warp
            16 => 132,      // multiprocessors
            75 => driver.settings.capability.0,
            76 => driver.settings.capability.1,
            81 => 228 << 10, // shared memory of a multiprocessor
            97 => crate::modules::MOST_SHARED as c_int,
            _ => return Err(Status::ERROR_INVALID_VALUE),
        };
        // SAFETY: as the manual wants it.
        unsafe { give(value, number) }
    }

    /// The name of an error.
    Nothing fn cuGetErrorName(status: c_int, text: *mut *const c_char) |_, _| {
        let (name, _) = Status(status).texts().ok_or(Status::ERROR_INVALID_VALUE)?;
        // SAFETY: as the manual wants it.
        unsafe { give(text, name.as_ptr()) }
    }

    /// What it means; of an error that sticks, what the emulator said.
    Nothing fn cuGetErrorString(status: c_int, text: *mut *const c_char) |driver, _| {
        let (_, usual) = Status(status).texts().ok_or(Status::ERROR_INVALID_VALUE)?;
        let said = driver.explanation.as_deref().filter(|_| driver.sticky == Some(Status(status)));
        // SAFETY: as the manual wants it. What was said once stays: an error that sticks is the last one.
        unsafe { give(text, said.unwrap_or(usual).as_ptr()) }
    }
}

/// Whether there is such a device.
pub(crate) fn known(driver: &Driver, device: c_int) -> Answer {
    if (0..driver.settings.devices).contains(&device) { Ok(()) } else { Err(Status::ERROR_INVALID_DEVICE) }
}

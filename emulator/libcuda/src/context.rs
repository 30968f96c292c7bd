//! The primary context, the only one that there is.

use std::ffi::c_int;

use crate::device::known;
use crate::driver::{CONTEXT, CURRENT, entry, give};
use crate::status::Status;

entry! {
    /// Retains it.
    Initialisation fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) |driver, _| {
        known(driver, device)?;
        driver.retained += 1;
        // SAFETY: as the manual wants it.
        unsafe { give(context, CONTEXT) }
    }

    /// Releases it; the last one who does ends it.
    Initialisation fn cuDevicePrimaryCtxRelease_v2(device: c_int) |driver, _| {
        known(driver, device)?;
        driver.retained = driver.retained.checked_sub(1).ok_or(Status::ERROR_INVALID_CONTEXT)?;
        if driver.retained == 0 {
            driver.close();
        }
        Ok(())
    }

    /// Makes it current on this thread.
    Initialisation fn cuCtxSetCurrent(context: usize) |driver, _| {
        if let Some(status) = driver.sticky {
            return Err(status);
        }
        if context != 0 && (context != CONTEXT || driver.retained == 0) {
            return Err(Status::ERROR_INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }

    /// Waits for all work.
    Context fn cuCtxSynchronize() |driver, _| {
        driver.wait_for_all()
    }
}

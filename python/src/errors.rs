//! The exceptions of the package. Nothing else comes out of it: a panic becomes one, too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ptx_emulator::{Error, Place};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    dsv2,
    DsvError,
    PyException,
    "What went wrong, in one line. All exceptions of dsv2 are of this class."
);
create_exception!(dsv2, PtxError, DsvError, "The text is no PTX, or holds what the emulator does not know.");
create_exception!(dsv2, LaunchError, DsvError, "A launch whose arguments, grid or memory do not fit.");
create_exception!(
    dsv2,
    KernelFault,
    DsvError,
    "A thread did what it must not do: read or wrote out of bounds, read bytes that nobody wrote, waited for ever, ...\n\n\
     Attributes: `kernel`, `opcode`, `line` (of the PTX), `source` (file and line, or None), `block`, `thread`."
);
create_exception!(dsv2, RequestError, DsvError, "A request or a file is at fault: what, where, expected, found.");
create_exception!(dsv2, InternalError, DsvError, "A bug of dsv2 itself. Please report it.");

/// Makes the exceptions known to Python, all under one roof.
pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("Error", py.get_type::<DsvError>())?;
    module.add("PtxError", py.get_type::<PtxError>())?;
    module.add("LaunchError", py.get_type::<LaunchError>())?;
    module.add("KernelFault", py.get_type::<KernelFault>())?;
    module.add("RequestError", py.get_type::<RequestError>())?;
    module.add("InternalError", py.get_type::<InternalError>())
}

/// An error of the emulator as an exception with the same text.
pub fn of_emulator(py: Python<'_>, error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Syntax { .. } | Error::Unsupported { .. } | Error::NoKernel { .. } => PtxError::new_err(text),
        Error::Fault(fault) => {
            let made = KernelFault::new_err(text);
            placed(py, &made, &fault.place, fault.block, Some(fault.thread)).map_or_else(|other| other, |()| made)
        }
        Error::Stuck(stuck) => {
            let made = KernelFault::new_err(text);
            let place = stuck.waiting.first().map(|waiting| &waiting.place);
            place
                .map_or(Ok(()), |place| placed(py, &made, place, stuck.block, None))
                .map_or_else(|other| other, |()| made)
        }
        _ => LaunchError::new_err(text),
    }
}

/// Says of an exception where it comes from.
fn placed(py: Python<'_>, error: &PyErr, place: &Place, block: [u32; 3], thread: Option<[u32; 3]>) -> PyResult<()> {
    let value = error.value(py);
    value.setattr("kernel", &place.kernel)?;
    value.setattr("opcode", &place.opcode)?;
    value.setattr("line", place.line)?;
    value.setattr("source", place.source.clone())?;
    value.setattr("block", (block[0], block[1], block[2]))?;
    value.setattr("thread", thread.map(|[x, y, z]| (x, y, z)))
}

/// Runs something; if it panics, that is an exception.
pub fn guarded<T>(work: impl FnOnce() -> T) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| internal(&*panic))
}

/// The exception that a panic becomes.
pub fn internal(panic: &(dyn Any + Send)) -> PyErr {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    InternalError::new_err(format!("a bug of dsv2, please report it: {}", said.unwrap_or("no reason given")))
}

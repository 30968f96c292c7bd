//! What the Python package `dsv2` is made of: the emulator and the command line, as a module of Python. All that is not
//! bytes and launches is Python, in `dsv2/`.
#![deny(missing_docs)]

mod command;
mod device;
mod errors;
mod module;
mod profile;
mod races;
mod watch;

use pyo3::prelude::*;

/// The module `dsv2._dsv2`.
#[pymodule(name = "_dsv2")]
fn extension(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::add(module)?;
    module.add("version", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<module::Module>()?;
    module.add_class::<module::Parameter>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<device::Launched>()?;
    module.add_class::<races::Race>()?;
    module.add_class::<races::Access>()?;
    module.add_class::<races::Use>()?;
    module.add_class::<profile::Profile>()?;
    module.add_class::<profile::Line>()?;
    module.add_class::<profile::Counts>()?;
    module.add_class::<profile::Traffic>()?;
    module.add_function(wrap_pyfunction!(command::command, module)?)
}

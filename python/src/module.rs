//! PTX modules and what there is to know of their kernels.

use std::sync::Arc;

use ptx_emulator as emulator;
use pyo3::prelude::*;

use crate::errors::{guarded, of_emulator};

/// A PTX module.
#[pyclass(frozen, module = "dsv2._dsv2")]
pub struct Module(pub Arc<emulator::Module>);

/// A parameter of a kernel.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Parameter {
    name: String,
    /// The type of its elements: `u64`, `f32`, `b8`, ...
    element: &'static str,
    /// How many there are: more than one, if it is an array (a struct is one of `b8`).
    count: u64,
    bytes: u64,
    align: u32,
}

#[pymethods]
impl Parameter {
    fn __repr__(&self) -> String {
        let Self { name, element, count, .. } = self;
        if *count == 1 { format!(".{element} {name}") } else { format!(".{element} {name}[{count}]") }
    }
}

#[pymethods]
impl Module {
    /// Parses PTX.
    #[new]
    fn new(py: Python<'_>, text: &str) -> PyResult<Self> {
        let parsed = py.detach(|| guarded(|| emulator::Module::parse(text)))?;
        parsed.map(|module| Self(Arc::new(module))).map_err(|error| of_emulator(py, &error))
    }

    /// The names of its kernels.
    #[getter]
    fn kernels(&self) -> Vec<String> {
        self.0.kernels().map(str::to_owned).collect()
    }

    /// `.target`, such as `sm_80`.
    #[getter]
    fn target(&self) -> &str {
        self.0.target()
    }

    /// `.version`, such as `(8, 4)`.
    #[getter]
    fn version(&self) -> (u32, u32) {
        self.0.version()
    }

    /// The parameters of a kernel, in order.
    fn parameters(&self, py: Python<'_>, kernel: &str) -> PyResult<Vec<Parameter>> {
        let parameters = self.0.parameters(kernel).map_err(|error| of_emulator(py, &error))?;
        let made = parameters.into_iter().map(|emulator::Parameter { name, element, bytes, align }| {
            let width = element.trim_start_matches(char::is_alphabetic).parse::<u64>().map_or(1, |bits| bits / 8);
            Parameter { name, element, count: bytes / width.max(1), bytes, align }
        });
        Ok(made.collect())
    }

    /// The threads of a block in x, y and z, if the kernel says them (`.reqntid`).
    fn required_threads(&self, py: Python<'_>, kernel: &str) -> PyResult<Option<(u32, u32, u32)>> {
        let threads = self.0.required_threads(kernel).map_err(|error| of_emulator(py, &error))?;
        Ok(threads.map(|[x, y, z]| (x, y, z)))
    }

    /// Looks at every instruction of a kernel, and says how many bytes of static shared memory it has.
    fn shared_bytes(&self, py: Python<'_>, kernel: &str) -> PyResult<u64> {
        guarded(|| self.0.shared_bytes(kernel))?.map_err(|error| of_emulator(py, &error))
    }
}

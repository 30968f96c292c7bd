//! Races, as objects of Python.

use ptx_emulator::observe::Kind;
use ptx_emulator::{Place, UnwrittenUse, race};
use pyo3::prelude::*;

/// Two accesses of the same bytes, at least one of them a write, that nothing orders.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Race {
    kernel: String,
    /// `global` or `shared`.
    space: String,
    address: u64,
    bytes: u32,
    first: Py<Access>,
    second: Py<Access>,
    /// How many accesses of a thread raced in the same two lines.
    count: u64,
    /// Of rounded stores: how far two values are from each other at most, relative to the larger one.
    apart: f64,
    text: String,
}

/// Bytes that nobody wrote, where they decided something.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Use {
    /// `address`, `branch`, `barrier` or `output`.
    kind: &'static str,
    kernel: String,
    /// Opcode, line of the PTX, and file and line of the source: where the bytes were read, and where they were used.
    read: Spot,
    used: Spot,
    block: (u32, u32, u32),
    thread: (u32, u32, u32),
    count: u64,
    text: String,
}

/// Opcode, line of the PTX, file and line of the source.
type Spot = (String, u32, Option<(String, u32)>);

#[pymethods]
impl Use {
    fn __repr__(&self) -> &str {
        &self.text
    }
}

impl Use {
    pub fn new(found: &UnwrittenUse) -> Self {
        let spot = |place: &Place| (place.opcode.clone(), place.line, place.source.clone());
        let ([x, y, z], [a, b, c]) = (found.block, found.thread);
        Self {
            kind: match found.how {
                ptx_emulator::Use::Address => "address",
                ptx_emulator::Use::Branch => "branch",
                ptx_emulator::Use::Barrier => "barrier",
                ptx_emulator::Use::Output => "output",
            },
            kernel: found.used.kernel.clone(),
            read: spot(&found.read),
            used: spot(&found.used),
            block: (x, y, z),
            thread: (a, b, c),
            count: found.count,
            text: found.to_string(),
        }
    }
}

/// One side of a race.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Access {
    /// `read`, `write`, `atomic`, `copy-read` or `copy-write`.
    kind: &'static str,
    opcode: String,
    /// In the PTX.
    line: u32,
    /// File and line of the source, if they are known.
    source: Option<(String, u32)>,
    block: (u32, u32, u32),
    thread: u32,
    text: String,
}

#[pymethods]
impl Race {
    fn __repr__(&self) -> &str {
        &self.text
    }
}

#[pymethods]
impl Access {
    fn __repr__(&self) -> &str {
        &self.text
    }
}

impl Race {
    pub fn new(py: Python<'_>, race: &race::Race) -> PyResult<Self> {
        Ok(Self {
            kernel: race.kernel.clone(),
            space: race.space.to_string(),
            address: race.address,
            bytes: race.bytes,
            first: Py::new(py, Access::new(&race.first))?,
            second: Py::new(py, Access::new(&race.second))?,
            count: race.count,
            apart: race.apart,
            text: race.to_string(),
        })
    }
}

impl Access {
    fn new(party: &race::Party) -> Self {
        let [x, y, z] = party.block;
        Self {
            kind: match party.kind {
                Kind::Read => "read",
                Kind::Write => "write",
                Kind::Atomic => "atomic",
                Kind::CopyRead => "copy-read",
                Kind::CopyWrite | Kind::CopyLand => "copy-write",
            },
            opcode: party.opcode.clone(),
            line: party.line,
            source: party.source.clone(),
            block: (x, y, z),
            thread: party.thread,
            text: party.to_string(),
        }
    }
}

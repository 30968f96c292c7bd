//! What a launch cost, as objects of Python.

use ptx_emulator::profile;
use pyo3::prelude::*;

/// What one or more launches did. Its `repr` is a table.
#[pyclass(frozen, module = "dsv2._dsv2")]
pub struct Profile(pub profile::Profile);

/// What the instructions with one opcode on one line of the PTX did.
#[pyclass(frozen, get_all, module = "dsv2._dsv2")]
pub struct Line {
    kernel: String,
    /// In the PTX.
    line: u32,
    /// File and line of the source, if they are known.
    source: Option<(String, u32)>,
    opcode: String,
    /// The kind of instruction, as the table has it.
    kind: String,
    counts: Counts,
}

/// Numbers of one line, or of all of them.
#[pyclass(frozen, get_all, skip_from_py_object, module = "dsv2._dsv2")]
#[derive(Clone, Copy)]
pub struct Counts {
    warp_instructions: u64,
    thread_instructions: u64,
    flops: u64,
    #[pyo3(name = "global_")]
    global: Traffic,
    shared: Traffic,
    local: Traffic,
    /// Sectors of 32 bytes of global memory that requests touch, and the fewest that could hold their bytes. A model.
    sectors: u64,
    ideal_sectors: u64,
    /// Passes through shared memory, and those beyond what no conflict of banks would need. A model.
    wavefronts: u64,
    bank_conflicts: u64,
}

/// Bytes of one kind of memory.
#[pyclass(frozen, get_all, skip_from_py_object, module = "dsv2._dsv2")]
#[derive(Clone, Copy)]
pub struct Traffic {
    requests: u64,
    read: u64,
    written: u64,
    atomic: u64,
}

impl From<profile::Traffic> for Traffic {
    fn from(profile::Traffic { requests, read, written, atomic }: profile::Traffic) -> Self {
        Self { requests, read, written, atomic }
    }
}

impl From<profile::Counts> for Counts {
    fn from(counts: profile::Counts) -> Self {
        Self {
            warp_instructions: counts.warp_instructions,
            thread_instructions: counts.thread_instructions,
            flops: counts.flops,
            global: counts.global.into(),
            shared: counts.shared.into(),
            local: counts.local.into(),
            sectors: counts.sectors,
            ideal_sectors: counts.ideal_sectors,
            wavefronts: counts.wavefronts,
            bank_conflicts: counts.bank_conflicts(),
        }
    }
}

#[pymethods]
impl Traffic {
    fn __repr__(&self) -> String {
        let Self { requests, read, written, atomic } = self;
        format!("{requests} requests, {read} bytes read, {written} written, {atomic} atomic")
    }
}

#[pymethods]
impl Counts {
    fn __repr__(&self) -> String {
        format!(
            "{} instructions of warps, {} flop, {} bytes of global memory read and {} written, {} bank conflicts",
            self.warp_instructions, self.flops, self.global.read, self.global.written, self.bank_conflicts
        )
    }
}

#[pymethods]
impl Line {
    fn __repr__(&self) -> String {
        let place = self.source.as_ref().map_or_else(String::new, |(file, line)| format!(" at {file}:{line}"));
        format!("{}{place} (PTX line {}, {}): {}", self.kernel, self.line, self.opcode, self.counts.__repr__())
    }
}

#[pymethods]
impl Profile {
    fn __repr__(&self) -> String {
        self.0.to_string()
    }

    /// Blocks, warps and threads that were launched.
    #[getter]
    fn launched(&self) -> (u64, u64, u64) {
        (self.0.blocks, self.0.warps, self.0.threads)
    }

    /// The sum over all lines.
    #[getter]
    fn total(&self) -> Counts {
        self.0.total().into()
    }

    /// Every line, the one with the most warp instructions first.
    #[getter]
    fn lines(&self) -> Vec<Line> {
        let line = |line: &&profile::Line| Line {
            kernel: line.kernel.clone(),
            line: line.line,
            source: line.source.clone(),
            opcode: line.opcode.clone(),
            kind: line.class.to_string(),
            counts: line.counts.into(),
        };
        self.0.hottest().iter().map(line).collect()
    }

    /// The sums by file and line of the source, the one with the most warp instructions first.
    #[getter]
    fn by_source(&self) -> Vec<((String, u32), Counts)> {
        self.0.by_source().into_iter().map(|(place, counts)| (place, counts.into())).collect()
    }
}

//! A parsed module and its kernels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::Error;
use crate::error::Place;
use crate::lower::{self, Kernel};
use crate::parse;
use crate::parse::ast::{Ast, Entry, Variable};

/// A PTX module.
///
/// Parsing finds errors of the module's shape; a kernel's instructions are looked at when the kernel is first launched
/// or [checked](Module::check), so that one kernel with an unsupported instruction does not spoil the others.
pub struct Module {
    pub(crate) ast: Ast,
    /// Tells modules apart: each has variables of its own.
    pub(crate) id: u64,
    kernels: Vec<OnceLock<Result<Arc<Kernel>, Error>>>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX text.
    pub name: String,
    /// The type of its elements, without the dot: `u64`, `f32`, `b8`, ...
    pub element: &'static str,
    /// Its size; of several elements, where it is an array: a struct is one of `b8`.
    pub bytes: u64,
    /// What its offset is a multiple of.
    pub align: u32,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("kernels", &self.kernels().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl Module {
    /// Parses the text of a module.
    pub fn parse(text: &str) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let ast = parse::parse(text)?;
        let kernels = ast.entries.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { ast, id: NEXT.fetch_add(1, Ordering::Relaxed), kernels })
    }

    /// The names of its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.ast.entries.iter().map(|entry| entry.name.as_str())
    }

    /// `.version`
    pub fn version(&self) -> (u32, u32) {
        self.ast.version
    }

    /// `.target`
    pub fn target(&self) -> &str {
        &self.ast.target
    }

    /// Looks at every instruction of every kernel; the first that is not supported is the error.
    pub fn check(&self) -> Result<(), Error> {
        self.kernels().try_for_each(|name| self.kernel(name).map(|_| ()))
    }

    /// Static shared memory of a kernel in bytes.
    pub fn shared_bytes(&self, kernel: &str) -> Result<u64, Error> {
        Ok(self.kernel(kernel)?.shared_bytes)
    }

    /// The parameters of a kernel, in order.
    pub fn parameters(&self, kernel: &str) -> Result<Vec<Parameter>, Error> {
        let parameter = |variable: &Variable| Parameter {
            name: variable.name.clone(),
            element: variable.kind.name(),
            bytes: variable.bytes.unwrap_or(0),
            align: variable.align,
        };
        Ok(self.entry(kernel)?.1.params.iter().map(parameter).collect())
    }

    /// The threads of a block in x, y and z, if the kernel says them (`.reqntid`).
    pub fn required_threads(&self, kernel: &str) -> Result<Option<[u32; 3]>, Error> {
        Ok(self.entry(kernel)?.1.required_threads)
    }

    fn entry(&self, name: &str) -> Result<(usize, &Entry), Error> {
        self.ast.entries.iter().enumerate().find(|(_, entry)| entry.name == name).ok_or_else(|| {
            let known = self.kernels().collect::<Vec<_>>().join(", ");
            Error::NoKernel { name: name.to_string(), known }
        })
    }

    pub(crate) fn kernel(&self, name: &str) -> Result<Arc<Kernel>, Error> {
        let (index, entry) = self.entry(name)?;
        self.kernels[index].get_or_init(|| lower::lower(&self.ast, entry).map(Arc::new)).clone()
    }
}

impl Kernel {
    /// The lines of an instruction.
    pub(crate) fn place(&self, pc: usize) -> Place {
        let instruction = &self.code[pc];
        let source = instruction.source.map(|(file, line)| {
            let name = self.files.iter().find(|(index, _)| *index == file);
            (name.map_or_else(|| format!("file {file}"), |(_, name)| name.clone()), line)
        });
        Place { kernel: self.name.clone(), line: instruction.line, source, opcode: instruction.opcode.to_string() }
    }
}

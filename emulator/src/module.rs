//! A parsed module and its kernels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::Error;
use crate::error::Place;
use crate::lower::{self, Kernel};
use crate::parse::{self, ast::Ast};

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

    pub(crate) fn kernel(&self, name: &str) -> Result<Arc<Kernel>, Error> {
        let Some(index) = self.ast.entries.iter().position(|entry| entry.name == name) else {
            let known = self.kernels().collect::<Vec<_>>().join(", ");
            return Err(Error::NoKernel { name: name.to_string(), known });
        };
        let lowered =
            self.kernels[index].get_or_init(|| lower::lower(&self.ast, &self.ast.entries[index]).map(Arc::new));
        lowered.clone()
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

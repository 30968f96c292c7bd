//! The kernels' PTX: made ahead of time, embedded, loaded by a device when a kernel is first launched.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};

use ptx_emulator::Module;

use crate::{Error, Result};

/// A kernel: a module (one `.cu` file) and the name of an entry in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file's name without its ending.
    pub module: &'static str,
    /// The name of the `extern "C"` function.
    pub entry: String,
}

impl Kernel {
    /// A kernel of a module.
    pub fn new(module: &'static str, entry: impl Into<String>) -> Self {
        Kernel { module, entry: entry.into() }
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.entry)
    }
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// The modules, by name, with their PTX.
        pub const MODULES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../kernels/ptx/", $name, ".ptx")))),*];
    };
}

modules!(
    "absorb",
    "advance",
    "argmax",
    "combine",
    "dispatch",
    "embedding",
    "experts",
    "gemm",
    "generated",
    "latent",
    "latent_read",
    "linear_norm",
    "linear_route",
    "loss",
    "merge",
    "mla_decode",
    "mla_prefill",
    "rms_norm",
    "rope",
    "rotary",
    "route",
    "router",
    "sample",
    "swiglu"
);

/// PTX by module, in the order in which it is searched: what was put in place of a kernel comes first.
#[derive(Clone, Debug)]
pub struct Library {
    texts: Vec<Arc<Text>>,
}

/// The PTX of a module.
#[derive(Debug)]
struct Text {
    module: String,
    ptx: Cow<'static, str>,
    /// The names of its kernels.
    entries: Vec<String>,
    /// What the emulator makes of it, once for all devices and all clones of the library: a test, or a rank, has a device of its own,
    /// and a third of the time of golden cases was this.
    parsed: OnceLock<std::result::Result<Arc<Module>, ptx_emulator::Error>>,
}

impl Text {
    fn new(module: &str, ptx: Cow<'static, str>) -> Arc<Self> {
        let names = ptx.split(".entry ").skip(1).filter_map(|rest| rest.split_once('('));
        let entries = names.map(|(name, _)| name.to_owned()).collect();
        Arc::new(Text { module: module.to_owned(), ptx, entries, parsed: OnceLock::new() })
    }
}

impl Library {
    /// The kernels of this crate.
    pub fn embedded() -> Self {
        static EMBEDDED: LazyLock<Library> = LazyLock::new(|| Library {
            texts: MODULES.iter().map(|(name, ptx)| Text::new(name, Cow::Borrowed(*ptx))).collect(),
        });
        EMBEDDED.clone()
    }

    /// The same with other PTX for the kernels that `ptx` holds: how a changed kernel, or a mutant, is tried.
    #[must_use]
    pub fn with(mut self, module: &str, ptx: impl Into<Cow<'static, str>>) -> Self {
        self.texts.insert(0, Text::new(module, ptx.into()));
        self
    }

    /// The number and the text of the PTX that holds a kernel.
    ///
    /// # Errors
    /// If none does.
    pub fn find(&self, kernel: &Kernel) -> Result<(usize, &str)> {
        let holds = |text: &Arc<Text>| text.module == kernel.module && text.entries.contains(&kernel.entry);
        let found = self.texts.iter().position(holds);
        let index =
            found.ok_or_else(|| Error::NoKernel { module: kernel.module.into(), entry: kernel.entry.clone() })?;
        Ok((index, &self.texts[index].ptx))
    }

    /// The PTX that holds a kernel, as the emulator runs it.
    ///
    /// # Errors
    /// As [`Library::find`]; if it is no PTX that the emulator knows.
    pub fn module(&self, kernel: &Kernel) -> Result<&Arc<Module>> {
        let (index, ptx) = self.find(kernel)?;
        let parsed = self.texts[index].parsed.get_or_init(|| Module::parse(ptx).map(Arc::new));
        parsed.as_ref().map_err(|error| error.clone().into())
    }
}

impl Default for Library {
    fn default() -> Self {
        Library::embedded()
    }
}

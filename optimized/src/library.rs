//! The kernels' PTX: made ahead of time, embedded, loaded by a device when a kernel is first launched.

use std::borrow::Cow;

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
    texts: Vec<(String, Cow<'static, str>)>,
}

impl Library {
    /// The kernels of this crate.
    pub fn embedded() -> Self {
        Library { texts: MODULES.iter().map(|(name, text)| (name.to_string(), Cow::Borrowed(*text))).collect() }
    }

    /// The same with other PTX for the kernels that `ptx` holds: how a changed kernel, or a mutant, is tried.
    #[must_use]
    pub fn with(mut self, module: &str, ptx: impl Into<Cow<'static, str>>) -> Self {
        self.texts.insert(0, (module.to_string(), ptx.into()));
        self
    }

    /// The number and the text of the PTX that holds a kernel.
    ///
    /// # Errors
    /// If none does.
    pub fn find(&self, kernel: &Kernel) -> Result<(usize, &str)> {
        let entry = format!(".entry {}(", kernel.entry);
        let found = self.texts.iter().position(|(name, text)| name == kernel.module && text.contains(&entry));
        let index =
            found.ok_or_else(|| Error::NoKernel { module: kernel.module.into(), entry: kernel.entry.clone() })?;
        Ok((index, &self.texts[index].1))
    }
}

impl Default for Library {
    fn default() -> Self {
        Library::embedded()
    }
}

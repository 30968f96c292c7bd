//! Everything that can go wrong on the way to a kernel and back.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error: what, where, expected, found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor does not fit the operator.
    #[error("{operator}: {tensor}: expected {expected}, found {found}")]
    Operand {
        /// The operator.
        operator: &'static str,
        /// The tensor or number.
        tensor: &'static str,
        /// What fits.
        expected: String,
        /// What it is.
        found: String,
    },
    /// There is no GPU to run on. What needs one is not run; it has not failed.
    #[error("no CUDA device: {0}")]
    NoCuda(String),
    /// The driver refused, or a kernel failed on the GPU.
    #[error("{what}: {message}")]
    Driver {
        /// What was asked of it.
        what: String,
        /// What it answered.
        message: String,
    },
    /// A launch that no GPU takes.
    #[error(
        "{kernel}: expected 1 to 2147483647, 65535 and 65535 blocks of 1 to 1024, 1024 and 64 threads (1024 in all), \
         found {blocks:?} blocks of {threads:?}"
    )]
    Grid {
        /// The kernel.
        kernel: String,
        /// The blocks.
        blocks: [u32; 3],
        /// The threads of a block.
        threads: [u32; 3],
    },
    /// Something was asked for that a graph cannot hold.
    #[error("{what}: not possible while a graph is captured")]
    Capturing {
        /// What was asked for.
        what: String,
    },
    /// The config, or a weight.
    #[error(transparent)]
    Reference(#[from] dsv2_reference::Error),
    /// The emulator found a fault, or refused.
    #[error(transparent)]
    Emulator(#[from] ptx_emulator::Error),
    /// The race detector found races.
    #[error("{kernel}: {races}")]
    Races {
        /// The kernel.
        kernel: String,
        /// Every race with both of its places.
        races: String,
    },
    /// A rank of several cannot go on, or has failed.
    #[error(transparent)]
    Ranks(#[from] crate::collective::emulated::Fault),
    /// A library has no such module or kernel.
    #[error("no kernel {entry} in the module {module}")]
    NoKernel {
        /// The module.
        module: String,
        /// The kernel.
        entry: String,
    },
}

impl Error {
    /// An operand that does not fit.
    pub fn operand(
        operator: &'static str,
        tensor: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Error::Operand { operator, tensor, expected: expected.to_string(), found: found.to_string() }
    }
}

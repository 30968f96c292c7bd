//! Why a request was refused. Each error is one line: what, where, expected, found.

use dsv2_foreign::{Foreign, Words};

/// The result of everything here that can be refused.
pub type Result<V, E = Error> = std::result::Result<V, E>;

/// A contract, a workload or a tensor at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the reference refuses.
    #[error(transparent)]
    Reference(#[from] dsv2_reference::Error),
    /// What there is none of under this name.
    #[error("{what} `{}`: expected one of {}", Foreign(name), Words(known))]
    Unknown {
        /// Operator, workload, input or output.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A tensor, an axis or a key that is not what the contract says.
    #[error("operator {operator}, {what} `{}`: expected {}, found {}", Foreign(name), Words(expected), Words(found))]
    Mismatch {
        /// The operator.
        operator: String,
        /// Axis, input, output or key.
        what: &'static str,
        /// Its name.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A text that is no definition or workload.
    #[error("{what}: expected {}, found {}", Words(expected), Words(found))]
    Format {
        /// Definition or workload, and the line.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

//! What a check comes to, in a word.

use schemars::JsonSchema;
use serde::Serialize;

/// What a check comes to. Only one of these is a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Something was compared, and all of it is within its budget.
    Pass,
    /// A stage is wrong.
    Fail,
    /// No stage is surely wrong, but one is off by more than its budget: the dump does not hold what would decide.
    Inconclusive,
    /// Nothing could be compared.
    NotJudged,
}

/// Why a dump cannot be decided, and what would decide it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Inconclusive {
    /// What is open.
    pub reason: String,
    /// The tensors to add to the dump.
    pub add: Vec<String>,
}

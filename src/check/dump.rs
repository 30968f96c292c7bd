//! The dump as it came: which of its tensors are stages, and in which type they were computed.

mod experts;
mod names;
mod narrow;
pub mod order;
pub mod size;

use dsv2_foreign::Foreign;
use dsv2_reference::stage::Stage;
use indexmap::IndexSet;
use serde::Serialize;

pub use names::{meant, wrappers};
pub use narrow::{Computed, Seen, Told, by_most, computed, is_wide, precision_of, told};

use super::request::Request;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use names::Named;

/// A dump on its way through the check.
pub struct Dump {
    /// Its tensors, under the names of stages where they are some.
    pub trace: Trace,
    /// What the candidate is taken to compute in.
    pub precision: Precision,
    /// What came under another name or in another layout.
    pub recognised: Vec<Recognised>,
    /// Pairs of stages that came in one tensor, and may be in it the other way round.
    pub pairs: Vec<[String; 2]>,
    /// What is taken for granted of the whole dump.
    pub assumed: Vec<String>,
}

/// A tensor that came in another layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recognised {
    /// The stage, or the name that the dump has for it.
    pub stage: String,
    /// What its layout is.
    pub layout: String,
}

impl Recognised {
    /// A tensor and what a convention says of it.
    pub fn new(stage: &str, layout: &str) -> Self {
        Recognised { stage: stage.to_owned(), layout: layout.to_owned() }
    }
}

/// Takes a dump in.
///
/// # Errors
/// If no tensor of it is a stage of any model, or two that differ are the same stage.
pub fn read(request: &Request) -> Result<Dump> {
    let config = &request.case.config;
    let Named { trace, mut recognised, pairs } = names::named(&request.candidate, config, request.case.dialect)?;
    if !trace.iter().any(|(name, _)| Stage::parse(name).is_some()) {
        return Err(nothing_to_compare("--candidate", STAGE_OF_THIS_MODEL, &request.candidate));
    }
    let (trace, of_experts) = experts::of_tokens(trace, config, &ComparedRows::of(&request.case.inputs));
    recognised.extend(of_experts);
    let (batch, length) = (request.case.inputs.batch(), request.case.inputs.length());
    let trace = match order::by_shape(&trace, batch, length) {
        Some((turned, says)) => {
            recognised.extend(says);
            turned
        }
        None => trace,
    };
    let mut dump =
        Dump { precision: precision_of(&trace), trace, recognised, pairs, assumed: config.notes(request.case.dialect) };
    if let Some((trace, precision, says)) = narrow::as_computed(&dump.trace)
        && request.precision.is_none_or(|asked| asked == precision)
    {
        (dump.trace, dump.precision) = (trace, precision);
        dump.assumed.push(says);
    }
    dump.precision = request.precision.unwrap_or(dump.precision);
    dump.assumed.extend(request.case.partial_sums.says(dump.precision));
    Ok(dump)
}

/// What a dump must hold at least.
const STAGE_OF_THIS_MODEL: &str = "a tensor that is named as a stage of this model";
/// How many names of tensors a message holds.
const NAMES_IN_A_MESSAGE: usize = 3;

/// Makes sure that there is something to compare. `names` are all stages of the model.
///
/// # Errors
/// If no tensor of the dump is one of them, or `expected` holds none of those that are.
pub fn holds_a_stage_of(names: &IndexSet<String>, dump: &Trace, expected: Option<&Trace>) -> Result<()> {
    let mut held = dump.iter().map(|(name, _)| name).filter(|name| names.contains(*name)).peekable();
    if held.peek().is_none() {
        return Err(nothing_to_compare("--candidate", STAGE_OF_THIS_MODEL, dump));
    }
    match expected {
        Some(expected) if held.all(|name| expected.get(name).is_none()) => {
            Err(nothing_to_compare("--expected", "a stage that the candidate holds, too", expected))
        }
        _ => Ok(()),
    }
}

fn nothing_to_compare(option: &str, expected: &str, found: &Trace) -> Error {
    let all = found.iter().map(|(name, _)| name).chain(found.unread().iter().map(String::as_str));
    let names: Vec<String> = all.take(NAMES_IN_A_MESSAGE).map(|name| format!("`{}`", shown(name))).collect();
    let found = match (found.len() + found.unread().len()).saturating_sub(names.len()) {
        _ if names.is_empty() => "none".to_owned(),
        0 => names.join(", "),
        others => format!("{} and {others} more", names.join(", ")),
    };
    Error::request(option, expected, found)
}

/// A name from a file, which may hold anything, as it can be shown.
fn shown(name: &str) -> String {
    const MOST: usize = 80;
    let start: String = name.chars().take(MOST).collect();
    Foreign(&start).to_string() + if start.len() < name.len() { ".." } else { "" }
}

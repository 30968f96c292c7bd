//! The dump as it came: which of its tensors are stages, and in which type they were computed.

use dsv2_reference::stage::convention::{Holds, OtherName, other_name};
use dsv2_reference::stage::{self, Stage};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype};
use indexmap::IndexSet;
use ndarray::Axis;
use serde::Serialize;

use super::request::Request;
use crate::error::{Error, Result, one_line};
use crate::precision::Precision;
use crate::trace::Trace;
use crate::values::Values;

/// A dump on its way through the check.
pub struct Dump {
    /// Its tensors, under the names of stages where they are some.
    pub trace: Trace,
    /// What the candidate is taken to compute in.
    pub precision: Precision,
    /// What came under another name or in another layout.
    pub recognised: Vec<Recognised>,
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
/// If no tensor of it is a stage of any model.
pub fn read(request: &Request) -> Result<Dump> {
    let (trace, recognised) = by_stage(&request.candidate, &request.case.config, request.case.dialect);
    if !trace.iter().any(|(name, _)| Stage::parse(name).is_some()) {
        return Err(nothing_to_compare("--candidate", STAGE_OF_THIS_MODEL, &request.candidate));
    }
    let precision = request.precision.unwrap_or_else(|| precision_of(&trace));
    Ok(Dump { trace, precision, recognised })
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
    let names: Vec<String> =
        found.iter().take(NAMES_IN_A_MESSAGE).map(|(name, _)| format!("`{}`", shown(name))).collect();
    let found = match found.len().saturating_sub(names.len()) {
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
    one_line(&start) + if start.len() < name.len() { ".." } else { "" }
}

/// Takes tensors apart that hold several stages, and gives others the name of their stage.
fn by_stage(dump: &Trace, config: &DeepseekV2Config, dialect: Dialect) -> (Trace, Vec<Recognised>) {
    let (mut stages, mut recognised) = (Vec::new(), Vec::new());
    for (name, values) in dump.iter() {
        let other = other_name(name).filter(|(other, layer)| {
            !other.dense || (*layer < config.num_hidden_layers && !config.is_moe_layer(*layer, dialect))
        });
        let parts = other.and_then(|(other, layer)| Some((other, parts(other, layer, values, config)?)));
        match parts {
            Some((other, parts)) if parts.iter().all(|(part, _)| dump.get(part).is_none()) => {
                recognised.push(Recognised::new(name, other.says));
                stages.extend(parts);
            }
            _ => stages.push((name.to_owned(), values.clone())),
        }
    }
    (stages.into_iter().collect(), recognised)
}

/// The stages that a tensor holds.
fn parts(other: &OtherName, layer: usize, values: &Values, config: &DeepseekV2Config) -> Option<Vec<(String, Values)>> {
    match (other.holds, values) {
        (Holds::Stage(kind), values) => Some(vec![(stage::name(kind, layer), values.clone())]),
        (Holds::Columns(kinds, first), Values::Real(dtype, a)) => {
            let last = Axis(a.ndim().checked_sub(1)?);
            let first = first(config, a.len_of(last)).filter(|&first| 0 < first && first < a.len_of(last))?;
            let (left, right) = a.view().split_at(last, first);
            let part = |(kind, a): (&str, ndarray::ArrayViewD<'_, f64>)| {
                (stage::name(kind, layer), Values::Real(*dtype, a.to_owned()))
            };
            Some(kinds.into_iter().zip([left, right]).map(part).collect())
        }
        (Holds::Columns(..), _) => None,
    }
}

/// The type that most of a trace is stored in.
pub fn precision_of(trace: &Trace) -> Precision {
    let count = |of: &[Dtype]| {
        trace.iter().filter(|(_, values)| matches!(values, Values::Real(dtype, _) if of.contains(dtype))).count()
    };
    let (bf16, f16, wide) = (count(&[Dtype::Bf16]), count(&[Dtype::F16]), count(&[Dtype::F32, Dtype::F64]));
    match () {
        _ if bf16 + f16 <= wide => Precision::F32,
        _ if f16 > bf16 => Precision::F16,
        _ => Precision::Bf16,
    }
}

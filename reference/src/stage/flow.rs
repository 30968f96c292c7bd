//! Which stages a stage is computed from.
//!
//! To judge a stage by itself, the reference is given the candidate's own inputs of it. The table says which those are,
//! so that a report can name them, and can say what a dump that lacks some of them leaves open. It is no second
//! description of the model that could be wrong unnoticed: a test of `dsv2` holds it against the reference, stage by
//! stage.

use std::collections::BTreeSet;

use super::table::{EMBED_TOKENS, Made, RESIDUAL, Row};
use super::{Stage, layer_path, name};
use crate::DeepseekV2Config;

/// The stages that `stage` is computed from directly, of those for which `exists` holds; in forward order.
pub fn inputs(stage: &str, config: &DeepseekV2Config, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let Some(stage) = Stage::parse(stage) else { return Vec::new() };
    let named = |kind: &str| match (kind, stage.layer) {
        (RESIDUAL, Some(0)) => EMBED_TOKENS.to_owned(),
        (RESIDUAL, Some(layer)) => layer_path(layer - 1),
        (RESIDUAL, None) => layer_path(config.num_hidden_layers.saturating_sub(1)),
        (kind, layer) => name(kind, layer.unwrap_or(0)),
    };
    let kinds = stage.row().inputs.iter().filter(|kind| exists(&named(kind)));
    // What is cached is read from the cache, not from what was copied there.
    let copied = kinds.clone().filter_map(|kind| row(kind)).filter(|row| matches!(row.made, Made::Copied));
    let sources: Vec<_> = copied.flat_map(|row| row.inputs).collect();
    kinds.filter(|kind| !sources.contains(kind)).map(|kind| named(kind)).collect()
}

/// Whether the stage is a copy of its one input, so that it must be bit-identical: a lookup, or what is put into the
/// cache.
pub fn is_copy(stage: &str) -> bool {
    row(stage).is_some_and(|row| matches!(row.made, Made::Copied))
}

/// How many products a number of the stage is the sum of.
pub fn terms(stage: &str, config: &DeepseekV2Config) -> usize {
    match row(stage).map(|row| row.made) {
        Some(Made::Sum(terms)) => terms(config),
        _ => 1,
    }
}

/// From which stages the reference computes `stage` if it is given those for which `held` holds: its inputs, and for
/// those that are not held theirs, and so on. `exists` tells the stages of the model.
pub fn sources(
    stage: &str,
    config: &DeepseekV2Config,
    exists: impl Fn(&str) -> bool,
    held: impl Fn(&str) -> bool,
) -> Sources {
    let mut sources = Sources::default();
    let mut open = inputs(stage, config, &exists);
    while let Some(input) = open.pop() {
        if held(&input) {
            sources.held.insert(input);
        } else if sources.not_held.insert(input.clone()) {
            open.extend(inputs(&input, config, &exists));
        }
    }
    sources
}

/// See [`sources`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The stages that are given.
    pub held: BTreeSet<String>,
    /// Those between them and the stage, which the reference computes.
    pub not_held: BTreeSet<String>,
}

/// The row of a stage, or of a kind.
fn row(stage: &str) -> Option<&'static Row> {
    Stage::parse(&name(stage, 0)).map(|stage| stage.row())
}

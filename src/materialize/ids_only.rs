//! A case fed with its token ids alone: only where that is the same computation.

use std::path::Path;

use dsv2_reference::model::mask::AttentionMask;
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::golden::GoldenCase;
use crate::inputs::Tokens;
use crate::output;
use crate::values::Values;

/// The inputs that change nothing but the loss, which goes with them.
const OF_THE_LOSS: [&str; 2] = ["labels", "num_items_in_batch"];

/// Whether the case is the same computation without its mask and its positions.
///
/// # Errors
/// If it is not; it says what differs.
pub fn check(golden: &GoldenCase) -> Result<()> {
    let inputs = &golden.case.inputs;
    let refuse = |found: String| {
        let expected = "a case that its token ids determine: a mask of ones, positions from 0, all logits";
        Err(Error::request("--ids-only", expected, format!("`{}` {found}", golden.name())))
    };
    if !matches!(inputs.tokens, Tokens::InputIds(_)) {
        return refuse("with `inputs_embeds`".into());
    }
    match &inputs.attention_mask {
        Some(AttentionMask::Padding(mask)) => {
            if let Some(((b, s), _)) = mask.indexed_iter().find(|(_, real)| !**real) {
                return refuse(format!("with an `attention_mask` that is 0 at [{b}, {s}]"));
            }
        }
        Some(AttentionMask::Additive(_)) => return refuse("with a 4-D `attention_mask`".into()),
        None => {}
    }
    if let Some(positions) = &inputs.position_ids
        && let Some(((b, s), at)) = positions.indexed_iter().find(|((_, s), at)| **at != *s as i64)
    {
        return refuse(format!("with `position_ids` that are {at} at [{b}, {s}]"));
    }
    if inputs.logits_to_keep.is_some() {
        return refuse("with `logits_to_keep`".into());
    }
    Ok(())
}

/// Writes inputs, expected stages and case.json without what [`check`] found to make no difference.
///
/// # Errors
/// If the case's files cannot be read, or the new ones not be written.
pub fn write(golden: &GoldenCase, folder: &Path) -> Result<()> {
    if let Tokens::InputIds(ids) = &golden.case.inputs.tokens {
        let ids = Data::from(&Values::Index(ids.clone().into_dyn()));
        write_safetensors(&folder.join("inputs.safetensors"), &[("input_ids".into(), ids)])?;
    }
    let without_loss = golden.case.inputs.labels.is_some();
    let kept = |name: &str| !(without_loss && name == "loss");
    let expected: Vec<(String, Data)> = golden
        .expected
        .iter()
        .filter(|(name, _)| kept(name))
        .map(|(name, values)| (name.into(), values.into()))
        .collect();
    write_safetensors(&folder.join("expected.safetensors"), &expected)?;

    let path = golden.folder.path("case.json");
    let mut file: Value = serde_json::from_slice(&golden.folder.case_json()?)
        .map_err(|error| Error::file(&path, "a JSON object", error))?;
    let mut drop = |section: &str, names: &[&str]| {
        if let Some(section) = file.get_mut(section).and_then(Value::as_object_mut) {
            section.retain(|name, _| !names.contains(&name.as_str()));
        }
    };
    drop("inputs", &[&["attention_mask", "position_ids"][..], &OF_THE_LOSS].concat());
    if without_loss {
        drop("stages", &["loss"]);
    }
    drop("provenance", &["sha256"]); // of the files as Transformers' run left them
    output::write_file(&folder.join("case.json"), format!("{file:#}\n").as_bytes())
}

//! Some layers alone: what enters them is the dump's, what is outside of them is left out.

use std::sync::Arc;

use dsv2_reference::stage::table::{COS, EMBED_TOKENS, SIN};
use dsv2_reference::stage::{Layout, Stage, layer_path};
use ndarray::{Array3, s};

use super::extra_rows;
use crate::case::{Case, Entering, Layers, Part};
use crate::check::dump::{Dump, Recognised};
use crate::error::{Error, Result};
use crate::inputs::Tokens;
use crate::rows::ComparedRows;
use crate::values::Values;

/// Takes what enters the layers of the case from the dump, and leaves the stages outside of them out.
///
/// # Errors
/// If the dump does not hold what enters them, or none of their stages.
pub fn take_in(case: &mut Case, dump: &mut Dump) -> Result<()> {
    let Some(Part { layers, .. }) = case.part.clone() else { return Ok(()) };
    let says = enter(case, &layers, dump.trace.get(&entering(&layers)), dump.trace.iter().map(|(name, _)| name))?;
    dump.trace.retain(|name| is_inside(name, &layers));
    dump.recognised.extend(says);
    if !dump.trace.iter().any(|(name, _)| Stage::parse(name).is_some()) {
        return Err(Error::request("--candidate", format!("a stage of {}", named(&layers)), "none"));
    }
    Ok(())
}

/// The stage that enters some layers.
pub fn entering(layers: &Layers) -> String {
    match layers.0.start {
        0 => EMBED_TOKENS.to_owned(),
        first => layer_path(first - 1),
    }
}

/// Whether a tensor is one of these layers', or of what they all need.
pub fn is_inside(name: &str, layers: &Layers) -> bool {
    match Stage::parse(name) {
        Some(Stage { layer: Some(layer), .. }) => layers.0.contains(&layer),
        Some(stage) => [COS, SIN].contains(&stage.kind),
        None => true,
    }
}

/// Lets what the dump `held` of it enter the layers of the case. `names` are those of all its tensors. What a report says.
///
/// # Errors
/// If the dump does not hold it.
pub fn enter<'a>(
    case: &mut Case,
    layers: &Layers,
    held: Option<&Values>,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<Recognised>> {
    let (entering, named) = (entering(layers), named(layers));
    let found = match (held, &case.inputs.tokens) {
        (Some(values), _) => of_the_dump(&entering, values, case)?,
        (None, Tokens::InputsEmbeds(embeds)) if layers.0.start == 0 => embeds.mapv(f64::from),
        (None, _) => {
            let expected = format!("`{entering}`, which enters {named}");
            return Err(Error::request("--candidate", expected, "none"));
        }
    };
    case.part = Some(Part { layers: layers.clone(), entering: Entering::Given(Arc::new(found)) });
    let outside = names.filter(|name| !is_inside(name, layers) && *name != entering).count();
    let mut says = vec![Recognised { layout: format!("enters {named}, taken as it is"), stage: entering }];
    if outside > 0 {
        let stage = format!("{outside} stage{}", if outside == 1 { "" } else { "s" });
        says.push(Recognised { stage, layout: format!("outside {named}, not judged") });
    }
    Ok(says)
}

fn named(Layers(layers): &Layers) -> String {
    match (layers.start, layers.end - 1) {
        (first, last) if first == last => format!("layer {first}"),
        (first, last) => format!("layers {first} to {last}"),
    }
}

/// The residual stream in a dump, `[B,S,D]`. Nothing may be read from tokens that are masked: there it is 0.
fn of_the_dump(name: &str, values: &Values, case: &Case) -> Result<Array3<f64>> {
    let (batch, length) = case.inputs.tokens.dim();
    let shape = [batch, length, case.config.hidden_size];
    let cut = extra_rows::without(values, Layout::Tokens, &shape, batch).map(|(values, _)| values);
    let values = cut.as_ref().unwrap_or(values);
    let fitted = values.real().filter(|a| a.shape().last() == Some(&shape[2])).and_then(|a| a.to_shape(shape).ok());
    let Some(fitted) = fitted else {
        return Err(Error::request("--candidate", format!("`{name}` of shape {shape:?}"), values.describe()));
    };
    let mut stream = fitted.into_owned();
    let stage = Stage::parse(name).expect("a stage");
    let rows = ComparedRows::of(&case.inputs).of_stage(&stage, &shape).unwrap_or_else(|| vec![true; batch * length]);
    for (row, _) in rows.iter().enumerate().filter(|(_, real)| !**real) {
        stream.slice_mut(s![row / length, row % length, ..]).fill(0.0);
    }
    match stream.indexed_iter().find(|(_, x)| !x.is_finite()) {
        Some(((b, s, d), x)) => {
            Err(Error::request("--candidate", format!("finite numbers in `{name}`"), format!("{x} at [{b}, {s}, {d}]")))
        }
        None => Ok(stream),
    }
}

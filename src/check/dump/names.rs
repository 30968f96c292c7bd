//! Which stage a tensor is: wrappers taken off its name, other names, tensors that hold several stages.

use dsv2_reference::stage;
use dsv2_reference::stage::convention::name::{OtherName, Part, other_name, unwrapped};
use dsv2_reference::{DeepseekV2Config, Dialect};
use indexmap::IndexMap;
use indexmap::map::Entry;
use ndarray::Axis;

use super::Recognised;
use crate::error::{Error, Result};
use crate::trace::Trace;
use crate::values::Values;

/// A dump whose tensors go by the names of stages, where they are some.
pub struct Named {
    /// Its tensors.
    pub trace: Trace,
    /// What came under another name.
    pub recognised: Vec<Recognised>,
    /// Pairs of stages that came in one tensor, and may be in it the other way round.
    pub pairs: Vec<[String; 2]>,
}

/// Names the tensors of a dump. Tensors that would have the same name must hold the same numbers: of two that differ nobody
/// knows which one the next stage was computed from, and to judge one of them would be a pass for the other.
///
/// # Errors
/// If two tensors are the same stage and differ.
pub fn named(dump: &Trace, config: &DeepseekV2Config, dialect: Dialect) -> Result<Named> {
    let (bare, mut recognised) = bare(dump)?;
    let (mut stages, mut pairs) = (IndexMap::<String, (Values, String)>::new(), Vec::new());
    let mut others = Vec::new();
    for (name, values) in bare.iter() {
        match meant(name, config, dialect).and_then(|(other, layer)| {
            Some((other, layer, parts(&Vec::from_iter(other.holds), layer, values, config)?))
        }) {
            Some((other, layer, parts)) => others.push((name, values, other, layer, parts)),
            None => _ = stages.insert(name.to_owned(), (values.clone(), name.to_owned())),
        }
    }
    for (name, values, other, layer, parts) in others {
        recognised.push(Recognised::new(name, other.says));
        let conflict = |parts: &[(String, Values)]| {
            let differs =
                |(part, own): &&(String, Values)| stages.get(part).is_some_and(|(held, _)| !held.identical(own));
            parts.iter().find(differs).map(|(part, _)| part.clone())
        };
        let free = parts.iter().all(|(part, _)| stages.get(part).is_none());
        let turned = || self::parts(&Vec::from_iter(other.holds.iter().rev()), layer, values, config);
        let parts = match conflict(&parts) {
            None => parts,
            Some(part) => match turned().filter(|turned| other.either_order && conflict(turned).is_none()) {
                Some(turned) => turned,
                None => return Err(twice(&part, &stages[&part].1, name)),
            },
        };
        if let ([(first, _), (second, _)], true, true) = (&parts[..], other.either_order, free) {
            pairs.push([first.clone(), second.clone()]);
        }
        for (part, values) in parts {
            stages.entry(part).or_insert_with(|| (values, name.to_owned()));
        }
    }
    let trace = stages.into_iter().map(|(name, (values, _))| (name, values)).collect();
    Ok(Named { trace, recognised, pairs })
}

fn twice(stage: &str, first: &str, second: &str) -> Error {
    Error::request("--candidate", format!("one tensor for {stage}"), format!("`{first}` and `{second}`, which differ"))
}

/// The dump without wrappers in its names; said once for all names that have the same.
fn bare(dump: &Trace) -> Result<(Trace, Vec<Recognised>)> {
    let mut taken = IndexMap::<String, (Values, &str)>::new();
    let mut said = Vec::new();
    for (name, values) in dump.iter() {
        let (bare, says) = unwrapped(name).unzip();
        said.extend(says);
        match taken.entry(bare.unwrap_or_else(|| name.to_owned())) {
            Entry::Vacant(entry) => _ = entry.insert((values.clone(), name)),
            Entry::Occupied(entry) if entry.get().0.identical(values) => {}
            Entry::Occupied(entry) => return Err(twice(entry.key(), entry.get().1, name)),
        }
    }
    Ok((taken.into_iter().map(|(name, (values, _))| (name, values)).collect(), wrappers(said.into_iter())))
}

/// What is said of wrappers in names, once for all names that have the same.
pub fn wrappers(said: impl Iterator<Item = String>) -> Vec<Recognised> {
    let mut counted = IndexMap::<String, usize>::new();
    said.for_each(|says| *counted.entry(says).or_default() += 1);
    let count = |n: usize| if n == 1 { "1 tensor".to_owned() } else { format!("{n} tensors") };
    counted.into_iter().map(|(says, n)| Recognised { stage: count(n), layout: says }).collect()
}

/// What a tensor under another name than a stage's is taken for in this model, and its layer.
pub fn meant(name: &str, config: &DeepseekV2Config, dialect: Dialect) -> Option<(&'static OtherName, usize)> {
    other_name(name).filter(|(other, layer)| {
        !other.dense || (*layer < config.num_hidden_layers && !config.is_moe_layer(*layer, dialect))
    })
}

/// The stages that a tensor holds, if it is as wide as they are together.
fn parts(holds: &[&Part], layer: usize, values: &Values, config: &DeepseekV2Config) -> Option<Vec<(String, Values)>> {
    let named = |kind: &str, values| (stage::name(kind, layer), values);
    if let [part] = holds
        && part.width.is_none()
    {
        return Some(vec![named(part.kind, values.clone())]);
    }
    let Values::Real(dtype, a) = values else { return None };
    let last = Axis(a.ndim().checked_sub(1)?);
    let widths: Vec<usize> = holds.iter().map(|part| part.width?(config)).collect::<Option<_>>()?;
    if widths.iter().sum::<usize>() != a.len_of(last) {
        return None;
    }
    let mut rest = a.view();
    let mut parts = Vec::new();
    for (part, width) in holds.iter().zip(widths) {
        let (own, others) = rest.split_at(last, width);
        parts.push(named(part.kind, Values::Real(*dtype, own.to_owned())));
        rest = others;
    }
    Some(parts)
}

#[cfg(test)]
mod tests;

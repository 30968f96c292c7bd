//! Which stage a tensor is: wrappers taken off its name, other names, tensors that hold several stages.

use dsv2_reference::stage;
use dsv2_reference::stage::convention::name::{OtherName, other_name, unwrapped};
use dsv2_reference::{DeepseekV2Config, Dialect};
use indexmap::IndexMap;
use ndarray::Axis;

use super::Recognised;
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

/// Names the tensors of a dump. A name that two of them would have goes to the one that has it already, else to the first.
pub fn named(dump: &Trace, config: &DeepseekV2Config, dialect: Dialect) -> Named {
    let (bare, mut recognised) = bare(dump);
    let (mut stages, mut pairs) = (Vec::new(), Vec::new());
    for (name, values) in bare.iter() {
        let other = other_name(name).filter(|(other, layer)| {
            !other.dense || (*layer < config.num_hidden_layers && !config.is_moe_layer(*layer, dialect))
        });
        let parts = other.and_then(|(other, layer)| Some((other, parts(other, layer, values, config)?)));
        match parts {
            Some((other, parts)) if parts.iter().all(|(part, _)| bare.get(part).is_none()) => {
                recognised.push(Recognised::new(name, other.says));
                if let ([(first, _), (second, _)], true) = (&parts[..], other.either_order) {
                    pairs.push([first.clone(), second.clone()]);
                }
                stages.extend(parts);
            }
            _ => stages.push((name.to_owned(), values.clone())),
        }
    }
    Named { trace: stages.into_iter().collect(), recognised, pairs }
}

/// The dump without wrappers in its names; said once for all names that have the same.
fn bare(dump: &Trace) -> (Trace, Vec<Recognised>) {
    let mut taken = IndexMap::<String, Values>::new();
    let mut said = IndexMap::<String, usize>::new();
    for (name, values) in dump.iter() {
        match unwrapped(name) {
            Some((bare, says)) if dump.get(&bare).is_none() && !taken.contains_key(&bare) => {
                *said.entry(says).or_default() += 1;
                taken.insert(bare, values.clone());
            }
            _ => {
                taken.insert(name.to_owned(), values.clone());
            }
        }
    }
    let count = |n: usize| if n == 1 { "1 tensor".to_owned() } else { format!("{n} tensors") };
    let recognised = said.into_iter().map(|(says, n)| Recognised { stage: count(n), layout: says }).collect();
    (taken.into_iter().collect(), recognised)
}

/// The stages that a tensor holds, if it is as wide as they are together.
fn parts(other: &OtherName, layer: usize, values: &Values, config: &DeepseekV2Config) -> Option<Vec<(String, Values)>> {
    let named = |kind: &str, values| (stage::name(kind, layer), values);
    if let [part] = other.holds
        && part.width.is_none()
    {
        return Some(vec![named(part.kind, values.clone())]);
    }
    let Values::Real(dtype, a) = values else { return None };
    let last = Axis(a.ndim().checked_sub(1)?);
    let widths: Vec<usize> = other.holds.iter().map(|part| part.width?(config)).collect::<Option<_>>()?;
    if widths.iter().sum::<usize>() != a.len_of(last) {
        return None;
    }
    let mut rest = a.view();
    let mut parts = Vec::new();
    for (part, width) in other.holds.iter().zip(widths) {
        let (own, others) = rest.split_at(last, width);
        parts.push(named(part.kind, Values::Real(*dtype, own.to_owned())));
        rest = others;
    }
    Some(parts)
}

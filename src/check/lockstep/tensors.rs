//! Which stages the tensors of some files are: their names, types and shapes tell, before any of them is decoded.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::convention::name::unwrapped;
use dsv2_reference::stage::{self, canonical, forward_order};
use indexmap::IndexMap;
use indexmap::map::Entry;

use super::source::Source;
use crate::case::Case;
use crate::check::align::{self, Order};
use crate::check::dump::{Recognised, meant, wrappers};
use crate::check::shapes::holds_cache_before;
use crate::error::Result;
use crate::files::{Element, TensorFile};
use crate::inputs::Inputs;
use crate::planned;
use crate::precision::Precision;
use crate::trace::as_held;

/// A stage in the files.
pub struct Tensor {
    /// Where its numbers are.
    pub source: Source,
    /// The model's shape of it.
    pub shape: Vec<usize>,
    /// How it lies there.
    pub order: Order,
}

/// The stages of a dump.
pub struct Tensors {
    /// In forward order.
    pub stages: IndexMap<String, Tensor>,
    /// What came under another name.
    pub recognised: Vec<Recognised>,
}

/// The case as the shapes of these tensors say that it is: they may hold the cache as it was before the new tokens.
pub fn meant_case(sources: &[Source], case: &Case) -> Case {
    let named: Vec<(String, &[usize])> =
        sources.iter().map(|source| (bare(&source.name), source.shape.as_slice())).collect();
    let tensors = named.iter().map(|(name, shape)| (name.as_str(), *shape));
    let cache_before = holds_cache_before(tensors, &case.inputs);
    Case { inputs: Inputs { cache_before, ..case.inputs.clone() }, ..case.clone() }
}

/// A name without wrappers.
fn bare(name: &str) -> String {
    unwrapped(name).map_or_else(|| canonical(name).to_owned(), |(bare, _)| bare)
}

/// The stages among these tensors of files; nothing, if a tensor has to be decoded for it to be known which one it is: it holds several, is of
/// another type or shape, or is one that this model lacks.
///
/// # Errors
/// If one cannot be read.
pub fn stages_of(files: &[TensorFile], sources: &[Source], case: &Case) -> Result<Option<Tensors>> {
    let whole = Case { part: None, ..case.clone() };
    let planned = planned::stages(&whole, AttentionForm::Expanded, Precision::F64);
    let mut named: Vec<&Source> = sources.iter().collect();
    // as a trace has them, first by the names they came under and then by those without wrappers
    named.sort_by_key(|source| forward_order(canonical(&source.name)));
    let mut recognised = wrappers(named.iter().filter_map(|source| Some(unwrapped(&source.name)?.1)));
    let mut all: Vec<(&Source, String)> = named.into_iter().map(|source| (source, bare(&source.name))).collect();
    all.sort_by_key(|(_, bare)| forward_order(bare));

    let is_another = |bare: &str| meant(bare, &case.config, case.dialect).is_some();
    let (others, own): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, bare)| is_another(bare));
    let mut stages = IndexMap::new();
    for (source, bare) in own.into_iter().chain(others) {
        let Source { element, shape, .. } = source;
        let mut stage = bare.clone();
        if let Some((other, layer)) = meant(&bare, &case.config, case.dialect) {
            let [part] = other.holds else { return Ok(None) };
            let fits = |width: fn(&DeepseekV2Config) -> Option<usize>| {
                width(&case.config) == shape.last().copied() && numbers(*element) == Some(true)
            };
            if !part.width.is_none_or(fits) {
                return Ok(None);
            }
            stage = stage::name(part.kind, layer);
            recognised.push(Recognised::new(&bare, other.says));
        }
        let Some(of_model) = planned.get(&stage) else { return Ok(None) };
        let order = align::order_of(&stage, shape, &of_model.shape, case.config.num_attention_heads);
        let Some(order) = order.filter(|_| numbers(*element) == Some(of_model.dtype.is_some())) else {
            return Ok(None);
        };
        let tensor = Tensor { source: source.clone(), shape: of_model.shape.clone(), order };
        match stages.entry(stage) {
            Entry::Vacant(entry) => _ = entry.insert(tensor),
            Entry::Occupied(entry) if are_identical(files, entry.key(), entry.get(), &tensor)? => {}
            Entry::Occupied(_) => return Ok(None),
        }
    }
    stages.sort_by(|a, _, b, _| forward_order(a).cmp(&forward_order(b)));
    Ok(Some(Tensors { stages, recognised }))
}

/// Whether two tensors of the same stage hold the same numbers. (The same stage in two files is for others to refuse.)
fn are_identical(files: &[TensorFile], stage: &str, first: &Tensor, second: &Tensor) -> Result<bool> {
    let decoded = |tensor: &Tensor| Ok::<_, crate::Error>(tensor.source.whole(files)?.map(|a| as_held(stage, a)));
    let both = if first.source.is_beside(&second.source) { decoded(first)?.zip(decoded(second)?) } else { None };
    Ok(both.is_some_and(|(first, second)| first.identical(&second)))
}

/// Whether elements are numbers, or whole numbers; nothing, if they are neither.
pub fn numbers(element: Element) -> Option<bool> {
    match element {
        Element::F16 | Element::Bf16 | Element::F32 | Element::F64 => Some(true),
        Element::U8 | Element::U16 | Element::U32 | Element::U64 => Some(false),
        Element::I8 | Element::I16 | Element::I32 | Element::I64 => Some(false),
        _ => None,
    }
}

//! Which stages the tensors of some files are: their names, types and shapes tell, before any of them is decoded.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::convention::name::unwrapped;
use dsv2_reference::stage::{self, canonical, forward_order};
use indexmap::IndexMap;
use indexmap::map::Entry;

use crate::case::Case;
use crate::check::align::{self, Order};
use crate::check::dump::{Recognised, meant, wrappers};
use crate::error::Result;
use crate::files::{Decoded, Element, TensorFile};
use crate::planned;
use crate::precision::Precision;
use crate::trace::{as_held, is_named};
use crate::values::Values;

/// A stage in a file.
pub struct Tensor {
    /// Which file it is in, and what it is called there.
    pub file: usize,
    pub name: String,
    pub element: Element,
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
    /// The tensors that are named as no stage.
    pub unread: Vec<String>,
}

/// The stages in these files; nothing, if a tensor has to be decoded for it to be known which one it is: it holds several, is of
/// another type or shape, or is one that this model lacks.
///
/// # Errors
/// If one cannot be read.
pub fn stages_of(files: &[TensorFile], case: &Case) -> Result<Option<Tensors>> {
    let whole = Case { part: None, ..case.clone() };
    let planned = planned::stages(&whole, AttentionForm::Expanded, Precision::F64);
    let all = files.iter().enumerate().flat_map(|(file, of)| of.names().iter().map(move |name| (file, name)));
    let (mut named, unread): (Vec<_>, Vec<_>) = all.partition(|(_, name)| is_named(name));
    // as a trace has them, first by the names they came under and then by those without wrappers
    named.sort_by_key(|(_, name)| forward_order(canonical(name)));
    let bare = |name: &str| unwrapped(name).map_or_else(|| canonical(name).to_owned(), |(bare, _)| bare);
    let mut recognised = wrappers(named.iter().filter_map(|(_, name)| Some(unwrapped(name)?.1)));
    let mut bare: Vec<(usize, &String, String)> =
        named.into_iter().map(|(file, name)| (file, name, bare(name))).collect();
    bare.sort_by_key(|(.., bare)| forward_order(bare));

    let is_another = |bare: &str| meant(bare, &case.config, case.dialect).is_some();
    let (others, own): (Vec<_>, Vec<_>) = bare.into_iter().partition(|(.., bare)| is_another(bare));
    let mut stages = IndexMap::new();
    for (file, name, bare) in own.into_iter().chain(others) {
        let Some((element, shape)) = files[file].lies_as(name) else { return Ok(None) };
        let mut stage = bare.clone();
        if let Some((other, layer)) = meant(&bare, &case.config, case.dialect) {
            let [part] = other.holds else { return Ok(None) };
            let fits = |width: fn(&DeepseekV2Config) -> Option<usize>| {
                width(&case.config) == shape.last().copied() && numbers(element) == Some(true)
            };
            if !part.width.is_none_or(fits) {
                return Ok(None);
            }
            stage = stage::name(part.kind, layer);
            recognised.push(Recognised::new(&bare, other.says));
        }
        let Some(of_model) = planned.get(&stage) else { return Ok(None) };
        let order = align::order_of(&stage, &shape, &of_model.shape, case.config.num_attention_heads);
        let Some(order) = order.filter(|_| numbers(element) == Some(of_model.dtype.is_some())) else {
            return Ok(None);
        };
        let tensor = Tensor { file, name: name.clone(), element, shape: of_model.shape.clone(), order };
        match stages.entry(stage) {
            Entry::Vacant(entry) => _ = entry.insert(tensor),
            Entry::Occupied(entry) if are_identical(files, entry.key(), entry.get(), &tensor)? => {}
            Entry::Occupied(_) => return Ok(None),
        }
    }
    stages.sort_by(|a, _, b, _| forward_order(a).cmp(&forward_order(b)));
    Ok(Some(Tensors { stages, recognised, unread: unread.into_iter().map(|(_, name)| name.clone()).collect() }))
}

/// Whether two tensors of the same stage hold the same numbers. (The same stage in two files is for others to refuse.)
fn are_identical(files: &[TensorFile], stage: &str, first: &Tensor, second: &Tensor) -> Result<bool> {
    let decoded = |tensor: &Tensor| match files[tensor.file].tensor(&tensor.name)? {
        Decoded::Values(values) => Ok(Some(as_held(stage, values))),
        _ => Ok::<_, crate::Error>(None),
    };
    let both = if first.file == second.file { decoded(first)?.zip(decoded(second)?) } else { None };
    Ok(both.is_some_and(|(first, second): (Values, Values)| first.identical(&second)))
}

/// Whether elements are numbers, or whole numbers; nothing, if they are neither.
fn numbers(element: Element) -> Option<bool> {
    match element {
        Element::F16 | Element::Bf16 | Element::F32 | Element::F64 => Some(true),
        Element::U8 | Element::U16 | Element::U32 | Element::U64 => Some(false),
        Element::I8 | Element::I16 | Element::I32 | Element::I64 => Some(false),
        _ => None,
    }
}

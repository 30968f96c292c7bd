//! Which stages the tensors of some files are: their names, types and shapes tell, before any of them is decoded.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::convention::name::{Part, unwrapped};
use dsv2_reference::stage::table::LM_HEAD;
use dsv2_reference::stage::{self, Stage, canonical, forward_order};
use indexmap::IndexMap;
use indexmap::map::Entry;

use super::pieces::{numbers as numbers_of, pieces};
use super::source::Source;
use crate::case::Case;
use crate::check::align::{self, Order};
use crate::check::dump::{Recognised, meant, wrappers};
use crate::check::shapes::last_tokens::LastTokens;
use crate::check::shapes::vocabulary::{self, Beyond};
use crate::check::shapes::{extra_rows, holds_cache_before};
use crate::error::Result;
use crate::files::{Element, TensorFile};
use crate::inputs::Inputs;
use crate::planned::{self, Planned};
use crate::precision::Precision;
use crate::trace::as_held;
use crate::values::Values;

/// A stage in the files.
pub struct Tensor {
    /// Where its numbers are.
    pub source: Source,
    /// The model's shape of it.
    pub shape: Vec<usize>,
    /// How it lies there.
    pub order: Order,
    /// What is said of rows beyond the tokens, if it has such.
    pub extra_rows: Option<String>,
}

/// The stages of a dump.
pub struct Tensors {
    /// In forward order.
    pub stages: IndexMap<String, Tensor>,
    /// What came under another name.
    pub recognised: Vec<Recognised>,
    /// Pairs of stages that came in one tensor, and may be in it the other way round.
    pub pairs: Vec<[String; 2]>,
    /// The logits of tokens that do not exist.
    pub beyond_vocabulary: Option<Source>,
}

/// The case as the shapes of some tensors say that it is.
pub struct Meant {
    pub case: Case,
    /// The logits, if they are those of the last tokens alone, and what is said of them.
    pub last_tokens: Option<([usize; 3], String)>,
}

/// The case as the shapes of these tensors say that it is: they may hold the cache as it was before the new tokens, or no logits
/// but those of the last tokens.
///
/// # Errors
/// If the caches are those of different tokens.
pub fn meant_case(sources: &[Source], case: &Case) -> Result<Meant> {
    let named: Vec<(String, &Source)> = sources.iter().map(|source| (bare(&source.name), source)).collect();
    let tensors = named.iter().map(|(name, source)| (name.as_str(), source.shape.as_slice()));
    let cache_before = holds_cache_before(tensors, case)?;
    let case = Case { inputs: Inputs { cache_before, ..case.inputs.clone() }, ..case.clone() };
    let of = |wanted: &str| named.iter().find(|(name, _)| name == wanted).map(|(_, source)| *source);
    let logits = of(LM_HEAD).filter(|source| case.part.is_none() && numbers(source.element) == Some(true));
    let logits = logits.map(|source| of_vocabulary(source, case.config.vocab_size).0);
    Ok(match logits.and_then(|logits| LastTokens::of(&case, &logits.shape, of("loss").is_some())) {
        Some(LastTokens { inputs, shape, says }) => {
            Meant { case: Case { inputs, ..case }, last_tokens: Some((shape, says)) }
        }
        None => Meant { case, last_tokens: None },
    })
}

/// Logits without those of tokens that do not exist, and these.
fn of_vocabulary(source: &Source, vocab: usize) -> (Source, Option<Source>) {
    match source.shape.last() {
        Some(&width) if vocabulary::is_padded(width, vocab) => {
            (source.columns(0..vocab), Some(source.columns(vocab..width)))
        }
        _ => (source.clone(), None),
    }
}

/// What is said of the logits of tokens that do not exist.
///
/// # Errors
/// If they cannot be read.
pub fn says_of_padding(files: &[TensorFile], padding: &Source, vocab: usize) -> Result<Recognised> {
    let mut beyond = Beyond::default();
    if padding.rows(files, 0..0)?.is_some() {
        for piece in pieces(&padding.shape) {
            let rows = padding.rows(files, piece)?;
            beyond = beyond.and(rows.iter().flat_map(numbers_of).copied());
        }
    } else {
        let whole = padding.whole(files)?;
        beyond = beyond.and(whole.iter().filter_map(Values::real).flatten().copied());
    }
    Ok(beyond.says(vocab, padding.shape.last().copied().unwrap_or(0)))
}

/// A name without wrappers.
fn bare(name: &str) -> String {
    unwrapped(name).map_or_else(|| canonical(name).to_owned(), |(bare, _)| bare)
}

/// The stages among these tensors of files; nothing, if a tensor has to be decoded for it to be known which one it is: it is of
/// another type or shape, or is one that this model lacks.
///
/// # Errors
/// If one cannot be read.
pub fn stages_of(files: &[TensorFile], sources: &[Source], meant_case: &Meant) -> Result<Option<Tensors>> {
    let Meant { case, last_tokens } = meant_case;
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
    let (mut stages, mut pairs, mut beyond_vocabulary) = (IndexMap::new(), Vec::new(), None);
    for (source, bare) in own.into_iter().chain(others) {
        let mut parts = vec![(bare.clone(), source.clone())];
        if let Some((other, layer)) = meant(&bare, &case.config, case.dialect) {
            let Some(held) = parts_of(source, other.holds, layer, &case.config) else { return Ok(None) };
            recognised.push(Recognised::new(&bare, other.says));
            if let ([(first, _), (second, _)], true) = (&held[..], other.either_order)
                && ![first, second].into_iter().any(|part| stages.contains_key(part))
            {
                pairs.push([first.clone(), second.clone()]);
            }
            parts = held;
        }
        for (stage, mut source) in parts {
            let Some(of_model) = planned.get(&stage) else { return Ok(None) };
            if stage == LM_HEAD {
                let (own, beyond) = of_vocabulary(&source, case.config.vocab_size);
                (source, beyond_vocabulary) = (own, beyond_vocabulary.or(beyond));
                source = last_tokens.iter().fold(source, |source, (shape, _)| source.first_rows(shape));
            }
            let Some(tensor) = tensor_of(&stage, source, of_model, case) else { return Ok(None) };
            match stages.entry(stage) {
                Entry::Vacant(entry) => _ = entry.insert(tensor),
                Entry::Occupied(entry) if are_identical(files, entry.key(), entry.get(), &tensor)? => {}
                Entry::Occupied(_) => return Ok(None),
            }
        }
    }
    stages.sort_by(|a, _, b, _| forward_order(a).cmp(&forward_order(b)));
    Ok(Some(Tensors { stages, recognised, pairs, beyond_vocabulary }))
}

/// The stages that a tensor holds side by side; nothing, if it is not as wide as they are together.
fn parts_of(source: &Source, holds: &[Part], layer: usize, config: &DeepseekV2Config) -> Option<Vec<(String, Source)>> {
    let named = |part: &Part| stage::name(part.kind, layer);
    if let [part @ Part { width: None, .. }] = holds {
        return Some(vec![(named(part), source.clone())]);
    }
    let widths: Vec<usize> = holds.iter().map(|part| part.width?(config)).collect::<Option<_>>()?;
    let fits = source.shape.last() == Some(&widths.iter().sum()) && numbers(source.element) == Some(true);
    let mut start = 0;
    let parts = holds.iter().zip(widths).map(|(part, width)| {
        start += width;
        (named(part), source.columns(start - width..start))
    });
    fits.then(|| parts.collect())
}

/// A stage, if these are its numbers as they lie there.
fn tensor_of(stage: &str, source: Source, of_model: &Planned, case: &Case) -> Option<Tensor> {
    let shape = of_model.shape.clone();
    let order = align::order_of(stage, &source.shape, &shape, case.config.num_attention_heads);
    let tensor = match order {
        Some(order) => Tensor { source, shape, order, extra_rows: None },
        None => {
            let layout = Stage::parse(stage)?.layout;
            // as many rows as tokens with those before a step may be either
            let says = extra_rows::behind(layout, &source.shape, &shape).filter(|_| case.inputs.past() == 0)?;
            let source = source.first_rows(&shape);
            Tensor { source, shape, order: Order::Model, extra_rows: Some(says) }
        }
    };
    (numbers(tensor.source.element) == Some(of_model.dtype.is_some())).then_some(tensor)
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

//! The files of the ranks of a parallel run, joined before any of them is decoded.

use dsv2_reference::stage::{canonical, forward_order};
use indexmap::{IndexMap, IndexSet};

use super::plain_dump::kind;
use super::source::{Place, Source, are_identical, squares};
use crate::case::Case;
use crate::check::dump::Recognised;
use crate::check::shards::parts::{Joined, Part, Parts, are_near};
use crate::check::shards::plans::Rule;
use crate::check::shards::{self, OtherRank, goes_elsewhere, read_off, says_of_copies, says_of_copy, says_of_rank};
use crate::error::Result;
use crate::files::TensorFile;
use crate::taps::PartialSums;
use crate::trace::is_named;

/// The tensors of a dump, by the names that they came by, and what is to be said of them before anything else is.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub tensors: Vec<Source>,
    pub says: Vec<Recognised>,
    /// The tensors that are named as no stage.
    pub unread: Vec<String>,
}

impl Sources {
    /// All tensors of files that hold different ones; nothing, if a file does not say what one of them is.
    pub fn of(files: &[TensorFile]) -> Option<Self> {
        let mut sources = Sources::default();
        for (at, file) in files.iter().enumerate() {
            for name in file.names() {
                match place(at, file, name) {
                    _ if !is_named(name) => sources.unread.push(name.clone()),
                    Some(place) => sources.tensors.push(Source::alone(name, place)),
                    None => return None,
                }
            }
        }
        Some(sources)
    }
}

fn place(at: usize, file: &TensorFile, name: &str) -> Option<Place> {
    let (element, shape) = file.lies_as(name)?;
    Some(Place { file: at, name: name.to_owned(), element, shape })
}

/// Joins the files of all ranks, which stand in their order; nothing, if a tensor has to be decoded for it to be known what it is.
///
/// # Errors
/// If a rank lacks its part, or the parts do not make up the model's tensor.
pub fn join(
    files: &[TensorFile],
    called: &[String],
    rule: &Rule,
    case: &Case,
) -> Result<Option<shards::Joined<Sources>>> {
    let mut of_ranks: Vec<IndexMap<String, Place>> = Vec::new();
    let mut unread = IndexSet::new();
    for (at, file) in files.iter().enumerate() {
        let (named, others): (Vec<&String>, Vec<_>) = file.names().iter().partition(|name| is_named(name));
        unread.extend(others.into_iter().cloned());
        let mut of_rank = IndexMap::new();
        for name in named {
            let Some(place) = place(at, file, name).filter(|place| super::tensors::numbers(place.element).is_some())
            else {
                return Ok(None);
            };
            if of_rank.insert(canonical(name).to_owned(), place).is_some() {
                return Ok(None);
            }
        }
        of_rank.sort_by_key(|name, _| forward_order(name));
        of_ranks.push(of_rank);
    }
    let names: IndexSet<&str> = of_ranks.iter().flat_map(|rank| rank.keys().map(String::as_str)).collect();
    let (mut joined, mut says, mut elsewhere) = (IndexMap::new(), Vec::new(), Vec::new());
    let mut sums = PartialSums::default();
    let mut copies: Vec<Vec<(String, Source)>> = vec![Vec::new(); files.len()];
    for name in names {
        let held: Vec<Option<&Place>> = of_ranks.iter().map(|rank| rank.get(name)).collect();
        let (source, said) = match made(files, called, &held, name, rule, case)? {
            Made::Joined(source, says) => {
                read_off(&mut sums, name, rule.how(name), files.len());
                (source, says.to_owned())
            }
            Made::Several => return Ok(None),
            Made::Copies => {
                let mut of_all = held.iter().enumerate().filter_map(|(rank, place)| Some((rank, (*place)?)));
                let Some((_, first)) = of_all.next() else { continue };
                let mut ranks = 1;
                for (rank, other) in of_all {
                    ranks += 1;
                    if are_identical(files, first, other)? {
                        continue;
                    }
                    says.push(Recognised::new(name, &says_of_copy(rank)));
                    copies[rank].push((name.to_owned(), Source::alone(name, other.clone())));
                    if name.ends_with(".topk_indices")
                        && let (Some(first), Some(other)) = (first.whole(files)?, other.whole(files)?)
                    {
                        elsewhere.extend(goes_elsewhere(name, rank, &first, &other));
                    }
                }
                (Source::alone(name, first.clone()), says_of_copies(ranks))
            }
        };
        says.push(Recognised::new(name, &said));
        joined.insert(name.to_owned(), source);
    }
    let others = copies.into_iter().enumerate().filter(|(_, copies)| !copies.is_empty());
    let others = others.map(|(rank, copies)| {
        let mut view = joined.clone();
        view.extend(copies.iter().cloned());
        let names: Vec<String> = copies.into_iter().map(|(name, _)| name).collect();
        let says = names.iter().map(|name| Recognised::new(name, &says_of_rank(rank))).collect();
        OtherRank { rank, names, dump: Sources { tensors: view.into_values().collect(), says, unread: Vec::new() } }
    });
    let others = others.collect();
    let first = Sources { tensors: joined.into_values().collect(), says, unread: unread.into_iter().collect() };
    Ok(Some(shards::Joined { first, others, elsewhere, sums }))
}

/// What comes of the parts of a tensor.
enum Made {
    Joined(Source, &'static str),
    /// Each rank has the whole.
    Copies,
    /// It holds several stages.
    Several,
}

fn made(
    files: &[TensorFile],
    called: &[String],
    held: &[Option<&Place>],
    name: &str,
    rule: &Rule,
    case: &Case,
) -> Result<Made> {
    let part = |place: &Place| Part { dtype: kind(place.element), are_numbers: true, shape: place.shape.clone() };
    let described = held.iter().map(|held| held.map(part)).collect();
    let parts = Parts { name, files: called, held: described, case };
    let Some((joined, says)) = parts.joined(rule.how(name))? else { return Ok(Made::Copies) };
    let places: Vec<Place> = held.iter().copied().flatten().cloned().collect();
    if joined == Joined::Added && are_sums(files, &places)? {
        return Ok(Made::Copies);
    }
    Ok(Source::joined(name, joined, places).map_or(Made::Several, |source| Made::Joined(source, says)))
}

/// Whether each rank has the sum already.
fn are_sums(files: &[TensorFile], parts: &[Place]) -> Result<bool> {
    for other in &parts[1..] {
        let [first, own, difference] = squares(files, &parts[0], other)?;
        if !are_near(first, own, difference) && !are_identical(files, &parts[0], other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

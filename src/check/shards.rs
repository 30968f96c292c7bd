//! One dump out of several files.
//!
//! In a parallel run each rank holds a part: some heads, some columns, a part of a sum, some tokens, or the whole. The files of
//! all ranks, in order, are joined by a [rule](plans) before anything is judged. A tensor that all ranks hold whole need not be
//! the same to the bit; where it is not, each rank's copy is judged.

mod made;
pub mod parts;
pub mod plans;
mod summed;

use std::borrow::Cow;

use dsv2_reference::stage::canonical;
use indexmap::{IndexMap, IndexSet};
use ndarray::ArrayD;

use super::{Checked, Request, check, check_without_hint};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::judge::{Disposition, StageVerdict};
use crate::taps::PartialSums;
use crate::trace::Trace;
use crate::values::Values;
use made::made;
use parts::{Part, Parts};
use plans::Rule;
pub use summed::read_off;

/// The file of one rank: what it is called, and what it holds.
pub type File = (String, Trace);

/// What is held of a dump that was joined.
#[derive(Debug)]
pub struct Joined<Dump = Trace> {
    /// With the first rank's copies of what all have.
    pub first: Dump,
    /// With those of another rank, where these are not the same to the bit.
    pub others: Vec<OtherRank<Dump>>,
    /// Where a rank goes to other experts than the first.
    pub elsewhere: Vec<Elsewhere>,
    /// Of how many ranks' parts the sums of the model are made.
    pub sums: PartialSums,
}

/// The dump with one rank's copies of what all have.
#[derive(Debug)]
pub struct OtherRank<Dump> {
    /// Which rank.
    pub rank: usize,
    /// Whose copies are not the first rank's.
    pub names: Vec<String>,
    /// The dump.
    pub dump: Dump,
}

/// A stage of which a rank goes to other experts than the first, and what is said of it.
pub type Elsewhere = (String, String);

impl<Dump> Joined<Dump> {
    /// A dump of one program.
    pub fn alone(first: Dump) -> Self {
        Joined { first, others: Vec::new(), elsewhere: Vec::new(), sums: PartialSums::default() }
    }

    /// The same, lent.
    pub fn views(&self) -> Joined<&Dump> {
        let others = self.others.iter();
        let others = others.map(|other| OtherRank { rank: other.rank, names: other.names.clone(), dump: &other.dump });
        Joined { first: &self.first, others: others.collect(), elsewhere: self.elsewhere.clone(), sums: self.sums }
    }
}

/// Joins files that hold different stages.
///
/// # Errors
/// If two of them hold the same.
pub fn together(mut files: Vec<File>) -> Result<Joined> {
    if files.len() == 1
        && let Some((_, trace)) = files.pop()
    {
        return Ok(Joined::alone(trace));
    }
    let mut stages: IndexMap<String, (String, Values)> = IndexMap::new();
    let (mut unread, mut notes) = (Vec::new(), Vec::new());
    for (file, trace) in files {
        for (name, values) in trace.iter() {
            if let Some((first, _)) = stages.insert(name.to_owned(), (file.clone(), values.clone())) {
                let expected = format!("`{name}` in one file (or a rule for the ranks' files: --shards)");
                return Err(Error::request("--candidate", expected, format!("it in {first} and {file}")));
            }
        }
        unread.extend(trace.unread().iter().cloned());
        notes.extend(trace.notes().iter().cloned());
    }
    let trace: Trace = stages.into_iter().map(|(name, (_, values))| (name, values)).collect();
    Ok(Joined::alone(trace.with_notes(unread, notes)))
}

/// Joins the files of all ranks, which stand in their order.
///
/// # Errors
/// If a rank lacks its part, or the parts do not make up the model's tensor.
pub fn join(files: &[File], rule: &Rule, case: &Case) -> Result<Joined> {
    let names: IndexSet<&str> = files.iter().flat_map(|(_, trace)| trace.iter().map(|(name, _)| name)).collect();
    let mut joined = IndexMap::new();
    let mut notes: Vec<(String, String)> = files.iter().flat_map(|(_, trace)| trace.notes().iter().cloned()).collect();
    let mut copies: Vec<Vec<(String, Values)>> = vec![Vec::new(); files.len()];
    let (mut elsewhere, mut sums) = (Vec::new(), PartialSums::default());
    let ranks: Vec<String> = files.iter().map(|(file, _)| file.clone()).collect();
    for name in names {
        let held: Vec<Option<&Values>> = files.iter().map(|(_, trace)| trace.get(name)).collect();
        let described = held.iter().map(|held| held.map(Part::of)).collect();
        let parts = Parts { name, files: &ranks, held: described, case };
        let made = parts.joined(rule.how(name))?.and_then(|(joined, says)| {
            let held: Vec<&Values> = held.iter().copied().flatten().collect();
            Some((made(joined, &held)?, says.to_owned()))
        });
        let (values, says) = match made {
            Some(made) => {
                read_off(&mut sums, name, rule.how(name), files.len());
                made
            }
            None => {
                let (first, others) = copies_of(&held);
                for (rank, other) in others.iter().filter(|(_, other)| !first.identical(other)) {
                    notes.push((name.to_owned(), says_of_copy(*rank)));
                    copies[*rank].push((name.to_owned(), (*other).clone()));
                    elsewhere.extend(goes_elsewhere(name, *rank, first, other));
                }
                (first.clone(), says_of_copies(others.len() + 1))
            }
        };
        notes.push((name.to_owned(), says));
        joined.insert(name.to_owned(), values);
    }
    let view = |rank: usize, copies: Vec<(String, Values)>| {
        let mut view = joined.clone();
        view.extend(copies.iter().cloned());
        let names: Vec<String> = copies.into_iter().map(|(name, _)| name).collect();
        let says = names.iter().map(|name| (name.clone(), says_of_rank(rank))).collect();
        let trace: Trace = view.into_iter().collect();
        OtherRank { rank, names, dump: trace.with_notes(Vec::new(), says) }
    };
    let others = copies.into_iter().enumerate().filter(|(_, copies)| !copies.is_empty());
    let others = others.map(|(rank, copies)| view(rank, copies)).collect();
    let mut unread: IndexSet<String> = IndexSet::new();
    unread.extend(files.iter().flat_map(|(_, trace)| trace.unread().iter().cloned()));
    let trace: Trace = joined.into_iter().collect();
    Ok(Joined { first: trace.with_notes(unread.into_iter().collect(), notes), others, elsewhere, sums })
}

/// Checks a dump that was joined.
///
/// # Errors
/// As [`check()`].
pub fn check_ranks(request: &mut Request, joined: Joined) -> Result<Checked> {
    request.case.partial_sums = joined.sums;
    let of_rank = |dump, hints| {
        request.candidate = dump;
        if hints { check(request) } else { check_without_hint(request) }.map(Some)
    };
    let checked = judge_ranks(joined, of_rank)?;
    Ok(checked.expect("each rank was judged"))
}

/// Judges a dump that was joined, by a judge that says whether it can: with the first rank's copies, then with those of each rank that
/// has others. What is given back is the first that does not pass, or that of the first rank; and of every rank, the copies that
/// are wrong. Ranks that go to different experts are wrong, however near a tie it was: each would add a part of another sum.
pub(super) fn judge_ranks<Dump>(
    joined: Joined<Dump>,
    mut judge: impl FnMut(Dump, bool) -> Result<Option<Checked>>,
) -> Result<Option<Checked>> {
    let Joined { first, others, elsewhere, .. } = joined;
    let Some(mut checked) = judge(first, true)? else { return Ok(None) };
    for OtherRank { rank, names, dump } in others {
        let passed = checked.verdict.passes();
        let Some(of_rank) = judge(dump, passed)? else { return Ok(None) };
        if passed {
            if !of_rank.verdict.passes() {
                checked = of_rank;
            }
            continue;
        }
        let is_copy = |stage: &StageVerdict| names.iter().any(|name| canonical(name) == stage.stage);
        let wrong = of_rank.verdict.stages.into_iter().filter(|stage| stage.disposition.fails() && is_copy(stage));
        for stage in wrong {
            let own = checked.verdict.stages.iter_mut().find(|own| own.stage == stage.stage);
            if let Some(own) = own.filter(|own| !own.disposition.fails()) {
                let says = says_of_rank(rank);
                let note = stage.note.as_ref().map_or(says.clone(), |note| format!("{says}: {note}"));
                *own = StageVerdict { note: Some(note), ..stage };
            }
        }
    }
    for (name, says) in elsewhere {
        let stage = checked.verdict.stages.iter_mut().find(|stage| stage.stage == name);
        if let Some(stage) = stage.filter(|stage| !stage.disposition.fails()) {
            stage.disposition = Disposition::WrongRouting;
            stage.note = Some(says);
        }
    }
    Ok(Some(checked))
}

/// The first copy of what each rank has whole, and the others with their ranks.
fn copies_of<'a>(held: &[Option<&'a Values>]) -> (&'a Values, Vec<(usize, &'a Values)>) {
    let mut copies = held.iter().enumerate().filter_map(|(rank, held)| Some((rank, (*held)?)));
    let (_, first) = copies.next().expect("a file holds every name");
    (first, copies.collect())
}

/// What is said of a tensor that so many ranks have whole.
pub fn says_of_copies(ranks: usize) -> String {
    format!("whole on each of {ranks} ranks")
}

/// What is said of it, if a rank's is not that of the first.
pub fn says_of_copy(rank: usize) -> String {
    format!("rank {rank} not bit-identical to the first: judged, too")
}

/// What is said of it, where that copy is judged.
pub fn says_of_rank(rank: usize) -> String {
    format!("the copy of rank {rank}")
}

/// What is said of a choice, if a rank's is not that of the first.
pub fn goes_elsewhere(name: &str, rank: usize, first: &Values, other: &Values) -> Option<(String, String)> {
    let token = other_choice(first, other).filter(|_| name.ends_with(".topk_indices"))?;
    Some((name.to_owned(), format!("rank {rank} sends token {token} to other experts than the first rank")))
}

/// The first token that two ranks send to different experts.
fn other_choice(a: &Values, b: &Values) -> Option<usize> {
    let (a, b) = (a.index()?, b.index()?);
    let k = a.shape().last().copied().filter(|&k| k > 0)?;
    let rows = |a: &ArrayD<i64>| -> Vec<Vec<i64>> {
        let flat: Cow<'_, [i64]> = a.as_slice().map_or_else(|| a.iter().copied().collect(), Cow::Borrowed);
        let sorted = |row: &[i64]| {
            let mut row = row.to_vec();
            row.sort_unstable();
            row
        };
        flat.chunks(k).map(sorted).collect()
    };
    let (a, b) = (rows(a), rows(b));
    (0..a.len().max(b.len())).find(|&token| a.get(token) != b.get(token))
}

#[cfg(test)]
mod tests;

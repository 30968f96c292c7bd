//! One dump out of several files.
//!
//! In a parallel run each rank holds a part: some heads, some columns, a part of a sum, some tokens, or the whole. The files of
//! all ranks, in order, are joined by a [rule](plans) before anything is judged. A tensor that all ranks hold whole need not be
//! the same to the bit; where it is not, each rank's copy is judged.

pub mod plans;

use std::borrow::Cow;

use dsv2_reference::stage::convention::name::GATE_UP_PROJ;
use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Layout, Stage, canonical};
use dsv2_reference::{DeepseekV2Config, Dtype, Tensor};
use indexmap::{IndexMap, IndexSet};
use ndarray::{ArrayD, Axis, concatenate};

use super::{Checked, Request, check, check_without_hint};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::judge::{Disposition, StageVerdict};
use crate::trace::Trace;
use crate::values::Values;
use plans::{How, Rule, kind};

/// The file of one rank: what it is called, and what it holds.
pub type File = (String, Trace);

/// A dump that was joined.
#[derive(Debug)]
pub struct Joined {
    /// With the first rank's copies of what all have.
    pub trace: Trace,
    /// With those of another rank, where these are not the same to the bit.
    others: Vec<(usize, Copies)>,
    /// Where a rank goes to other experts than the first: the stage, and what is said of it.
    elsewhere: Vec<(String, String)>,
}

/// The dump with one rank's copies of what all have.
#[derive(Debug)]
struct Copies {
    /// Whose copies are not the first rank's.
    names: Vec<String>,
    trace: Trace,
}

/// Joins files that hold different stages.
///
/// # Errors
/// If two of them hold the same.
pub fn together(mut files: Vec<File>) -> Result<Joined> {
    if files.len() == 1
        && let Some((_, trace)) = files.pop()
    {
        return Ok(Joined { trace, others: Vec::new(), elsewhere: Vec::new() });
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
    Ok(Joined { trace: trace.with_notes(unread, notes), others: Vec::new(), elsewhere: Vec::new() })
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
    let mut elsewhere = Vec::new();
    for name in names {
        let parts = Parts { name, files, held: files.iter().map(|(_, trace)| trace.get(name)).collect(), case };
        let (values, says) = match parts.joined(rule.how(name))? {
            Some((values, says)) => (values, says.to_owned()),
            None => {
                let (first, others) = parts.copies();
                for (rank, other) in others.iter().filter(|(_, other)| !first.identical(other)) {
                    notes.push((name.to_owned(), format!("rank {rank} not bit-identical to the first: judged, too")));
                    copies[*rank].push((name.to_owned(), (*other).clone()));
                    if name.ends_with(".topk_indices")
                        && let Some(token) = other_choice(first, other)
                    {
                        let says = format!("rank {rank} sends token {token} to other experts than the first rank");
                        elsewhere.push((name.to_owned(), says));
                    }
                }
                (first.clone(), format!("whole on each of {} ranks", others.len() + 1))
            }
        };
        notes.push((name.to_owned(), says));
        joined.insert(name.to_owned(), values);
    }
    let view = |rank: usize, copies: Vec<(String, Values)>| {
        let mut view = joined.clone();
        view.extend(copies.iter().cloned());
        let names: Vec<String> = copies.into_iter().map(|(name, _)| name).collect();
        let says = names.iter().map(|name| (name.clone(), format!("the copy of rank {rank}"))).collect();
        let trace: Trace = view.into_iter().collect();
        (rank, Copies { names, trace: trace.with_notes(Vec::new(), says) })
    };
    let others = copies.into_iter().enumerate().filter(|(_, copies)| !copies.is_empty());
    let others = others.map(|(rank, copies)| view(rank, copies)).collect();
    let mut unread: IndexSet<String> = IndexSet::new();
    unread.extend(files.iter().flat_map(|(_, trace)| trace.unread().iter().cloned()));
    let trace: Trace = joined.into_iter().collect();
    Ok(Joined { trace: trace.with_notes(unread.into_iter().collect(), notes), others, elsewhere })
}

/// Checks a dump that was joined: with the first rank's copies, then with those of each rank that has others. What is given
/// back is the first that does not pass, or that of the first rank; and of every rank, the copies that are wrong. Ranks that go
/// to different experts are wrong, however near a tie it was: each would add a part of another sum.
///
/// # Errors
/// As [`check()`].
pub fn check_ranks(request: &mut Request, joined: Joined) -> Result<Checked> {
    let Joined { trace, others, elsewhere } = joined;
    request.candidate = trace;
    let mut checked = check(request)?;
    for (rank, Copies { names, trace }) in others {
        let first = std::mem::replace(&mut request.candidate, trace);
        if !checked.verdict.passes() {
            let of_rank = check_without_hint(request)?;
            request.candidate = first;
            let is_copy = |stage: &StageVerdict| names.iter().any(|name| canonical(name) == stage.stage);
            let wrong = of_rank.verdict.stages.into_iter().filter(|stage| stage.disposition.fails() && is_copy(stage));
            for stage in wrong {
                let own = checked.verdict.stages.iter_mut().find(|own| own.stage == stage.stage);
                if let Some(own) = own.filter(|own| !own.disposition.fails()) {
                    let says = format!("the copy of rank {rank}");
                    let note = stage.note.as_ref().map_or(says.clone(), |note| format!("{says}: {note}"));
                    *own = StageVerdict { note: Some(note), ..stage };
                }
            }
            continue;
        }
        let of_rank = check(request)?;
        match of_rank.verdict.passes() {
            true => request.candidate = first,
            false => checked = of_rank,
        }
    }
    for (name, says) in elsewhere {
        let stage = checked.verdict.stages.iter_mut().find(|stage| stage.stage == name);
        if let Some(stage) = stage.filter(|stage| !stage.disposition.fails()) {
            stage.disposition = Disposition::WrongRouting;
            stage.note = Some(says);
        }
    }
    Ok(checked)
}

/// One tensor, as far as each rank holds it.
struct Parts<'a> {
    name: &'a str,
    files: &'a [File],
    held: Vec<Option<&'a Values>>,
    case: &'a Case,
}

impl<'a> Parts<'a> {
    /// The tensor that the parts make, and what is said of it; nothing if each rank has the whole.
    fn joined(&self, how: How) -> Result<Option<(Values, &'static str)>> {
        let config = &self.case.config;
        match how {
            How::Replicated => Ok(None),
            How::Columns => {
                let Some(width) = kind(self.name).and_then(|kind| width(kind, config)) else { return Ok(None) };
                let last = |shape: &[usize]| shape.len().checked_sub(1);
                let Some(parts) = self.along(last, width, "columns")? else { return Ok(None) };
                let says = "columns of all ranks, side by side";
                match kind(self.name) {
                    Some(GATE_UP_PROJ) => Ok(Some((self.fused(&parts)?, "columns of all ranks, [gate | up] of each"))),
                    _ => Ok(Some((self.concatenated(&parts, last, width)?, says))),
                }
            }
            How::Heads => {
                let heads = config.num_attention_heads;
                let ranks = self.files.len();
                let axis = |shape: &[usize]| {
                    let part = |&axis: &usize| matches!(shape.get(axis), Some(&n) if n == heads || n * ranks == heads);
                    if shape.len() == 4 { [1, 2].into_iter().find(part) } else { shape.len().checked_sub(2) }
                };
                let Some(parts) = self.along(axis, heads, "heads")? else { return Ok(None) };
                Ok(Some((self.concatenated(&parts, axis, heads)?, "heads of all ranks")))
            }
            How::Sequence => {
                let (batch, length) = (self.case.inputs.batch(), self.case.inputs.length());
                // [B, S, ..] or [S, B, ..]; [B·S, ..] of rank after rank
                let axis = |shape: &[usize]| match *shape {
                    [b, _, _] if b == batch => Some(1),
                    [_, b, _] if b == batch => Some(0),
                    [_, _] | [_] => Some(0),
                    _ => None,
                };
                let flat = self.held.iter().flatten().next().is_some_and(|values| values.shape().len() < 3);
                let tokens = if flat { batch * length } else { length };
                let Some(parts) = self.along(axis, tokens, "tokens")? else { return Ok(None) };
                Ok(Some((self.concatenated(&parts, axis, tokens)?, "tokens of all ranks, one after another")))
            }
            How::Sum => self.sum(),
        }
    }

    /// What each rank holds, if they are parts along an axis; nothing if each that holds any holds all.
    fn along(
        &self,
        axis: impl Fn(&[usize]) -> Option<usize>,
        whole: usize,
        what: &str,
    ) -> Result<Option<Vec<&'a Values>>> {
        let length = |values: &Values| axis(values.shape()).map(|axis| values.shape()[axis]);
        if self.held.iter().flatten().all(|values| length(values) == Some(whole)) {
            return Ok(None);
        }
        let parts = self.all()?;
        let lengths: Option<Vec<usize>> = parts.iter().map(|values| length(values)).collect();
        let total = lengths.as_ref().map(|lengths| lengths.iter().sum::<usize>());
        // the vocabulary may have been padded so that every rank has as much of it
        let padded = kind(self.name) == Some(LM_HEAD) && what == "columns";
        if total.is_some_and(|total| total == whole || padded && total > whole) {
            return Ok(Some(parts));
        }
        let found = match lengths {
            Some(lengths) => format!("{lengths:?}"),
            None => parts.iter().map(|values| values.describe()).collect::<Vec<_>>().join(", "),
        };
        Err(self.refused(format!("{whole} {what} on {} ranks together", parts.len()), found))
    }

    /// The parts of a sum, added and rounded to the type that they are stored in, as an all-reduce does; nothing if each rank
    /// has the sum: parts of one have next to nothing in common.
    fn sum(&self) -> Result<Option<(Values, &'static str)>> {
        let parts = self.all()?;
        let reals: Option<Vec<_>> = parts.iter().map(|values| values.real()).collect();
        let (Some(reals), Values::Real(dtype, first)) = (reals, parts[0]) else {
            return Err(self.refused("numbers to be added", parts[0].describe()));
        };
        if let Some(rank) = reals.iter().position(|part| part.shape() != first.shape()) {
            return Err(self.of_rank(rank, format!("shape {:?}, as the first", first.shape()), parts[rank].describe()));
        }
        let norm = |a: &ArrayD<f64>| a.iter().map(|x| x * x).sum::<f64>();
        let near = |part: &ArrayD<f64>| norm(&(part - first)) < 0.25 * norm(part).min(norm(first));
        if reals[1..].iter().all(|part| Values::Real(*dtype, (*part).clone()).identical(parts[0]) || near(part)) {
            return Ok(None);
        }
        let mut sum = first.clone();
        reals[1..].iter().for_each(|part| sum += *part);
        Ok(Some((rounded(*dtype, &sum), "partial sums of all ranks, added")))
    }

    /// `[gate | up]` of all ranks out of that of each.
    fn fused(&self, parts: &[&Values]) -> Result<Values> {
        let halves: Option<Vec<_>> = parts.iter().map(|values| values.real().and_then(halved)).collect();
        let (Some(halves), Values::Real(dtype, _)) = (halves, parts[0]) else {
            return Err(self.refused("columns of gate and up in equal number", parts[0].describe()));
        };
        let (gates, ups): (Vec<_>, Vec<_>) = halves.into_iter().unzip();
        let views: Vec<_> = gates.iter().chain(&ups).map(|half| half.view()).collect();
        let joined = concatenate(Axis(views[0].ndim() - 1), &views);
        joined.map(|a| Values::Real(*dtype, a)).map_err(|_| self.misfit(parts))
    }

    fn concatenated(
        &self,
        parts: &[&Values],
        axis: impl Fn(&[usize]) -> Option<usize>,
        whole: usize,
    ) -> Result<Values> {
        let axis = axis(parts[0].shape()).ok_or_else(|| self.misfit(parts))?;
        let (dtype, joined) = match parts[0] {
            Values::Real(dtype, _) => (*dtype, side_by_side(parts, Values::real, axis)),
            Values::Index(_) => {
                let joined = side_by_side(parts, Values::index, axis).ok_or_else(|| self.misfit(parts))?;
                return Ok(Values::Index(joined));
            }
            Values::Bool(_) => return Err(self.refused("numbers", parts[0].describe())),
        };
        let joined = joined.ok_or_else(|| self.misfit(parts))?;
        // what is over is the padding of the vocabulary
        let (joined, _) = joined.view().split_at(Axis(axis), whole.min(joined.len_of(Axis(axis))));
        Ok(Values::Real(dtype, joined.to_owned()))
    }

    fn misfit(&self, parts: &[&Values]) -> Error {
        let shapes: Vec<_> = parts.iter().map(|values| values.describe()).collect();
        self.refused("parts that fit together", shapes.join(", "))
    }

    /// What each rank holds.
    fn all(&self) -> Result<Vec<&'a Values>> {
        let all: Option<Vec<_>> = self.held.iter().copied().collect();
        all.ok_or_else(|| {
            let rank = self.held.iter().position(Option::is_none).unwrap_or(0);
            self.of_rank(rank, "a part of it from each rank".into(), "none".into())
        })
    }

    /// The first copy of what each rank has whole, and the others with their ranks.
    fn copies(&self) -> (&'a Values, Vec<(usize, &'a Values)>) {
        let mut copies = self.held.iter().enumerate().filter_map(|(rank, held)| Some((rank, (*held)?)));
        let (_, first) = copies.next().expect("a file holds every name");
        (first, copies.collect())
    }

    fn refused(&self, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::request(format!("--shards: `{}`", self.name), expected, found)
    }

    fn of_rank(&self, rank: usize, expected: String, found: String) -> Error {
        self.refused(expected, format!("{found} of rank {rank} ({})", self.files[rank].0))
    }
}

fn side_by_side<'a, A: Clone + 'a>(
    parts: &[&'a Values],
    of: impl Fn(&'a Values) -> Option<&'a ArrayD<A>>,
    axis: usize,
) -> Option<ArrayD<A>> {
    let views: Option<Vec<_>> = parts.iter().map(|values| Some(of(values)?.view())).collect();
    concatenate(Axis(axis), &views?).ok()
}

fn halved(a: &ArrayD<f64>) -> Option<(ArrayD<f64>, ArrayD<f64>)> {
    let last = Axis(a.ndim().checked_sub(1)?);
    let width = a.len_of(last);
    let (left, right) = a.view().split_at(last, width / 2);
    width.is_multiple_of(2).then(|| (left.to_owned(), right.to_owned()))
}

fn rounded(dtype: Dtype, a: &ArrayD<f64>) -> Values {
    Values::Real(dtype, Tensor::from_values(dtype, a.shape(), a.iter().copied()).to_array())
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

/// How many columns the model's tensor of this kind has; none if it has no columns.
fn width(kind: &str, c: &DeepseekV2Config) -> Option<usize> {
    let heads = c.num_attention_heads;
    let (n, r, v) = (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim);
    Some(match kind {
        Q_PROJ | Q_B_PROJ => heads * (n + r),
        Q_A_PROJ | Q_A_LAYERNORM => c.q_lora_rank?,
        KV_A_PROJ => c.kv_lora_rank + r,
        KV_A_LAYERNORM | CACHED_KV => c.kv_lora_rank,
        KV_B_PROJ => heads * (n + v),
        ATTN_OUTPUT => heads * v,
        GATE_PROJ | UP_PROJ => c.intermediate_size,
        GATE_UP_PROJ => 2 * c.intermediate_size,
        ROUTER_LOGITS => c.num_experts(),
        LM_HEAD => c.vocab_size,
        kind => {
            let layout = Stage::parse(&dsv2_reference::stage::name(kind, 0))?.layout;
            matches!(layout, Layout::Tokens | Layout::Flat).then_some(c.hidden_size)?
        }
    })
}

#[cfg(test)]
mod tests;

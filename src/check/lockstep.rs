//! A dump in files, judged stage by stage as the model is run: runs that wait at each stage until it has been compared.
//! So no stage of the dump is kept, however many layers there are.
//!
//! | run | is | goes on with |
//! |---|---|---|
//! | the truth, a layer ahead of the others | f64 | its own stages, and the dump's choice of experts |
//! | what each stage should be by itself | f64 | the dump's stages, where it has them |
//! | a plain implementation, for the noise (of small models several) | the dump's type | the same |
//!
//! ```text
//! source      a tensor that lies in one file, or in parts in several
//! ranks       the files of the ranks of a parallel run, joined
//! tensors     which tensor is which stage, before any is decoded
//! plain_dump  the dump, by the tensor, or some rows of one
//! station     where a run waits
//! visit       one chunk of a stage
//! runs        what is compared, layer by layer
//! expected    what is compared, if a file says what the stages should be
//! measured    what is kept of it, and the verdict
//! unrounded   stages that fail, once more from what others were before they were rounded
//! second_look whether anything else may explain them, and what they look like
//! need        how much memory that takes
//! ```
//!
//! What is kept of a stage is how far off it is, and what budgets are made of; and the routing as it is, which is small. At the
//! end the budgets are known, and it is judged as any dump. Where stages fail, it is settled here as well if the
//! [second look](second_look) that a dump gets which is read whole would find nothing that explains them.

mod expected;
mod measured;
mod need;
mod pieces;
mod plain_dump;
mod ranks;
mod runs;
mod second_look;
mod source;
mod station;
mod tensors;
mod unrounded;
mod visit;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use dsv2_reference::stage::forward_order;
use indexmap::IndexSet;

use super::dump::Recognised;
use super::explain::{Told, what_is_lacking};
use super::shards::plans::Rule;
use super::shards::{self, Joined};
use super::{Checked, Request, doubt, truth};
use crate::case::Case;
use crate::error::Result;
use crate::files::TensorFile;
use crate::judge::Verdict;
use crate::trace::Trace;
use expected::{Expected, Judged};
use measured::TRUTH;
pub use need::of_runs;
pub use plain_dump::PlainDump;
use plain_dump::plain;
pub use ranks::Sources;
use runs::Way;

/// Who is told how far it is: so many stages of so many, and the last of them.
pub type Reached<'a> = &'a mut dyn FnMut(usize, usize, &str);

/// The files of a dump.
pub struct Candidates {
    files: Rc<[TensorFile]>,
    /// What they hold together; nothing, if a tensor has to be decoded for it to be known what it is.
    joined: Option<Joined<Sources>>,
    /// What they should be, if that is not for the reference to say.
    expected: Option<Expected>,
}

impl Candidates {
    /// Files that hold different stages, or by a `rule` those of the ranks of a parallel run, in their order.
    ///
    /// # Errors
    /// If one cannot be read, or the ranks' tensors do not make up the model's.
    pub fn open(paths: &[PathBuf], rule: Option<&Rule>, case: &Case) -> Result<Self> {
        let files: Rc<[TensorFile]> = paths.iter().map(|path| TensorFile::open(path)).collect::<Result<_>>()?;
        let called: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let joined = match rule {
            Some(rule) => ranks::join(&files, &called, rule, case)?,
            None => Sources::of(&files).map(Joined::alone),
        };
        Ok(Candidates { files, joined, expected: None })
    }

    /// The same, to be held against the stages in this file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn against(self, expected: &Path) -> Result<Self> {
        let expected = Expected::open(expected)?;
        let joined = self.joined.filter(|_| expected.is_some());
        Ok(Candidates { joined, expected, ..self })
    }

    /// Whether it is known before any of them is decoded that they have to be read whole. (Of others that may show, if they fail.)
    ///
    /// # Errors
    /// If they hold caches of different tokens.
    pub fn are_read_whole(&self, case: &Case) -> Result<bool> {
        let Some(joined) = self.joined.as_ref().filter(|_| is_fed_so(case)) else { return Ok(true) };
        let Some((meant, tensors)) = plain(&self.files, &joined.first.tensors, case)? else { return Ok(true) };
        let has_more = tensors.beyond_vocabulary.is_some()
            || meant.last_tokens.is_some()
            || tensors.stages.values().any(|tensor| tensor.extra_rows.is_some());
        Ok(self.expected.is_some() && has_more)
    }

    /// About so many bytes it takes to judge them stage by stage; nothing, if they cannot be.
    ///
    /// # Errors
    /// If a tensor is damaged.
    pub fn need(&self, case: &Case) -> Result<u64> {
        let none = Sources::default();
        need::need(case, &self.files, self.joined.as_ref().map_or(&none, |joined| &joined.first))
    }

    /// Judges them stage by stage; nothing, if they have to be read whole for more to be said.
    ///
    /// # Errors
    /// If the reference refuses the case, or a tensor cannot be decoded.
    pub fn check(&self, request: &Request, hints: bool, reached: Reached<'_>) -> Result<Option<Checked>> {
        let Some(joined) = self.joined.as_ref().filter(|_| can_judge(request)) else { return Ok(None) };
        let request = &request.about(Case { partial_sums: joined.sums, ..request.case.clone() });
        shards::judge_ranks(joined.views(), |sources, first| {
            let Some((dump, case)) = PlainDump::open(&self.files, sources, request)? else { return Ok(None) };
            let request = &request.about(case);
            let Some(expected) = &self.expected else { return check(request, &dump, hints && first, &mut *reached) };
            if !dump.says_of_shapes().is_empty() {
                return Ok(None);
            }
            let judged = expected::judge(request, &dump, expected, &mut *reached)?;
            Ok(judged.map(|Judged { verdict, names, readings }| checked(request, &dump, verdict, &names, &readings)))
        })
    }
}

/// Whether a case can be judged so. (Runs share the work of Rayon's threads: this must be none of them, which would wait for itself.)
pub fn can_judge(request: &Request) -> bool {
    request.expected.is_none() && is_fed_so(&request.case) && rayon::current_thread_index().is_none()
}

/// Whether what is fed can be judged so: not sequences end to end, after a cache.
fn is_fed_so(case: &Case) -> bool {
    case.inputs.packed.is_none() || case.inputs.past() == 0
}

/// Judges a dump; nothing, if it asks for a second look that needs all of it. The hint on a failure is left out unless `hints`
/// are wanted.
///
/// # Errors
/// If the reference refuses the case, or a tensor cannot be decoded.
pub fn check(request: &Request, dump: &PlainDump, hints: bool, reached: Reached<'_>) -> Result<Option<Checked>> {
    let Some(mut measured) = runs::measure(request, dump, &Way::of(dump), &mut *reached)? else { return Ok(None) };
    let case = &request.case;
    if measured.halves_are_mixed(dump) {
        return Ok(None);
    }
    let mut verdict = measured.verdict(request)?;
    let mut unrounded = Vec::new();
    if !verdict.passes() {
        if second_look::may_be_meant_otherwise(request, dump, &measured, &verdict)? {
            return Ok(None);
        }
        unrounded = unrounded::judge_by_unrounded(request, dump, &mut measured, &verdict, &mut *reached)?;
        if !unrounded.is_empty() {
            verdict = measured.verdict(request)?;
        }
        if !verdict.passes() && second_look::may_be_near_ties(request, &measured, &verdict) {
            return Ok(None);
        }
    }
    let inconclusive = doubt::leave_open(&mut verdict, |name| dump.holds(name), &measured.names, &case.config);
    let hint = match verdict.first_failure().filter(|_| hints) {
        Some(failed) => match second_look::hint(request, dump, &measured, failed, reached)? {
            Some(hint) => hint,
            None => return Ok(None),
        },
        None => None,
    };
    let near_ties = truth::near_ties(&measured.choices, &measured.routing[TRUTH], &measured.rows, case)?;
    if !near_ties.is_empty() && measured.ends_otherwise(dump) {
        return Ok(None);
    }
    let end_to_end = if near_ties.is_empty() { None } else { measured.end_to_end(request, dump)? };
    let of_verdict = checked(request, dump, verdict, &measured.names, &measured.readings);
    let assumed = [of_verdict.assumed, unrounded].concat();
    Ok(Some(Checked { inconclusive, assumed, near_ties, end_to_end, hint, ..of_verdict }))
}

/// What came of a dump by this verdict, as far as nothing else is known. `names` are all stages of the model.
fn checked(
    request: &Request,
    dump: &PlainDump,
    verdict: Verdict,
    names: &IndexSet<String>,
    readings: &[(String, &'static str)],
) -> Checked {
    let case = &request.case;
    let held = dump.names().collect::<IndexSet<_>>();
    let Told { spans, uncatchable, .. } = what_is_lacking(&held, names, &case.config);
    let left_out = case.inputs.left_out.iter().map(|name| Recognised::new(name, "not fed (--ids-only)"));
    let of_shapes = dump.says_of_shapes().iter().cloned();
    let mut readings: Vec<&(String, &'static str)> = readings.iter().collect();
    readings.sort_by_key(|(name, _)| forward_order(name));
    let read = readings.into_iter().map(|(name, says)| Recognised::new(name, says));
    Checked {
        verdict: verdict.with_not_held(names.iter().map(String::as_str)),
        inconclusive: None,
        precision: dump.precision(),
        unknown: dump.unread().to_vec(),
        layouts: dump.says().iter().cloned().chain(left_out).chain(of_shapes).chain(read).collect(),
        assumed: dump.assumed().to_vec(),
        near_ties: Vec::new(),
        assumed_ties: Vec::new(),
        end_to_end: None,
        spans,
        hint: None,
        uncatchable,
        candidate: Trace::default(),
        case: case.clone(),
    }
}

#[cfg(test)]
mod tests;

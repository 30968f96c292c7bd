//! `dsv2 check`: a dump of somebody's stages against the model.
//!
//! ```text
//! shards    one dump out of several files, one for each rank of a parallel run
//! dump      which tensors are stages, and in which type they were computed
//! shapes    what engines feed and dump in other shapes: varlen batches, one decoding step, the last logits, rows too many
//! truth     what each stage is by the f64 reference; where the dump's experts differ, it goes where the dump goes
//! align     the dump in the model's terms: layouts, and conventions of engines
//! judge     each stage by itself (`local`): what the f64 reference makes of the dump's own inputs of it is what it should
//!           be, and how far off the reference is in the dump's type, on the same inputs, is what it may be
//! explain   what the first wrong stage looks like, and what such a dump leaves open
//! ```
//!
//! A dump in files, each tensor of which is a stage, is judged stage by stage, without any of it being kept (`lockstep`).
//!
//! A stage is judged by itself; the truth tells what its error came to.

mod align;
mod conclusion;
pub(crate) mod doubt;
mod dump;
mod explain;
mod judge;
mod lockstep;
mod near_ties;
mod request;
mod shapes;
pub mod shards;
mod truth;
mod whole;

pub(crate) use near_ties::most_kept;

use std::path::Path;

use dsv2_reference::model::attention::AttentionForm;
use indexmap::IndexMap;

use crate::case::Case;
use crate::error::Result;
use crate::judge::Verdict;
use crate::memory::{Need, Size};
use crate::planned::{self, Planned};
use crate::precision::Precision;
use crate::trace::Trace;
use align::Aligned;
pub use conclusion::{Conclusion, Inconclusive};
pub use dump::Recognised;
pub use explain::Hint;
pub use judge::{AssumedTie, EndToEnd};
pub use lockstep::{Candidates, Reached};
pub use request::Request;
pub(crate) use shapes::last_tokens;

/// What came of it.
#[derive(Debug)]
pub struct Checked {
    /// The verdict on every stage of the model.
    pub verdict: Verdict,
    /// Why the dump cannot be decided, if it cannot.
    pub inconclusive: Option<Inconclusive>,
    /// What the candidate is taken to compute in.
    pub precision: Precision,
    /// Tensors of the candidate that no stage of this model goes by, and that nobody looked at.
    pub unknown: Vec<String>,
    /// Tensors that came in another layout, and were judged all the same.
    pub layouts: Vec<Recognised>,
    /// What is taken for granted of the whole dump.
    pub assumed: Vec<String>,
    /// How many tokens of a layer go to other experts than in the truth because of a near tie, which is no fault.
    pub near_ties: Vec<(String, usize)>,
    /// Near ties that were taken to have fallen the other way, although the dump does not hold the choice.
    pub assumed_ties: Vec<AssumedTie>,
    /// The end of the computation, if near ties fell the other way.
    pub end_to_end: Option<EndToEnd>,
    /// For each stage that the dump holds and that is not judged from its very inputs: those that it lacks.
    pub spans: Vec<(String, Vec<String>)>,
    /// What the first wrong stage looks like.
    pub hint: Option<Hint>,
    /// Mutants that would not have been caught, because the dump lacks the stages where they show.
    pub uncatchable: Vec<&'static str>,
    /// The dump as it was judged: in the model's layouts.
    pub candidate: Trace,
    /// The case as it was judged: what the shapes of the dump say of it, included.
    pub case: Case,
}

impl Checked {
    /// The whole in a word. A stage that is surely wrong decides; a pass takes that something was compared.
    pub fn conclusion(&self) -> Conclusion {
        match () {
            () if self.verdict.first_failure().is_some() => Conclusion::Fail,
            () if self.inconclusive.is_some() || !self.verdict.passes() => Conclusion::Inconclusive,
            () if self.verdict.compared() == 0 => Conclusion::NotJudged,
            () => Conclusion::Pass,
        }
    }
}

/// Checks a dump. Stages that it does not hold are not required.
///
/// # Errors
/// If the reference refuses the case, no tensor of the dump is a stage of this model, or the expected tensors are not the
/// model's, or none of them is in the dump.
pub fn check(request: &Request) -> Result<Checked> {
    let mut checked = checked(request, true)?;
    if checked.conclusion() == Conclusion::Fail && explain::fits_fp8(request, &checked)? {
        checked.hint.get_or_insert_default().says.push(explain::FITS_FP8.to_owned());
    }
    Ok(checked)
}

/// The same without a hint, for which a number of mutants have to be run.
///
/// # Errors
/// As [`check`].
pub fn check_without_hint(request: &Request) -> Result<Checked> {
    checked(request, false)
}

/// About so much memory [`check_files`] needs for these files.
///
/// # Errors
/// If one cannot be read.
pub fn need_by_stage(case: &Case, candidates: &Candidates) -> Result<Need> {
    candidates.need(case).map(|size| Need { size: Size(size), less: LESS })
}

/// About so much memory [`check`] needs for these files, which it reads whole; with known bugs tried on it, if it is to be `explained`.
///
/// # Errors
/// If a file cannot be read, or a large tensor of it is far from any shape that its stage could have.
pub fn need_whole<'a>(case: &Case, files: impl IntoIterator<Item = &'a Path>, explained: bool) -> Result<Need> {
    whole::need(case, files, explained).map(|size| Need { size: Size(size), less: LESS })
}

/// A dump in a file, to be [`check`]ed. Of tensors that are named as stages which the model lacks, the large ones are not decoded.
///
/// # Errors
/// As [`Trace::read`].
pub fn read(case: &Case, file: &Path) -> Result<Trace> {
    let of_model = stages_of_model(case);
    Trace::read_but(file, |name, elements| dump::size::is_left(name, elements, &of_model))
}

/// All stages of the model, of which a case may be a part.
fn stages_of_model(case: &Case) -> IndexMap<String, Planned> {
    planned::stages(&Case { part: None, ..case.clone() }, AttentionForm::Expanded, Precision::F64)
}

/// What takes less memory.
const LESS: &str = "fewer tokens take less, and so do a few layers (--layers)";

/// [`check`] of a dump in files, read some rows at a time: none of it is kept, and `candidate` of what comes of it is empty. Nothing,
/// if it has to be read whole, and [`check`]ed, for more to be said. The request's own candidate is not looked at; a hint is given
/// if `hints` are wanted.
///
/// # Errors
/// If the reference refuses the case, or a file cannot be read.
pub fn check_files(
    request: &Request,
    candidates: &Candidates,
    hints: bool,
    reached: Reached<'_>,
) -> Result<Option<Checked>> {
    request.case.check_cache(request.cache)?;
    candidates.check(request, hints, reached)
}

fn checked(request: &Request, hints: bool) -> Result<Checked> {
    request.case.check_cache(request.cache)?;
    let came = &request.candidate;
    let mut dump = dump::read(request)?;
    let asked = request;
    let request = &shapes::recognise(asked, &mut dump)?;
    let truth = truth::compute(request, &dump)?;
    dump::holds_a_stage_of(&truth.names, &dump.trace, request.expected.as_ref())?;
    let dump = shapes::without_extra_rows(dump, &truth, &request.case);
    let Aligned { dump, truth, local } = align::align(request, dump, truth)?;
    let (judged, truth) = judge::judge(request, &dump, truth, local)?;
    let told = explain::explain(request, &dump, &truth, &judged, hints)?;
    let read_as = came.notes().iter().map(|(name, says)| Recognised::new(name, says));
    Ok(Checked {
        verdict: judged.verdict.with_not_held(truth.names.iter().map(String::as_str)),
        inconclusive: judged.inconclusive,
        precision: dump.precision,
        unknown: told.unknown.into_iter().chain(came.unread().iter().cloned()).collect(),
        layouts: read_as.chain(dump.recognised).collect(),
        assumed: dump.assumed,
        near_ties: truth.near_ties,
        assumed_ties: judged.assumed,
        end_to_end: judged.end_to_end,
        spans: told.spans,
        hint: told.hint,
        uncatchable: told.uncatchable,
        candidate: dump.trace,
        case: request.case.clone(),
    })
}

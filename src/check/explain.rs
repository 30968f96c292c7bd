//! What there is to say beside the verdict.

mod fp8;
mod hint;
mod pattern;
mod uncatchable;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::flow;
use indexmap::IndexSet;

pub use fp8::{FITS_FP8, fits_fp8};
pub use hint::{Hint, facts, said};

use super::align;
use super::dump::Dump;
use super::judge::Judged;
use super::request::Request;
use super::truth::Truth;
use crate::error::Result;
use crate::judge::StageVerdict;
use crate::trace::Trace;

/// What is said.
pub struct Told {
    /// What the first wrong stage looks like.
    pub hint: Option<Hint>,
    /// The stages that are not judged from their very inputs, and which of these the dump lacks.
    pub spans: Vec<(String, Vec<String>)>,
    /// Tensors that are no stage of this model.
    pub unknown: Vec<String>,
    /// Mutants that such a dump cannot show.
    pub uncatchable: Vec<&'static str>,
}

/// Looks at the first wrong stage, if `hints` are wanted, and at what the dump lacks.
///
/// # Errors
/// If the config's way of routing is impossible.
pub fn explain(request: &Request, dump: &Dump, truth: &Truth, judged: &Judged, hints: bool) -> Result<Told> {
    let case = &request.case;
    let mut hint = match (judged.verdict.first_failure(), &judged.local) {
        (Some(failed), Some(local)) if hints => {
            // what was assumed of the tokens' experts is as good for a mutant, if it chooses no others
            let choices = if judged.assumed.is_empty() { Trace::default() } else { local.trace().choices() };
            let local = local.truth(&case.config, &truth.rows)?;
            hint::hint(failed, case, (dump, truth), &local, &choices)
        }
        _ => None,
    };
    if let Some(says) =
        judged.verdict.first_failure().filter(|_| hints).and_then(|failed| in_another_order(failed, dump))
    {
        hint.get_or_insert_default().says.insert(0, says);
    }
    let names: IndexSet<&str> = dump.trace.iter().map(|(name, _)| name).collect();
    Ok(Told { hint, ..what_is_lacking(&names, &truth.names, &case.config) })
}

/// What is said of a wrong stage whose numbers would be right, were they in the order of the others.
fn in_another_order(failed: &StageVerdict, dump: &Dump) -> Option<String> {
    let alone = [align::ALONE_IN_HALVES, align::ALONE_IN_PAIRS];
    let of_this = dump.recognised.iter().filter(|says| says.stage == failed.stage);
    of_this.map(|says| &says.layout).find(|layout| alone.contains(&layout.as_str())).cloned()
}

/// What a dump of these tensors lacks, of a model that has the stages `names`.
pub fn what_is_lacking(dump: &IndexSet<&str>, names: &IndexSet<String>, config: &DeepseekV2Config) -> Told {
    let exists = |name: &str| names.contains(name);
    let held = |name: &str| dump.contains(name);
    let (stages, unknown): (Vec<_>, Vec<_>) = dump.iter().map(|name| (*name).to_owned()).partition(|name| exists(name));
    let spans = stages.into_iter().map(|stage| {
        let lacking = flow::sources(&stage, config, exists, held).not_held;
        (stage, Vec::from_iter(lacking))
    });
    Told {
        hint: None,
        spans: spans.filter(|(_, lacking)| !lacking.is_empty()).collect(),
        unknown,
        uncatchable: uncatchable::uncatchable(names, config, held),
    }
}

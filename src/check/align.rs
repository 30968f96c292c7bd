//! The dump in the model's terms: the same numbers in another place, or under another rule that comes to the same, are no
//! error, and it is said which.
//!
//! A stage is first read as its shape allows; where that leaves several ways, in the one that is by far the nearest to the
//! truth. Then the dump is judged, stage by stage. If a stage fails, its other readings are tried, and whatever
//! [conventions](dsv2_reference::stage::convention) there are for it; one of them counts only if the stage is within its
//! budget by it. A dump that is right as it came costs nothing more.

mod loaded;
mod pairs;
mod places;
mod reading;
mod restated;
mod rotated;
mod unrounded;

use std::collections::BTreeMap;

use dsv2_reference::stage::Stage;
use indexmap::IndexMap;

use super::dump::{Dump, Recognised, order};
use super::request::Request;
use super::truth::{self, Truth};
use crate::budget::Budgets;
use crate::error::Result;
use crate::judge::{self, Disposition};
use crate::local::Local;
use crate::trace::Trace;
use crate::values::Values;
pub use loaded::may_be_rounded;
pub use reading::{
    Order, all_readings, first_reading, has_other_readings, in_rows, is_in_order, order_of, readings_in,
};
pub use rotated::{ALONE_IN_HALVES, ALONE_IN_PAIRS, are_mixed};
pub use unrounded::{HALF, says_not_rounded, says_wider};

/// How often readings are tried anew: one that was wrong may have hidden another.
const ROUNDS: usize = 3;

/// A dump in the model's terms.
pub struct Aligned {
    /// The dump.
    pub dump: Dump,
    /// The truth about it.
    pub truth: Truth,
    /// What each stage should be by itself; not, if the request says what the stages should be.
    pub local: Option<Local>,
}

/// Brings a dump into the model's terms.
///
/// # Errors
/// If the reference refuses the case.
pub fn align(request: &Request, mut dump: Dump, mut truth: Truth) -> Result<Aligned> {
    let mut placed = Placed::new(request, &dump.trace, &truth);
    if request.expected.is_some() {
        placed.read_rotated_alike(&truth, None);
        dump.recognised.extend(placed.recognised());
        return Ok(Aligned { dump: Dump { trace: placed.trace, ..dump }, truth, local: None });
    }
    let mut judged = Judged::new(request, &dump, &truth, &placed.trace)?;
    let (batch, length) = (request.case.inputs.batch(), request.case.inputs.length());
    if judged.failures() > 0 && batch == length && batch > 1 {
        // Shapes do not tell. A single stage may be transposed by mistake, a whole dump hardly.
        let (turned, says) = order::batch_first(&dump.trace, batch, length, true);
        let other = Placed::new(request, &turned, &truth);
        let by_other = Judged::new(request, &dump, &truth, &other.trace)?;
        if says.len() > 1 && 4 * by_other.failures() <= judged.failures() {
            dump.trace = turned;
            dump.recognised.extend(says);
            truth = truth::compute(request, &dump)?;
            (placed, judged) = (other, by_other);
        }
    }
    for _ in 0..ROUNDS {
        if judged.failures() == 0 || !placed.reread(request, &dump, &truth, &judged)? {
            break;
        }
        judged = Judged::new(request, &dump, &truth, &placed.trace)?;
    }
    let as_it_came = placed.forget_unexplained(&dump.trace, &truth, &judged);
    if placed.read_rotated_alike(&truth, Some(&judged)) || as_it_came {
        judged = Judged::new(request, &dump, &truth, &placed.trace)?;
    }
    dump.recognised.extend(placed.recognised());
    dump.trace = placed.trace;
    if let Some(restated) = restated::restate(request, &dump, &truth, &judged)? {
        dump.trace = restated.trace;
        dump.recognised.extend(restated.recognised);
        (truth, judged) = (restated.truth, restated.judged);
    }
    if let Some(rounded) = loaded::with_rounded_weights(request, &dump, &truth, &judged)? {
        dump.assumed.push(rounded.says);
        judged = rounded.judged;
    }
    dump.assumed.extend(unrounded::judge_by_unrounded(request, &dump, &truth, &mut judged)?);
    Ok(Aligned { dump, truth, local: Some(judged.local) })
}

/// A dump, judged stage by stage.
struct Judged {
    local: Local,
    dispositions: BTreeMap<String, Disposition>,
}

impl Judged {
    fn new(request: &Request, dump: &Dump, truth: &Truth, trace: &Trace) -> Result<Self> {
        let local = Local::of(&request.case, trace, &truth.trace, dump.precision, request.cache)?;
        let dispositions = dispositions(request, &local, truth, trace)?;
        Ok(Judged { local, dispositions })
    }

    fn of(&self, stage: &str) -> Option<Disposition> {
        self.dispositions.get(stage).copied()
    }

    fn fails(&self, stage: &str) -> bool {
        self.of(stage).is_some_and(Disposition::fails)
    }

    fn passes(&self, stage: &str) -> bool {
        self.of(stage) == Some(Disposition::Pass)
    }

    fn failures(&self) -> usize {
        self.dispositions.values().filter(|disposition| disposition.fails()).count()
    }

    /// Whether these of `stages` would pass, each by itself.
    fn explains(&self, request: &Request, truth: &Truth, stages: &Trace, these: &[&str]) -> Result<bool> {
        let found = dispositions(request, &self.local, truth, stages)?;
        Ok(these.iter().all(|name| found.get(*name) == Some(&Disposition::Pass)))
    }
}

/// What becomes of each stage of `trace` by itself.
fn dispositions(
    request: &Request,
    local: &Local,
    truth: &Truth,
    trace: &Trace,
) -> Result<BTreeMap<String, Disposition>> {
    let budgets = Budgets::default();
    let propagated = judge::Truth { trace: &truth.trace, budgets: &budgets, rows: &truth.rows };
    let own = local.truth(&request.case.config, &truth.rows)?;
    let verdict = judge::judge(trace, &propagated, Some(&own), |_| false);
    Ok(verdict.stages.into_iter().map(|stage| (stage.stage, stage.disposition)).collect())
}

/// A dump whose tensors have been read in some way.
struct Placed {
    trace: Trace,
    says: IndexMap<String, Vec<&'static str>>,
}

impl Placed {
    /// Read as the shapes allow; where that leaves several ways, in the order in which they come unless another one is by
    /// far nearer to the truth.
    fn new(request: &Request, dump: &Trace, truth: &Truth) -> Self {
        let heads = request.case.config.num_attention_heads;
        let mut placed = Placed { trace: Trace::default(), says: IndexMap::new() };
        placed.trace = dump
            .iter()
            .map(|(name, values)| {
                let (values, says) = first_reading(name, values.clone(), truth.trace.get(name), &truth.rows, heads);
                placed.says.insert(name.to_owned(), says);
                (name.to_owned(), values)
            })
            .collect();
        placed
    }

    /// Reads stages that fail in another way, if they pass by it. Says whether there were some.
    fn reread(&mut self, request: &Request, dump: &Dump, truth: &Truth, judged: &Judged) -> Result<bool> {
        let heads = request.case.config.num_attention_heads;
        let mut found = Vec::new();
        for (name, values) in dump.trace.iter().filter(|(name, _)| judged.fails(name)) {
            for (values, says) in all_readings(name, values, truth.trace.get(name), heads) {
                let stage: Trace = [(name.to_owned(), values)].into_iter().collect();
                if self.says.get(name) != Some(&says) && judged.explains(request, truth, &stage, &[name])? {
                    found.extend(stage.iter().map(|(name, values)| (name.to_owned(), values.clone(), says.clone())));
                    break;
                }
            }
        }
        for turned in self.turned_pairs(request, dump, truth, judged)? {
            found.retain(|(name, ..)| turned.iter().all(|(part, ..)| part != name));
            found.extend(turned);
        }
        let any = !found.is_empty();
        for (name, values, says) in found {
            self.put(&name, values, says);
        }
        Ok(any)
    }

    /// Goes back to the order in which a stage came where another one explains nothing: neither this stage nor any of its
    /// kind passes by it. Says whether there were some.
    fn forget_unexplained(&mut self, dump: &Trace, truth: &Truth, judged: &Judged) -> bool {
        let kind = |name: &str| Stage::parse(name).map(|stage| stage.kind);
        let explained = |name: &str, says: &Vec<&str>| {
            let alike = self.says.iter().filter(|(other, of)| kind(other) == kind(name) && *of == says);
            alike.into_iter().any(|(other, _)| judged.passes(other))
        };
        let as_it_came = |name: &str| {
            let values = dump.get(name)?;
            (values.shape() == truth.trace.get(name)?.shape()).then(|| values.clone())
        };
        let unexplained: Vec<(String, Values)> = self
            .says
            .iter()
            .filter(|(name, says)| !says.is_empty() && judged.fails(name) && !explained(name, says))
            .filter_map(|(name, _)| Some((name.clone(), as_it_came(name)?)))
            .collect();
        let any = !unexplained.is_empty();
        unexplained.into_iter().for_each(|(name, values)| self.put(&name, values, Vec::new()));
        any
    }

    fn put(&mut self, name: &str, values: Values, says: Vec<&'static str>) {
        self.trace = std::mem::take(&mut self.trace).with(name, values);
        self.says.insert(name.to_owned(), says);
    }

    fn recognised(&self) -> Vec<Recognised> {
        let all = self.says.iter().flat_map(|(name, says)| says.iter().map(move |says| Recognised::new(name, says)));
        all.collect()
    }
}

#[cfg(test)]
mod tests;

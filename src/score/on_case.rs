//! One mutant or benign variant on one case: it runs once, and each kind of dump is cut out of that.

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use dsv2_reference::tap::NoTap;

use super::dumps::{ALL, Cut, HOOKS};
use super::moved::{Exact, Moved};
use super::{Hinted, Kill, Outcome, Pass};
use crate::backend::{Backend, Reference, Settings};
use crate::check::last_tokens::case_of;
use crate::check::{Checked, Request, check, check_without_hint};
use crate::error::Result;
use crate::golden::GoldenCase;
use crate::judge::{Disposition, StageVerdict, Verdict};
use crate::mutants::benign::Benign;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::mutants::{Class, Mutant};
use crate::precision::Precision;
use crate::trace::Trace;

/// A case that things are tried on.
pub struct OnCase<'a> {
    /// The case.
    pub golden: &'a GoldenCase,
    /// Its weights.
    pub weights: Wide<'a>,
    /// Whether hints are judged.
    pub hints: bool,
}

impl OnCase<'_> {
    /// What the judge says of a mutant, in each kind of dump that says anything of it; nothing if it changes nothing here.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn mutant(
        &self,
        request: &mut Request,
        cuts: &[Cut],
        mutant: &Mutant,
        precision: Precision,
    ) -> Result<Vec<Kill>> {
        let mut kills = Vec::new();
        let (candidate, planted) = self.mutated(mutant, precision)?;
        if planted.is_empty() {
            return Ok(kills);
        }
        for cut in cuts.iter().filter(|cut| self.shows(mutant, &planted, cut)) {
            let structural = mutant.class == Class::Structural;
            let checked = ask(request, cut, &candidate, self.hints && structural)?;
            let outcome = Outcome::of(&checked);
            let (named, ratio) = first_failure(&checked.verdict);
            let outputs =
                HOOKS.of(&self.golden.case).filter(|_| mutant.class == Class::Equivalent && cut.kind.is(&ALL));
            let at_outputs = outputs.map(|outputs| ask(request, &outputs, &candidate, false)).transpose()?;
            let moved = match outcome {
                Outcome::Passed if structural => Some(self.moved(mutant, cut, precision)?),
                _ => None,
            };
            let hinted = match outcome {
                Outcome::Killed if structural && self.hints => {
                    let exact = |mutant: &Mutant| Ok(self.cut(cut, &self.mutated(mutant, Precision::F64)?.0));
                    Some(Hinted::of(checked.hint.as_ref(), mutant, exact)?)
                }
                _ => None,
            };
            kills.push(Kill {
                mutant: 0,
                case: self.golden.name().to_owned(),
                precision,
                dump: cut.kind,
                outcome,
                moved,
                hinted,
                planted: planted.clone(),
                named,
                ratio,
                seen_at_outputs: at_outputs.is_some_and(|checked| Outcome::of(&checked) == Outcome::Killed),
            });
        }
        Ok(kills)
    }

    /// What the judge says of a benign variant, in each kind of dump.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn benign(
        &self,
        request: &mut Request,
        cuts: &[Cut],
        benign: &Benign,
        precision: Precision,
    ) -> Result<Vec<Pass>> {
        let candidate = self.varied(benign, precision)?;
        let pass = |cut: &Cut| {
            let checked = ask(request, cut, &candidate, false)?;
            Ok(Pass {
                benign: 0,
                case: self.golden.name().to_owned(),
                precision,
                dump: cut.kind,
                outcome: Outcome::of(&checked),
                flagged: checked.verdict.first_failure().map(why),
                ratio: checked.verdict.worst().and_then(StageVerdict::ratio).unwrap_or(0.0),
            })
        };
        cuts.iter().map(pass).collect()
    }

    fn cut(&self, cut: &Cut, trace: &Trace) -> Trace {
        cut.cut(trace, &self.golden.case.config)
    }

    fn moved(&self, mutant: &Mutant, cut: &Cut, precision: Precision) -> Result<Moved> {
        let (exact, _) = self.mutated(mutant, Precision::F64)?;
        let held = self.cut(cut, &exact);
        let case = &case_of(&self.golden.case, &held);
        Exact { case, held, choices: exact.choices(), precision }.moved()
    }

    /// Whether such a dump says anything of a mutant. One that only computes less precisely than it could need not show in a
    /// part of the stages; what an equivalent one has in a part of them is right unless they are those where it is planted.
    fn shows(&self, mutant: &Mutant, planted: &[&str], cut: &Cut) -> bool {
        let holds_planted = || planted.iter().any(|kind| cut.kind.holds_kind(kind, &self.golden.case.config));
        cut.kind.is(&ALL)
            || match mutant.class {
                Class::Structural => true,
                Class::Precision => false,
                Class::Equivalent => !holds_planted(),
            }
    }

    /// What a mutant has at every stage, and the kinds of stage that it changed.
    fn mutated(&self, mutant: &Mutant, precision: Precision) -> Result<(Trace, Vec<&'static str>)> {
        let mut tap = Planted::new(&mutant.variant, &self.weights, precision)?;
        let settings = Settings { precision, ..Settings::default() };
        let candidate = Reference.run(&self.golden.case, &settings, &mut tap)?;
        Ok((candidate, tap.acted()))
    }

    fn varied(&self, benign: &Benign, precision: Precision) -> Result<Trace> {
        let attention = if benign.absorbed { AttentionForm::Absorbed } else { AttentionForm::Expanded };
        let held = |stage: &str| !benign.absent.iter().any(|end| stage.ends_with(end));
        let settings = Settings { precision, attention, stages: Some(&held), ..Settings::default() };
        match &benign.variant {
            Some(variant) => {
                Reference.run(&self.golden.case, &settings, &mut Planted::new(variant, &self.weights, precision)?)
            }
            None => Reference.run(&self.golden.case, &settings, &mut NoTap),
        }
    }
}

/// What the judge says of such a dump of what a candidate has, in all stages.
fn ask(request: &mut Request, cut: &Cut, candidate: &Trace, hints: bool) -> Result<Checked> {
    request.candidate = cut.cut(candidate, &request.case.config);
    if hints { check(request) } else { check_without_hint(request) }
}

/// The stage and by how much it is over its budget.
fn why(stage: &StageVerdict) -> String {
    match stage.worst_metric() {
        Some((metric, error, budget)) => format!("{} ({metric} {error:.1e}, budget {budget:.1e})", stage.stage),
        None => stage.stage.clone(),
    }
}

/// The kind of the first stage that fails, and how far it is over its budget.
fn first_failure(verdict: &Verdict) -> (Option<&'static str>, f64) {
    let Some(first) = verdict.first_failure() else {
        return (None, verdict.worst().and_then(StageVerdict::ratio).unwrap_or(0.0));
    };
    let ratio = match first.disposition {
        Disposition::OverBudget => first.ratio().unwrap_or(f64::INFINITY),
        _ => f64::INFINITY,
    };
    (Stage::parse(&first.stage).map(|stage| stage.kind), ratio)
}

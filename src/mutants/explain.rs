//! From a wrong dump to the bug: which mutant computes what the dump holds?
//!
//! The f64 reference runs once for each structural mutant, under a teacher: each stage is computed from the dump's own values
//! of the stages before it, as far as the dump holds them. A mutant explains a dump if, by the mutant, every stage that the
//! dump holds is within a few times the noise of a plain implementation. If the dump holds logits alone, the mutant must
//! move the logits to exactly where they are, through the whole model, which is as good as a proof. What the dialects
//! disagree about are mutants too.

use dsv2_reference::stage::Stage;
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;

use super::tap::Planted;
use super::weights::Wide;
use super::{Class, catalogue};
use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::error::Result;
use crate::judge::routing::elsewhere;
use crate::local::{plain, usable};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// What a dump may come from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Explanation {
    /// The name of the mutant.
    pub mutant: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Where an implementation that did so was reported.
    pub report: Option<&'static str>,
    /// The first stage that is wrong by the reference.
    pub stage: String,
    /// How far the dump is from the mutant there: relative error in the Euclidean norm, or the part of the tokens that go to
    /// other experts.
    pub error: f64,
    /// How far it is from the reference there.
    pub unexplained: f64,
}

/// How many times the noise a right stage may be off.
const NOISE: f64 = 8.0;
/// What counts as no noise.
const LEAST: f64 = 1.0 / (1 << 22) as f64;

/// The mutants that explain `candidate`, the best first; none, if nothing is wrong with it, or nothing explains it.
///
/// # Errors
/// If the reference refuses the case.
pub fn explain(case: &Case, candidate: &Trace, precision: Precision) -> Result<Vec<Explanation>> {
    let held = |name: &str| candidate.get(name).is_some();
    let settings = Settings { precision: Precision::F64, stages: Some(&held), ..Settings::default() };
    let rows = ComparedRows::of(&case.inputs);
    let teacher = usable(candidate, &Reference.run(case, &settings, &mut NoTap)?, &case.config, &rows);
    let dump = Dump { case, candidate, teacher, rows };
    let truth = dump.run(Precision::F64, &mut NoTap)?;
    let noise = dump.errors(&dump.run(plain(precision), &mut NoTap)?, &truth);
    let allowed = |stage: &str| NOISE * noise.get(stage).copied().unwrap_or(0.0).max(LEAST);
    let by_reference = dump.errors(candidate, &truth);
    let Some((stage, &unexplained)) = by_reference.iter().find(|(stage, error)| **error > allowed(stage)) else {
        return Ok(Vec::new());
    };

    let weights = Wide::new(case);
    let mut found = Vec::new();
    for mutant in catalogue().filter(|mutant| mutant.class == Class::Structural && (mutant.applies)(case)) {
        let mut tap = Planted::new(&mutant.variant, &weights, Precision::F64)?.taught(&dump.teacher);
        let errors = dump.errors(candidate, &dump.run(Precision::F64, &mut tap)?);
        if errors.iter().all(|(stage, error)| *error <= allowed(stage)) {
            found.push(Explanation {
                mutant: mutant.id,
                what: mutant.what,
                report: mutant.report,
                stage: stage.clone(),
                error: errors.get(stage).copied().unwrap_or(0.0),
                unexplained,
            });
        }
    }
    found.sort_by(|a, b| a.error.total_cmp(&b.error));
    Ok(found)
}

struct Dump<'a> {
    case: &'a Case,
    candidate: &'a Trace,
    /// What of it can stand in for the model's own values.
    teacher: Trace,
    rows: ComparedRows,
}

impl Dump<'_> {
    /// The stages that the dump holds, each from the dump's own values of those before it.
    fn run(&self, precision: Precision, tap: &mut dyn AnyTap) -> Result<Trace> {
        let held = |name: &str| self.candidate.get(name).is_some();
        let teacher = Some(&self.teacher);
        let plain_errors = precision != Precision::F64;
        let settings = Settings { precision, stages: Some(&held), teacher, plain_errors, ..Settings::default() };
        Reference.run(self.case, &settings, tap)
    }

    /// How far each stage of `got` is from `want`, in forward order.
    fn errors(&self, got: &Trace, want: &Trace) -> IndexMap<String, f64> {
        let error = |(name, want): (&str, &Values)| {
            let got = got.get(name)?;
            let error = match (got.index(), want.index()) {
                (Some(got), Some(want)) => {
                    let rows = self.rows.of_stage(&Stage::parse(name)?, want.shape());
                    elsewhere(&fit(got, want.shape())?, want, rows.as_deref())
                }
                _ => {
                    let compared = self.rows.measure(name, got, want)?;
                    if compared.nonfinite.is_some() { f64::INFINITY } else { compared.metrics.l2 }
                }
            };
            Some((name.to_owned(), error))
        };
        want.iter().filter_map(error).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::GoldenCases;
    use crate::mutants::Mutant;

    fn dump(case: &Case, mutant: &Mutant, precision: Precision, held: &dyn Fn(&str) -> bool) -> Trace {
        let weights = Wide::new(case);
        let settings = Settings { precision, stages: Some(held), ..Settings::default() };
        Reference.run(case, &settings, &mut Planted::new(&mutant.variant, &weights, precision).unwrap()).unwrap()
    }

    #[test]
    fn logits_alone_tell_which_rule_is_wrong() {
        let golden = GoldenCases::embedded().load("trained-tiny-grouped").unwrap();
        for id in ["scale_no_mscale", "group_top2", "renorm"] {
            let mutant = catalogue().find(|mutant| mutant.id == id).unwrap();
            let logits = dump(&golden.case, mutant, Precision::F32, &|name| name == "lm_head");
            let found = explain(&golden.case, &logits, Precision::F32).unwrap();
            let ids: Vec<_> = found.iter().map(|explanation| explanation.mutant).collect();
            assert!(ids.contains(&id), "{id}: {ids:?}");
            // renorm is softmax_after_topk
            assert!(ids.len() <= 2, "{id}: {ids:?}");
        }
    }

    #[test]
    fn a_dump_of_all_stages_is_explained_stage_by_stage() {
        let golden = GoldenCases::embedded().load("v2").unwrap();
        let mutant = catalogue().find(|mutant| mutant.id == "kv_an_over_all").unwrap();
        let all = dump(&golden.case, mutant, Precision::Bf16, &|_| true);
        let found = explain(&golden.case, &all, Precision::Bf16).unwrap();
        assert_eq!(found[0].mutant, "kv_an_over_all");
        assert_eq!(found[0].stage, "model.layers.0.self_attn.kv_a_layernorm");
    }

    #[test]
    fn nothing_is_explained_where_nothing_is_wrong() {
        let golden = GoldenCases::embedded().load("v2").unwrap();
        let settings = Settings { precision: Precision::F32, ..Settings::default() };
        let right = Reference.run(&golden.case, &settings, &mut NoTap).unwrap();
        assert_eq!(explain(&golden.case, &right, Precision::F32).unwrap(), []);
    }
}

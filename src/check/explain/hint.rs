//! What a wrong stage looks like, and which known bugs (mutants) look the same.
//!
//! Where an error is, and where it is not, says much: a wrong softmax scale or rotation cannot show at the first token, which
//! attends to itself alone; a forgotten factor leaves everything in proportion. Each mutant that is planted at the stage
//! is run on a small golden case, and its looks are compared.

use dsv2_metrics::compare;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::{Layout, Stage};
use dsv2_reference::tap::NoTap;
use ndarray::{ArrayD, Axis};

use crate::backend::{Backend, Reference, Settings};
use crate::error::Result;
use crate::golden::{GoldenCase, GoldenCases};
use crate::judge::{LocalTruth, StageVerdict, Truth, judge};
use crate::local::Local;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::mutants::{Class, Mutant, catalogue};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// Golden cases that the mutants are run on; together they have everything that a mutant may need.
const CASES: [&str; 4] = ["v2", "v2-lite", "left-padding", "chunked-prefill"];
/// How many mutants a hint names.
const NAMED: usize = 4;
/// How many times the budget may be left when a common factor is taken out.
const LEFT: f64 = 4.0;

/// What there is to say of the first wrong stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Sentences, the facts first.
    pub says: Vec<String>,
    /// The mutants that compute what the dump holds; if there are several, no one can tell them apart there.
    pub names: Vec<&'static str>,
}

/// What an error looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Looks {
    /// Whether the first token of each sequence is right.
    first_token_right: bool,
    /// By what everything is multiplied, if nothing else is wrong.
    factor: Option<f64>,
}

impl Looks {
    fn alike(self, other: Looks) -> bool {
        self.first_token_right == other.first_token_right && self.factor.is_some() == other.factor.is_some()
    }
}

/// A hint on what may be wrong with `failed`, of a candidate in the model's layouts.
///
/// # Errors
/// If a golden case cannot be run.
pub fn hint(failed: &StageVerdict, candidate: &Trace, local: &LocalTruth<'_>, batch: usize) -> Result<Option<Hint>> {
    let Some(stage) = Stage::parse(&failed.stage) else { return Ok(None) };
    let seen = looks(&failed.stage, candidate, &local.truth, batch);
    let mut hint = Vec::new();
    if let Some(Looks { first_token_right: true, .. }) = seen {
        hint.push("the error is zero at the first token of each sequence".to_owned());
    }
    if let Some(Looks { factor: Some(factor), .. }) = seen {
        hint.push(format!("every number is {factor:.4} times what it should be"));
    }
    let alike = match seen {
        Some(seen) => like(seen, stage.kind)?,
        None => Vec::new(),
    };
    if !alike.is_empty() {
        let named =
            alike.iter().take(NAMED).map(|mutant| format!("`{}` ({})", mutant.id, mutant.what.trim_end_matches('.')));
        let others = alike.len().saturating_sub(NAMED);
        let others = if others > 0 { format!(", or {others} others") } else { String::new() };
        hint.push(format!("these known bugs look the same: {}{others}", named.collect::<Vec<_>>().join(", ")));
    }
    let names = alike.iter().take(NAMED).map(|mutant| mutant.id).collect();
    Ok((!hint.is_empty()).then_some(Hint { says: hint, names }))
}

/// The structural mutants planted at stages of this kind that look so.
fn like(seen: Looks, kind: &str) -> Result<Vec<&'static Mutant>> {
    let mut cases = Vec::new();
    for name in CASES {
        cases.push(GoldenCases::embedded().load(name)?);
    }
    let mut alike = Vec::new();
    let planted = |mutant: &&Mutant| mutant.variant.acts().next().is_some_and(|(kinds, _)| kinds.contains(&kind));
    for mutant in catalogue().filter(|mutant| mutant.class == Class::Structural).filter(planted) {
        let Some(golden) = cases.iter().find(|golden| (mutant.applies)(&golden.case)) else { continue };
        if looks_of(mutant, kind, golden)?.is_some_and(|looks| looks.alike(seen)) {
            alike.push(mutant);
        }
    }
    Ok(alike)
}

/// What a mutant looks like on a golden case, at the first stage of the kind that it makes fail.
fn looks_of(mutant: &Mutant, kind: &str, golden: &GoldenCase) -> Result<Option<Looks>> {
    let case = &golden.case;
    let weights = Wide::new(case);
    let model = Reference.run(case, &Settings::default(), &mut NoTap)?;
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    let wrong = Reference.run(case, &settings, &mut Planted::new(&mutant.variant, &weights, Precision::F32)?)?;
    let local = Local::of(case, &wrong, &model, Precision::F32, CacheFormat::Plain)?;
    let rows = ComparedRows::of(&case.inputs);
    let local = local.truth(&case.config, &rows)?;
    let verdict = judge(&wrong, &local.truth, Some(&local), |_| false);
    let of_kind = |stage: &&StageVerdict| Stage::parse(&stage.stage).is_some_and(|stage| stage.kind == kind);
    let failed = verdict.stages.iter().filter(of_kind).find(|stage| stage.disposition.fails());
    Ok(failed.and_then(|failed| looks(&failed.stage, &wrong, &local.truth, case.inputs.batch())))
}

fn looks(name: &str, candidate: &Trace, truth: &Truth<'_>, batch: usize) -> Option<Looks> {
    let stage = Stage::parse(name)?;
    let want = truth.trace.get(name)?.real()?;
    let got = fit(candidate.get(name).and_then(Values::real)?, want.shape())?;
    let budget = truth.budgets.get(name)?;
    let factor = {
        let products = |a: &ArrayD<f64>, b: &ArrayD<f64>| {
            a.iter().zip(b).filter(|(x, y)| x.is_finite() && y.is_finite()).map(|(x, y)| x * y).sum::<f64>()
        };
        let factor = products(&got, want) / products(want, want);
        let left = truth.rows.compare(&stage, &got, &(want * factor)).metrics.l2;
        (left <= LEFT * budget.l2 && factor.is_finite()).then_some(factor)
    };
    let first = |a: &ArrayD<f64>| first_tokens(a, stage.layout, batch);
    let first_token_right = match (first(&got), first(want)) {
        (Some(got), Some(want)) => {
            let compared = compare(got.view(), want.view(), None);
            compared.nonfinite.is_none() && compared.metrics.l2 <= budget.l2
        }
        _ => false,
    };
    Some(Looks { first_token_right, factor })
}

/// The first token of each sequence.
fn first_tokens(a: &ArrayD<f64>, layout: Layout, batch: usize) -> Option<ArrayD<f64>> {
    let axis = match layout {
        Layout::Tokens | Layout::Keys | Layout::Table => 1,
        Layout::Heads | Layout::Scores | Layout::Weights => 2,
        Layout::Flat => {
            let width = *a.shape().last()?;
            let split = a.to_shape((batch, a.len().checked_div(batch * width)?, width)).ok()?;
            return Some(split.index_axis(Axis(1), 0).to_owned().into_dyn());
        }
        Layout::Logits | Layout::Whole => return None,
    };
    (a.ndim() > axis && a.len_of(Axis(axis)) > 0).then(|| a.index_axis(Axis(axis), 0).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Request, check};

    fn hint_for(case: &str, spoil: impl Fn(&str, &ArrayD<f64>) -> Option<ArrayD<f64>>) -> String {
        let case = GoldenCases::embedded().load(case).unwrap().case;
        let settings = Settings { precision: Precision::F32, ..Settings::default() };
        let trace = Reference.run(&case, &settings, &mut NoTap).unwrap();
        let spoilt = |(name, values): (&str, &Values)| match values {
            Values::Real(dtype, a) => {
                (name.to_owned(), Values::Real(*dtype, spoil(name, a).unwrap_or_else(|| a.clone())))
            }
            values => (name.to_owned(), values.clone()),
        };
        let candidate = trace.iter().map(spoilt).collect();
        check(&Request::new(case, candidate)).unwrap().hint.unwrap_or_default().says.join("; ")
    }

    #[test]
    fn a_forgotten_factor_is_told_with_the_mutants_that_forget_one() {
        let hint = hint_for("v2-lite", |name, a| name.ends_with("0.self_attn.attn_scores").then(|| a / 1.5896));
        assert!(hint.contains("every number is 0.6291 times what it should be"), "{hint}");
        assert!(hint.contains("scale_no_mscale"), "{hint}");
    }

    #[test]
    fn an_error_that_spares_the_first_token_is_told() {
        let hint = hint_for("v2", |name, a| {
            name.ends_with("0.self_attn.q_pe").then(|| {
                let mut a = a.clone();
                a.slice_axis_mut(Axis(2), ndarray::Slice::from(1..)).mapv_inplace(|x| -x);
                a
            })
        });
        assert!(hint.contains("zero at the first token"), "{hint}");
    }
}

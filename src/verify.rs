//! `dsv2 verify`: every golden case on every backend.

pub mod need;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::tap::NoTap;

use crate::backend::{Backend, Settings};
use crate::case::Case;
use crate::error::Result;
use crate::golden::{GoldenCase, GoldenCases};
use crate::judge::{LocalTruth, Truth, judge};
use crate::local::{Local, of_partial_sums};
use crate::outcome::{Item, Outcome};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::schedule;
use crate::taps::AnyTap;
use crate::waivers::Waivers;

/// What to verify.
pub struct Plan<'a> {
    /// Where the cases come from.
    pub golden: &'a GoldenCases,
    /// Which of them.
    pub cases: Vec<String>,
    /// What is verified, and in which type.
    pub candidates: Vec<(&'a dyn Backend, Precision)>,
    /// In which form of attention.
    pub attention: AttentionForm,
    /// How many cases run at a time; no more than there are processors.
    pub at_a_time: usize,
    /// Failures that are accepted for now.
    pub waivers: Waivers,
}

/// Runs a golden case on a backend and judges it. `tap` sees every stage, and may change it.
pub fn run(
    golden: &GoldenCase,
    backend: &dyn Backend,
    precision: Precision,
    attention: AttentionForm,
    tap: &mut dyn AnyTap,
) -> Outcome {
    // In bf16 a near tie may flip, which says nothing about the arithmetic: the choices are the expected ones.
    let choices = precision.narrow().map(|_| golden.expected.choices());
    let replay = choices.as_ref();
    let settings = Settings { precision, attention, replay, ..Settings::default() };
    if let Some(reason) = backend.cannot_run(&golden.case, &settings) {
        return Outcome::NotSupported(reason);
    }
    let trace = match guarded(|| backend.run(&golden.case, &settings, tap)) {
        Ok(trace) => trace,
        Err(outcome) => return outcome,
    };
    let case = Case { partial_sums: backend.partial_sums(), ..golden.case.clone() };
    let budgets = match of_partial_sums(&case, replay, precision) {
        Ok(noise) => golden.budgets_beside(&noise, precision),
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let rows = ComparedRows::of(&golden.case.inputs);
    let truth = Truth { trace: &golden.expected, budgets: &budgets, rows: &rows };
    // The absorbed form expands no keys and values.
    let not_expanded = |stage: &str| attention == AttentionForm::Absorbed && stage.ends_with(".kv_b_proj");
    let required = |stage: &str| !not_expanded(stage) && !backend.leaves_out(stage, &settings);
    let judged = Local::of(&case, &trace, &golden.expected, precision, settings.cache).and_then(|local| {
        let own = local.truth(&golden.case.config, &rows)?;
        // a choice that was forced is not the router's own
        let own = LocalTruth { method: own.method.filter(|_| replay.is_none()), ..own };
        Ok(judge(&trace, &truth, Some(&own), required))
    });
    match judged {
        Err(error) => Outcome::Refused(error.to_string()),
        Ok(verdict) if verdict.passes() && verdict.compared() == 0 => {
            Outcome::NotJudged("no stage could be compared".to_owned())
        }
        Ok(verdict) => Outcome::Judged(verdict),
    }
}

/// What comes of running a backend, which is anybody's code, if it does not work.
pub(crate) fn guarded<V>(run: impl FnOnce() -> Result<V>) -> Result<V, Outcome> {
    // What was changed half when it panicked does not matter: nobody looks at it again.
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Outcome::Refused(error.to_string())),
        Err(payload) => Err(Outcome::Crashed(message(&*payload))),
    }
}

/// What a panic says.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

/// Runs the plan, several cases at a time. The items come back in the order of the plan; `done` sees each as soon as it and
/// all before it are there.
///
/// # Errors
/// If a golden case is at fault.
pub fn verify(plan: &Plan<'_>, mut done: impl FnMut(&Item)) -> Result<Vec<Item>> {
    let cases = plan.cases.iter().collect();
    let items = schedule::in_order(
        plan.at_a_time,
        cases,
        |name| verify_case(plan, name),
        |_, items| items.iter().for_each(&mut done),
    )?;
    Ok(items.into_iter().flatten().collect())
}

fn verify_case(plan: &Plan<'_>, name: &str) -> Result<Vec<Item>> {
    let golden = plan.golden.load(name)?;
    let mut items = Vec::new();
    for &(backend, precision) in &plan.candidates {
        let start = Instant::now();
        let outcome = run(&golden, backend, precision, plan.attention, &mut NoTap);
        let outcome = plan.waivers.apply(backend.name(), name, outcome);
        let elapsed = start.elapsed();
        items.push(Item { case: name.to_owned(), backend: backend.name(), precision, outcome, elapsed });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Real;
    use dsv2_reference::tap::{StageValue, Tap};

    use super::*;
    use crate::backend::Reference;
    use crate::judge::Disposition;

    #[test]
    fn items_come_in_the_order_of_the_plan() {
        let golden = GoldenCases::embedded();
        let cases = golden.names().to_vec();
        let candidates: Vec<(&dyn Backend, Precision)> =
            vec![(&Reference, Precision::F32), (&Reference, Precision::Bf16)];
        let attention = AttentionForm::Absorbed;
        let plan =
            Plan { golden: &golden, cases, candidates, attention, at_a_time: usize::MAX, waivers: Waivers::default() };
        let mut told = Vec::new();
        let items = verify(&plan, |item| told.push((item.case.clone(), item.precision))).unwrap();
        let planned: Vec<_> = plan
            .cases
            .iter()
            .flat_map(|case| [(case.clone(), Precision::F32), (case.clone(), Precision::Bf16)])
            .collect();
        assert_eq!(told, planned);
        assert!(items.iter().all(|item| !item.outcome.fails()));
    }

    /// A reference with a bug: one kind of stage is scaled.
    struct Scaled(&'static str, f64);

    impl<T: Real> Tap<T> for Scaled {
        fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
            if let (true, StageValue::Real(mut value)) = (name.ends_with(self.0), value) {
                value.mapv_inplace(|x| x * T::from_f64(self.1));
            }
        }
    }

    fn first_wrong(case: &str, precision: Precision, mut bug: Scaled) -> Option<(String, Disposition)> {
        let golden = GoldenCases::embedded().load(case).unwrap();
        let outcome = run(&golden, &Reference, precision, AttentionForm::Expanded, &mut bug);
        let Outcome::Judged(verdict) = outcome else { panic!("{outcome:?}") };
        verdict.first_failure().map(|stage| (stage.stage.clone(), stage.disposition))
    }

    #[test]
    fn a_wrong_softmax_scale_is_found_where_it_is() {
        let scores = "model.layers.0.self_attn.attn_scores".to_owned();
        for precision in [Precision::F64, Precision::F32, Precision::Bf16] {
            // mscale squared, which Transformers forgot until 5.15
            let found = first_wrong("v2-lite", precision, Scaled("attn_scores", 1.0 / 1.5896));
            assert_eq!(found, Some((scores.clone(), Disposition::OverBudget)));
        }
        assert_eq!(first_wrong("v2-lite", Precision::F32, Scaled("attn_scores", 1.0)), None);
    }

    #[test]
    fn an_error_of_a_hundred_thousandth_is_found_in_f32() {
        let found = first_wrong("v2", Precision::F32, Scaled("model.layers.1.mlp.shared_experts", 1.0 + 1e-5));
        assert_eq!(found, Some(("model.layers.1.mlp.shared_experts".to_owned(), Disposition::OverBudget)));
    }

    #[test]
    fn nan_is_found_where_it_begins() {
        let found = first_wrong("v2", Precision::F64, Scaled("model.layers.1.self_attn.o_proj", f64::NAN));
        assert_eq!(found, Some(("model.layers.1.self_attn.o_proj".to_owned(), Disposition::NonFinite)));
    }
}

//! `dsv2 verify`: every golden case on every backend.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dsv2_reference::attention::AttentionForm;
use dsv2_reference::tap::NoTap;

use crate::Result;
use crate::backend::{Backend, Precision, Settings};
use crate::golden::{GoldenCase, Suite};
use crate::judge::{Truth, Verdict, judge};
use crate::rows::ComparedRows;
use crate::taps::AnyTap;

/// What to verify.
pub struct Plan<'a> {
    /// Where the cases come from.
    pub suite: &'a Suite,
    /// Which of them.
    pub cases: Vec<String>,
    /// What is verified.
    pub backends: Vec<&'a dyn Backend>,
    /// In which types.
    pub precisions: Vec<Precision>,
    /// In which form of attention.
    pub attention: AttentionForm,
}

/// One case, on one backend, in one type.
#[derive(Debug)]
pub struct Item {
    /// The case.
    pub case: String,
    /// The backend.
    pub backend: &'static str,
    /// The type it computed in.
    pub precision: Precision,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// What came of an item.
#[derive(Debug)]
pub enum Outcome {
    /// It ran, and was judged.
    Judged(Verdict),
    /// It could not run here, for this reason. Neither good nor bad.
    NotRun(String),
    /// The backend refused a case that it should run.
    Refused(String),
}

impl Outcome {
    /// Whether it makes the whole fail.
    pub fn fails(&self) -> bool {
        match self {
            Outcome::Judged(verdict) => !verdict.passes(),
            Outcome::NotRun(_) => false,
            Outcome::Refused(_) => true,
        }
    }
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
    let replay = (precision == Precision::Bf16).then_some(&golden.expected);
    let settings = Settings { precision, attention, stages: None, replay };
    if let Some(reason) = backend.cannot_run(&golden.case, &settings) {
        return Outcome::NotRun(reason);
    }
    let trace = match backend.run(&golden.case, &settings, tap) {
        Ok(trace) => trace,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let budgets = golden.budgets(precision);
    let rows = ComparedRows::of(&golden.case.inputs);
    let truth = Truth { trace: &golden.expected, budgets: &budgets, rows: &rows };
    // The absorbed form expands no keys and values.
    let required = |stage: &str| !(attention == AttentionForm::Absorbed && stage.ends_with(".kv_b_proj"));
    Outcome::Judged(judge(&trace, &truth, required))
}

/// Runs the plan, several cases at a time. The items come back in the order of the plan; `done` sees each as soon as it and
/// all before it are there.
///
/// # Errors
/// If a golden case is at fault.
pub fn verify(plan: &Plan<'_>, mut done: impl FnMut(&Item)) -> Result<Vec<Item>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(plan.cases.len());
    let next_case = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let next_case = &next_case;
            scope.spawn(move || {
                while let Some(name) = plan.cases.get(next_case.fetch_add(1, Ordering::Relaxed)) {
                    // the receiver is gone once a case was at fault
                    if sender.send((name, verify_case(plan, name))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut waiting, mut items) = (HashMap::new(), Vec::new());
        let mut order = plan.cases.iter().peekable();
        for (name, result) in results {
            waiting.insert(name, result?);
            while let Some(case) = order.peek().and_then(|name| waiting.remove(name)) {
                order.next();
                case.iter().for_each(&mut done);
                items.extend(case);
            }
        }
        Ok(items)
    })
}

fn verify_case(plan: &Plan<'_>, name: &str) -> Result<Vec<Item>> {
    let golden = plan.suite.load(name)?;
    let mut items = Vec::new();
    for &backend in &plan.backends {
        for &precision in &plan.precisions {
            let start = Instant::now();
            let outcome = run(&golden, backend, precision, plan.attention, &mut NoTap);
            let elapsed = start.elapsed();
            items.push(Item { case: name.to_owned(), backend: backend.name(), precision, outcome, elapsed });
        }
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
        let suite = Suite::embedded();
        let cases = suite.names().to_vec();
        let (precisions, attention) = (vec![Precision::F32, Precision::Bf16], AttentionForm::Absorbed);
        let plan = Plan { suite: &suite, cases, backends: vec![&Reference], precisions, attention };
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
        let golden = Suite::embedded().load(case).unwrap();
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

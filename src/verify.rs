//! `dsv2 verify`: every golden case on every backend.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::tap::NoTap;
use schemars::JsonSchema;
use serde::Serialize;

use crate::Result;
use crate::backend::{Backend, Precision, Settings};
use crate::golden::{GoldenCase, Suite};
use crate::judge::{LocalTruth, Truth, Verdict, judge};
use crate::local::Local;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::waivers::{Waiver, Waivers};

/// What to verify.
pub struct Plan<'a> {
    /// Where the cases come from.
    pub suite: &'a Suite,
    /// Which of them.
    pub cases: Vec<String>,
    /// What is verified, and in which type.
    pub candidates: Vec<(&'a dyn Backend, Precision)>,
    /// In which form of attention.
    pub attention: AttentionForm,
    /// Failures that are accepted for now.
    pub waivers: Waivers,
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
    /// The backend says that it cannot run this here, for this reason. Neither good nor bad.
    NotSupported(String),
    /// It ran, but nothing of it could be compared, for this reason. Neither good nor bad.
    NotJudged(String),
    /// The backend refused a case that it should run.
    Refused(String),
    /// The backend panicked.
    Crashed(String),
    /// It failed, as somebody knows and has written down.
    Waived(Box<Outcome>, Box<Waiver>),
}

/// An outcome in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Every stage is within its budget.
    Pass,
    /// A stage is not, or a case was refused that should run.
    Fail,
    /// The backend cannot run it here, and says so.
    NotSupported,
    /// Nothing could be compared.
    NotJudged,
    /// The backend panicked.
    Crashed,
    /// It fails, and a waiver says why that is accepted for now.
    Waived,
}

impl Outcome {
    /// In a word.
    pub fn conclusion(&self) -> Conclusion {
        match self {
            Outcome::Judged(verdict) if verdict.passes() => Conclusion::Pass,
            Outcome::Judged(_) | Outcome::Refused(_) => Conclusion::Fail,
            Outcome::NotSupported(_) => Conclusion::NotSupported,
            Outcome::NotJudged(_) => Conclusion::NotJudged,
            Outcome::Crashed(_) => Conclusion::Crashed,
            Outcome::Waived(..) => Conclusion::Waived,
        }
    }

    /// Whether it makes the whole fail.
    pub fn fails(&self) -> bool {
        matches!(self.conclusion(), Conclusion::Fail | Conclusion::Crashed)
    }

    /// The verdict on the stages, if there is one.
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            Outcome::Judged(verdict) => Some(verdict),
            Outcome::Waived(outcome, _) => outcome.verdict(),
            _ => None,
        }
    }

    /// Why there is no verdict, or why it does not count.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Judged(_) => None,
            Outcome::NotSupported(reason)
            | Outcome::NotJudged(reason)
            | Outcome::Refused(reason)
            | Outcome::Crashed(reason) => Some(reason),
            Outcome::Waived(_, waiver) => Some(&waiver.reason),
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
    let budgets = golden.budgets(precision);
    let rows = ComparedRows::of(&golden.case.inputs);
    let truth = Truth { trace: &golden.expected, budgets: &budgets, rows: &rows };
    // The absorbed form expands no keys and values.
    let not_expanded = |stage: &str| attention == AttentionForm::Absorbed && stage.ends_with(".kv_b_proj");
    let required = |stage: &str| !not_expanded(stage) && !backend.leaves_out(stage, &settings);
    let judged = Local::of(&golden.case, &trace, &golden.expected, precision, settings.cache).and_then(|local| {
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
        let suite = Suite::embedded();
        let cases = suite.names().to_vec();
        let candidates: Vec<(&dyn Backend, Precision)> =
            vec![(&Reference, Precision::F32), (&Reference, Precision::Bf16)];
        let attention = AttentionForm::Absorbed;
        let plan = Plan { suite: &suite, cases, candidates, attention, waivers: Waivers::default() };
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

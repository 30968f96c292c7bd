//! The tier of whole numbers: sums that come out the same in any order.
//!
//! Budgets forgive what rounding explains. Where nothing is rounded nothing need be forgiven: with weights and inputs of
//! -1, 0 and 1 every product and every partial sum is a small whole number, which fp32 holds exactly, whatever the order. So
//! a matrix product, a lookup, a rotation by whole numbers, or the sum over experts has to be right to the bit, and a
//! single wrong index, stride, tile or mask shows.
//!
//! Norms, softmax and sigmoid make fractions of whole numbers, so the stages are not fed to each other: a *teacher* puts
//! whole numbers in the place of every stage before the next one is computed (and the activation is ReLU). In bf16 the sums
//! are those of fp32, rounded once.

use std::collections::BTreeSet;
use std::sync::Arc;

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::*;
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{fnv1a64, splitmix64};
use dsv2_reference::{AttentionForm, Dtype, Tensor};
use ndarray::ArrayD;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::Budgets;
use crate::case::Case;
use crate::error::Result;
use crate::golden::GoldenCase;
use crate::judge::{LocalTruth, Truth, Verdict, judge};
use crate::local::stored;
use crate::outcome::Outcome;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::trace::Trace;
use crate::values::Values;
use crate::verify::guarded;

/// Stages that are made of whole numbers by adding and multiplying alone.
const EXACT: [&str; 23] = [
    EMBED_TOKENS,
    Q_PROJ,
    Q_A_PROJ,
    Q_B_PROJ,
    KV_A_PROJ,
    Q_PE,
    K_PE,
    CACHED_KV,
    CACHED_K_PE,
    KV_B_PROJ,
    ATTN_OUTPUT,
    O_PROJ,
    GATE_PROJ,
    UP_PROJ,
    DOWN_PROJ,
    ROUTER_LOGITS,
    EXPERTS,
    SHARED_EXPERTS,
    MLP,
    LAYER,
    LM_HEAD,
    SCORE,
    POOLED_LOGITS,
];

/// Whether the stage has to be right to the bit. In a narrow type the experts need not be: there are sums within them that are
/// no stages, and a correct implementation may store them.
fn is_exact(name: &str, precision: Precision) -> bool {
    let Some(Stage { kind, .. }) = Stage::parse(name) else { return false };
    let summed_within = precision.narrow().is_some() && [EXPERTS, SHARED_EXPERTS].contains(&kind);
    EXACT.contains(&kind) && !summed_within
}

/// Runs a golden case with whole numbers for weights, inputs and the inputs of every stage, and compares to the bit what is a
/// sum of products. `tap` sees each stage, and may change it.
pub fn run(
    golden: &GoldenCase,
    backend: &dyn Backend,
    precision: Precision,
    attention: AttentionForm,
    tap: &mut dyn AnyTap,
) -> Outcome {
    let judged = || -> Result<Option<Verdict>> {
        let case = whole_numbers(&golden.case)?;
        let shapes = Reference.run(&case, &Settings { attention, ..Settings::default() }, &mut NoTap)?;
        let teacher = teacher(&shapes, &case);
        let wanted = |name: &str| is_exact(name, precision);
        let with = |precision| Settings {
            precision,
            attention,
            stages: Some(&wanted),
            teacher: Some(&teacher),
            ..Settings::default()
        };
        let settings = with(precision);
        if backend.cannot_run(&case, &settings).is_some() {
            return Ok(None);
        }
        let truth = Reference.run(&case, &with(Precision::F64), &mut NoTap)?;
        let truth: Trace =
            truth.iter().map(|(name, values)| (name.to_owned(), in_storage(precision, name, values))).collect();
        let candidate = backend.run(&case, &settings, tap)?;
        let rows = ComparedRows::of(&case.inputs);
        let truth = Truth { trace: &truth, budgets: &Budgets::default(), rows: &rows };
        let exact: BTreeSet<String> = truth.trace.iter().map(|(name, _)| name.to_owned()).collect();
        let local = LocalTruth { truth, exact: &exact, method: None };
        Ok(Some(judge(&candidate, &truth, Some(&local), |_| true)))
    };
    match guarded(judged) {
        Ok(Some(verdict)) => Outcome::Judged(verdict),
        Ok(None) => Outcome::NotSupported("cannot be given the inputs of a stage".to_owned()),
        Err(outcome) => outcome,
    }
}

/// The case with whole numbers for its weights, and ReLU.
fn whole_numbers(case: &Case) -> Result<Case> {
    let config = dsv2_reference::DeepseekV2Config { hidden_act: "relu".to_owned(), ..case.config.clone() };
    Case { config, weights: Arc::new(WholeNumbers), part: None, ..case.clone() }.checked()
}

/// Weights of -1, 0 and 1.
struct WholeNumbers;

impl WeightSource for WholeNumbers {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, dsv2_reference::Error> {
        Ok(Tensor::from_values(Dtype::Bf16, shape, numbers(name, shape.iter().product())))
    }

    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

/// -1, 0 or 1, by name and place.
fn numbers(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let base = splitmix64(fnv1a64(name));
    (0..count as u64).map(move |i| (splitmix64(base.wrapping_add(i)) % 3) as f64 - 1.0)
}

/// Whole numbers in the place of each stage; the first `k` experts from a different one on for each token.
fn teacher(shapes: &Trace, case: &Case) -> Trace {
    let experts = case.config.num_experts() as i64;
    let stage = |(name, values): (&str, &Values)| {
        let shape = values.shape();
        let values = match values {
            Values::Index(_) => {
                let k = shape.last().copied().unwrap_or(1) as i64;
                let expert = |i: i64| (i / k + i % k) % experts;
                Values::Index(ArrayD::from_shape_vec(shape, (0..values.len() as i64).map(expert).collect()).ok()?)
            }
            Values::Real(dtype, _) => {
                Values::Real(*dtype, ArrayD::from_shape_vec(shape, numbers(name, values.len()).collect()).ok()?)
            }
            Values::Bool(_) => return None,
        };
        Some((name.to_owned(), values))
    };
    shapes.iter().filter_map(stage).collect()
}

fn in_storage(precision: Precision, name: &str, values: &Values) -> Values {
    match values {
        Values::Real(_, a) => stored(precision, name, a),
        values => values.clone(),
    }
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Real;
    use dsv2_reference::tap::{StageValue, Tap};

    use super::*;
    use crate::golden::GoldenCases;

    /// One number of one stage off by the smallest step that bf16 has there.
    struct OneOff(&'static str);

    impl<T: Real> Tap<T> for OneOff {
        fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
            if let (true, StageValue::Real(mut value)) = (name.ends_with(self.0), value)
                && let Some(x) = value.iter_mut().last()
            {
                *x = T::from_f64(Real::to_f64(*x) + 1.0);
            }
        }
    }

    #[test]
    fn one_number_off_by_one_is_found_in_any_type() {
        for precision in [Precision::F64, Precision::F32, Precision::Bf16] {
            let of_experts =
                if precision.narrow().is_some() { "model.layers.1.mlp" } else { "model.layers.1.mlp.experts" };
            for stage in [of_experts, "model.layers.0.self_attn.o_proj", "past_key_values.1.k_pe"] {
                let golden = GoldenCases::embedded().load("v2").unwrap();
                let outcome = run(&golden, &Reference, precision, AttentionForm::Expanded, &mut OneOff(stage));
                let first = outcome.verdict().and_then(Verdict::first_failure).map(|first| first.stage.clone());
                assert_eq!(first.as_deref(), Some(stage), "{precision}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_small_and_of_all_three_kinds() {
        let found: BTreeSet<i64> = numbers("model.norm", 100).map(|x| x as i64).collect();
        assert_eq!(Vec::from_iter(found), [-1, 0, 1]);
    }
}

//! `dsv2 check`: a dump of somebody's stages against the model.
//!
//! The truth is the f64 reference on the same checkpoint and inputs, or tensors that are given. How far off a stage may be
//! is measured on the spot: as far as the reference itself is when it computes in the candidate's type, in both forms of
//! attention. Where the candidate's experts differ by a near tie, the truth goes where the candidate goes.

mod near_ties;

use dsv2_reference::Dtype;
use dsv2_reference::attention::AttentionForm;
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;

use crate::backend::{Backend, Precision, Reference, Settings};
use crate::budget::Budgets;
use crate::case::Case;
use crate::judge::{Truth, Verdict, judge};
use crate::metrics::{Metrics, compare};
use crate::rows::ComparedRows;
use crate::stage::Stage;
use crate::trace::Trace;
use crate::values::Values;
use crate::{Error, Result};

/// What to check.
pub struct Request {
    /// The model and its inputs.
    pub case: Case,
    /// The dump.
    pub candidate: Trace,
    /// What it should be, if that is not for the reference to say.
    pub expected: Option<Trace>,
    /// What the candidate computed in; by the types of its tensors, if nobody says.
    pub precision: Option<Precision>,
}

/// What came of it.
#[derive(Debug)]
pub struct Checked {
    /// The verdict on every stage of the model.
    pub verdict: Verdict,
    /// What the candidate is taken to compute in.
    pub precision: Precision,
    /// Tensors of the candidate that no stage of this model goes by, and that nobody looked at.
    pub unknown: Vec<String>,
    /// How many tokens of a layer go to other experts than in the truth because of a near tie, which is no fault.
    pub near_ties: Vec<(String, usize)>,
}

/// Checks a dump. Stages that it does not hold are not required.
///
/// # Errors
/// If the reference refuses the case, no tensor of the dump is a stage, or the expected tensors are not the model's.
pub fn check(request: &Request) -> Result<Checked> {
    let Request { case, candidate, expected, .. } = request;
    let precision = request.precision.unwrap_or_else(|| precision_of(candidate));
    if !candidate.iter().any(|(name, _)| Stage::parse(name).is_some()) {
        return Err(Error::request("--candidate", "a tensor that is named as a stage", "none"));
    }
    // weights of experts are compared with the help of the choice of experts, and that with the help of the logits
    let routing = |name: &str| name.ends_with(".topk_indices") || name.ends_with(".router_logits");
    let wanted = |name: &str| candidate.get(name).is_some() || routing(name);
    let run = |precision, attention, replay| {
        let settings = Settings { precision, attention, stages: Some(&wanted), replay };
        Reference.run(case, &settings, &mut NoTap)
    };
    let rows = ComparedRows::of(&case.inputs);
    let own = run(Precision::F64, AttentionForm::Expanded, None)?;
    // One near tie that falls the other way moves all that follows by O(1). So the truth goes where the candidate goes, and
    // whether the candidate may go there is a question of its own.
    let choices = if expected.is_none() { near_ties::choices(candidate, &own, case) } else { Trace::default() };
    let follows = choices.iter().next().is_some();
    let computed = if follows { run(Precision::F64, AttentionForm::Expanded, Some(&choices))? } else { own };
    let noise_in = |precision| -> Result<IndexMap<String, Metrics>> {
        // f64 candidates are held to what f32 can do: parts of the model are fp32 by definition
        let plain = if precision == Precision::Bf16 { Precision::Bf16 } else { Precision::F32 };
        // What two correct implementations err together: one alone may be lucky, and the reference errs less than most.
        let mut both = noise(&run(plain, AttentionForm::Expanded, Some(&computed))?, &computed, &rows);
        let absorbed = noise(&run(plain, AttentionForm::Absorbed, Some(&computed))?, &computed, &rows);
        for (stage, noise) in &mut both {
            let other = absorbed.get(stage).copied().unwrap_or(*noise);
            *noise = noise.zip(&other, |a, b| a + b);
        }
        Ok(both)
    };
    let mut total = noise_in(precision)?;
    let truth = match expected {
        None => &computed,
        Some(expected) => {
            let own = noise_in(precision_of(expected))?;
            for (stage, noise) in &mut total {
                *noise = own.get(stage).map_or(*noise, |own| noise.zip(own, |a, b| a + b));
            }
            expected
        }
    };
    let truth = same_shapes(truth, &computed)?;
    let budgets = Budgets::new(&total, &truth, &rows);
    let truth = Truth { trace: &truth, budgets: &budgets, rows: &rows };
    let mut verdict = judge(candidate, &truth, |_| false);
    let near_ties = if follows { near_ties::judge_choices(&mut verdict, candidate, &truth, case)? } else { Vec::new() };
    let unknown =
        candidate.iter().map(|(name, _)| name.to_owned()).filter(|name| truth.trace.get(name).is_none()).collect();
    Ok(Checked { verdict, precision, unknown, near_ties })
}

/// The type that most of a trace is stored in; f16 is held to what bf16 can do.
fn precision_of(trace: &Trace) -> Precision {
    let narrow = |values: &Values| matches!(values, Values::Real(Dtype::Bf16 | Dtype::F16, _));
    let wide = |values: &Values| matches!(values, Values::Real(Dtype::F32 | Dtype::F64, _));
    let count = |of: &dyn Fn(&Values) -> bool| trace.iter().filter(|(_, values)| of(values)).count();
    if count(&narrow) > count(&wide) { Precision::Bf16 } else { Precision::F32 }
}

/// How far each stage is from the truth.
fn noise(plain: &Trace, truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    let of = |(name, want): (&str, &Values)| {
        let (got, want) = (plain.get(name)?.real()?, want.real()?);
        let compared = rows.of_stage(&Stage::parse(name)?, want.shape());
        Some((name.to_owned(), compare(got.view(), want.view(), compared.as_deref()).metrics))
    };
    truth.iter().filter_map(of).collect()
}

/// The stages of `truth` that the model has, in the model's shapes.
fn same_shapes(truth: &Trace, model: &Trace) -> Result<Trace> {
    let fitted = |(name, values): (&str, &Values)| {
        let shape = model.get(name)?.shape();
        let fitted = values.fit(shape).ok_or_else(|| {
            Error::request("--expected", format!("`{name}` of shape {shape:?}"), format!("shape {:?}", values.shape()))
        });
        Some(fitted.map(|values| (name.to_owned(), values)))
    };
    truth.iter().filter_map(fitted).collect()
}

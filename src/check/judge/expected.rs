//! The truth as somebody gives it, in place of the reference's.

use dsv2_metrics::Metrics;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{self, Budgets, FACTORS};
use crate::check::dump::{Dump, precision_of};
use crate::check::request::Request;
use crate::check::truth::Truth;
use crate::error::{Error, Result};
use crate::judge::{self, Disposition, StageVerdict, Verdict};
use crate::local::{noise, plain};
use crate::precision::Precision;
use crate::trace::Trace;
use crate::values::Values;

/// Judges a dump by `expected`: propagated errors only, since nothing says how the expected tensors were made. Both are
/// allowed what the reference errs in their types, in both forms of attention together.
pub fn judge_by(request: &Request, dump: &Dump, expected: &Trace, truth: &Truth) -> Result<Verdict> {
    let Truth { trace: model, rows, .. } = truth;
    let wanted = |name: &str| model.get(name).is_some();
    let choices = model.choices();
    let noise_in = |precision: Precision| -> Result<IndexMap<String, Metrics>> {
        let precision = plain(precision);
        let run = |attention| {
            let settings =
                Settings { precision, attention, stages: Some(&wanted), replay: Some(&choices), ..Settings::default() };
            Reference.run(&request.case, &settings, &mut NoTap)
        };
        let mut both = noise(&[run(AttentionForm::Expanded)?], model, rows);
        let absorbed = noise(&[run(AttentionForm::Absorbed)?], model, rows);
        for (stage, noise) in &mut both {
            let other = absorbed.get(stage).copied().unwrap_or(*noise);
            *noise = noise.zip(&other, |a, b| a + b);
        }
        Ok(both)
    };
    let mut total = noise_in(dump.precision)?;
    let own = noise_in(precision_of(expected))?;
    for (stage, noise) in &mut total {
        *noise = own.get(stage).map_or(*noise, |own| noise.zip(own, |a, b| a + b));
    }
    let expected = same_shapes(expected, model)?;
    let budgets = Budgets::new(&budget::carried(total), &expected, rows, FACTORS);
    let expected = judge::Truth { trace: &expected, budgets: &budgets, rows };
    let mut verdict = judge::judge(&dump.trace, &expected, None, |_| false);
    let unsaid = model.iter().filter(|(name, _)| dump.trace.get(name).is_some() && expected.trace.get(name).is_none());
    verdict.stages.extend(unsaid.map(|(name, _)| StageVerdict::new(name, Disposition::NotCompared)));
    Ok(verdict)
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

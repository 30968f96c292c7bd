//! One decoding step whose dump has the rows of all tokens: those before the step were kept beside the new ones.
//!
//! As many rows as there are tokens may also be the new ones and rows of nothing behind them. So the first stage that has so
//! many is held against the reference both ways, and all are read as it is.

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::{Layout, Stage};
use dsv2_reference::tap::NoTap;
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use super::extra_rows;
use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::check::dump::{Dump, Recognised};
use crate::error::Result;
use crate::planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::values::Values;

/// Leaves the rows of the new tokens, if the dump has those of all.
///
/// # Errors
/// If the reference refuses the case.
pub fn of_all(case: &Case, dump: &mut Dump) -> Result<()> {
    let (past, new) = (case.inputs.past(), case.inputs.looked_at());
    if past == 0 || case.inputs.packed.is_some() {
        return Ok(());
    }
    let planned = planned::stages(case, AttentionForm::Expanded, Precision::F64);
    let tokens = Tokens { all: past + new, new };
    let mut found = Vec::new();
    for (name, values) in dump.trace.iter() {
        let (Some(stage), Some(planned)) = (Stage::parse(name), planned.get(name)) else { continue };
        found.extend(tokens.last(values, stage.layout, &planned.shape).map(|last| (name.to_owned(), last)));
    }
    let Some((name, last)) = found.iter().find(|(_, last)| last.real().is_some()) else { return Ok(()) };
    if !is_nearer(name, last, case, dump)? {
        return Ok(());
    }
    let before = match past {
        1 => "the row of the token".to_owned(),
        past => format!("the rows of the {past} tokens"),
    };
    for (name, values) in found {
        dump.trace = std::mem::take(&mut dump.trace).with(&name, values);
        dump.recognised.push(Recognised::new(&name, &format!("{before} before the step are not looked at")));
    }
    Ok(())
}

/// Whether the last rows of a stage are nearer to the reference's than the first.
fn is_nearer(name: &str, last: &Values, case: &Case, dump: &Dump) -> Result<bool> {
    let wanted = |stage: &str| stage == name;
    let settings = Settings { precision: Precision::F64, stages: Some(&wanted), ..Settings::default() };
    let run = Reference.run(case, &settings, &mut NoTap)?;
    let rows = ComparedRows::of(&case.inputs);
    let nearer = || {
        let want = run.get(name)?;
        let error = |got: &Values| {
            let compared = rows.measure(name, got, want)?;
            Some(if compared.nonfinite.is_some() { f64::INFINITY } else { compared.metrics.l2 })
        };
        let layout = Stage::parse(name)?.layout;
        let first = extra_rows::without(dump.trace.get(name)?, layout, want.shape(), case.inputs.batch());
        let first = first.and_then(|(first, _)| error(&first));
        Some(first.is_none_or(|first| error(last).is_some_and(|last| last <= first)))
    };
    Ok(nearer().unwrap_or(false))
}

/// How many there are in each sequence.
struct Tokens {
    all: usize,
    new: usize,
}

impl Tokens {
    /// The rows of the new ones, in the shape `want`.
    fn last(&self, values: &Values, layout: Layout, want: &[usize]) -> Option<Values> {
        Some(match values {
            Values::Real(dtype, a) => Values::Real(*dtype, self.last_rows(a, layout, want)?),
            Values::Index(a) => Values::Index(self.last_rows(a, layout, want)?),
            Values::Bool(_) => return None,
        })
    }

    fn last_rows<A: Clone>(&self, got: &ArrayD<A>, layout: Layout, want: &[usize]) -> Option<ArrayD<A>> {
        let width = *want.last()?;
        let (shape, axis) = match (layout, want) {
            (Layout::Tokens | Layout::Table | Layout::Logits, &[b, s, _]) if s == self.new => {
                (vec![b, self.all, width], 1)
            }
            (Layout::Flat, &[n, _]) => (vec![n.checked_div(self.new)?, self.all, width], 1),
            (Layout::Heads | Layout::Scores | Layout::Weights, &[b, h, _, _]) => (vec![b, h, self.all, width], 2),
            _ => return None,
        };
        let in_order = axis == 1 || got.shape() == shape || want[1] == 1;
        if got.len() != shape.iter().product::<usize>() || got.shape().last() != Some(&width) || !in_order {
            return None;
        }
        let all = got.to_shape(IxDyn(&shape)).ok()?;
        let last = all.slice_axis(Axis(axis), Slice::from((self.all - self.new) as isize..)).to_owned();
        last.as_standard_layout().into_owned().into_shape_with_order(IxDyn(want)).ok()
    }
}

//! The dump in the model's layouts: the same numbers in another place are no error, and it is said which.

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::convention::{self, Turn};
use ndarray::{Array, ArrayD, Axis, Slice};

use super::dump::{Dump, Recognised};
use super::truth::Truth;
use crate::rows::ComparedRows;
use crate::values::{Values, fit};

/// Brings the stages of a dump into the shapes and the order of the model's, by the [conventions](convention) that it knows.
///
/// Where the shape does not decide, the numbers do: an order is taken for another if that brings them four times nearer.
pub fn align(dump: Dump, truth: &Truth) -> Dump {
    let Dump { trace, precision, mut recognised } = dump;
    let stages = trace.iter().map(|(name, values)| {
        let found = truth.trace.get(name).and_then(|want| in_place(name, values, want, &truth.rows));
        let (values, says) = found.unwrap_or_else(|| (values.clone(), Vec::new()));
        recognised.extend(says.into_iter().map(|says| Recognised::new(name, says)));
        (name.to_owned(), values)
    });
    let trace = stages.collect();
    Dump { trace, precision, recognised }
}

/// A tensor as the model has it, and what is said of the way it came.
type Found<A> = (ArrayD<A>, Vec<&'static str>);

fn in_place(name: &str, got: &Values, want: &Values, rows: &ComparedRows) -> Option<(Values, Vec<&'static str>)> {
    let stage = Stage::parse(name)?;
    match (got, want) {
        (Values::Index(got), Values::Index(want)) => {
            let (got, says) = in_shape(&stage, got, want.shape())?;
            Some((Values::Index(got), says))
        }
        (Values::Real(dtype, got), Values::Real(_, want)) => {
            let error = |a: &ArrayD<f64>| rows.compare(&stage, a, want).metrics.l2;
            let mut found = in_shape(&stage, got, want.shape());
            for convention in convention::of(&stage) {
                let Some((turned, mut says)) = turned(convention.turn, got, found.as_ref(), want.shape()) else {
                    continue;
                };
                if found.as_ref().is_none_or(|(a, _)| error(&turned) < 0.25 * error(a)) {
                    says.push(convention.says);
                    found = Some((turned, says));
                }
            }
            let (a, says) = found?;
            Some((Values::Real(*dtype, a), says))
        }
        _ => None,
    }
}

/// The same numbers in the model's shape, where their order is the same.
fn in_shape<A: Clone>(stage: &Stage, got: &ArrayD<A>, shape: &[usize]) -> Option<Found<A>> {
    if got.shape() == shape {
        return Some((got.clone(), Vec::new()));
    }
    let row = |shape: &[usize]| shape.last().copied();
    convention::of(stage).find_map(|convention| {
        let fitted = match convention.turn {
            Turn::UnitAxes => fit(got, shape),
            Turn::Rows { fewer } if fewer == (got.ndim() < shape.len()) && row(got.shape()) == row(shape) => {
                got.to_shape(shape).ok().map(|a| a.to_owned())
            }
            Turn::Rows { .. } | Turn::HeadsBehind | Turn::Halves => None,
        };
        fitted.map(|a| (a, vec![convention.says]))
    })
}

/// The numbers in another order, with what was said of them before: of the tensor as it came, or as it was `found` to be.
fn turned(turn: Turn, got: &ArrayD<f64>, found: Option<&Found<f64>>, shape: &[usize]) -> Option<Found<f64>> {
    match turn {
        Turn::UnitAxes | Turn::Rows { .. } => None,
        Turn::HeadsBehind => Some((heads_in_front(got, shape)?, Vec::new())),
        Turn::Halves => found.map(|(a, says)| (pairs_of_halves(a), says.clone())),
    }
}

/// `[B, S, H, ..]` or `[B·S, H, ..]` to `[B, H, S, ..]`.
fn heads_in_front(got: &ArrayD<f64>, shape: &[usize]) -> Option<ArrayD<f64>> {
    let &[batch, heads, length, width] = shape else { return None };
    let ends = if heads == 1 { got.len() == batch * length * width } else { got.shape().ends_with(&[heads, width]) };
    let behind = got.to_shape((batch, length, heads, width)).ok().filter(|_| ends)?;
    Some(behind.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned().into_dyn())
}

/// x[0], x[r/2], x[1], x[r/2 + 1], .. along the last axis.
fn pairs_of_halves(a: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(a.ndim() - 1);
    let half = a.len_of(last) / 2;
    let mut paired = Array::zeros(a.raw_dim());
    for (start, from) in [(0, Slice::from(..half)), (1, Slice::from(half..2 * half))] {
        paired.slice_axis_mut(last, Slice::new(start, None, 2)).assign(&a.slice_axis(last, from));
    }
    paired
}

#[cfg(test)]
mod tests;

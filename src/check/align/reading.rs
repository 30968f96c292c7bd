//! In which order the numbers of a tensor lie: what its shape says, and which of several readings is by far the nearest to the
//! truth.

use dsv2_metrics::Comparison;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::convention::place::{self, Turn};
use ndarray::ArrayD;

use super::places::{Reading, readings};
use crate::rows::ComparedRows;
use crate::values::Values;

/// What part of the error may be left for another reading to be tried first.
const BY_FAR: f64 = 0.25;
/// A relative error that no other order of the numbers could make much smaller.
const IN_ORDER: f64 = 0.1;

/// All ways to read a tensor of numbers, of which `want` has the model's shape.
pub fn all_readings(
    name: &str,
    values: &Values,
    want: Option<&Values>,
    heads: usize,
) -> Vec<(Values, Vec<&'static str>)> {
    want.filter(|_| values.real().is_some())
        .map_or_else(Vec::new, |want| readings_in(name, values, want.shape(), heads))
}

/// All ways to read a tensor as one of this shape.
pub fn readings_in(name: &str, values: &Values, shape: &[usize], heads: usize) -> Vec<(Values, Vec<&'static str>)> {
    let Some(stage) = Stage::parse(name) else { return Vec::new() };
    match values {
        Values::Real(dtype, got) => {
            let readings = readings(&stage, got, shape, heads).into_iter();
            readings.map(|Reading { values, says }| (Values::Real(*dtype, values), says)).collect()
        }
        Values::Index(got) => {
            let readings = readings(&stage, got, shape, heads).into_iter();
            readings.map(|Reading { values, says }| (Values::Index(values), says)).collect()
        }
        Values::Bool(_) => Vec::new(),
    }
}

/// Whether a stage whose tensor has the model's shape may lie otherwise in it all the same.
pub fn has_other_readings(name: &str, shape: &[usize], heads: usize) -> bool {
    let readings = |stage| Some(readings(&stage, &unknown(shape)?, shape, heads));
    Stage::parse(name).and_then(readings).is_some_and(|readings| readings.len() > 1)
}

/// A tensor of whose numbers nothing is known: its shape tells how it may be read. Nothing, if no memory could hold one.
fn unknown(shape: &[usize]) -> Option<ArrayD<()>> {
    let elements = shape.iter().filter(|&&n| n > 0).try_fold(1_usize, |product, &n| product.checked_mul(n))?;
    isize::try_from(elements).ok().map(|_| ArrayD::from_elem(shape, ()))
}

/// How a tensor lies in its file, if its stage may lie so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the model has it.
    Model,
    /// Row after row as the model has them, with other axes before the last one: this is said of it.
    Rows(&'static str),
    /// Otherwise, or in one of several ways.
    Other,
}

/// How a tensor of the shape `got` lies whose stage has another one, or the same; nothing, if no reading of it has that one.
pub fn order_of(name: &str, got: &[usize], want: &[usize], heads: usize) -> Option<Order> {
    if got == want {
        return Some(Order::Model);
    }
    // a file may say any shape; no reading has more numbers than there are, or fewer
    let count = |shape: &[usize]| shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
    if count(got).is_none() || count(got) != count(want) {
        return None;
    }
    let readings = readings(&Stage::parse(name)?, &unknown(got)?, want, heads);
    let alike = got.last() == want.last();
    match &readings[..] {
        [] => None,
        [Reading { says, .. }]
            if alike
                && let [says] = says[..]
                && in_rows(says) =>
        {
            Some(Order::Rows(says))
        }
        _ => Some(Order::Other),
    }
}

/// Whether what is said of a reading is that rows stay rows, in their order.
pub fn in_rows(says: &str) -> bool {
    let turns = [Turn::UnitAxes, Turn::Rows { fewer: true }, Turn::Rows { fewer: false }];
    turns.into_iter().any(|turn| place::says(turn) == says)
}

/// Whether a tensor that is so far off is in the order of its truth: no other one could be much nearer.
pub fn is_in_order(off: &Comparison) -> bool {
    off.metrics.l2 < IN_ORDER
}

/// A tensor as the model has it, if `want` is the truth of it, and what is said of the way it came; as it came, if it cannot be
/// read so.
pub fn first_reading(
    name: &str,
    values: Values,
    want: Option<&Values>,
    rows: &ComparedRows,
    heads: usize,
) -> (Values, Vec<&'static str>) {
    let (Some(stage), Some(want)) = (Stage::parse(name), want) else { return (values, Vec::new()) };
    match (&values, want) {
        (Values::Index(got), Values::Index(want)) => {
            match readings(&stage, got, want.shape(), heads).into_iter().next() {
                Some(Reading { values, says }) => (Values::Index(values), says),
                None => (values, Vec::new()),
            }
        }
        (Values::Real(dtype, got), Values::Real(_, want)) => {
            let off = |a: &ArrayD<f64>| rows.compare(&stage, a, want);
            let error = |a: &ArrayD<f64>| off(a).metrics.l2;
            if got.shape() == want.shape() && is_in_order(&off(got)) {
                return (values, Vec::new());
            }
            let mut readings = readings(&stage, got, want.shape(), heads).into_iter();
            let Some(mut found) = readings.next() else { return (values, Vec::new()) };
            let mut least = error(&found.values);
            for reading in readings {
                let error = error(&reading.values);
                if error < BY_FAR * least {
                    (found, least) = (reading, error);
                }
            }
            (Values::Real(*dtype, found.values), found.says)
        }
        _ => (values, Vec::new()),
    }
}

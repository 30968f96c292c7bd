//! How far a tensor is from the truth: three sizes of error, and the coherent part of it.
//!
//! Of a tensor `a` against the truth `b`, over the rows that are compared (a row is a slice along the last axis):
//!
//! | metric | definition | sees |
//! |---|---|---|
//! | `l2`   | `‖a−b‖ / ‖b‖` | the whole |
//! | `row`  | `max_t ‖a_t−b_t‖ / max(‖b_t‖, 0.1·rms_t ‖b_t‖)` | one wrong token |
//! | `max`  | `max\|a−b\| / rms(b)` | one wrong element |
//! | `gain` | `\|⟨a,b⟩/⟨b,b⟩ − 1\|` | errors that all point one way, such as truncation |

#![deny(missing_docs)]

mod budget;
mod spread;

use ndarray::ArrayViewD;
use serde::{Deserialize, Serialize};

pub use budget::{
    FACTORS, FP32_ROUNDINGS, LOCAL_FACTORS, MARGIN, NARROW_LOCAL_FACTORS, are_few, for_so_many, with_floors,
};
pub use spread::{Spread, Spreading};

/// One number for each way of measuring an error (or a budget for it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Relative error in the Euclidean norm.
    pub l2: f64,
    /// The same of the worst row.
    pub row: f64,
    /// The largest error of an element, in units of the truth's root mean square.
    pub max: f64,
    /// The error along the truth itself.
    pub gain: f64,
}

/// The names of the four metrics, in the order of [`Metrics::values`].
pub const NAMES: [&str; 4] = ["l2", "row", "max", "gain"];

impl Metrics {
    /// The four numbers, in the order of [`NAMES`].
    pub fn values(&self) -> [f64; 4] {
        [self.l2, self.row, self.max, self.gain]
    }

    /// From four numbers in the order of [`NAMES`].
    pub fn from_values([l2, row, max, gain]: [f64; 4]) -> Self {
        Metrics { l2, row, max, gain }
    }

    /// Combines two by the metric.
    pub fn zip(&self, other: &Self, mut combine: impl FnMut(f64, f64) -> f64) -> Self {
        let (a, b) = (self.values(), other.values());
        Metrics::from_values(std::array::from_fn(|i| combine(a[i], b[i])))
    }
}

/// A row counts for no less than this part of the usual row: a token may happen to be near zero.
const LEAST_ROW: f64 = 0.1;

/// An element that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Element {
    /// Where it is.
    pub index: Vec<usize>,
    /// What the candidate has there.
    pub got: f64,
    /// What the truth has there.
    pub want: f64,
}

/// What comparing two tensors gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The errors. Elements that are not finite in both count as 0 in both.
    pub metrics: Metrics,
    /// The element with the largest error, if any differs.
    pub worst: Option<Element>,
    /// The first element that is NaN or infinite in one of them and not the same in the other.
    pub nonfinite: Option<Element>,
    /// How many rows were compared.
    pub rows: usize,
}

impl Comparison {
    /// Whether an element differs.
    pub fn differs(&self) -> bool {
        self.nonfinite.is_some() || self.worst.is_some()
    }
}

/// Compares `a` with the truth `b` of the same shape over the rows for which `compared` holds (all, if there is none).
///
/// # Panics
/// If the shapes differ, or `compared` has not one entry for each row.
pub fn compare(a: ArrayViewD<'_, f64>, b: ArrayViewD<'_, f64>, compared: Option<&[bool]>) -> Comparison {
    assert_eq!(a.shape(), b.shape(), "compared tensors have one shape");
    let mut comparing = Comparing::new(b.shape());
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    comparing.add(a.as_slice().expect("row-major"), b.as_slice().expect("row-major"), compared);
    comparing.finish()
}

/// A comparison in the making, of tensors of which some rows are at hand at a time.
pub struct Comparing {
    shape: Vec<usize>,
    /// Where the next row begins.
    at: usize,
    sums: Sums,
}

impl Comparing {
    /// Of two tensors of this shape.
    pub fn new(shape: &[usize]) -> Self {
        // room for all rows at once: a list that grows has twice the room, and more while it grows
        let rows = Vec::with_capacity(shape.iter().rev().skip(1).product());
        Comparing { shape: shape.to_vec(), at: 0, sums: Sums { rows, ..Sums::default() } }
    }

    /// The next rows are those from `row` on. However the rows come, what is made of them is the same.
    pub fn go_to(&mut self, row: usize) {
        self.at = row * self.shape.last().copied().unwrap_or(1);
    }

    /// The next rows of both; those count for which `compared` holds (all, if there is none).
    ///
    /// # Panics
    /// If there are more of one than of the other, or `compared` has not one entry for each row.
    pub fn add(&mut self, a: &[f64], b: &[f64], compared: Option<&[bool]>) {
        let width = self.shape.last().copied().unwrap_or(1);
        let count = b.len().checked_div(width).unwrap_or(0);
        assert!(a.len() == b.len() && compared.is_none_or(|rows| rows.len() == count), "one entry for each row");
        for row in (0..count).filter(|&row| compared.is_none_or(|rows| rows[row])) {
            let span = row * width..(row + 1) * width;
            self.sums.add_row(self.at + span.start, &a[span.clone()], &b[span]);
        }
        self.at += b.len();
    }

    /// What comparing them gives.
    pub fn finish(self) -> Comparison {
        let Comparing { shape, mut sums, .. } = self;
        sums.rows.sort_by_key(|row| row.start);
        let element = |(at, [got, want]): (usize, [f64; 2])| Element { index: unravel(at, &shape), got, want };
        Comparison {
            metrics: sums.metrics(),
            worst: sums.worst.map(|(at, _, both)| element((at, both))),
            nonfinite: sums.nonfinite.map(element),
            rows: sums.rows.len(),
        }
    }
}

/// What the rows are summed to, each by itself.
struct Row {
    /// Where it begins.
    start: usize,
    /// ‖a_t−b_t‖²
    difference: f64,
    /// ‖b_t‖²
    norm: f64,
    /// ⟨a_t − b_t, b_t⟩
    product: f64,
}

/// What one pass over the rows collects.
#[derive(Default)]
struct Sums {
    rows: Vec<Row>,
    elements: usize,
    /// where |a−b| is largest, how large, and both
    worst: Option<(usize, f64, [f64; 2])>,
    nonfinite: Option<(usize, [f64; 2])>,
}

impl Sums {
    fn add_row(&mut self, start: usize, a: &[f64], b: &[f64]) {
        let mut row = Row { start, difference: 0.0, norm: 0.0, product: 0.0 };
        for (offset, (&x, &y)) in a.iter().zip(b).enumerate() {
            let at = start + offset;
            if !(x.is_finite() && y.is_finite()) {
                let same = x == y || (x.is_nan() && y.is_nan());
                if !same && self.nonfinite.is_none_or(|(first, _)| at < first) {
                    self.nonfinite = Some((at, [x, y]));
                }
                continue;
            }
            let error = (x - y).abs();
            let is_worse = |(first, worst, _)| error > worst || error == worst && at < first;
            if error > 0.0 && self.worst.is_none_or(is_worse) {
                self.worst = Some((at, error, [x, y]));
            }
            row.difference += error * error;
            row.norm += y * y;
            row.product += (x - y) * y;
        }
        self.elements += b.len();
        self.rows.push(row);
    }

    fn metrics(&self) -> Metrics {
        let difference: f64 = self.rows.iter().map(|row| row.difference).sum();
        let norm: f64 = self.rows.iter().map(|row| row.norm).sum();
        let product: f64 = self.rows.iter().map(|row| row.product).sum();
        if norm == 0.0 {
            let error = if difference == 0.0 { 0.0 } else { 1.0 };
            return Metrics { l2: error, row: error, max: error, gain: error };
        }
        let least = LEAST_ROW * (norm / self.rows.len() as f64).sqrt();
        let of_row = |row: &Row| row.difference.sqrt() / row.norm.sqrt().max(least);
        let row = self.rows.iter().map(of_row).fold(0.0, f64::max);
        let max = self.worst.map_or(0.0, |(_, error, _)| error) / (norm / self.elements as f64).sqrt();
        Metrics { l2: (difference / norm).sqrt(), row, max, gain: (product / norm).abs() }
    }
}

/// The index of the `at`-th element, row-major.
pub fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (axis, &length) in shape.iter().enumerate().rev() {
        index[axis] = at % length;
        at /= length;
    }
    index
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, arr0, array};

    use super::*;

    fn of(a: ArrayD<f64>, b: ArrayD<f64>) -> Comparison {
        compare(a.view(), b.view(), None)
    }

    #[test]
    fn the_four_metrics_by_hand() {
        // rows of norm 5 and 0; the second is measured against 0.1·sqrt(25/2)
        let b = array![[3.0, 4.0], [0.0, 0.0]].into_dyn();
        let a = array![[3.0, 4.5], [0.0, 0.1]].into_dyn();
        let c = of(a, b);
        approx::assert_relative_eq!(c.metrics.l2, (0.26f64).sqrt() / 5.0, epsilon = 1e-15);
        approx::assert_relative_eq!(c.metrics.row, 0.1 / (0.1 * 12.5f64.sqrt()), epsilon = 1e-15);
        approx::assert_relative_eq!(c.metrics.max, 0.5 / 2.5, epsilon = 1e-15);
        approx::assert_relative_eq!(c.metrics.gain, 2.0 / 25.0, epsilon = 1e-15);
        assert_eq!(c.worst, Some(Element { index: vec![0, 1], got: 4.5, want: 4.0 }));
    }

    #[test]
    fn rows_may_come_in_any_order() {
        let number = |at: usize, x: f64| ((at as f64 + 1.0) * x).sin();
        let rows = |x: f64| (0..7).map(move |row| [0, 1, 2].map(|column| number(3 * row + column, x)));
        let compared = |order: [usize; 7]| {
            let (a, b): (Vec<_>, Vec<_>) = (rows(1.7).collect(), rows(1.8).collect());
            let mut comparing = Comparing::new(&[7, 3]);
            for row in order {
                comparing.go_to(row);
                comparing.add(&a[row], &b[row], Some(&[row != 2]));
            }
            comparing.finish()
        };
        assert_eq!(compared([0, 1, 2, 3, 4, 5, 6]), compared([4, 0, 6, 2, 5, 1, 3]));
    }

    #[test]
    fn a_scalar_has_one_error() {
        let c = of(arr0(2.2).into_dyn(), arr0(2.0).into_dyn());
        c.metrics.values().into_iter().for_each(|error| approx::assert_relative_eq!(error, 0.1, epsilon = 1e-12));
        assert_eq!(c.worst.unwrap().index, Vec::<usize>::new());
    }

    #[test]
    fn a_zero_truth_is_met_or_missed() {
        let zero = || array![[0.0, 0.0]].into_dyn();
        assert_eq!(of(zero(), zero()).metrics, Metrics::default());
        assert_eq!(of(array![[0.0, 1e-9]].into_dyn(), zero()).metrics.values(), [1.0; 4]);
    }

    #[test]
    fn what_is_not_finite_must_agree_as_a_set() {
        let inf = f64::INFINITY;
        let b = array![[-inf, 1.0, f64::NAN]].into_dyn();
        let same = of(b.clone(), b.clone());
        assert_eq!((same.nonfinite, same.metrics), (None, Metrics::default()));
        let other = of(array![[-inf, inf, f64::NAN]].into_dyn(), b.clone());
        assert_eq!(other.nonfinite, Some(Element { index: vec![0, 1], got: inf, want: 1.0 }));
        assert_eq!(of(array![[inf, 1.0, f64::NAN]].into_dyn(), b).nonfinite.unwrap().index, [0, 0]);
    }

    #[test]
    fn rows_left_out_count_for_nothing() {
        let b = array![[1.0, 0.0], [7.0, 7.0]].into_dyn();
        let a = array![[1.0, 0.0], [f64::NAN, 0.0]].into_dyn();
        let c = compare(a.view(), b.view(), Some(&[true, false]));
        assert_eq!((c.metrics, c.nonfinite, c.worst, c.rows), (Metrics::default(), None, None, 1));
    }

    #[test]
    fn an_empty_tensor_has_no_error() {
        let empty = || ArrayD::zeros(vec![2, 0]);
        assert_eq!(of(empty(), empty()).metrics, Metrics::default());
    }
}

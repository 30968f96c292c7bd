//! How unevenly a tensor is spread: how many of its numbers count, and how much more some of them count than others.

use std::collections::BTreeMap;

use ndarray::ArrayViewD;

use crate::LEAST_ROW;

/// How unevenly a tensor is spread over its rows and elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// How many rows there are.
    pub rows: usize,
    /// `rms_t ‖b_t‖` over the norm of the smallest row, as far as the metric `row` tells rows apart: 10 at most.
    pub smallest_row: f64,
    /// `max|b| / rms(b)`
    pub largest_element: f64,
    /// How many rows have errors of their own: `(Σ ‖b_t‖²)² / Σ ‖b_t‖⁴`, equal rows being one. A row that is most of the
    /// tensor is most of its error; and what is computed twice has the same error twice.
    pub independent_rows: f64,
    /// The same of elements: `(Σ b²)² / Σ b⁴`, those of equal rows being one.
    pub independent_elements: f64,
}

impl Default for Spread {
    /// Of one element.
    fn default() -> Self {
        Spread { rows: 1, smallest_row: 1.0, largest_element: 1.0, independent_rows: 1.0, independent_elements: 1.0 }
    }
}

/// Rows that are equal, all together.
#[derive(Default)]
struct Equal {
    rows: f64,
    squares: f64,
    fourths: f64,
}

impl Spread {
    /// Of a tensor, over the rows for which `compared` holds (all, if there is none); what is not finite counts as 0.
    pub fn of(b: ArrayViewD<'_, f64>, compared: Option<&[bool]>) -> Self {
        let mut spreading = Spreading::new(b.shape());
        spreading.add(b.as_standard_layout().as_slice().expect("row-major"), compared);
        spreading.finish()
    }
}

/// The same in the making, of a tensor of which some rows are at hand at a time.
pub struct Spreading {
    width: usize,
    /// Which row is the next.
    at: usize,
    rows: Vec<Row>,
    largest: f64,
}

/// What is kept of a row.
struct Row {
    at: usize,
    fingerprint: u64,
    squares: f64,
    fourths: f64,
}

impl Spreading {
    /// Of a tensor of this shape.
    pub fn new(shape: &[usize]) -> Self {
        let rows = Vec::with_capacity(shape.iter().rev().skip(1).product());
        Spreading { width: shape.last().copied().unwrap_or(1), at: 0, rows, largest: 0.0 }
    }

    /// The next rows are those from `row` on. However the rows come, what is made of them is the same.
    pub fn go_to(&mut self, row: usize) {
        self.at = row;
    }

    /// Its next rows; those count for which `compared` holds (all, if there is none).
    pub fn add(&mut self, b: &[f64], compared: Option<&[bool]>) {
        let width = self.width.max(1);
        for (row, numbers) in b.chunks(width).enumerate().filter(|(row, _)| compared.is_none_or(|rows| rows[*row])) {
            let finite = numbers.iter().filter(|x| x.is_finite());
            self.largest = finite.clone().fold(self.largest, |largest, x| largest.max(x.abs()));
            let (squares, fourths) = finite.fold((0.0, 0.0), |(squares, fourths), x| {
                let square = x * x;
                (squares + square, fourths + square * square)
            });
            self.rows.push(Row { at: self.at + row, fingerprint: fingerprint(numbers), squares, fourths });
        }
        self.at += b.len() / width;
    }

    /// How unevenly it is spread.
    pub fn finish(self) -> Spread {
        let Spreading { width, mut rows, largest, .. } = self;
        rows.sort_by_key(|row| row.at);
        // in an order of its own, so that a sum over them is the same to the bit whenever it is made
        let mut equal: BTreeMap<u64, Equal> = BTreeMap::new();
        for row in &rows {
            let equal = equal.entry(row.fingerprint).or_default();
            equal.rows += 1.0;
            equal.squares += row.squares;
            equal.fourths += row.fourths;
        }
        let norms: Vec<f64> = rows.iter().map(|row| row.squares).collect();
        let square: f64 = norms.iter().sum();
        if square == 0.0 {
            return Spread { rows: norms.len().max(1), ..Spread::default() };
        }
        let rms_row = (square / norms.len() as f64).sqrt();
        let smallest = norms.iter().copied().fold(f64::INFINITY, f64::min).sqrt();
        let of_rows: f64 = equal.values().map(|equal| equal.squares * equal.squares).sum();
        let of_elements: f64 = equal.values().map(|equal| equal.rows * equal.fourths).sum();
        Spread {
            rows: norms.len(),
            smallest_row: rms_row / smallest.max(LEAST_ROW * rms_row),
            largest_element: largest / (square / (norms.len() * width) as f64).sqrt(),
            independent_rows: square * square / of_rows,
            independent_elements: square * square / of_elements,
        }
    }
}

/// The same for rows of the same sizes: signs do not matter to rounding, nor does what is less than bf16 tells apart.
fn fingerprint(row: &[f64]) -> u64 {
    row.iter().fold(0, |hash: u64, x| {
        let size = (x.abs() as f32).to_bits().wrapping_add(0x8000) >> 16;
        (hash.rotate_left(5) ^ u64::from(size)).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn equal_rows_and_rows_of_nothing_count_once_and_never() {
        let spread = |a: ndarray::Array2<f64>| Spread::of(a.into_dyn().view(), None);
        let even = spread(array![[1.0, -1.0], [1.0, 2.0], [2.0, 1.0]]);
        approx::assert_relative_eq!(even.independent_rows, 144.0 / 54.0, epsilon = 1e-12);
        approx::assert_relative_eq!(even.independent_elements, 144.0 / 36.0, epsilon = 1e-12);
        let twice = spread(array![[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]);
        assert_eq!((twice.independent_rows, twice.independent_elements), (1.0, 2.0));
    }
}

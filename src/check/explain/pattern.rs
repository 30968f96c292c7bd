//! What a wrong stage looks like: facts that hold within the noise, and nothing else.
//!
//! Where an error is, and where it is not, says much: what a token gets from itself alone cannot be wrong by a rotation; a
//! forgotten factor leaves everything in proportion; one lost expert is wrong for the tokens that visit it. Each pattern is
//! a function that says its sentence only if it is true of every number that is compared.

mod columns;
mod factor;
mod places;
mod rows;

use dsv2_metrics::{MARGIN, Metrics};
use dsv2_reference::stage::Stage;
use ndarray::ArrayD;

use crate::budget::part;
use crate::case::Case;

/// A stage of a dump beside what it should be, in one shape.
pub struct Seen<'a> {
    /// Which stage.
    pub stage: Stage,
    /// The model and its inputs.
    pub case: &'a Case,
    /// What the dump holds.
    pub got: &'a ArrayD<f64>,
    /// What the reference makes of the dump's own inputs of the stage.
    pub want: &'a ArrayD<f64>,
    /// How far off it may be.
    pub budget: Metrics,
    /// Which rows mean something; all, if there is no list.
    pub compared: Option<&'a [bool]>,
    /// The experts of each token in the stage's layer, `[N,k]`, if there are any.
    pub experts: Option<&'a ArrayD<i64>>,
}

/// Says a sentence about a stage if it is true.
type Pattern = fn(&Seen<'_>) -> Option<String>;

/// What became of all the numbers; the first that holds is all that is said.
const WHOLE: &[Pattern] = &[factor::zero, factor::factor, rows::other_order, rows::neighbours];

/// Where the error is; of each group the first that holds is said.
const WHERE: [&[Pattern]; 3] = [
    &[rows::masked_otherwise],
    // which tokens
    &[
        places::sequences,
        places::one_token,
        places::last_token,
        places::first_token_right,
        places::visitors,
        places::from_on,
    ],
    // which part of the row
    &[places::heads, columns::parts],
];

/// All that is true of a wrong stage.
pub fn facts(seen: &Seen<'_>) -> Vec<String> {
    if seen.got.ndim() == 0 || seen.got.is_empty() || seen.got.shape() != seen.want.shape() {
        return Vec::new();
    }
    let first = |patterns: &[Pattern]| patterns.iter().find_map(|pattern| pattern(seen));
    match first(WHOLE) {
        Some(fact) => vec![fact],
        None => WHERE.into_iter().filter_map(first).collect(),
    }
}

impl Seen<'_> {
    /// The length of a row.
    fn width(&self) -> usize {
        self.want.shape().last().copied().unwrap_or(1)
    }

    /// Whether a row is compared.
    fn compares(&self, row: usize) -> bool {
        self.compared.is_none_or(|rows| rows[row])
    }

    /// The numbers of each row that is compared: its place, what the dump holds, what it should be.
    fn rows(&self) -> impl Iterator<Item = (usize, Vec<f64>, Vec<f64>)> {
        let last = ndarray::Axis(self.want.ndim() - 1);
        let rows = self.got.lanes(last).into_iter().zip(self.want.lanes(last)).enumerate();
        rows.filter(|(row, _)| self.compares(*row)).map(|(row, (got, want))| (row, got.to_vec(), want.to_vec()))
    }

    /// The usual norm of a row of the truth.
    fn usual_row(&self) -> f64 {
        let norms: Vec<f64> = self.rows().map(|(_, _, want)| square(&want)).collect();
        (norms.iter().sum::<f64>() / norms.len().max(1) as f64).sqrt()
    }

    /// How far a row is from `want`, in budgets of a row.
    fn row_error(&self, got: &[f64], want: &[f64], usual: f64) -> f64 {
        let mut difference = 0.0;
        for (x, y) in got.iter().zip(want) {
            match x.is_finite() && y.is_finite() {
                true => difference += (x - y) * (x - y),
                false if x == y || (x.is_nan() && y.is_nan()) => {}
                false => return f64::INFINITY,
            }
        }
        part(difference.sqrt(), self.budget.row * square(want).sqrt().max(0.1 * usual))
    }

    /// Whether a row is what `want` is, as far as the budget of a row tells.
    fn same_row(&self, got: &[f64], want: &[f64], usual: f64) -> bool {
        self.row_error(got, want, usual) <= 1.0
    }

    /// Which rows are wrong, and `None` of those that are not compared; nothing at all if one is [in doubt](is_wrong).
    fn wrong_rows(&self) -> Option<Vec<Option<bool>>> {
        let usual = self.usual_row();
        let mut wrong = vec![None; self.want.len() / self.width().max(1)];
        for (row, got, want) in self.rows() {
            wrong[row] = Some(is_wrong(self.row_error(&got, &want, usual))?);
        }
        Some(wrong)
    }
}

/// Whether something is wrong that is off by so many budgets. It may be a little wrong within its budget, and a little over
/// it where nothing is wrong but what it was computed from; then nobody can say, and "only these are wrong" may be untrue.
fn is_wrong(budgets: f64) -> Option<bool> {
    match budgets {
        sure if sure <= 1.0 / MARGIN => Some(false),
        sure if sure > MARGIN => Some(true),
        _ => None,
    }
}

/// The sum of the squares of what is finite.
fn square(row: &[f64]) -> f64 {
    row.iter().filter(|x| x.is_finite()).map(|x| x * x).sum()
}

/// Numbers in a sentence: "8", "8 and 9", "1, 8 and 9".
fn listed(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests;

//! Filtered distributions, and tokens that were drawn from such: each must be one that may be drawn, and where many rows have one distribution, each must have been
//! drawn about as often as it should.
//!
//! How often is held against the relative entropy of what was drawn, with a bound that holds for any number of draws (Agrawal
//! 2020, "Finite-sample concentration of the multinomial in relative entropy", theorem 1.2): of n draws from a distribution
//! over m bins, `P(n KL >= x) <= e^-x (e x / (m-1))^(m-1)` for x > m-1. And each bin by itself, whose part is too large or too
//! small with `P(n KL >= x) <= 2 e^-x` (Chernoff): a token that never comes is found by that. A right kernel fails once in
//! [`FALSE_ALARMS`] distributions at most, half of it for each.

use std::collections::HashMap;

use dsv2_metrics::{Element, unravel};
use dsv2_operators::operators::{Allowed, Filtered};
use ndarray::ArrayD;

use super::{Judge, OutputVerdict, real};
use crate::error::Result;
use crate::judge::Disposition;

/// A right kernel fails once in so many distributions.
const FALSE_ALARMS: f64 = 1e9;

/// So many draws of a distribution say something about it.
const ENOUGH: usize = 200;

/// Tokens that are expected less often than this, in so many draws, share a bin.
const SELDOM: f64 = 10.0;

impl Judge {
    /// Each token must be one that may be drawn; and see above.
    pub(super) fn judge_samples(&self, name: &str, got: &ArrayD<i64>) -> Result<OutputVerdict> {
        let filtered = self.operator.filtered(&self.inputs)?.expect("an operator that draws");
        let wrong = |note: String| OutputVerdict::noted(name, Disposition::WrongRouting, note);
        for (row, &token) in got.iter().enumerate() {
            let allowed = usize::try_from(token).ok().and_then(|token| filtered.allowed.get([row, token]));
            if allowed.is_none_or(|allowed| *allowed == Allowed::No) {
                let p = filtered.probabilities.row(row);
                let best = (0..p.len()).reduce(|best, at| if p[at] > p[best] { at } else { best }).unwrap_or(0);
                let worst = Some(Element { index: vec![row], got: token as f64, want: best as f64 });
                let note = match allowed {
                    Some(_) => format!("row {row}: token {token} is not among those that may be drawn"),
                    None => format!("row {row}: there is no token {token}"),
                };
                return Ok(OutputVerdict { worst, ..wrong(note) });
            }
        }
        let tokens: Vec<usize> = got.iter().map(|&token| token as usize).collect();
        for rows in alike(&filtered).into_iter().filter(|rows| rows.len() >= ENOUGH) {
            let drawn: Vec<usize> = rows.iter().map(|&row| tokens[row]).collect();
            if let Some(note) = unlikely(filtered.probabilities.row(rows[0]).as_slice().expect("row-major"), &drawn) {
                return Ok(wrong(note));
            }
        }
        Ok(OutputVerdict::new(name, Disposition::Pass))
    }

    /// What filters leave: 0 for tokens that they leave out, and for no others; the probabilities among those that are left.
    pub(super) fn judge_filtered(&self, name: &str, got: &ArrayD<f64>) -> Result<OutputVerdict> {
        let Filtered { probabilities, allowed } =
            self.operator.filtered(&self.inputs)?.expect("an operator that filters");
        let wrong = |(got, allowed): (&f64, &Allowed)| match allowed {
            Allowed::Yes => *got == 0.0,
            Allowed::No => *got != 0.0,
            Allowed::Either => false,
        };
        if let Some(at) = got.iter().zip(&allowed).position(wrong) {
            let index = unravel(at, got.shape());
            let want = probabilities[[index[0], index[1]]];
            let note = if want == 0.0 { "what is to be left out is not 0" } else { "what is to be kept is 0" };
            let worst = Some(Element { got: got[&index[..]], want, index });
            return Ok(OutputVerdict { worst, ..OutputVerdict::noted(name, Disposition::OverBudget, note.to_owned()) });
        }
        // where ties and roundings decide, each is held against the probabilities of what it kept
        let among = |kept: &ArrayD<f64>| {
            let mut p = probabilities.clone();
            p.zip_mut_with(kept, |p, kept| *p = if *kept == 0.0 { 0.0 } else { *p });
            p.rows_mut().into_iter().for_each(|mut row| row /= row.sum());
            p.into_dyn()
        };
        let want = among(got);
        let noise = [0, 1].map(|which| {
            let plain = real(&self.plain[which], name);
            &want + &(plain - &among(plain))
        });
        Ok(self.judge_against(name, got, &want, &[&noise[0], &noise[1]], None))
    }
}

/// The rows of each distribution of which nothing is open.
fn alike(filtered: &Filtered) -> Vec<Vec<usize>> {
    let mut of: HashMap<Vec<u64>, Vec<usize>> = HashMap::new();
    let rows = filtered.probabilities.rows().into_iter().zip(filtered.allowed.rows()).enumerate();
    for (row, (p, _)) in rows.filter(|(_, (_, allowed))| !allowed.iter().any(|a| *a == Allowed::Either)) {
        of.entry(p.iter().map(|p| p.to_bits()).collect()).or_default().push(row);
    }
    let mut alike: Vec<_> = of.into_values().collect();
    alike.sort();
    alike
}

/// What is unlikely of these tokens, if they were drawn from this distribution one by one.
fn unlikely(p: &[f64], drawn: &[usize]) -> Option<String> {
    let n = drawn.len() as f64;
    let mut bins: HashMap<Option<usize>, (f64, f64)> = HashMap::new();
    let bin = |token: usize| Some(token).filter(|&token| p[token] * n >= SELDOM);
    for (token, &p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        bins.entry(bin(token)).or_default().0 += p;
    }
    for &token in drawn {
        bins.entry(bin(token)).or_default().1 += 1.0 / n;
    }
    let free = bins.len().saturating_sub(1) as f64;
    let part = |want: f64, got: f64| if got > 0.0 { got * (got / want).ln() } else { 0.0 };
    let measured = n * bins.values().map(|&(want, got)| part(want, got)).sum::<f64>();
    let alone = |&(want, got): &(f64, f64)| n * (part(want, got) + part(1.0 - want, 1.0 - got));
    let most_alone = bins.values().map(alone).fold(0.0, f64::max);
    let may_be_alone = (4.0 * FALSE_ALARMS * bins.len() as f64).ln();
    if free == 0.0 || measured <= threshold(free) && most_alone <= may_be_alone {
        return None;
    }
    let (bin, (want, got)) = bins.iter().max_by(|a, b| alone(a.1).total_cmp(&alone(b.1)))?;
    let which = bin.map_or("the tokens that are seldom".to_owned(), |token| format!("token {token}"));
    Some(format!(
        "of {n} rows with one distribution {:.0} drew {which}, where {:.0} are expected (relative entropy of all {measured:.0}, of \
         this one {most_alone:.0}; above {:.0} and {may_be_alone:.0} once in 10^9 times)",
        got * n,
        want * n,
        threshold(free)
    ))
}

/// The x above which the bound is below half of one in [`FALSE_ALARMS`], for so many bins but one.
fn threshold(free: f64) -> f64 {
    let log_bound = |x: f64| free * (1.0 + (x / free).ln()) - x;
    let (mut below, mut above) = (free, 100.0 * free + 100.0);
    for _ in 0..100 {
        let middle = f64::midpoint(below, above);
        if log_bound(middle) > -(2.0 * FALSE_ALARMS).ln() { below = middle } else { above = middle }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_where_the_bound_reaches_the_rate_of_false_alarms() {
        for free in [1.0, 5.0, 40.0] {
            let x = threshold(free);
            let bound = (-x).exp() * (std::f64::consts::E * x / free).powf(free);
            assert!((2.0 * bound * FALSE_ALARMS - 1.0).abs() < 1e-6, "{free}: {bound}");
        }
    }
}

//! Sums whose parts several ranks have: in a narrow type each part is rounded, and so may be what is added up on the way.
//!
//! A model that is split by heads and by the columns of its MLPs makes of a stage y only parts of a sum, y = y₁ + .. + y_P, one on
//! each rank. Each is stored in the narrow type. An all-reduce adds them up, and may store s_k = y₁ + .. + y_k on the way from rank to
//! rank (a ring does; others round less). So beside y itself P parts are rounded, and s₂ to s_{P-1}. Each rounding errs in proportion
//! to what is rounded, and none has to do with another:
//!
//! ```text
//! E|error|² = ρ² (Σ_p |y_p|² + Σ_{k=2..P-1} |s_k|²),   ρ what one rounding costs
//! ```
//!
//! Parts of different heads or columns have as good as nothing in common: then |y_p|² is |y|²/P, and |s_k|² is k/P |y|². So all of it
//! is as much as (P+1)/2 - 1/P roundings of y: 0 on one device, 1 on two ranks, 2.25 on four, 4.4 on eight.

use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Stage, name};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::generator::{fnv1a64, splitmix64};
use dsv2_reference::{Dtype, Real};
use ndarray::Axis;

use super::storage::{ROUNDING, normal};
use crate::precision::{Choice, Precision, unit_roundoff};

/// Of how many ranks' parts the sums of a model are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialSums {
    /// What attention gives: a sum over heads.
    pub attention: usize,
    /// What a feed-forward network gives: a sum over columns, or over experts.
    pub feed_forward: usize,
}

impl Default for PartialSums {
    /// One device has all of it.
    fn default() -> Self {
        PartialSums::over(1)
    }
}

impl PartialSums {
    /// So many ranks have parts of both.
    pub const fn over(ranks: usize) -> Self {
        PartialSums { attention: ranks, feed_forward: ranks }
    }

    /// As much as so many more roundings of a stage come of its parts.
    pub fn roundings(self, stage: &str) -> f64 {
        let parts = match Stage::parse(stage).map(|stage| stage.kind) {
            Some(O_PROJ) => self.attention,
            Some(DOWN_PROJ | EXPERTS | SHARED_EXPERTS | MLP) => self.feed_forward,
            _ => 1,
        } as f64;
        (parts + 1.0) / 2.0 - 1.0 / parts
    }

    /// What is to be said of a dump in this precision, if it came of several ranks.
    pub fn says(self, precision: Precision) -> Option<String> {
        let PartialSums { attention, feed_forward } = self;
        precision.narrow().filter(|_| self != PartialSums::default())?;
        let of = match attention {
            1 => "what feed-forward networks give is a sum".to_owned(),
            _ => "what attention and feed-forward networks give are sums".to_owned(),
        };
        Some(format!("{of} over {feed_forward} ranks, each of which rounds its part"))
    }
}

/// Makes stages err as much as rounding the parts of a sum does, row by row.
pub struct RoundedParts<'a> {
    sums: PartialSums,
    /// What one rounding costs.
    rounding: f64,
    /// Which of all draws it is.
    draw: u64,
    /// The stages that somebody else's values take the place of.
    held: Choice<'a>,
}

impl<'a> RoundedParts<'a> {
    /// For sums that are stored in `narrow`, in a run to which the stages that are `held` are given.
    /// There are as many `draw`s of it as one likes.
    pub fn new(sums: PartialSums, narrow: Dtype, draw: u64, held: Choice<'a>) -> Self {
        RoundedParts { sums, rounding: ROUNDING * unit_roundoff(narrow), draw, held }
    }

    /// As much as so many roundings of the stage it is. What a mixture of experts gives is added up by itself, beside its experts and
    /// its shared ones: if both are given, their parts were rounded, too.
    fn roundings(&self, stage: &str) -> f64 {
        let Some(Stage { kind: MLP, layer: Some(layer), .. }) = Stage::parse(stage) else {
            return self.sums.roundings(stage);
        };
        let are_given = [EXPERTS, SHARED_EXPERTS].iter().all(|kind| (self.held)(&name(kind, layer)));
        self.sums.roundings(stage) * if are_given { 2.0 } else { 1.0 }
    }
}

impl<T: Real> Tap<T> for RoundedParts<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let StageValue::Real(mut value) = value else { return };
        let size = self.rounding * self.roundings(name).sqrt();
        if size == 0.0 || value.ndim() == 0 {
            return;
        }
        // none of the draws that others make of the same name
        let mut seed = fnv1a64(name) ^ splitmix64(!self.draw);
        let last = Axis(value.ndim() - 1);
        for mut row in value.lanes_mut(last) {
            // a row that is not finite stays what it is
            let square: f64 = row.iter().map(|x| Real::to_f64(*x).powi(2)).sum();
            let usual = if square.is_finite() { (square / row.len() as f64).sqrt() } else { 0.0 };
            for x in &mut row {
                *x = T::from_f64(Real::to_f64(*x) + size * usual * normal(seed));
                seed = seed.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn one_device_rounds_no_parts_and_each_rank_more_rounds_more() {
        let of = |ranks: usize| PartialSums::over(ranks).roundings("model.layers.1.self_attn.o_proj");
        assert_eq!([1, 2, 4, 8].map(of), [0.0, 1.0, 2.25, 4.375]);
        for other in ["model.layers.1", "model.layers.1.self_attn.attn_output", "lm_head", "model.embed_tokens"] {
            assert_eq!(PartialSums::over(8).roundings(other), 0.0, "{other}");
        }
        let sums = PartialSums { attention: 1, feed_forward: 4 };
        assert_eq!(sums.roundings("model.layers.1.self_attn.o_proj"), 0.0);
        assert_eq!(sums.roundings("model.layers.0.mlp.down_proj"), 2.25);
    }

    /// Independent numbers, rounded to bf16.
    fn stored(numbers: &[f64]) -> Vec<f64> {
        numbers.iter().map(|x| half::bf16::from_f64(*x).to_f64()).collect()
    }

    fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
        numbers.map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn a_ring_that_rounds_each_part_and_each_sum_errs_as_much() {
        const N: usize = 20_000;
        for ranks in [2, 4, 8, 16] {
            let numbers = |rank: usize| (0..N).map(|i| normal((rank * N + i) as u64)).collect::<Vec<_>>();
            let parts: Vec<Vec<f64>> = (0..ranks).map(numbers).collect();
            let exact: Vec<f64> = (0..N).map(|i| parts.iter().map(|part| part[i]).sum()).collect();
            let add = |sum: Vec<f64>, part: &Vec<f64>| {
                let part = stored(part);
                stored(&sum.iter().zip(&part).map(|(sum, part)| sum + part).collect::<Vec<_>>())
            };
            let ring = parts[1..].iter().fold(stored(&parts[0]), add);
            let error = norm(ring.iter().zip(&exact).map(|(got, want)| got - want)) / norm(exact.iter().copied());
            let roundings = 1.0 + PartialSums::over(ranks).roundings("model.layers.0.self_attn.o_proj");
            let expected = ROUNDING * unit_roundoff(Dtype::Bf16) * roundings.sqrt();
            assert!((error / expected - 1.0).abs() < 0.1, "{ranks} ranks: {error} where {expected} was expected");
        }
    }

    #[test]
    fn what_is_added_is_in_proportion_to_its_row() {
        let held: Choice<'_> = &|_| false;
        let mut value = Array2::from_shape_fn((2, 4096), |(row, _)| [1.0, 1000.0][row]);
        let exact = value.clone();
        let mut parts = RoundedParts::new(PartialSums::over(4), Dtype::Bf16, 0, held);
        parts.stage("model.layers.1.mlp.experts", StageValue::Real(value.view_mut().into_dyn()));
        for (got, want) in value.rows().into_iter().zip(exact.rows()) {
            let error = norm((&got - &want).into_iter()) / norm(want.iter().copied());
            let expected = ROUNDING * unit_roundoff(Dtype::Bf16) * 1.5;
            assert!((error / expected - 1.0).abs() < 0.05, "{error} where {expected} was expected");
        }
    }

    #[test]
    fn what_experts_give_together_is_rounded_beside_what_each_of_them_gives() {
        let all: Choice<'_> = &|_| true;
        let none: Choice<'_> = &|_| false;
        let of = |held| RoundedParts::new(PartialSums::over(4), Dtype::Bf16, 0, held).roundings("model.layers.1.mlp");
        assert_eq!([of(none), of(all)], [2.25, 4.5]);
    }
}

//! How much error a stage may have: what a plain implementation in the same type makes on the same input, times a constant.
//!
//! `budget = factor · max(noise, floor)`, for each metric by itself. The noise is the sum of what both sides of the
//! comparison are known to err: the truth (nothing, if it is the f64 reference; a golden case's fp32 tensors have an error of
//! their own) and a plain implementation of the candidate's type.
//!
//! The noise is one draw, and may be small by luck: the sum of two numbers that bf16 holds exactly is exact in fp32, and
//! errors that cancel give no gain at all. So it counts for no less than a floor:
//!
//! | metric | floor |
//! |---|---|
//! | all | the median over the layers of the same kind of stage, as far as they are judged from their very inputs like it, or not |
//! | `l2` | one rounding to fp32 on each side: norms, rotary tables and softmax are fp32 by definition, in any type |
//! | `row` | the `l2` noise, if it fell on the smallest row |
//! | `max` | the `l2` noise, if it fell on the largest element |
//! | `gain` | the `l2` noise over the root of the number of tokens: errors of tokens are independent, those within a token are not |
//!
//! No budget is typed in.

pub use dsv2_metrics::{FACTORS, FP32_ROUNDINGS, LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use dsv2_metrics::{Metrics, Spread, for_so_many, with_floors};
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{CACHED_K_PE, K_PE, Q_PE};
use indexmap::IndexMap;

use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// How much of a budget an error takes; of none, everything if there is an error.
pub fn part(error: f64, budget: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / budget }
}

/// The budgets of the stages of one comparison.
#[derive(Clone, Debug, Default)]
pub struct Budgets(IndexMap<String, Metrics>);

impl Budgets {
    /// `factors` times the noise of each stage, for a comparison with `truth` over `rows`.
    pub fn new(noise: &IndexMap<String, Metrics>, truth: &Trace, rows: &ComparedRows, factors: Metrics) -> Self {
        Self::by_spread(noise, |name| spread(name, truth.get(name)?, rows), |_| true, factors)
    }

    /// The same, where it is known how the truth of each stage is [`spread`], and which stages are computed from their very
    /// inputs: others have the noise of the stages between, and say nothing about these.
    pub fn by_spread(
        noise: &IndexMap<String, Metrics>,
        spread: impl Fn(&str) -> Option<(Spread, f64)>,
        from_its_inputs: impl Fn(&str) -> bool,
        factors: Metrics,
    ) -> Self {
        let mut kinds: IndexMap<(&str, bool), Vec<Metrics>> = IndexMap::new();
        for (name, metrics) in noise {
            kinds.entry((kind(name), from_its_inputs(name))).or_default().push(*metrics);
        }
        let medians: IndexMap<_, Metrics> = kinds.iter().map(|(&kind, seen)| (kind, median(seen))).collect();
        let counted = |(name, own): (&String, &Metrics)| {
            let usual = own.zip(&medians[&(kind(name), from_its_inputs(name))], f64::max);
            let (spread, tokens) = spread(name).unwrap_or_default();
            let factors = for_so_many(factors, spread.independent_elements);
            (name.clone(), with_floors(usual, spread, tokens).zip(&factors, |noise, factor| noise * factor))
        };
        Budgets(noise.iter().map(counted).collect())
    }

    /// The same with those of some stages from elsewhere.
    #[must_use]
    pub fn with(mut self, other: &Budgets, these: impl Fn(&str) -> bool) -> Self {
        for (name, budget) in other.0.iter().filter(|(name, _)| these(name)) {
            self.0.insert(name.clone(), *budget);
        }
        self
    }

    /// Allows a stage so much.
    pub fn put(&mut self, stage: &str, budget: Metrics) {
        self.0.insert(stage.to_owned(), budget);
    }

    /// The budget of a stage; `None` if nothing is known of its noise.
    pub fn get(&self, stage: &str) -> Option<Metrics> {
        self.0.get(stage).copied()
    }
}

fn kind(name: &str) -> &str {
    Stage::parse(name).map_or(name, |stage| stage.kind)
}

/// How the truth of a stage is spread, and over how many tokens whose errors are independent.
pub fn spread(name: &str, truth: &Values, rows: &ComparedRows) -> Option<(Spread, f64)> {
    let (stage, want) = (Stage::parse(name)?, truth.real()?);
    let compared = rows.of_stage(&stage, want.shape());
    let mut spreading = Spreading::new(stage, want.shape());
    spreading.add(want.as_standard_layout().as_slice()?, compared.as_deref());
    Some(spreading.finish())
}

/// The same in the making, of a stage of which some rows are at hand at a time.
pub struct Spreading {
    stage: Stage,
    shape: Vec<usize>,
    whole: dsv2_metrics::Spreading,
    /// A rotation keeps the length of each pair: what is the same token turned otherwise has the same errors, turned.
    turned: Option<dsv2_metrics::Spreading>,
}

impl Spreading {
    /// Of a stage of this shape.
    pub fn new(stage: Stage, shape: &[usize]) -> Self {
        let is_turned = [Q_PE, K_PE, CACHED_K_PE].contains(&stage.kind);
        let of = || dsv2_metrics::Spreading::new(shape);
        Spreading { stage, shape: shape.to_vec(), whole: of(), turned: is_turned.then(of) }
    }

    /// The next rows are those from `row` on.
    pub fn go_to(&mut self, row: usize) {
        self.whole.go_to(row);
        self.turned.iter_mut().for_each(|turned| turned.go_to(row));
    }

    /// Its next rows; those count for which `compared` holds (all, if there is none).
    pub fn add(&mut self, rows: &[f64], compared: Option<&[bool]>) {
        self.whole.add(rows, compared);
        if let Some(turned) = &mut self.turned {
            turned.add(&pair_lengths(rows, self.shape.last().copied().unwrap_or(1)), compared);
        }
    }

    /// How it is spread, and over how many tokens whose errors are independent.
    pub fn finish(self) -> (Spread, f64) {
        let mut spread = self.whole.finish();
        if let Some(turned) = self.turned.map(dsv2_metrics::Spreading::finish) {
            spread.independent_rows = spread.independent_rows.min(turned.independent_rows);
            spread.independent_elements = spread.independent_elements.min(turned.independent_elements);
        }
        let tokens = ComparedRows::tokens(&self.stage, &self.shape, spread.rows) as f64 / spread.rows.max(1) as f64;
        (spread, spread.independent_rows * tokens)
    }
}

/// The length of each pair of neighbours in rows of this width, in place of both.
fn pair_lengths(rotated: &[f64], width: usize) -> Vec<f64> {
    let mut lengths = rotated.to_vec();
    for row in lengths.chunks_mut(width.max(1)) {
        for pair in row.chunks_exact_mut(2) {
            let length = pair[0].hypot(pair[1]);
            pair.fill(length);
        }
    }
    lengths
}

/// The noise of propagated errors: the loss is a single number and the pooled logits are a few rows, whose own draw says
/// little. They have the noise of what they are computed from, at least (the loss twice that, since it may be a square).
pub fn carried(noise: IndexMap<String, Metrics>) -> IndexMap<String, Metrics> {
    let carried = noise.iter().map(|(name, own)| {
        let from = computed_from(name, &noise);
        (name.clone(), from.map_or(*own, |from| own.zip(&from, f64::max)))
    });
    carried.collect()
}

/// The noise of what a small stage is computed from.
fn computed_from(name: &str, noise: &IndexMap<String, Metrics>) -> Option<Metrics> {
    match name {
        "pooled_logits" => noise.get("score").copied(),
        "loss" => {
            let logits = noise.get("lm_head").or_else(|| noise.get("pooled_logits"))?;
            // a square has twice the relative error of what is squared
            Some(Metrics::from_values([2.0 * logits.l2; 4]))
        }
        _ => None,
    }
}

fn median(seen: &[Metrics]) -> Metrics {
    Metrics::from_values(std::array::from_fn(|metric| {
        let mut values: Vec<f64> = seen.iter().map(|m| m.values()[metric]).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    }))
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Dtype;
    use ndarray::{ArrayD, array};

    use super::*;

    fn all(x: f64) -> Metrics {
        Metrics::from_values([x; 4])
    }

    /// Budgets in units of the factors for so many numbers.
    fn counted(stages: &[(&str, f64, ArrayD<f64>)]) -> IndexMap<String, Metrics> {
        let noise = carried(stages.iter().map(|(name, noise, _)| (name.to_string(), all(*noise))).collect());
        let truth = stages.iter().map(|(name, _, a)| (name.to_string(), Values::Real(Dtype::F32, a.clone()))).collect();
        let budgets = Budgets::new(&noise, &truth, &ComparedRows::default(), FACTORS);
        budgets
            .0
            .into_iter()
            .map(|(name, budget)| {
                let known = spread(&name, truth.get(&name).unwrap(), &ComparedRows::default());
                let numbers = known.unwrap().0.independent_elements;
                (name, budget.zip(&for_so_many(FACTORS, numbers), |budget, factor| budget / factor))
            })
            .collect()
    }

    #[test]
    fn a_few_numbers_may_have_more_luck_than_many() {
        let budget = |numbers: usize| {
            // no two rows are equal, and none is much larger than another
            let a = ArrayD::from_shape_fn(vec![numbers, 1], |at| 1.0 + at[0] as f64 / numbers as f64);
            let noise = IndexMap::from([("model.norm".to_owned(), all(1e-6))]);
            let truth = [("model.norm".to_owned(), Values::Real(Dtype::F32, a))].into_iter().collect();
            Budgets::new(&noise, &truth, &ComparedRows::default(), FACTORS).get("model.norm").unwrap().l2
        };
        assert!(budget(1) > 2.0 * budget(200) && budget(10) > budget(100), "{} {}", budget(1), budget(10));
        approx::assert_relative_eq!(budget(200), 1e-6 * FACTORS.l2, max_relative = 1e-12);
    }

    #[test]
    fn one_token_turned_by_several_angles_counts_once() {
        let independent = |name: &str| {
            let a = ArrayD::from_shape_fn(
                vec![1, 1, 4, 2],
                |at| if at[3] == 0 { f64::cos } else { f64::sin }(at[2] as f64),
            );
            spread(name, &Values::Real(Dtype::F32, a), &ComparedRows::default()).unwrap().1
        };
        let [turned, other] =
            ["model.layers.0.self_attn.q_pe", "model.layers.0.self_attn.attn_scores"].map(independent);
        approx::assert_relative_eq!(turned, 1.0, max_relative = 1e-9);
        approx::assert_relative_eq!(other, 4.0, max_relative = 1e-9);
    }

    #[test]
    fn a_lucky_stage_is_judged_as_its_kind() {
        let flat = || array![[1.0]].into_dyn();
        let counted = counted(&[
            ("model.layers.0", 1e-10, flat()),
            ("model.layers.1", 2e-6, flat()),
            ("model.layers.2", 4e-6, flat()),
            ("model.norm", 0.0, flat()),
        ]);
        for (stage, noise) in [("model.layers.0", 2e-6), ("model.layers.1", 2e-6), ("model.layers.2", 4e-6)] {
            approx::assert_relative_eq!(counted[stage].l2, noise, max_relative = 1e-12);
        }
        approx::assert_relative_eq!(counted["model.norm"].l2, FP32_ROUNDINGS, max_relative = 1e-12);
    }

    #[test]
    fn a_stage_that_is_judged_from_its_inputs_has_not_the_noise_of_one_from_far_back() {
        let noise: IndexMap<String, Metrics> = [("model.layers.0", 1e-6), ("model.layers.1", 1e-2)]
            .map(|(name, noise)| (name.to_owned(), all(noise)))
            .into();
        let of = |alike: &dyn Fn(&str) -> bool| {
            Budgets::by_spread(&noise, |_| None, alike, FACTORS).get("model.layers.0").unwrap().l2
        };
        assert!(of(&|_| true) > 1e3 * of(&|name| name == "model.layers.0"));
    }

    #[test]
    fn the_noise_may_fall_on_the_smallest_row_or_the_largest_element() {
        // rows of norm 3 and 4: their rms is 5/√2; elements of rms 5/2
        let counted = counted(&[("model.norm", 1e-6, array![[3.0, 0.0], [0.0, 4.0]].into_dyn())]);
        let Metrics { l2, row, max, gain } = counted["model.norm"];
        approx::assert_relative_eq!(l2, 1e-6, max_relative = 1e-9);
        approx::assert_relative_eq!(row, 1e-6 * 5.0 / 2f64.sqrt() / 3.0, max_relative = 1e-9);
        approx::assert_relative_eq!(max, 1e-6 * 4.0 / 2.5, max_relative = 1e-9);
        approx::assert_relative_eq!(gain, 1e-6, max_relative = 1e-9);
    }

    #[test]
    fn a_loss_has_twice_the_noise_of_its_logits() {
        let counted =
            counted(&[("lm_head", 1e-6, array![[1.0]].into_dyn()), ("loss", 0.0, ndarray::arr0(2.0).into_dyn())]);
        approx::assert_relative_eq!(counted["loss"].l2, 2e-6, max_relative = 1e-9);
    }

    #[test]
    fn the_median_of_two_is_between_them() {
        approx::assert_relative_eq!(median(&[all(1e-6), all(3e-6)]).l2, 2e-6, max_relative = 1e-12);
    }
}

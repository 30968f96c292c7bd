//! How far two runs may be apart: as far as the reference errs in the same type.

use dsv2_metrics::{FACTORS, Metrics, NAMES, Spread, compare, with_floors};
use dsv2_reference::AttentionForm;
use dsv2_reference::config::TopkMethod;
use ndarray::{ArrayD, ArrayView1, Axis};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::runs::{Feed, Played, reference};
use super::tiny::Tiny;

/// The truth, and what fp32 may make of it.
pub struct Truth {
    pub exact: Played,
    plain: [Played; 2],
}

impl Truth {
    pub fn of(tiny: &Tiny, feeds: &[Feed]) -> Self {
        let plain = [AttentionForm::Expanded, AttentionForm::Absorbed].map(|form| reference::<f32>(tiny, feeds, form));
        Truth { exact: reference::<f64>(tiny, feeds, AttentionForm::Expanded), plain }
    }

    /// The same with the last feed's logits only.
    pub fn of_last(tiny: &Tiny, feeds: &[Feed]) -> Self {
        Truth::of(tiny, feeds).with_logits(|played| played.last.clone())
    }

    /// With the logits of some positions only, of all runs.
    pub fn from(self, start: usize) -> Self {
        self.with_logits(|played| played.logits.slice_axis(Axis(1), (start..).into()).to_owned())
    }

    fn with_logits(mut self, of: impl Fn(&Played) -> ArrayD<f64>) -> Self {
        for played in self.plain.iter_mut().chain([&mut self.exact]) {
            played.logits = of(played);
        }
        self
    }

    /// The same fp32 runs, judged by another truth.
    pub fn by(self, exact: Played) -> Self {
        Truth { exact, ..self }
    }

    /// Whether the router's choice hangs on less than what fp32 may err.
    pub fn is_near_tie(&self, tiny: &Tiny) -> bool {
        let routers = self.exact.stages.iter().filter(|(name, _)| name.ends_with("router_logits"));
        routers.into_iter().any(|(name, truth)| {
            let budget = self.budget(name);
            let rms = (truth.iter().map(|x| x * x).sum::<f64>() / truth.len() as f64).sqrt();
            // Two logits may move towards each other.
            let margin = 2.0 * budget.max * rms;
            truth.rows().into_iter().any(|row| gap(tiny, row) <= margin)
        })
    }

    /// The budget of a stage, or of the logits (``).
    fn budget(&self, name: &str) -> Metrics {
        let part = |played: &Played| if name.is_empty() { played.logits.clone() } else { played.stages[name].clone() };
        let truth = part(&self.exact);
        let error = |of: &Played| compare(part(of).view(), truth.view(), None).metrics;
        let spread = Spread::of(truth.view(), None);
        let both = error(&self.plain[0]).zip(&error(&self.plain[1]), |a, b| a + b);
        with_floors(both, spread, rows_that_count(&truth) as f64).zip(&FACTORS, |noise, factor| noise * factor)
    }

    /// That the logits of a run are near.
    pub fn judge(&self, what: &str, got: &ArrayD<f64>) -> TestCaseResult {
        self.compare(what, "", got, &self.exact.logits)
    }

    /// That a stage is near.
    pub fn judge_stage(&self, what: &str, name: &str, got: &ArrayD<f64>) -> TestCaseResult {
        self.compare(what, name, got, &self.exact.stages[name])
    }

    /// That two results are no farther apart than one may be from the truth.
    pub fn compare(&self, what: &str, name: &str, got: &ArrayD<f64>, want: &ArrayD<f64>) -> TestCaseResult {
        prop_assert_eq!(got.shape(), want.shape(), "{} {}", what, name);
        let found = compare(got.view(), want.view(), None);
        prop_assert!(found.nonfinite.is_none(), "{what} {name}: {:?}", found.nonfinite);
        for (metric, (error, budget)) in NAMES.iter().zip(found.metrics.values().iter().zip(self.budget(name).values()))
        {
            prop_assert!(*error <= budget, "{what} {name}: {metric} {error:.2e} of {budget:.2e}; {:?}", found.worst);
        }
        Ok(())
    }
}

/// How many rows of one size would have the norms' spread: where one is much larger than the others, 1.
///
/// The errors of rows cancel out in the metric `gain`, but not those of one row.
fn rows_that_count(of: &ArrayD<f64>) -> usize {
    let squares: Vec<f64> = of.rows().into_iter().map(|row| row.iter().map(|x| x * x).sum()).collect();
    let (sum, of_squares) = squares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    if of_squares > 0.0 { (sum * sum / of_squares) as usize } else { 1 }
}

/// How much nearer the router's logits could come to each other before another expert were chosen.
fn gap(tiny: &Tiny, logits: ArrayView1<f64>) -> f64 {
    let k = tiny.config.experts_per_token().expect("experts");
    let mut scores: Vec<f64> = logits.to_vec();
    let mut least = f64::INFINITY;
    if let TopkMethod::GroupLimitedGreedy { n_group, topk_group } = tiny.config.topk_method().expect("a method") {
        let size = scores.len() / n_group;
        let best = |group: &[f64]| group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut groups: Vec<&[f64]> = scores.chunks(size).collect();
        groups.sort_by(|a, b| best(b).total_cmp(&best(a)));
        if topk_group < n_group {
            least = best(groups[topk_group - 1]) - best(groups[topk_group]);
        }
        scores = groups[..topk_group].concat();
    }
    scores.sort_by(|a, b| b.total_cmp(a));
    // Experts that are chosen stand in the order of their scores.
    (0..k.min(scores.len() - 1)).map(|i| scores[i] - scores[i + 1]).fold(least, f64::min)
}

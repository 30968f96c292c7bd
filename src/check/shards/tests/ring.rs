//! Runs in bf16 whose ranks round their parts of a sum, and all that is added up from one rank to the next.

use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::{DeepseekV2Config, Real};
use half::bf16;
use ndarray::Array2;

use super::*;

const FIRST: &str = "model.layers.0.self_attn.o_proj";

/// One with heads and columns for 16 ranks.
fn wide() -> Case {
    let case = case();
    let config = DeepseekV2Config {
        hidden_size: 64,
        num_attention_heads: 16,
        num_key_value_heads: Some(16),
        intermediate_size: 96,
        ..case.config.clone()
    };
    Case { config, ..case }.checked().unwrap()
}

fn stored(a: &Array2<f64>) -> Array2<f64> {
    a.mapv(|x| bf16::from_f64(x).to_f64())
}

/// In a run of one device, makes what attention and dense layers give as several ranks do.
struct Ring<'a> {
    case: &'a Case,
    ranks: usize,
    /// What the second rank's part of the first sum is multiplied with.
    factor: f64,
    gate: Array2<f64>,
    /// What the next sum is over.
    terms: Array2<f64>,
}

impl Ring<'_> {
    /// The sum of all ranks' products with their columns of this weight.
    fn sum(&self, name: &str) -> Array2<f64> {
        let width = self.terms.ncols();
        let weight = self.case.weights.tensor(&format!("{name}.weight"), &[self.case.config.hidden_size, width]);
        let weight: Array2<f64> = weight.unwrap().to_array();
        let part = |rank: usize| {
            let columns = s![.., rank * width / self.ranks..(rank + 1) * width / self.ranks];
            let product = self.terms.slice(columns).dot(&weight.slice(columns).t());
            stored(&(product * if rank == 1 && name == FIRST { self.factor } else { 1.0 }))
        };
        (1..self.ranks).fold(part(0), |sum, rank| stored(&(sum + part(rank))))
    }
}

impl<T: Real> Tap<T> for Ring<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let StageValue::Real(mut value) = value else { return };
        let Some(leaf @ ("attn_output" | "gate_proj" | "up_proj" | "o_proj" | "down_proj")) = name.rsplit('.').next()
        else {
            return;
        };
        let width = value.shape()[2];
        let rows = value.map(|x| Real::to_f64(*x)).into_shape_with_order((value.len() / width, width)).unwrap();
        match leaf {
            "attn_output" => self.terms = stored(&rows),
            "gate_proj" => self.gate = stored(&rows),
            "up_proj" => self.terms = stored(&(self.gate.mapv(|x| x / (1.0 + (-x).exp())) * stored(&rows))),
            _ => value.iter_mut().zip(&self.sum(name)).for_each(|(x, sum)| *x = T::from_f64(*sum)),
        }
    }
}

/// A dump of so many ranks, joined by Transformers' plan.
fn dumped_by(ranks: usize, factor: f64) -> (Case, Joined) {
    let (case, rule) = (wide(), "transformers".parse::<Rule>().unwrap());
    let settings = Settings { precision: Precision::Bf16, ..Settings::default() };
    let none = || Array2::zeros([0, 0]);
    let mut ring = Ring { case: &case, ranks, factor, gate: none(), terms: none() };
    let trace = Reference.run(&case, &settings, &mut ring).unwrap();
    let of_rank = |rank: usize| {
        let block = |a: &ArrayD<f64>, axis: usize| {
            let each = a.len_of(Axis(axis)) / ranks;
            a.slice_axis(Axis(axis), Slice::from(rank * each..(rank + 1) * each)).to_owned()
        };
        let part = |(name, values): (&str, &Values)| {
            let part = match (rule.how(name), values) {
                (How::Columns, Values::Real(dtype, a)) => Values::Real(*dtype, block(a, a.ndim() - 1)),
                (How::Heads, Values::Real(dtype, a)) => Values::Real(*dtype, block(a, 1)),
                (_, values) => values.clone(),
            };
            (name.to_owned(), part)
        };
        (format!("rank {rank}"), trace.iter().map(part).collect())
    };
    let files: Vec<File> = (0..ranks).map(of_rank).collect();
    let joined = join(&files, &rule, &case).unwrap();
    (case, joined)
}

fn checked_over(ranks: usize, factor: f64) -> Checked {
    let (case, joined) = dumped_by(ranks, factor);
    check_ranks(&mut Request::new(case, Trace::default()), joined).unwrap()
}

#[test]
fn ranks_that_round_their_parts_of_a_sum_are_right() {
    for ranks in [2, 4, 8, 16] {
        let checked = checked_over(ranks, 1.0);
        assert!(checked.verdict.passes(), "{ranks} ranks: {:?}", checked.verdict.first_failure());
        let says = format!("what attention and feed-forward networks give are sums over {ranks} ranks");
        assert!(checked.assumed.iter().any(|assumed| assumed.starts_with(&says)), "{:?}", checked.assumed);
    }
}

#[test]
fn one_device_may_not_err_as_much_as_eight_ranks_do() {
    let (case, joined) = dumped_by(8, 1.0);
    let as_of_one_device = check_without_hint(&Request::new(case, joined.first)).unwrap();
    assert_eq!(first_failure(&as_of_one_device), FIRST);
}

#[test]
fn a_part_of_a_rank_that_is_a_twentieth_too_large_is_found_at_its_stage() {
    for ranks in [2, 4, 8] {
        assert_eq!(first_failure(&checked_over(ranks, 1.05)), FIRST, "{ranks} ranks");
    }
}

//! The golden cases against the CUDA kernels over several emulated devices.
//!
//! Each case in one of the splits that it can have; `dsv2 verify --ranks 2x4` runs all of them in one split.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsv2::backend::{Backend, OnRanks, Precision, Settings};
use dsv2::golden::GoldenCases;
use dsv2::outcome::Conclusion;
use dsv2::verify;
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{AttentionForm, Result, Tensor};

/// Parts of heads and columns, and blocks of experts.
const SPLITS: [(usize, usize); 8] = [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 4), (4, 2), (4, 4)];

/// How many cases passed in each split: of those that a case can have, it is run in the one that was used least.
fn passed(precision: Precision, numbers: impl Fn(usize) -> bool) -> BTreeMap<(usize, usize), usize> {
    let golden = GoldenCases::embedded();
    let mut passed = BTreeMap::new();
    for (number, name) in golden.names().iter().enumerate().filter(|(number, _)| numbers(*number)) {
        let case = golden.load(name).unwrap();
        let attention = [AttentionForm::Expanded, AttentionForm::Absorbed][number / 2 % 2];
        let settings = Settings { precision, attention, ..Settings::default() };
        let can = |(tensor, experts): &(usize, usize)| {
            OnRanks::new(*tensor, *experts).cannot_run(&case.case, &settings).is_none()
        };
        let split = SPLITS.into_iter().filter(can).min_by_key(|split| passed.get(split).copied().unwrap_or(0));
        let Some((tensor, experts)) = split else { continue };
        let outcome = verify::run(&case, &OnRanks::new(tensor, experts), precision, attention, &mut NoTap);
        let what = format!("{name}, {tensor} x {experts}, {precision}, {attention:?}");
        assert_eq!(outcome.conclusion(), Conclusion::Pass, "{what}: {outcome:?}");
        *passed.entry((tensor, experts)).or_default() += 1;
    }
    passed
}

#[test]
fn golden_cases_pass_over_ranks_in_f32() {
    let passed = passed(Precision::F32, |number| number % 2 == 0);
    assert!(passed.len() == SPLITS.len() && passed.values().sum::<usize>() >= 25, "{passed:?}");
}

#[test]
fn golden_cases_pass_over_ranks_in_bf16() {
    let passed = passed(Precision::Bf16, |number| number % 2 == 1);
    assert!(passed.len() == SPLITS.len() && passed.values().sum::<usize>() >= 25, "{passed:?}");
}

#[test]
fn the_parts_that_four_ranks_round_in_bf16_are_no_fault() {
    // By what one device rounds, `mlp` of layer 1 would be over its budget here.
    let case = GoldenCases::embedded().load("gapped-positions").unwrap();
    let outcome = verify::run(&case, &OnRanks::new(4, 1), Precision::Bf16, AttentionForm::Expanded, &mut NoTap);
    assert_eq!(outcome.conclusion(), Conclusion::Pass, "{outcome:?}");
}

/// Weights of which one is wrong.
struct WithWrong {
    weights: Arc<dyn WeightSource + Send + Sync>,
    wrong: &'static str,
}

impl WeightSource for WithWrong {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        // Another expert's, or another layer's: as large, and finite.
        let other = name.replace("experts.11.", "experts.10.").replace("layers.1.self_attn.o", "layers.0.self_attn.o");
        self.weights.tensor(if name == self.wrong { &other } else { name }, shape)
    }

    fn names(&self) -> Option<Vec<String>> {
        self.weights.names()
    }
}

#[test]
fn a_wrong_weight_fails_over_ranks_at_its_stage() {
    let golden = GoldenCases::embedded();
    let fails_at = |wrong: &'static str| {
        let mut case = golden.load("v2").unwrap();
        case.case.weights = Arc::new(WithWrong { weights: case.case.weights.clone(), wrong });
        let outcome = verify::run(&case, &OnRanks::new(2, 2), Precision::F32, AttentionForm::Expanded, &mut NoTap);
        outcome.verdict().and_then(|verdict| verdict.first_failure().map(|of| of.stage.clone()))
    };
    assert_eq!(fails_at(""), None);
    for (wrong, stage) in [
        ("model.layers.1.mlp.experts.11.down_proj.weight", "model.layers.1.mlp.experts"),
        ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj"),
    ] {
        assert_eq!(fails_at(wrong).as_deref(), Some(stage), "{wrong}");
    }
}

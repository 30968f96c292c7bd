//! A backend of one's own, verified on golden cases.
//!
//! A backend is anything that runs a case and says what its stages were. This one has a router of its own; the rest is
//! borrowed from the reference, by a tap, so that the example is short. An engine that computes everything itself makes a
//! `Trace` of its tensors in the same way: `Trace::from_iter` takes names and values.
//!
//! ```text
//! cargo run --release --example backend
//! ```
//!
//! In a test target with `harness = false`, `dsv2::conformance_suite!(MyBackend);` makes a test of every golden case.

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2::golden::GoldenCases;
use dsv2::report::verify_failure;
use dsv2::taps::{AnyTap, again};
use dsv2::trace::Trace;
use dsv2::verify::{Plan, verify};
use dsv2::waivers::Waivers;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Real, StageValue, Tap};
use ndarray::{Array2, Ix2};

/// By what a group of experts is scored.
#[derive(Clone, Copy)]
enum GroupScore {
    /// DeepSeek-V2's rule.
    BestExpert,
    /// DeepSeek-V3's rule, which several engines apply to V2 as well.
    SumOfTheTwoBest,
}

struct MyBackend {
    name: &'static str,
    group_score: GroupScore,
}

impl Backend for MyBackend {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> dsv2::Result<Trace> {
        let router = MyRouter { config: &case.config, group_score: self.group_score, logits: Array2::zeros((0, 0)) };
        Reference.run(case, settings, &mut Then { router, tap })
    }
}

/// Selects experts from the logits that pass by, and puts its choice in the place of the reference's.
struct MyRouter<'a> {
    config: &'a DeepseekV2Config,
    group_score: GroupScore,
    logits: Array2<f64>,
}

impl MyRouter<'_> {
    /// The experts of a token, by falling logit. (The softmax keeps the order.)
    fn select(&self, logits: &[f64]) -> Vec<usize> {
        let by_logit = |experts: &mut Vec<usize>| experts.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut experts: Vec<usize> = (0..logits.len()).collect();
        if let Ok(TopkMethod::GroupLimitedGreedy { n_group, topk_group }) = self.config.topk_method() {
            let mut groups: Vec<Vec<usize>> = experts.chunks(logits.len() / n_group).map(<[usize]>::to_vec).collect();
            groups.iter_mut().for_each(by_logit);
            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let score = |group: &[usize]| match self.group_score {
                GroupScore::BestExpert => logits[group[0]],
                GroupScore::SumOfTheTwoBest => group.iter().take(2).map(|&e| (logits[e] - highest).exp()).sum(),
            };
            groups.sort_by(|a, b| score(b).total_cmp(&score(a)));
            experts = groups[..topk_group].concat();
        }
        by_logit(&mut experts);
        experts.truncate(self.config.experts_per_token().unwrap_or(0));
        experts
    }
}

impl MyRouter<'_> {
    fn look<T: Real>(&mut self, name: &str, value: StageValue<'_, T>) {
        match value {
            StageValue::Real(logits) if name.ends_with(".router_logits") => {
                self.logits = logits.mapv(<T as Real>::to_f64).into_dimensionality::<Ix2>().expect("[tokens, experts]");
            }
            StageValue::Index(mut chosen) if name.ends_with(".topk_indices") => {
                for (mut chosen, logits) in chosen.outer_iter_mut().zip(self.logits.outer_iter()) {
                    let mine = self.select(&logits.to_vec());
                    chosen.iter_mut().zip(mine).for_each(|(slot, expert)| *slot = expert as i64);
                }
            }
            _ => {}
        }
    }
}

/// The router, then whatever tap the backend was given, in whichever type the reference computes.
struct Then<'a, 'b> {
    router: MyRouter<'a>,
    tap: &'b mut dyn AnyTap,
}

impl Tap<f32> for Then<'_, '_> {
    fn stage(&mut self, name: &str, mut value: StageValue<'_, f32>) {
        self.router.look(name, again(&mut value));
        self.tap.stage(name, value);
    }
}

impl Tap<f64> for Then<'_, '_> {
    fn stage(&mut self, name: &str, mut value: StageValue<'_, f64>) {
        self.router.look(name, again(&mut value));
        self.tap.stage(name, value);
    }
}

fn main() -> dsv2::Result<()> {
    let right = MyBackend { name: "mine", group_score: GroupScore::BestExpert };
    let wrong = MyBackend { name: "mine-by-v3-rule", group_score: GroupScore::SumOfTheTwoBest };
    let golden = GoldenCases::embedded();
    let plan = Plan {
        golden: &golden,
        cases: ["v2", "v2-lite", "many-groups"].map(str::to_owned).to_vec(),
        candidates: vec![(&right, Precision::F32), (&wrong, Precision::F32)],
        attention: AttentionForm::Expanded,
        at_a_time: usize::MAX,
        waivers: Waivers::default(),
    };
    for item in verify(&plan, |_| ())? {
        let passed = || format!("pass {} {} {}", item.case, item.backend, item.precision);
        println!("{}", verify_failure(&item).unwrap_or_else(passed));
    }
    Ok(())
}

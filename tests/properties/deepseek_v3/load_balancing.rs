//! What keeps DeepSeek-V3's experts equally busy in training: the biases' update, and a small loss.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::deepseek_v3::load_balancing::{max_violation, sequence_balance_loss, update_biases};
use dsv2_reference::deepseek_v3::router::BiasCorrectedRule;
use dsv2_reference::model::router::RoutingRule;
use dsv2_reference::paper::training::balance_loss::{BalanceLoss, Level, Over};
use dsv2_reference::weights::generator::splitmix64;
use dsv2_testing::for_all;
use ndarray::{Array1, Array2, Axis, s};
use proptest::collection::vec;
use proptest::prelude::*;

use super::cases;

/// A program that moves the biases after a step, given the load: biases, load, speed.
type Update = dyn Fn(&mut Array1<f64>, &[usize], f64);

fn update(bias: &mut Array1<f64>, load: &[usize], speed: f64) {
    update_biases(bias.view_mut(), load, speed).unwrap();
}

#[test]
fn a_skewed_load_becomes_balanced() {
    // 8 experts, of which 2 are selected by each of 128 tokens. Two experts are so much better that they take (nearly)
    // all tokens. After 96 fast steps and 96 slow ones the busiest has at most a quarter more than the mean.
    // Measured: 0.03; 0.16 in 200 others.
    for_all((0..1000_u64, 2..=4_u32), |update: &Update, (seed, skew)| {
        let config = DeepseekV2Config {
            n_routed_experts: Some(8),
            n_group: Some(1),
            topk_group: Some(1),
            num_experts_per_tok: Some(2),
            ..DeepseekV2Config::default()
        };
        let rule = BiasCorrectedRule::from_config(&config).unwrap();
        let random = |i: usize| (splitmix64(seed ^ (i as u64) << 20) % 1024) as f64 / 256.0 - 2.0;
        let logits =
            Array2::from_shape_fn((128, 8), |(t, e)| random(8 * t + e) + if e < 2 { f64::from(skew) } else { 0.0 });
        let load = |bias: &Array1<f64>| rule.route(logits.clone(), bias.view()).unwrap().tokens_per_expert();
        let mut bias = Array1::zeros(8);
        prop_assert!(max_violation(&load(&bias)) > 0.8, "it was balanced from the first");
        for step in 0..192 {
            let load = load(&bias);
            update(&mut bias, &load, if step < 96 { 1.0 / 64.0 } else { 1.0 / 1024.0 });
        }
        let error = max_violation(&load(&bias));
        prop_assert!(error < 0.25, "{error:e}");
        Ok(())
    })
    .tried(8)
    .holds_for(&update)
    .fails_for("the wrong direction", &|bias, load, speed| update(bias, load, -speed))
    .fails_for("only idle experts are helped", &|bias, load, speed| {
        bias.iter_mut().zip(load).filter(|(_, load)| **load == 0).for_each(|(bias, _)| *bias += speed);
    });
}

#[test]
fn biases_move_by_the_speed_or_not_at_all_whatever_the_size_of_the_batch() {
    for_all((vec(0..9_usize, 1..=6), 1..5_usize), |update: &Update, (load, copies)| {
        let moved = |load: &[usize]| {
            let mut bias = Array1::zeros(load.len());
            update(&mut bias, load, 0.125);
            bias
        };
        let bias = moved(&load);
        prop_assert!(bias.iter().all(|step| [-0.125, 0.0, 0.125].contains(step)));
        let mean = load.iter().sum::<usize>() as f64 / load.len() as f64;
        for (step, &load) in bias.iter().zip(&load) {
            prop_assert_eq!(step.partial_cmp(&0.0), mean.partial_cmp(&(load as f64)), "of {} tokens", load);
        }
        let larger: Vec<usize> = load.iter().map(|load| load * copies).collect();
        prop_assert_eq!(moved(&larger), bias);
        Ok(())
    })
    .holds_for(&update)
    .fails_for("the step is proportional to the error", &|bias, load, speed| {
        let mean = load.iter().sum::<usize>() as f64 / load.len() as f64;
        bias.iter_mut().zip(load).for_each(|(bias, &load)| *bias += speed * (mean - load as f64));
    })
    .fails_for("the mean is rounded down", &|bias, load, speed| {
        let mean = load.iter().sum::<usize>() / load.len();
        let step = |load: usize| mean.cmp(&load) as i32;
        bias.iter_mut().zip(load).for_each(|(bias, &load)| *bias += speed * f64::from(step(load)));
    });
}

/// A program that computes the sequence-wise loss: scores \[T,E\], K_r, alpha.
type Loss = dyn Fn(&Array2<f64>, usize, f64) -> f64;

fn loss(scores: &Array2<f64>, k: usize, alpha: f64) -> f64 {
    sequence_balance_loss(scores.view(), k, alpha).unwrap()
}

#[test]
fn the_sequence_wise_loss_has_its_exact_values_and_bounds() {
    // Equal shares P, or each expert selected as often as any other: alpha. All tokens alike: the most, alpha N/K times
    // the share of the selected. Scaling a token's scores changes nothing; nor does the order of the tokens.
    for_all((cases(), 1..=8_u32), |loss: &Loss, (case, scale)| {
        let (scores, k, experts) = (case.scores(), case.k, case.experts());
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-13;
        prop_assert!(close(loss(&Array2::ones((3, experts)), k, 0.5), 0.5));
        let rotated = Array2::from_shape_fn((experts, experts), |(t, e)| case.scores()[[0, (t + e) % experts]]);
        prop_assert!(close(loss(&rotated, k, 0.5), 0.5));
        let found = loss(&scores, k, 1.0);
        prop_assert!(found > 0.0 && found <= experts as f64 / k as f64 + 1e-12);
        prop_assert!(close(loss(&scores.slice(s![..;-1, ..]).to_owned(), k, 1.0), found));
        let mut scaled = scores.clone();
        scaled.row_mut(0).mapv_inplace(|score| score / f64::from(scale));
        prop_assert!(close(loss(&scaled, k, 1.0), found));
        Ok(())
    })
    .holds_for(&loss)
    .fails_for("the scores are not normalised", &|scores, k, alpha| {
        loss(scores, k, alpha) * scores.sum() / scores.nrows() as f64
    })
    .fails_for("f is not divided by K_r", &|scores, k, alpha| loss(scores, k, alpha) * k as f64)
    .fails_for("f is made of the scores", &|scores, _, alpha| {
        let shares = scores / &scores.sum_axis(Axis(1)).insert_axis(Axis(1));
        let p = shares.sum_axis(Axis(0)) / scores.nrows() as f64;
        alpha * scores.ncols() as f64 * (&p * &p).sum()
    });
}

#[test]
fn on_softmax_scores_the_sequence_wise_loss_is_v2s_expert_level_loss() {
    for_all(cases(), |loss: &Loss, case| {
        let (experts, k) = (case.experts(), case.k);
        let routing = RoutingRule::new(experts, TopkMethod::Greedy, k).unwrap().route(case.logits()).unwrap();
        let v2 = BalanceLoss { level: Level::Expert, over: Over::WholeBatch, alpha: 0.5 };
        let expected = v2.value(&routing, 1).unwrap();
        let found = loss(&routing.scores(), k, 0.5);
        prop_assert!((found / expected - 1.0).abs() < 1e-13, "{found} is not {expected}");
        Ok(())
    })
    .holds_for(&loss)
    .fails_for("f is not divided by K_r", &|scores, k, alpha| loss(scores, k, alpha) * k as f64)
    .fails_for("P is summed, not averaged", &|scores, k, alpha| loss(scores, k, alpha) * scores.nrows() as f64);
}

//! With what weight.

use dsv2_reference::model::router::Routing;
use dsv2_testing::for_all;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// The relative error that is allowed. Measured in 20000 cases: between 8e-16 and 1e-15.
const TOLERANCE: f64 = 4e-15;

fn close(found: f64, expected: f64) -> Result<(), TestCaseError> {
    prop_assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{} is not {}", found, expected);
    Ok(())
}

/// The weights of a token's experts as a function of its scores.
fn of_scores(weigh: impl Fn(&[f64], &[usize]) -> Vec<f64>) -> impl Fn(&Case) -> Routing<f64> {
    weighing(move |logits, experts| weigh(&softmax(logits.as_slice().unwrap()), experts))
}

#[test]
fn a_weight_is_the_scaled_softmax_over_all_experts_at_the_expert() {
    for_all(cases(), |route: &Router, case| {
        let routing = route(&case);
        for (t, logits) in case.logits().rows().into_iter().enumerate() {
            let scores = softmax(logits.as_slice().unwrap());
            for (&expert, &weight) in routing.topk_indices.row(t).iter().zip(routing.topk_weights.row(t)) {
                close(weight, GAMMA * scores[expert as usize])?;
            }
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "routed_scaling_factor forgotten",
        &of_scores(|scores, experts| experts.iter().map(|&e| scores[e]).collect()),
    )
    .fails_for(
        "normalised",
        &of_scores(|scores, experts| {
            let sum: f64 = experts.iter().map(|&e| scores[e]).sum();
            experts.iter().map(|&e| GAMMA * scores[e] / sum).collect()
        }),
    )
    .fails_for(
        "softmax after the selection (Mixtral)",
        &weighing(|logits, experts| {
            let selected: Vec<f64> = experts.iter().map(|&e| logits[e]).collect();
            softmax(&selected).into_iter().map(|s| GAMMA * s).collect()
        }),
    )
    .fails_for(
        "sigmoid scores (DeepSeek-V3)",
        &weighing(|logits, experts| experts.iter().map(|&e| GAMMA / (1.0 + (-logits[e]).exp())).collect()),
    )
    .fails_for(
        "the scores at the slots, not at the experts",
        &of_scores(|scores, experts| (0..experts.len()).map(|slot| GAMMA * scores[slot]).collect()),
    )
    .fails_for("experts sorted by index, weights by score", &|case: &Case| {
        let mut routing = reference(case);
        routing.topk_indices.rows_mut().into_iter().for_each(|mut row| row.as_slice_mut().unwrap().sort_unstable());
        routing
    });
}

#[test]
fn weights_are_positive_and_sum_to_gamma_times_the_selected_scores() {
    for_all(cases(), |route: &Router, case| {
        let routing = route(&case);
        for (t, experts) in chosen(&routing).into_iter().enumerate() {
            let weights = routing.topk_weights.row(t);
            prop_assert!(weights.iter().all(|&w| 0.0 < w && w <= GAMMA), "{weights}");
            let scores = softmax(case.logits().row(t).as_slice().unwrap());
            close(weights.sum(), GAMMA * experts.iter().map(|&e| scores[e]).sum::<f64>())?;
            prop_assert!(weights.sum() <= GAMMA * (1.0 + TOLERANCE), "{weights}");
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("an inverted mask", &mask_inverted())
    .fails_for(
        "normalised, and scaled",
        &of_scores(|scores, experts| {
            let sum: f64 = experts.iter().map(|&e| scores[e]).sum();
            experts.iter().map(|&e| GAMMA * scores[e] / sum).collect()
        }),
    );
}

#[test]
fn normalised_weights_are_the_softmax_over_the_selected_logits_and_not_scaled() {
    let normalised = |case: &Case| case.rule().normalised().route(case.logits()).unwrap();
    let cases = cases().prop_filter("k > 1", |case| case.k > 1); // one expert is scaled instead
    for_all(cases, |route: &Router, case| {
        let routing = route(&case);
        for t in 0..case.eighths.len() {
            let selected: Vec<f64> =
                routing.topk_indices.row(t).iter().map(|&e| routing.router_logits[[t, e as usize]]).collect();
            for (&weight, expected) in routing.topk_weights.row(t).iter().zip(softmax(&selected)) {
                close(weight, expected)?;
            }
            close(routing.topk_weights.row(t).sum(), 1.0)?;
        }
        Ok(())
    })
    .holds_for(&normalised)
    .fails_for("norm_topk_prob ignored (Transformers)", &reference)
    .fails_for("normalised, and scaled (DeepSeek-VL2 and V3)", &move |case: &Case| {
        let mut routing = normalised(case);
        routing.topk_weights *= GAMMA;
        routing
    });
}

#[test]
fn a_logit_that_is_no_number_shows_in_all_weights_of_its_token_and_in_no_others() {
    type OfLogits = dyn Fn(&Case, Array2<f64>) -> Routing<f64>;
    let bad = select(vec![f64::NAN, f64::INFINITY]);
    let reference = |case: &Case, logits| case.rule().route(logits).unwrap();
    for_all((cases(), any::<Index>(), bad), |route: &OfLogits, (case, at, bad): (Case, Index, f64)| {
        let (mut logits, at) = (case.logits(), at.index(case.eighths.len() * case.experts()));
        let token = at / case.experts();
        logits[[token, at % case.experts()]] = bad;
        let (routing, healthy) = (route(&case, logits), route(&case, case.logits()));
        for t in 0..case.eighths.len() {
            if t == token {
                prop_assert!(routing.topk_weights.row(t).iter().all(|w| w.is_nan()));
            } else {
                prop_assert_eq!(routing.topk_weights.row(t), healthy.topk_weights.row(t));
                prop_assert_eq!(routing.topk_indices.row(t), healthy.topk_indices.row(t));
            }
        }
        prop_assert!(routing.validate().is_ok(), "experts {:?}", routing.topk_indices);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("what is no number is replaced by 0", &move |case: &Case, logits: Array2<f64>| {
        reference(case, logits.mapv(|z| if z.is_finite() { z } else { 0.0 }))
    })
    .fails_for("an expert that does not exist for what has no order", &move |case: &Case, logits: Array2<f64>| {
        let mut routing = reference(case, logits);
        let experts = case.experts() as i64;
        ndarray::Zip::from(&mut routing.topk_indices).and(&routing.topk_weights).for_each(|e, w| {
            if w.is_nan() {
                *e = experts;
            }
        });
        routing
    });
}

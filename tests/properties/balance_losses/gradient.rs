//! The gradient with respect to the logits: through P alone.

use dsv2_testing::for_all;
use proptest::prelude::*;

use super::*;

type Gradient = dyn Fn(&BalanceLoss, &Routing<f64>, usize) -> Array2<f64>;

fn gradient(loss: &BalanceLoss, routing: &Routing<f64>, batch: usize) -> Array2<f64> {
    loss.gradient(routing, batch).unwrap()
}

/// A level, as an index, and what is one sequence.
fn losses() -> impl Strategy<Value = (usize, Over)> {
    (0..3_usize, prop_oneof![Just(Over::EachSequence), Just(Over::WholeBatch)])
}

fn level(index: usize, placement: &Placement, device_limit: usize) -> Level<'_> {
    [Level::Expert, Level::Device(placement), Level::Communication { placement, device_limit }][index]
}

#[test]
fn the_gradient_is_the_slope_of_the_loss_while_the_choice_stays_the_same() {
    for_all((cases(), losses()), |gradient: &Gradient, (case, (index, over)): (Case, (usize, Over))| {
        let placement = case.placement();
        let loss = BalanceLoss { level: level(index, &placement, case.limit), over, alpha: 1.0 };
        let routing = case.routing();
        let gradient = gradient(&loss, &routing, case.batch);
        let step = 1e-4; // whose error was between 1e-9 and 1e-8 in 5000 cases
        for ((t, e), &slope) in gradient.indexed_iter() {
            let moved = |by: f64| {
                let mut moved = routing.clone();
                moved.router_logits[[t, e]] += by;
                loss.value(&moved, case.batch).unwrap()
            };
            let measured = (moved(step) - moved(-step)) / (2.0 * step);
            prop_assert!((slope - measured).abs() < 3e-8, "{} is not {} at [{}, {}]", slope, measured, t, e);
        }
        Ok(())
    })
    .tried(128)
    .holds_for(&gradient)
    .fails_for(
        "a token's softmax taken for independent scores",
        &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
            // s f instead of s (f - sum of s f): what is missing is the part that other experts' scores give back.
            let scores = routing.scores();
            let mut wrong = gradient(loss, routing, batch);
            wrong.zip_mut_with(&scores, |g, s| *g += s * loss.alpha / scores.nrows() as f64);
            wrong
        },
    )
    .fails_for("only through the selected experts", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        let mut wrong = gradient(loss, routing, batch);
        wrong
            .indexed_iter_mut()
            .filter(|((t, e), _)| routing.topk_indices.row(*t).iter().all(|&chosen| chosen != *e as i64))
            .for_each(|(_, g)| *g = 0.0);
        wrong
    })
    .fails_for("the sum over the sequences", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        gradient(loss, routing, batch) * batch as f64
    })
    .fails_for("the batch as one sequence", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        gradient(&BalanceLoss { over: Over::WholeBatch, ..*loss }, routing, batch)
    });
}

#[test]
fn what_one_expert_loses_the_others_gain() {
    for_all((cases(), losses()), |gradient: &Gradient, (case, (index, over)): (Case, (usize, Over))| {
        let placement = case.placement();
        let loss = BalanceLoss { level: level(index, &placement, case.limit), over, alpha: 1.0 };
        for (t, row) in gradient(&loss, &case.routing(), case.batch).rows().into_iter().enumerate() {
            prop_assert!(row.sum().abs() < 1e-15 * case.experts() as f64, "token {}: {}", t, row.sum());
        }
        Ok(())
    })
    .holds_for(&gradient)
    .fails_for(
        "with respect to the scores, not the logits",
        &|loss: &BalanceLoss, routing: &Routing<f64>, _: usize| {
            let tokens = routing.router_logits.nrows() as f64;
            let f = expert_load(routing) * (loss.alpha / tokens);
            f.broadcast(routing.router_logits.dim()).unwrap().to_owned()
        },
    );
}

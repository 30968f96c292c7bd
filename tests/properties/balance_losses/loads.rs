//! f, P and what they sum to.

use dsv2_testing::for_all;
use proptest::prelude::*;

use super::*;

#[test]
fn the_load_of_the_experts_sums_to_their_number_and_their_affinity_to_1() {
    for_all(cases(), |equations: &Equations, case| {
        let routing = case.routing();
        close((equations.f)(&routing).sum(), case.experts() as f64)?;
        close((equations.p)(&routing).sum(), 1.0)
    })
    .holds_for(&EQUATIONS)
    .fails_for("f from the scores", &Equations::F_FROM_SCORES)
    .fails_for("f without K_r", &Equations::F_WITHOUT_K)
    .fails_for("f of the first choice alone", &Equations::F_OF_THE_FIRST)
    .fails_for("P summed over the tokens", &Equations::P_SUMMED)
    .fails_for("P of the selected experts", &Equations::P_OF_SELECTED);
}

#[test]
fn the_load_of_the_devices_sums_to_their_number_and_their_affinity_to_1() {
    for_all(cases(), |equations: &Equations, case| {
        let (routing, placement) = (case.routing(), case.placement());
        close((equations.device_f)(&(equations.f)(&routing), &placement).sum(), case.devices as f64)?;
        close((equations.device_p)(&(equations.p)(&routing), &placement).sum(), 1.0)
    })
    .holds_for(&EQUATIONS)
    .fails_for("f' a sum", &Equations::DEVICE_F_SUMMED)
    .fails_for("P' a mean", &Equations::DEVICE_P_AVERAGED);
}

#[test]
fn the_traffic_sums_to_the_mean_number_of_devices_of_a_token_times_d_over_m() {
    for_all(cases(), |equations: &Equations, case| {
        let (routing, placement) = (case.routing(), case.placement());
        let sum = (equations.traffic)(&routing, &placement, case.limit).sum();
        let used: usize = routing.devices_of_tokens(&placement).iter().map(Vec::len).sum();
        let mean = used as f64 / case.tokens() as f64;
        close(sum, case.devices as f64 / case.limit as f64 * mean)?;
        prop_assert!(sum <= case.devices as f64 * (1.0 + TOLERANCE));
        Ok(())
    })
    .holds_for(&EQUATIONS)
    .fails_for("a token counts for each of its experts", &Equations::TRAFFIC_OF_EXPERTS)
    .fails_for("f'' without M", &Equations::TRAFFIC_WITHOUT_M);
}

#[test]
fn a_loss_is_alpha_times_the_sum_of_loads_and_affinities() {
    let over = prop_oneof![Just(Over::EachSequence), Just(Over::WholeBatch)];
    for_all((cases(), over), |loss: &Loss, (case, over): (Case, Over)| {
        let placement = case.placement();
        let equations = EQUATIONS.loss();
        let communication = Level::Communication { placement: &placement, device_limit: case.limit };
        for level in [Level::Expert, Level::Device(&placement), communication] {
            let what = BalanceLoss { level, over, alpha: 0.25 };
            close(loss(&what, &case.routing(), case.batch), equations(&what, &case.routing(), case.batch))?;
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("f from the scores", &Equations::F_FROM_SCORES.loss())
    .fails_for("f' a sum", &Equations::DEVICE_F_SUMMED.loss())
    .fails_for("f'' without M", &Equations::TRAFFIC_WITHOUT_M.loss())
    .fails_for("alpha forgotten", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        reference(loss, routing, batch) / loss.alpha
    });
}

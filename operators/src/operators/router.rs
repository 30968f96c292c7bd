//! Routers (section 2.2.1, eq. 21 and 22; 2.2.2), from the logits on.

use dsv2_reference::Real;
use dsv2_reference::arithmetic::activation::Activation;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::deepseek_v3::router::BiasCorrectedRule;
use dsv2_reference::model::router::{Routing, RoutingRule};
use ndarray::{Array2, ArrayD, Axis, Ix1, Ix2};

use super::draw::{Draw, int32, scalar};
use crate::call::{Call, Computed, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// DeepSeek-V2: the softmax over all experts, the k best of the `topk_group` best groups (of all experts, with one group), and
/// their scores times `routed_scaling_factor`.
///
/// **Trap**: the weights are not divided by their sum.
pub fn softmax<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let logits = call.real::<T, Ix2>("router_logits");
    let rule = RoutingRule::<T>::new(logits.ncols(), method(contract, call)?, count(contract, call, "top_k")?)?;
    Ok(routed(rule.scaled_by(call.scalar("routed_scaling_factor")).route(logits)?))
}

/// DeepSeek-V3: sigmoids; chosen by score plus bias, groups by the sum of their two best; weighted by scores without biases,
/// divided by their sum.
pub fn sigmoid_bias<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let logits = call.real::<T, Ix2>("router_logits");
    let (n_group, topk_group) = (count(contract, call, "n_group")?, count(contract, call, "topk_group")?);
    let factor: T = call.scalar("routed_scaling_factor");
    let rule = BiasCorrectedRule::new(logits.ncols(), n_group, topk_group, count(contract, call, "top_k")?)?;
    Ok(routed(rule.normalised().scaled_by(factor).route(logits, call.real::<T, Ix1>("bias").view())?))
}

fn routed<T: Real>(routing: Routing<T>) -> Outputs<T> {
    vec![
        ("topk_indices", Computed::Index(routing.topk_indices.into_dyn())),
        ("topk_weights", routing.topk_weights.into()),
    ]
}

/// The softmax of the logits at the chosen experts, times the factor.
pub fn softmax_weights(_: &Contract, call: &Call, chosen: &ArrayD<i64>) -> Result<ArrayD<f64>> {
    let mut scores = call.real::<f64, Ix2>("router_logits");
    scores.rows_mut().into_iter().for_each(dsv2_reference::arithmetic::softmax::softmax);
    let factor: f64 = call.scalar("routed_scaling_factor");
    Ok(at(&scores, chosen).mapv_into(|score| score * factor).into_dyn())
}

/// The sigmoid of the logits at the chosen experts, as parts of their sum, times the factor.
pub fn sigmoid_weights(_: &Contract, call: &Call, chosen: &ArrayD<i64>) -> Result<ArrayD<f64>> {
    let scores = call.real::<f64, Ix2>("router_logits").mapv_into(|z| Activation::Sigmoid.apply(z));
    let factor: f64 = call.scalar("routed_scaling_factor");
    let mut weights = at(&scores, chosen);
    for mut row in weights.rows_mut() {
        let sum = row.sum();
        row.mapv_inplace(|score| score / sum * factor);
    }
    Ok(weights.into_dyn())
}

fn at(scores: &Array2<f64>, chosen: &ArrayD<i64>) -> Array2<f64> {
    let chosen = chosen.view().into_dimensionality::<Ix2>().expect("as many axes as the contract says");
    Array2::from_shape_fn(chosen.dim(), |(token, slot)| scores[[token, chosen[[token, slot]] as usize]])
}

/// Greedy, or in groups.
pub fn softmax_method(contract: &Contract, call: &Call) -> Result<Option<TopkMethod>> {
    method(contract, call).map(Some)
}

/// Nothing tells which other choices rounding explains.
pub fn no_method(_: &Contract, _: &Call) -> Result<Option<TopkMethod>> {
    Ok(None)
}

/// How the experts of a call are chosen.
fn method(contract: &Contract, call: &Call) -> Result<TopkMethod> {
    let (n_group, topk_group) = (count(contract, call, "n_group")?, count(contract, call, "topk_group")?);
    Ok(if n_group == 1 { TopkMethod::Greedy } else { TopkMethod::GroupLimitedGreedy { n_group, topk_group } })
}

fn count(contract: &Contract, call: &Call, name: &str) -> Result<usize> {
    let given = call.index::<ndarray::Ix0>(name).into_scalar();
    usize::try_from(given).map_err(|_| contract.mismatch("input", name, "a count", &given.to_string()))
}

/// Logits and the rule's counts. `near ties`: in each row the last that is chosen and the first that is not differ by one
/// rounding of fp32. `close logits`: by a thousandth, which bf16 does not tell apart. `underflow`: logits so far apart that most scores are 0 in fp32.
pub fn softmax_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, experts, k] = ["num_tokens", "num_experts", "top_k"].map(|axis| workload.axis(axis));
    let mut logits =
        draw.normal("router_logits", &[tokens, experts], if workload.has("underflow") { 60.0 } else { 1.5 });
    if workload.has("near ties") || workload.has("close logits") {
        for mut row in logits.rows_mut() {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let last = f64::from(row[order[k - 1]] as f32);
            row[order[k - 1]] = last;
            row[order[k]] = match workload.has("near ties") {
                true => f64::from((last as f32).next_down()),
                false => last - 1e-3,
            };
        }
    }
    rule(workload, logits)
}

/// Logits and biases. `negative biases`: every choice value is below 0, where a group that was set to 0 would win. No choice may be near: for this rule nothing tells which other ones rounding explains.
pub fn sigmoid_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, experts] = ["num_tokens", "num_experts"].map(|axis| workload.axis(axis));
    let mut tensors = rule(workload, draw.normal("router_logits", &[tokens, experts], 1.5));
    let std = if workload.has("biases that decide") { 1.0 } else { 0.05 };
    let mean = if workload.has("negative biases") { -1.5 } else { 0.0 };
    let bias = draw.about("bias", &[experts], mean, std);
    tensors.insert("bias".to_owned(), Tensor::real(ElementType::Float32, bias));
    tensors
}

fn rule(workload: &Workload, logits: ArrayD<f64>) -> Tensors {
    let counted = |name: &str| int32((), vec![workload.axis(name) as i64]);
    debug_assert_eq!(logits.len_of(Axis(1)), workload.axis("num_experts"));
    Tensors::from_iter([
        ("router_logits".to_owned(), Tensor::real(ElementType::Float32, logits)),
        ("top_k".to_owned(), counted("top_k")),
        ("n_group".to_owned(), counted("n_group")),
        ("topk_group".to_owned(), counted("topk_group")),
        ("routed_scaling_factor".to_owned(), scalar(workload.number("routed_scaling_factor", 1.0))),
    ])
}

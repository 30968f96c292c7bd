//! Right experts, wrongly used.

use std::rc::Rc;

use dsv2_reference::Activation;
use dsv2_reference::stage::table::{DOWN_PROJ, EXPERTS, GATE_PROJ, MLP, SHARED_EXPERTS, UP_PROJ};
use ndarray::{Array2, ArrayD, Axis, s};

use super::{imprecise, moe, several_experts, shared_experts, structural};
use crate::case::Case;
use crate::mutants::arithmetic::exact;
use crate::mutants::parts::Expert;
use crate::mutants::scene::{Scene, shaped};
use crate::mutants::{At, Mutant};

/// Every feed-forward network: dense, routed, shared.
const ALL: &[&str] = &[DOWN_PROJ, EXPERTS, SHARED_EXPERTS];

pub const MUTANTS: &[Mutant] = &[
    structural("expert_order", "Experts are sorted by index, their weights are not.").when(several_experts).at(
        &[EXPERTS],
        |s, at| {
            let mut routed = s.routed(at.layer)?;
            for mut row in routed.choice.rows_mut() {
                let mut sorted = row.to_vec();
                sorted.sort_unstable();
                row.iter_mut().zip(sorted).for_each(|(slot, expert)| *slot = expert);
            }
            routed.right(at.value)
        },
    ),
    structural("expert_roll", "Each token goes to the expert after the chosen one.").when(moe).at(
        &[EXPERTS],
        |s, at| {
            let routed = s.routed(at.layer)?;
            routed.sum(at.value, |e, x| routed.experts[(e + 1) % routed.experts.len()].forward(x, exact))
        },
    ),
    structural("expert_gu_interleaved", "The rows of gate and up, stacked, are read alternately.").when(moe).at(
        &[EXPERTS],
        |s, at| {
            let mut routed = s.routed(at.layer)?;
            for expert in &mut routed.experts {
                let stacked = ndarray::concatenate(Axis(0), &[expert.gate.view(), expert.up.view()]).ok()?;
                expert.gate = Rc::new(stacked.slice(s![..;2, ..]).to_owned());
                expert.up = Rc::new(stacked.slice(s![1..;2, ..]).to_owned());
            }
            routed.right(at.value)
        },
    ),
    structural("moe_in_weighted", "The weight multiplies what goes into an expert, not what comes out.").when(moe).at(
        &[EXPERTS],
        |s, at| {
            let mut routed = s.routed(at.layer)?;
            let weights = std::mem::replace(&mut routed.weights, Array2::ones(routed.choice.dim()));
            let mut sum = Array2::zeros(routed.x.dim());
            for ((token, slot), &chosen) in routed.choice.indexed_iter() {
                let x = routed.token(token) * weights[[token, slot]];
                let y = routed.experts[chosen as usize].forward(&x, exact);
                sum.row_mut(token).scaled_add(1.0, &y.row(0));
            }
            shaped(sum, at.value)
        },
    ),
    structural("drop_last_slot", "The last token's last expert is lost.").when(several_experts).at(
        &[EXPERTS],
        |s, at| {
            let mut routed = s.routed(at.layer)?;
            *routed.weights.iter_mut().last()? = 0.0;
            routed.right(at.value)
        },
    ),
    structural("capacity_drop", "An expert takes its fair share of tokens and drops the rest, as in training.")
        .when(moe)
        .at(&[EXPERTS], |s, at| {
            let mut routed = s.routed(at.layer)?;
            let capacity = routed.choice.len().div_ceil(routed.experts.len());
            let mut taken = vec![0; routed.experts.len()];
            for (weight, &expert) in routed.weights.iter_mut().zip(&routed.choice) {
                taken[expert as usize] += 1;
                if taken[expert as usize] > capacity {
                    *weight = 0.0;
                }
            }
            routed.right(at.value)
        }),
    structural("swap_gate_up", "The activation is on up, not on gate.")
        .at(ALL, |s, at| other_experts(s, at, |expert| std::mem::swap(&mut expert.gate, &mut expert.up))),
    structural("gelu", "GELU stands for SiLU.")
        .when(silu)
        .at(ALL, |s, at| other_experts(s, at, |expert| expert.activation = Activation::Gelu)),
    imprecise("gelu_form", "GELU's exact form and its tanh approximation are exchanged.").when(gelu).at(
        ALL,
        |s, at| {
            other_experts(s, at, |expert| {
                let exact = expert.activation == Activation::Gelu;
                expert.activation = if exact { Activation::GeluTanh } else { Activation::Gelu };
            })
        },
    ),
    structural("silu_always", "SiLU, whatever hidden_act says.")
        .when(|case| !silu(case))
        .at(ALL, |s, at| other_experts(s, at, |expert| expert.activation = Activation::Silu)),
    structural("shared_half", "Only half of the shared experts are there.")
        .when(|case| shared_experts(case) && case.config.n_shared_experts.is_some_and(|n| n > 1))
        .at(&[SHARED_EXPERTS], |s, at| {
            let (x, mut expert) = s.shared(at.layer)?;
            let half = expert.gate.nrows() / 2;
            expert.gate = Rc::new(expert.gate.slice(s![..half, ..]).to_owned());
            expert.up = Rc::new(expert.up.slice(s![..half, ..]).to_owned());
            expert.down = Rc::new(expert.down.slice(s![.., ..half]).to_owned());
            for bias in &mut expert.biases[..2] {
                *bias = bias.as_ref().map(|bias| bias.slice(s![..half]).to_owned());
            }
            shaped(expert.forward(&x, exact), at.value)
        }),
    structural("shared_gamma", "routed_scaling_factor multiplies the shared experts too.")
        .when(|case| shared_experts(case) && case.config.routed_scaling_factor != 1.0)
        .at(&[SHARED_EXPERTS], |s, at| Some(at.value * s.config().routed_scaling_factor)),
    structural("shared_dropped", "The shared experts are not added.")
        .when(shared_experts)
        .at(&[MLP], |s, at| shaped(s.rows(EXPERTS, at.layer)?, at.value)),
    structural("routed_dropped", "The routed experts are not added.").when(moe).at(&[MLP], |s, at| {
        match s.rows(SHARED_EXPERTS, at.layer) {
            Some(shared) => shaped(shared, at.value),
            None => Some(at.value * 0.0),
        }
    }),
    structural("mlp_bias_dropped", "The biases of the MLPs are left out.")
        .when(|case| case.config.mlp_bias)
        .at(&[GATE_PROJ, UP_PROJ, DOWN_PROJ], super::head::without_bias)
        .at(&[SHARED_EXPERTS], |s, at| other_experts(s, at, |expert| expert.biases = [None, None, None])),
];

fn silu(case: &Case) -> bool {
    case.config.activation().is_ok_and(|activation| activation == Activation::Silu)
}

fn gelu(case: &Case) -> bool {
    case.config.activation().is_ok_and(|activation| matches!(activation, Activation::Gelu | Activation::GeluTanh))
}

/// Any of the feed-forward networks with other experts.
fn other_experts(scene: &Scene<'_>, at: At<'_>, change: impl Fn(&mut Expert)) -> Option<ArrayD<f64>> {
    match at.kind {
        EXPERTS => {
            let mut routed = scene.routed(at.layer)?;
            routed.experts.iter_mut().for_each(change);
            routed.right(at.value)
        }
        SHARED_EXPERTS => {
            let (x, mut expert) = scene.shared(at.layer)?;
            change(&mut expert);
            shaped(expert.forward(&x, exact), at.value)
        }
        _ => {
            // gate and up are stages; what follows them is the network of identities before `down`
            let (gate, up) = (scene.rows(GATE_PROJ, at.layer)?, scene.rows(UP_PROJ, at.layer)?);
            let mut expert = Expert {
                gate: Rc::new(gate),
                up: Rc::new(up),
                down: scene.projection(DOWN_PROJ, at.layer)?.weight,
                biases: [None, None, scene.projection(DOWN_PROJ, at.layer)?.bias],
                activation: scene.config().activation().ok()?,
            };
            change(&mut expert);
            let (gate, up) = (Rc::unwrap_or_clone(expert.gate), Rc::unwrap_or_clone(expert.up));
            let mut projection = scene.projection(DOWN_PROJ, at.layer)?;
            projection.x = gate.mapv(|x| expert.activation.apply(x)) * up;
            projection.apply(at.value, exact)
        }
    }
}

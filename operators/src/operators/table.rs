//! Which contract means what.

use std::sync::LazyLock;

use dsv2_reference::config::TopkMethod;
use ndarray::ArrayD;

use super::draw::Draw;
use super::sampling::Filtered;
use super::{
    Operator, align, attention, cache, combine, experts, fp8, head, norm, projection, rotary, router, sampling,
};
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::Tensors;

/// What an operator means: the same function in two types, and what makes its inputs.
pub(super) struct Meaning {
    pub exact: fn(&Contract, &Call) -> Result<Outputs<f64>>,
    pub plain: fn(&Contract, &Call) -> Result<Outputs<f32>>,
    pub inputs: fn(&Workload, &Draw) -> Tensors,
    pub choice: Option<Choice>,
    /// Which tokens its filters leave, if it has such.
    pub filtered: Option<fn(&Contract, &Call) -> Result<Filtered>>,
}

/// What an operator that chooses experts says of a choice that is not its own.
pub(super) struct Choice {
    pub weights: fn(&Contract, &Call, &ArrayD<i64>) -> Result<ArrayD<f64>>,
    /// By what experts are chosen, if near ties can be told.
    pub method: fn(&Contract, &Call) -> Result<Option<TopkMethod>>,
}

impl Meaning {
    fn choosing(
        self,
        weights: fn(&Contract, &Call, &ArrayD<i64>) -> Result<ArrayD<f64>>,
        method: fn(&Contract, &Call) -> Result<Option<TopkMethod>>,
    ) -> Self {
        Meaning { choice: Some(Choice { weights, method }), ..self }
    }

    fn filtering(self) -> Self {
        Meaning { filtered: Some(sampling::filtered), ..self }
    }
}

/// A [`Meaning`] of a generic function.
macro_rules! meaning {
    ($function:path, $inputs:path) => {
        Meaning { exact: $function, plain: $function, inputs: $inputs, choice: None, filtered: None }
    };
}

/// An operator whose contract is the file of this name.
macro_rules! operator {
    ($name:literal, $meaning:expr) => {
        operator(include_str!(concat!("../../contracts/", $name, ".json")), $meaning)
    };
}

fn operator(text: &str, meaning: Meaning) -> Operator {
    let contract = serde_json::from_str(text).unwrap_or_else(|error| panic!("a contract of this crate: {error}"));
    Operator { contract, meaning }
}

/// The contracts, and what they mean, in the order of a layer.
pub(super) static OPERATORS: LazyLock<Vec<Operator>> = LazyLock::new(|| {
    vec![
        operator!("rmsnorm", meaning!(norm::rmsnorm, norm::inputs)),
        operator!("fused_add_rmsnorm", meaning!(norm::fused_add_rmsnorm, norm::inputs_with_residual)),
        operator!("gemm", meaning!(projection::gemm, projection::gemm_inputs)),
        operator!("gemm_fp8_block_scaled", meaning!(fp8::gemm, fp8::gemm_inputs)),
        operator!("quantize_fp8_groups", meaning!(fp8::quantize, fp8::quantize_inputs)),
        operator!("rotary_interleaved", meaning!(rotary::interleaved, rotary::inputs)),
        operator!("rotary_halves", meaning!(rotary::halves, rotary::inputs)),
        operator!("mla_cache_append", meaning!(cache::append, cache::inputs)),
        operator!("mla_cache_write", meaning!(cache::write, cache::write_inputs)),
        operator!("mla_cache_write_fp8", meaning!(cache::write, cache::write_inputs)),
        operator!("mla_absorb", meaning!(projection::absorb, projection::inputs)),
        operator!("mla_paged_decode", meaning!(attention::paged_decode, attention::decode_inputs)),
        operator!("mla_paged_decode_fp8", meaning!(attention::paged_decode, attention::decode_inputs)),
        operator!("mla_paged_prefill_causal", meaning!(attention::paged_prefill, attention::prefill_inputs)),
        operator!("mla_ragged_prefill_causal", meaning!(attention::ragged_prefill, attention::ragged_inputs)),
        operator!("merge_state", meaning!(attention::merge_state, attention::states)),
        operator!(
            "router_softmax",
            meaning!(router::softmax, router::softmax_inputs).choosing(router::softmax_weights, router::softmax_method)
        ),
        operator!(
            "router_sigmoid_bias",
            meaning!(router::sigmoid_bias, router::sigmoid_inputs).choosing(router::sigmoid_weights, router::no_method)
        ),
        operator!("moe_align_block_size", meaning!(align::blocks, align::inputs)),
        operator!("silu_and_mul", meaning!(experts::silu_and_mul, experts::gate_up)),
        operator!("swiglu_mlp", meaning!(experts::swiglu_mlp, experts::mlp_inputs)),
        operator!("moe_experts", meaning!(experts::grouped, experts::inputs)),
        operator!("moe_experts_fp8", meaning!(experts::grouped_fp8, experts::inputs)),
        operator!("moe_sum", meaning!(combine::sum, combine::sum_inputs)),
        operator!("moe_combine", meaning!(combine::combine, combine::inputs)),
        operator!("lm_head_argmax", meaning!(head::argmax, head::argmax_inputs)),
        operator!("sampling_from_probs", meaning!(sampling::draw, sampling::inputs).filtering()),
        operator!("top_k_sampling_from_probs", meaning!(sampling::draw, sampling::inputs).filtering()),
        operator!("top_p_sampling_from_probs", meaning!(sampling::draw, sampling::inputs).filtering()),
        operator!("top_k_top_p_sampling_from_probs", meaning!(sampling::draw, sampling::inputs).filtering()),
        operator!("top_k_top_p_sampling_from_logits", meaning!(sampling::draw, sampling::inputs).filtering()),
        operator!("top_k_renorm_probs", meaning!(sampling::renormalised, sampling::inputs).filtering()),
        operator!("top_p_renorm_probs", meaning!(sampling::renormalised, sampling::inputs).filtering()),
        operator!("cross_entropy", meaning!(head::cross_entropy, head::labelled)),
    ]
});

//! A layer of experts (2.2.1, eq. 20): what each weight, each selected expert and the shared experts contribute.

use std::iter::repeat_n;

use dsv2_reference::model::experts::DeepseekV2Moe;
use dsv2_reference::model::router::Routing;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::tap::Scope;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, NoTap, StageValue, Tap, Tensor};
use dsv2_testing::{Exchanged, for_all};
use ndarray::{Array2, Array3, Axis};
use proptest::prelude::*;
use serde_json::json;

use crate::models::distance;

/// D.
pub const WIDTH: usize = 4;

/// The sizes of a layer, and the seed of its weights and tokens.
#[derive(Clone, Debug)]
pub struct Layer {
    pub n_group: usize,
    pub group_size: usize,
    pub topk_group: usize,
    pub k: usize,
    pub shared: usize,
    pub factor: f64,
    pub tokens: usize,
    pub seed: u64,
}

/// Up to 4 groups of up to 3 experts, up to 2 shared ones, up to 5 tokens.
pub fn layers() -> impl Strategy<Value = Layer> {
    (1..=4_usize, 1..=3_usize)
        .prop_flat_map(|(n_group, size)| (Just(n_group), Just(size), 1..=n_group))
        .prop_flat_map(|(n_group, size, topk_group)| (Just((n_group, size, topk_group)), 1..=size * topk_group))
        .prop_flat_map(|((n_group, group_size, topk_group), k)| {
            (0..=2_usize, 1..=5_usize, 0..1000_u64).prop_map(move |(shared, tokens, seed)| Layer {
                n_group,
                group_size,
                topk_group,
                k,
                shared,
                factor: 2.5,
                tokens,
                seed,
            })
        })
}

impl Layer {
    pub fn experts(&self) -> usize {
        self.n_group * self.group_size
    }

    fn config(&self) -> DeepseekV2Config {
        DeepseekV2Config::from_value(json!({
            "model_type": "deepseek_v2", "vocab_size": 5, "hidden_size": WIDTH, "intermediate_size": 3,
            "moe_intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1,
            "n_routed_experts": self.experts(), "n_shared_experts": self.shared, "num_experts_per_tok": self.k,
            "topk_method": "group_limited_greedy", "n_group": self.n_group, "topk_group": self.topk_group,
            "routed_scaling_factor": self.factor,
        }))
        .expect("a possible config")
    }

    /// Weights of a size that keeps the numbers near 1.
    pub fn weights(&self) -> GeneratedWeights {
        serde_json::from_value(json!({"seed": self.seed, "rules": [{"suffix": "weight", "gain": 1.5}]})).expect("rules")
    }

    pub fn load(&self, weights: &dyn WeightSource) -> DeepseekV2Moe<f64> {
        DeepseekV2Moe::load(&self.config(), Dialect::Hf, "mlp", weights).expect("a possible layer")
    }

    pub fn moe(&self) -> DeepseekV2Moe<f64> {
        self.load(&self.weights())
    }

    /// Numbers of -2 to 2, exact in bf16: \[N,D\].
    pub fn input(&self) -> Array2<f64> {
        let number = |i: usize| f64::from((splitmix64(self.seed ^ 0xface ^ i as u64) % 257) as u32) / 64.0 - 2.0;
        Array2::from_shape_fn((self.tokens, WIDTH), |(t, d)| number(WIDTH * t + d))
    }
}

/// A program that computes a layer: \[N,D\] -> \[N,D\].
type Program = dyn Fn(&Layer, &dyn WeightSource, &Array2<f64>) -> Array2<f64>;

/// The layer in one piece, seen by a tap.
fn run(moe: &DeepseekV2Moe<f64>, tokens: &Array2<f64>, tap: &mut dyn Tap<f64>) -> Array2<f64> {
    let tokens = tokens.view().insert_axis(Axis(0));
    let (output, _) = moe.forward(tokens, &mut Scope::root(tap).child("mlp")).expect("a possible input");
    output.index_axis_move(Axis(0), 0)
}

/// The layer in one piece.
pub fn unsplit(moe: &DeepseekV2Moe<f64>, tokens: &Array2<f64>) -> Array2<f64> {
    run(moe, tokens, &mut NoTap)
}

fn reference(layer: &Layer, weights: &dyn WeightSource, tokens: &Array2<f64>) -> Array2<f64> {
    unsplit(&layer.load(weights), tokens)
}

/// The shared experts' part; zeros if there are none.
pub fn shared(moe: &DeepseekV2Moe<f64>, tokens: &Array2<f64>) -> Array2<f64> {
    moe.shared_experts().map_or_else(|| Array2::zeros(tokens.dim()), |shared| shared.forward(tokens.view()))
}

/// A program that changes the routing before the experts see it, and multiplies the shared part.
fn rerouted(
    change: impl Fn(&Layer, &mut Routing<f64>),
    shared_factor: impl Fn(&Layer) -> f64,
) -> impl Fn(&Layer, &dyn WeightSource, &Array2<f64>) -> Array2<f64> {
    move |layer, weights, tokens| {
        let moe = layer.load(weights);
        let mut routing = moe.route(tokens.view()).unwrap();
        change(layer, &mut routing);
        moe.routed(tokens.view(), &routing).unwrap() + shared(&moe, tokens) * shared_factor(layer)
    }
}

fn neighbour(layer: &Layer, routing: &mut Routing<f64>) {
    routing.topk_indices.mapv_inplace(|e| (e + 1) % layer.experts() as i64);
}

fn last_slot_lost(_: &Layer, routing: &mut Routing<f64>) {
    let last = routing.topk_weights.ncols() - 1;
    routing.topk_weights.column_mut(last).fill(0.0);
}

fn weights_squared(_: &Layer, routing: &mut Routing<f64>) {
    routing.topk_weights.mapv_inplace(|w| w * w);
}

fn unweighted(_: &Layer, routing: &mut Routing<f64>) {
    routing.topk_weights.fill(1.0);
}

fn unscaled(layer: &Layer, routing: &mut Routing<f64>) {
    routing.topk_weights /= layer.factor;
}

fn unchanged(_: &Layer, _: &mut Routing<f64>) {}

/// Does the tensor belong to a routed expert?
fn is_routed(name: &str) -> bool {
    name.contains(".experts.")
}

/// The layer's weights, those of the routed experts' `down_proj` multiplied by a power of two.
fn with_down_proj_times(layer: &Layer, a: f64) -> impl WeightSource {
    let weights = layer.weights();
    Exchanged(layer.weights(), move |name: &str, shape: &[usize]| {
        let scaled = || weights.tensor(name, shape).unwrap().to_array::<f64, ndarray::IxDyn>() * a;
        (is_routed(name) && name.ends_with("down_proj.weight"))
            .then(|| Tensor::from_values(Dtype::Bf16, shape, scaled()))
    })
}

#[test]
fn the_routed_part_is_linear_in_down_proj() {
    // Without shared experts, and for a power of two: to the bit.
    for_all((layers(), -3..=3_i32, any::<bool>()), |moe: &Program, (layer, exponent, negative)| {
        let layer = Layer { shared: 0, ..layer };
        let a = f64::from(exponent).exp2() * if negative { -1.0 } else { 1.0 };
        let once = moe(&layer, &layer.weights(), &layer.input());
        prop_assert_eq!(moe(&layer, &with_down_proj_times(&layer, a), &layer.input()), once * a);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the activation comes after down_proj", &|layer, weights, tokens| {
        reference(layer, weights, tokens).mapv(|x| x / (1.0 + (-x).exp()))
    })
    .fails_for("each expert has a residual connection", &|layer, weights, tokens| {
        reference(layer, weights, tokens) + tokens
    });
}

#[test]
fn without_routed_experts_the_shared_ones_remain_and_nothing_is_scaled() {
    for_all(layers(), |moe: &Program, layer| {
        let weights = with_down_proj_times(&layer, 0.0);
        let expected = shared(&layer.moe(), &layer.input());
        prop_assert_eq!(moe(&layer, &weights, &layer.input()), expected);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("routed_scaling_factor is on the shared experts too", &rerouted(unchanged, |layer| layer.factor))
    .fails_for("the shared experts are left out", &rerouted(unchanged, |_| 0.0))
    .fails_for("the shared experts are averaged", &rerouted(unchanged, |layer| 1.0 / layer.shared.max(1) as f64));
}

#[test]
fn routed_scaling_factor_scales_the_routed_part_only() {
    // Measured: 1.2e-15.
    for_all((layers(), 2..=20_u32), |moe: &Program, (layer, factor)| {
        let of_factor = |factor| moe(&Layer { factor, ..layer.clone() }, &layer.weights(), &layer.input());
        let shared = shared(&layer.moe(), &layer.input());
        let expected = (of_factor(1.0) - &shared) * f64::from(factor) + &shared;
        let error = distance(&of_factor(f64::from(factor)), &expected);
        prop_assert!(error < 1e-14, "{error:e}");
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("it is on the shared experts too", &rerouted(unchanged, |layer| layer.factor))
    .fails_for("it is forgotten", &rerouted(unscaled, |_| 1.0))
    .fails_for("the weights are applied before the experts and after them", &rerouted(weights_squared, |_| 1.0));
}

#[test]
fn equal_experts_are_one_dense_mlp_times_the_sum_of_the_weights() {
    // Measured: 4e-16.
    for_all(layers(), |moe: &Program, layer| {
        let first = layer.weights();
        let equal = Exchanged(layer.weights(), move |name: &str, shape: &[usize]| {
            let (_, of_expert) = name.split_once(".experts.")?;
            let (_, module) = of_expert.split_once('.')?;
            first.tensor(&format!("mlp.experts.0.{module}"), shape).ok()
        });
        let whole = layer.load(&equal);
        let tokens = layer.input();
        let weights = whole.route(tokens.view()).unwrap().topk_weights.sum_axis(Axis(1)).insert_axis(Axis(1));
        let expected = whole.experts()[0].forward(tokens.view()) * weights + shared(&whole, &tokens);
        let error = distance(&moe(&layer, &equal, &tokens), &expected);
        prop_assert!(error < 1e-14, "{error:e}");
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the last slot is lost", &rerouted(last_slot_lost, |_| 1.0))
    .fails_for("the weights are forgotten", &rerouted(unweighted, |_| 1.0))
    .fails_for("the weights are applied twice", &rerouted(weights_squared, |_| 1.0));
}

#[test]
fn tokens_do_not_see_each_other() {
    // A token's row has the same bits alone, in company, and in another order.
    for_all(layers(), |moe: &Program, layer| {
        let (weights, tokens) = (layer.weights(), layer.input());
        let together = moe(&layer, &weights, &tokens);
        for (t, row) in tokens.rows().into_iter().enumerate() {
            let alone = moe(&layer, &weights, &row.insert_axis(Axis(0)).to_owned());
            prop_assert_eq!(together.row(t), alone.row(0), "token {}", t);
        }
        let order: Vec<usize> = (0..layer.tokens).rev().collect();
        let reversed = moe(&layer, &weights, &tokens.select(Axis(0), &order));
        prop_assert_eq!(reversed, together.select(Axis(0), &order));
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "an expert takes one token only",
        &rerouted(
            |layer, routing| {
                for expert in 0..layer.experts() as i64 {
                    let of_expert = routing.topk_indices.indexed_iter().filter(|(_, e)| **e == expert);
                    let late: Vec<_> = of_expert.map(|(at, _)| at).skip(1).collect();
                    late.into_iter().for_each(|at| routing.topk_weights[at] = 0.0);
                }
            },
            |_| 1.0,
        ),
    );
}

#[test]
fn the_names_of_the_experts_do_not_matter() {
    // Group g and its experts become the group n_group - 1 - g. The sum is in another order. Measured: 3e-16.
    for_all(layers(), |moe: &Program, layer| {
        let (experts, weights) = (layer.experts(), layer.weights());
        let mirrored = Exchanged(layer.weights(), move |name: &str, shape: &[usize]| {
            if name == "mlp.gate.weight" {
                let rows = weights.tensor(name, shape).unwrap().to_array::<f64, ndarray::Ix2>();
                return Some(Tensor::from_values(Dtype::Bf16, shape, rows.slice(ndarray::s![..;-1, ..]).to_owned()));
            }
            let (_, of_expert) = name.split_once(".experts.")?;
            let (expert, module) = of_expert.split_once('.')?;
            let other = experts - 1 - expert.parse::<usize>().ok()?;
            weights.tensor(&format!("mlp.experts.{other}.{module}"), shape).ok()
        });
        let expected = moe(&layer, &layer.weights(), &layer.input());
        let error = distance(&moe(&layer, &mirrored, &layer.input()), &expected);
        prop_assert!(error < 1e-14, "{error:e}");
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("an expert's output is taken for its neighbour's", &rerouted(neighbour, |_| 1.0));
}

/// A program that computes the routed part for a given routing.
type Routed = dyn Fn(&DeepseekV2Moe<f64>, &Array2<f64>, &Routing<f64>) -> Array2<f64>;

fn routed(moe: &DeepseekV2Moe<f64>, tokens: &Array2<f64>, routing: &Routing<f64>) -> Array2<f64> {
    moe.routed(tokens.view(), routing).unwrap()
}

#[test]
fn each_slot_contributes_its_weight_times_its_expert_to_its_token() {
    // Without the slot, the token's row lacks just that (measured: 3e-16 of the row), and no other row changes a bit.
    for_all((layers(), any::<u64>()), |routed: &Routed, (layer, slot)| {
        let (moe, tokens) = (layer.moe(), layer.input());
        let routing = moe.route(tokens.view()).unwrap();
        let (token, slot) = (slot as usize % layer.tokens, slot as usize / layer.tokens % layer.k);
        let mut without = routing.clone();
        without.topk_weights[[token, slot]] = 0.0;
        let (all, without) = (routed(&moe, &tokens, &routing), routed(&moe, &tokens, &without));

        let expert = &moe.experts()[routing.topk_indices[[token, slot]] as usize];
        let row = expert.forward(tokens.select(Axis(0), &[token]).view()) * routing.topk_weights[[token, slot]];
        let largest = all.row(token).iter().chain(&row).fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (t, (all, without)) in all.rows().into_iter().zip(without.rows()).enumerate() {
            if t != token {
                prop_assert_eq!(all, without);
                continue;
            }
            let error = (&all - &without - row.row(0)).fold(0.0, |error: f64, x| error.max(x.abs())) / largest;
            prop_assert!(error < 1e-14, "{error:e}");
        }
        Ok(())
    })
    .holds_for(&routed)
    .fails_for("an expert's output is taken for its neighbour's", &|moe, tokens, routing| {
        let mut other = routing.clone();
        other.topk_indices.mapv_inplace(|e| (e + 1) % moe.experts().len() as i64);
        routed(moe, tokens, &other)
    })
    .fails_for("weights go by the slot's rank in the expert's index", &|moe, tokens, routing| {
        let mut other = routing.clone();
        for mut experts in other.topk_indices.rows_mut() {
            let mut sorted = experts.to_vec();
            sorted.sort_unstable();
            experts.assign(&ndarray::Array1::from(sorted));
        }
        routed(moe, tokens, &other)
    })
    .fails_for("the weights of a token are normalised", &|moe, tokens, routing| {
        let sums = routing.topk_weights.sum_axis(Axis(1)).insert_axis(Axis(1));
        let topk_weights = &routing.topk_weights / &sums.mapv(|sum| if sum == 0.0 { 1.0 } else { sum });
        routed(moe, tokens, &Routing { topk_weights, ..routing.clone() })
    });
}

/// How far an output is from the true one.
type Measure = dyn Fn(&Array2<f64>, &Array2<f64>) -> f64;

fn l2(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The relative error of the worst token.
fn worst_row(found: &Array2<f64>, truth: &Array2<f64>) -> f64 {
    let error = |row: usize| l2(&found.row(row) - &truth.row(row)) / l2(truth.row(row).iter().copied());
    (0..truth.nrows()).map(error).fold(0.0, f64::max)
}

#[test]
fn a_criterion_must_see_one_lost_slot_among_many_tokens() {
    // One of 200 tokens loses an expert. What the criterion reports is at least as much as the token lost.
    let case = (layers(), any::<u64>());
    for_all(case, |measure: &Measure, (layer, slot)| {
        let layer = Layer { tokens: 200, shared: 0, ..layer };
        let (moe, tokens) = (layer.moe(), layer.input());
        let mut routing = moe.route(tokens.view()).unwrap();
        let truth = routed(&moe, &tokens, &routing);
        let (token, slot) = (slot as usize % layer.tokens, slot as usize / layer.tokens % layer.k);
        routing.topk_weights[[token, slot]] = 0.0;
        let found = routed(&moe, &tokens, &routing);
        let lost = l2(&found.row(token) - &truth.row(token)) / l2(truth.row(token).iter().copied());
        let reported = measure(&found, &truth);
        prop_assert!(reported >= lost, "{reported:e} of {lost:e}");
        Ok(())
    })
    .tried(32)
    .holds_for(&worst_row)
    .fails_for("the relative error of all tokens together", &|found, truth| {
        l2(found - truth) / l2(truth.iter().copied())
    });
}

/// A program that routes in a model whose tensors are stored in a type: logits, experts and weights.
type Gate = dyn Fn(&Layer, Dtype) -> (Array2<f64>, Array2<f64>);

/// Router logits and weights of the layer with a tap.
fn gate_stages(layer: &Layer, tap: &mut dyn Tap<f64>) -> (Array2<f64>, Array2<f64>) {
    let (mut logits, mut weights) = (Array2::zeros((0, 0)), Array2::zeros((0, 0)));
    let mut keep = |name: &str, value: StageValue<f64>| {
        if let StageValue::Real(mut value) = value {
            tap.stage(name, StageValue::Real(value.view_mut()));
            let stage = || value.to_owned().into_dimensionality().expect("two axes");
            match name {
                "mlp.gate.router_logits" => logits = stage(),
                "mlp.gate.topk_weights" => weights = stage(),
                _ => {}
            }
        }
    };
    run(&layer.moe(), &layer.input(), &mut keep);
    (logits, weights)
}

#[test]
fn the_router_does_not_depend_on_the_type_of_the_activations() {
    // Given the same tokens, which bf16 holds exactly.
    for_all(layers(), |gate: &Gate, layer| {
        let wide = gate(&layer, Dtype::F64);
        prop_assert_eq!(gate(&layer, Dtype::Bf16), wide);
        Ok(())
    })
    .holds_for(&|layer, dtype| gate_stages(layer, &mut RoundingTap(dtype)))
    .fails_for("the router computes in bf16 (vllm#14027)", &|layer, dtype| {
        gate_stages(layer, &mut |_: &str, value: StageValue<f64>| {
            if let (Dtype::Bf16, StageValue::Real(mut value)) = (dtype, value) {
                value.mapv_inplace(|x| half::bf16::from_f64(x).to_f64());
            }
        })
    });
}

#[test]
fn impossible_tokens_and_routings_are_refused() {
    let layer = Layer { n_group: 2, group_size: 2, topk_group: 1, k: 2, shared: 1, factor: 1.0, tokens: 3, seed: 0 };
    let moe = layer.moe();
    let refused = moe.route(Array2::zeros((3, 5)).view()).unwrap_err().to_string();
    assert_eq!(refused, "input `hidden_states`: expected 4 numbers for each token, found 5");
    let wide = Array3::<f64>::zeros((1, 3, 5));
    assert!(moe.forward(wide.view(), &mut Scope::root(&mut NoTap)).is_err());
    let mut routing = moe.route(layer.input().view()).unwrap();
    routing.topk_indices[[1, 1]] = 4;
    let refused = moe.routed(layer.input().view(), &routing).unwrap_err().to_string();
    assert_eq!(refused, "input `topk_indices`: expected experts below 4, found 4");
    routing.topk_weights = Array2::from_shape_vec((3, 1), repeat_n(1.0, 3).collect()).unwrap();
    let refused = moe.routed(layer.input().view(), &routing).unwrap_err().to_string();
    assert_eq!(refused, "input `topk_weights`: expected [3, 2], as the indices, found [3, 1]");
}

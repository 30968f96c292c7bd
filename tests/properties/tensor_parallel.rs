//! Tensor parallelism: a model split by heads and by columns over P ranks computes what it computes in one piece.

use dsv2_reference::model::experts::DeepseekV2Mlp;
use dsv2_reference::paper::parallel::tensor_parallel::all_reduce;
use dsv2_reference::paper::parallel::{Rank, Shard, TensorParallel};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{
    AttentionForm, CausalLmInput, CausalLmOutput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Dtype, LatentCache,
    LogitsToKeep, ModelInput, NoTap, Result, Run, Tensor,
};
use dsv2_testing::for_all;
use ndarray::{Array2, Array4, Axis, IxDyn, concatenate, s};
use proptest::prelude::*;
use serde_json::json;

use crate::models::distance;

/// D: a multiple of every number of heads that occurs.
const WIDTH: usize = 24;

/// A model, in how many parts, and what it is fed.
#[derive(Clone, Debug)]
struct Split {
    ranks: usize,
    heads_per_rank: usize,
    layers: usize,
    dense_layers: usize,
    q_lora_rank: Option<usize>,
    biases: bool,
    shared: usize,
    form: AttentionForm,
    tokens: usize,
    seed: u64,
}

fn splits() -> impl Strategy<Value = Split> {
    let form = prop_oneof![Just(AttentionForm::Expanded), Just(AttentionForm::Absorbed)];
    let sizes = (1..=4_usize, 1..=2_usize, 1..=2_usize, 0..=2_usize, 0..=2_usize, 1..=4_usize);
    (sizes, prop::option::of(2..=5_usize), any::<bool>(), form, 0..1000_u64).prop_map(
        |((ranks, heads_per_rank, layers, dense_layers, shared, tokens), q_lora_rank, biases, form, seed)| Split {
            ranks,
            heads_per_rank,
            layers,
            dense_layers,
            q_lora_rank,
            biases,
            shared,
            form,
            tokens,
            seed,
        },
    )
}

impl Split {
    fn heads(&self) -> usize {
        self.ranks * self.heads_per_rank
    }

    fn config(&self) -> DeepseekV2Config {
        DeepseekV2Config::from_value(json!({
            "model_type": "deepseek_v2", "vocab_size": 11, "hidden_size": WIDTH, "intermediate_size": 3 * self.ranks,
            "moe_intermediate_size": 2 * self.ranks, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads(), "num_key_value_heads": self.heads(),
            "first_k_dense_replace": self.dense_layers, "q_lora_rank": self.q_lora_rank, "kv_lora_rank": 5,
            "qk_nope_head_dim": 3, "qk_rope_head_dim": 4, "v_head_dim": 2, "n_routed_experts": 4,
            "n_shared_experts": self.shared, "num_experts_per_tok": 2, "routed_scaling_factor": 2.5,
            "attention_bias": self.biases, "mlp_bias": self.biases,
        }))
        .expect("a possible config")
    }

    fn weights(&self) -> GeneratedWeights {
        serde_json::from_value(json!({"seed": self.seed, "rules": [
            {"suffix": "norm.weight", "mean": 1.0, "std": 0.2},
            {"suffix": "embed_tokens.weight", "std": 1.0},
            {"suffix": "bias", "std": 0.5},
            {"suffix": "weight", "gain": 1.2},
        ]}))
        .expect("rules")
    }

    fn ids(&self) -> Array2<i64> {
        Array2::from_shape_fn((2, self.tokens + 1), |(b, t)| (splitmix64(self.seed + (9 * b + t) as u64) % 11) as i64)
    }

    fn run(&self) -> Run {
        Run { attention: self.form, output_hidden_states: true, output_attentions: true, ..Run::default() }
    }

    /// The prompt, and then one token more.
    fn inputs(&self) -> [CausalLmInput<f64>; 2] {
        let ids = self.ids();
        [ids.slice(s![.., ..self.tokens]), ids.slice(s![.., self.tokens..])].map(|ids| CausalLmInput {
            input: ModelInput::ids(ids.to_owned()),
            logits_to_keep: LogitsToKeep::default(),
            labels: None,
        })
    }
}

/// What the ranks computed of the two inputs, and their caches.
struct Output {
    steps: Vec<Vec<CausalLmOutput<f64>>>,
    caches: Vec<LatentCache<f64>>,
}

/// The model in one piece, as a single rank.
fn whole(split: &Split) -> Output {
    let model = DeepseekV2ForCausalLM::load(&split.config(), Dialect::Hf, &split.weights()).unwrap();
    let mut cache = LatentCache::new(&split.config(), 2);
    let inputs = split.inputs();
    let step = |input| vec![model.forward(input, Some(&mut cache), &split.run(), &mut NoTap).unwrap()];
    Output { steps: inputs.iter().map(step).collect(), caches: vec![cache] }
}

/// A program that computes a model on many ranks.
type Program = dyn Fn(&Split) -> Output;

fn on_ranks(split: &Split, ranks: &TensorParallel<f64>) -> Output {
    let mut caches = ranks.new_caches(2);
    let inputs = split.inputs();
    let step = |input| ranks.forward(input, Some(&mut caches), &split.run()).unwrap();
    Output { steps: inputs.iter().map(step).collect(), caches }
}

fn reference(split: &Split) -> Output {
    let ranks = TensorParallel::load(&split.config(), Dialect::Hf, &split.weights(), split.ranks).unwrap();
    on_ranks(split, &ranks)
}

/// The rank's weights, except where `change` has others: from the whole model's, the rank, a name and a shape.
struct Wrong<'a, F> {
    whole: &'a GeneratedWeights,
    rank: Rank,
    change: F,
}

impl<F: Fn(&GeneratedWeights, Rank, &str, &[usize]) -> Option<Tensor>> WeightSource for Wrong<'_, F> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let right = || Shard::new(self.whole, self.rank).tensor(name, shape);
        (self.change)(self.whole, self.rank, name, shape).map_or_else(right, Ok)
    }
    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

/// The reference on ranks with some wrong weights.
fn with_weights(
    change: impl Fn(&GeneratedWeights, Rank, &str, &[usize]) -> Option<Tensor> + Copy,
) -> impl Fn(&Split) -> Output {
    move |split| {
        let (config, weights) = (split.config(), split.weights());
        let part = |rank: Rank| {
            let weights = Wrong { whole: &weights, rank, change };
            DeepseekV2ForCausalLM::load(&rank.config(&config).unwrap(), Dialect::Hf, &weights).unwrap()
        };
        on_ranks(split, &TensorParallel::new(Rank::all(split.ranks).map(part).collect()).unwrap())
    }
}

fn is_summed_bias(name: &str) -> bool {
    name.ends_with("o_proj.bias") || name.ends_with("down_proj.bias")
}

fn bias_on_every_rank(whole: &GeneratedWeights, _: Rank, name: &str, shape: &[usize]) -> Option<Tensor> {
    is_summed_bias(name).then(|| whole.tensor(name, shape).unwrap())
}

fn bias_on_no_rank(_: &GeneratedWeights, _: Rank, name: &str, shape: &[usize]) -> Option<Tensor> {
    is_summed_bias(name).then(|| Tensor::from_values(Dtype::F64, shape, std::iter::repeat_n(0.0, shape[0])))
}

/// Blocks `p`, `p + P`, `p + 2P`, ... along an axis, each `block` long.
fn interleaved(
    whole: &GeneratedWeights,
    rank: Rank,
    name: &str,
    shape: &[usize],
    axis: usize,
    block: usize,
) -> Option<Tensor> {
    let mut all = shape.to_vec();
    all[axis] *= rank.of();
    let all = whole.tensor(name, &all).unwrap().to_array::<f64, IxDyn>();
    let index = |i: usize| (i / block * rank.of() + rank.index()) * block + i % block;
    let indices: Vec<usize> = (0..shape[axis]).map(index).collect();
    Some(Tensor::from_values(Dtype::F64, shape, all.select(Axis(axis), &indices)))
}

/// Heads are dealt out like cards in W^UK and W^UV only.
fn keys_of_other_heads(whole: &GeneratedWeights, rank: Rank, name: &str, shape: &[usize]) -> Option<Tensor> {
    name.ends_with("kv_b_proj.weight").then(|| interleaved(whole, rank, name, shape, 0, 3 + 2)).flatten()
}

/// Heads are dealt out like cards everywhere: the same sum, but other heads than promised.
fn heads_dealt_out(whole: &GeneratedWeights, rank: Rank, name: &str, shape: &[usize]) -> Option<Tensor> {
    let (axis, block) = match name.strip_suffix(".weight")?.rsplit('.').next()? {
        "q_proj" | "q_b_proj" => (0, 3 + 4),
        "kv_b_proj" => (0, 3 + 2),
        "o_proj" => (1, 2),
        _ => return None,
    };
    interleaved(whole, rank, name, shape, axis, block)
}

/// Gate and up projection in one matrix, one above the other, which is then cut into P blocks of rows.
fn gate_and_up_cut_together(whole: &GeneratedWeights, rank: Rank, name: &str, shape: &[usize]) -> Option<Tensor> {
    let (module, kind) = name.strip_suffix("_proj.weight")?.rsplit_once('.')?;
    let (_, first) = [("gate", 0), ("up", 1)].into_iter().find(|(known, _)| *known == kind)?;
    let all = [shape[0] * rank.of(), shape[1]];
    let of = |kind: &str| whole.tensor(&format!("{module}.{kind}_proj.weight"), &all).unwrap().to_array::<f64, IxDyn>();
    let fused = concatenate(Axis(0), &[of("gate").view(), of("up").view()]).unwrap();
    let start = (2 * rank.index() + first) * shape[0];
    let rows: Vec<usize> = (start..start + shape[0]).collect();
    Some(Tensor::from_values(Dtype::F64, shape, fused.select(Axis(0), &rows)))
}

/// Nobody sums: every rank goes on with what it has.
fn without_sums(split: &Split) -> Output {
    let (config, weights) = (split.config(), split.weights());
    let ranks: Vec<Output> = Rank::all(split.ranks)
        .map(|rank| {
            let config = rank.config(&config).unwrap();
            let model = DeepseekV2ForCausalLM::load(&config, Dialect::Hf, &Shard::new(&weights, rank)).unwrap();
            on_ranks(split, &TensorParallel::new(vec![model]).unwrap())
        })
        .collect();
    let step = |step: usize| ranks.iter().map(|rank| rank.steps[step][0].clone()).collect();
    Output { steps: vec![step(0), step(1)], caches: ranks.iter().map(|rank| rank.caches[0].clone()).collect() }
}

/// The largest distance of a rank's hidden states and logits from those of the model in one piece.
fn error(found: &Output, expected: &Output) -> f64 {
    let mut largest: f64 = 0.0;
    for (ranks, expected) in found.steps.iter().zip(&expected.steps) {
        for rank in ranks {
            largest = largest.max(distance(&rank.logits, &expected[0].logits));
            let hidden = rank.hidden_states.iter().flatten().zip(expected[0].hidden_states.iter().flatten());
            hidden.for_each(|(found, expected)| largest = largest.max(distance(found, expected)));
        }
    }
    largest
}

#[test]
fn any_number_of_ranks_computes_what_one_computes() {
    // Every hidden state and the logits, on every rank, while the prompt is read and after it. Measured: 2e-15.
    for_all(splits(), |program: &Program, split| {
        let (found, expected) = (program(&split), whole(&split));
        let error = error(&found, &expected);
        prop_assert!(error < 1e-13, "{error:e}");
        Ok(())
    })
    .tried(96)
    .holds_for(&reference)
    .fails_for("the sum over ranks is forgotten", &without_sums)
    .fails_for("o_proj and down_proj add their bias on every rank", &with_weights(bias_on_every_rank))
    .fails_for("o_proj and down_proj have no bias", &with_weights(bias_on_no_rank))
    .fails_for("heads go in blocks in q and o_proj, but are dealt out in kv_b_proj", &with_weights(keys_of_other_heads))
    .fails_for("gate_proj and up_proj are cut as one matrix", &with_weights(gate_and_up_cut_together));
}

#[test]
fn one_rank_is_the_model_in_one_piece_to_the_bit() {
    for_all(splits(), |program: &Program, split| {
        let split = Split { ranks: 1, heads_per_rank: split.heads(), ..split };
        let (found, expected) = (program(&split), whole(&split));
        for (found, expected) in found.steps.iter().zip(&expected.steps) {
            prop_assert_eq!(&found[0].logits, &expected[0].logits);
            prop_assert_eq!(&found[0].hidden_states, &expected[0].hidden_states);
            prop_assert_eq!(&found[0].attentions, &expected[0].attentions);
        }
        Ok(())
    })
    .tried(64)
    .holds_for(&reference)
    .fails_for("the bias is on the ranks after the first", &with_weights(bias_on_no_rank));
}

/// Latents and keys of every layer of a cache.
fn cached(cache: &LatentCache<f64>) -> Vec<[ndarray::Array3<f64>; 2]> {
    let layer = |layer: &dsv2_reference::model::cache::LayerCache<f64>| {
        [layer.compressed_kv().to_owned(), layer.k_pe().to_owned()]
    };
    cache.layers().iter().map(layer).collect()
}

#[test]
fn every_rank_caches_all_latents_and_the_same_bits() {
    // Not 1/P of them: the latent belongs to all heads.
    for_all(splits(), |program: &Program, split| {
        let (found, expected) = (program(&split), whole(&split));
        prop_assert_eq!(found.caches.len(), split.ranks);
        let first = cached(&found.caches[0]);
        for cache in &found.caches {
            prop_assert_eq!(&cached(cache), &first);
        }
        for (found, expected) in first.iter().flatten().zip(cached(&expected.caches[0]).iter().flatten()) {
            prop_assert_eq!(found.shape(), expected.shape());
            let error = distance(found, expected);
            prop_assert!(error < 1e-13, "{error:e}");
        }
        Ok(())
    })
    .tried(64)
    .holds_for(&reference)
    .fails_for("the sum over ranks is forgotten", &without_sums)
    .fails_for("one rank has them all, the others none", &|split| {
        let mut output = reference(split);
        output.caches.iter_mut().skip(1).for_each(|cache| cache.crop(0).unwrap());
        output
    });
}

#[test]
fn rank_p_attends_with_the_heads_of_block_p() {
    // The ranks' attention weights side by side are those of the model.
    for_all(splits(), |program: &Program, split| {
        let (found, expected) = (program(&split), whole(&split));
        for (ranks, expected) in found.steps.iter().zip(&expected.steps) {
            for (layer, expected) in expected[0].attentions.iter().flatten().enumerate() {
                let of_rank =
                    |rank: &CausalLmOutput<f64>| -> Array4<f64> { rank.attentions.as_ref().unwrap()[layer].clone() };
                let parts: Vec<_> = ranks.iter().map(of_rank).collect();
                prop_assert!(parts.iter().all(|part| part.len_of(Axis(1)) == split.heads_per_rank));
                let all = concatenate(Axis(1), &parts.iter().map(|part| part.view()).collect::<Vec<_>>()).unwrap();
                let error = distance(&all, expected);
                prop_assert!(error < 1e-13, "{error:e}");
            }
        }
        Ok(())
    })
    .tried(64)
    .holds_for(&reference)
    .fails_for("heads are dealt out to the ranks like cards", &with_weights(heads_dealt_out))
    .fails_for(
        "heads go in blocks in q and o_proj, but are dealt out in kv_b_proj",
        &with_weights(keys_of_other_heads),
    );
}

#[test]
fn dealing_out_the_heads_does_not_change_the_sum() {
    // So the law before cannot be left out: the outputs do not show which rank has which head.
    for_all(splits(), |program: &Program, split| {
        let error = error(&program(&split), &whole(&split));
        prop_assert!(error < 1e-13, "{error:e}");
        Ok(())
    })
    .tried(32)
    .holds_for(&with_weights(heads_dealt_out))
    .fails_for("only the keys and values are dealt out", &with_weights(keys_of_other_heads));
}

/// An MLP whose columns are split: the ranks' parts of FFN(x), from the whole config, weights and input \[N,D\].
type Mlp = dyn Fn(&Split, &Array2<f64>) -> Vec<Array2<f64>>;

fn mlp_with(
    weights: impl Fn(&Split, Rank, &dyn Fn(&dyn WeightSource) -> Array2<f64>) -> Array2<f64>,
) -> impl Fn(&Split, &Array2<f64>) -> Vec<Array2<f64>> {
    move |split, x| {
        let part = |rank: Rank| {
            let config = rank.config(&split.config()).unwrap();
            let forward = |weights: &dyn WeightSource| {
                let mlp = DeepseekV2Mlp::<f64>::load(&config, "mlp", config.intermediate_size, split.biases, weights);
                mlp.unwrap().forward(x.view())
            };
            weights(split, rank, &forward)
        };
        Rank::all(split.ranks).map(part).collect()
    }
}

#[test]
fn an_mlp_is_the_sum_of_its_blocks_of_columns() {
    // Measured: 3e-16.
    for_all(splits(), |mlp: &Mlp, split| {
        let (config, weights) = (split.config(), split.weights());
        let whole = DeepseekV2Mlp::load(&config, "mlp", config.intermediate_size, split.biases, &weights).unwrap();
        let x =
            Array2::from_shape_fn((3, WIDTH), |(t, d)| ((splitmix64((t * WIDTH + d) as u64) % 17) as f64 - 8.0) / 4.0);
        let sum = all_reduce(mlp(&split, &x)).unwrap();
        let error = distance(&sum, &whole.forward(x.view()));
        prop_assert!(error < 1e-14, "{error:e}");
        Ok(())
    })
    .holds_for(&mlp_with(|split, rank, forward| forward(&Shard::new(&split.weights(), rank))))
    .fails_for(
        "gate_proj and up_proj are cut as one matrix",
        &mlp_with(|split, rank, forward| {
            forward(&Wrong { whole: &split.weights(), rank, change: gate_and_up_cut_together })
        }),
    )
    .fails_for(
        "down_proj adds its bias on every rank",
        &mlp_with(|split, rank, forward| forward(&Wrong { whole: &split.weights(), rank, change: bias_on_every_rank })),
    )
    .fails_for(
        "only the first rank's part arrives",
        &mlp_with(|split, rank, forward| {
            let part = forward(&Shard::new(&split.weights(), rank));
            if rank.index() == 0 { part } else { part * 0.0 }
        }),
    );
}

/// What is said to a split: whether it is possible, and why not.
type Divider = dyn Fn(&DeepseekV2Config, usize) -> Result<(), String>;

#[test]
fn what_cannot_be_split_evenly_is_refused_by_name() {
    let sizes = (1..=12_usize, 1..=12_usize, 1..=12_usize, 1..=6_usize);
    for_all(sizes, |divide: &Divider, (heads, dense, moe, ranks)| {
        let config = DeepseekV2Config {
            num_attention_heads: heads,
            intermediate_size: dense,
            moe_intermediate_size: moe,
            ..DeepseekV2Config::default()
        };
        let fields = [("num_attention_heads", heads), ("intermediate_size", dense), ("moe_intermediate_size", moe)];
        let uneven = fields.iter().find(|(_, size)| !size.is_multiple_of(ranks));
        let expected = uneven.map_or(Ok(()), |(field, size)| {
            Err(format!("config: {field}: expected a multiple of the number of ranks, {ranks}, found {size}"))
        });
        prop_assert_eq!(divide(&config, ranks), expected);
        Ok(())
    })
    .holds_for(&|config, ranks| {
        Rank::all(ranks).try_for_each(|rank| rank.config(config).map(|_| ())).map_err(|error| error.to_string())
    })
    .fails_for("rounded down", &|_, _| Ok(()));
}

#[test]
fn impossible_calls_are_refused() {
    let split = Split {
        ranks: 2,
        heads_per_rank: 1,
        layers: 1,
        dense_layers: 0,
        q_lora_rank: None,
        biases: false,
        shared: 1,
        form: AttentionForm::Expanded,
        tokens: 2,
        seed: 0,
    };
    let load = |ranks| TensorParallel::<f64>::load(&split.config(), Dialect::Hf, &split.weights(), ranks);
    assert_eq!(load(0).unwrap_err().to_string(), "input `ranks`: expected one rank or more, found 0");
    assert!(load(3).is_err());
    let ranks = load(2).unwrap();
    let (mut caches, [mut input, _]) = (ranks.new_caches(2), split.inputs());
    let refused = ranks.forward(&input, Some(&mut caches[..1]), &Run::default()).unwrap_err().to_string();
    assert_eq!(refused, "input `past_key_values`: expected a cache for each of 2 ranks, found 1");
    // One rank's failure is everybody's, and nobody waits for it for ever.
    caches[1] = LatentCache::new(&split.config(), 3);
    assert!(ranks.forward(&input, Some(&mut caches), &Run::default()).is_err());
    input.input = ModelInput::ids(Array2::from_elem((2, 1), 99));
    let refused = ranks.forward(&input, None, &Run::default()).unwrap_err().to_string();
    assert_eq!(refused, "input `input_ids`: expected token ids 0 to 10, found 99 at [0, 0]");
}

//! Impossible requests: each is refused with one error that names the thing, what was expected and what was found.
//! Nothing panics, and a cache stays as it was, to the bit.

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput, SequenceClassifier};
use dsv2_optimized::model::{Model, Settings};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{
    AttentionForm, AttentionMask, CausalLmLabels, ClassificationLabels, DeepseekV2Config, Dialect, LogitsToKeep,
    ModelInput, Tokens,
};
use ndarray::{Array2, Array3, Array4, array};
use serde_json::{Value, json};

const SETTINGS: Settings = Settings::new(Element::F32, Variant::Tuned);

/// A small model. Its rope type remembers how long a sequence has been: part of what a refusal must not change.
fn config() -> DeepseekV2Config {
    with(json!({}))
}

fn with(fields: Value) -> DeepseekV2Config {
    let mut config = json!({
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6,
        "moe_intermediate_size": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 6, "q_lora_rank": null, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 4, "max_position_embeddings": 2,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn weights() -> GeneratedWeights {
    serde_json::from_str(
        r#"{"seed": 9, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.2}, {"suffix": "", "gain": 1.0}]}"#,
    )
    .unwrap()
}

fn device() -> Arc<dyn Device> {
    Emulated::new(Library::embedded())
}

fn load(config: &DeepseekV2Config, weights: &dyn WeightSource, device: &Arc<dyn Device>) -> Result<CausalLm> {
    CausalLm::load(config, Dialect::Hf, weights, device, SETTINGS, &mut |_| ())
}

fn cache(model: &Model, batch: usize, tokens: usize) -> LatentCache {
    LatentCache::new(model.config(), model.device(), Element::F32, batch, tokens, 2).unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

/// A tensor of a checkpoint: its name, shape and numbers.
type Stored = (String, Vec<usize>, Vec<f32>);

/// The model's weights as a checkpoint file, with something done to them.
fn damaged(damage: impl Fn(&mut Vec<Stored>)) -> Checkpoint {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let stored = weights().tensor(&name, &shape).unwrap();
        let mut numbers = vec![0.0; stored.len()];
        stored.widen(0, &mut numbers);
        (name, shape, numbers)
    };
    let mut tensors: Vec<_> = config().weight_shapes(Head::CausalLm, Dialect::Hf).into_iter().map(tensor).collect();
    damage(&mut tensors);
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, shape, numbers) in tensors {
        let start = data.len();
        data.extend(numbers.into_iter().flat_map(f32::to_le_bytes));
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    Checkpoint::from_bytes("model.safetensors", Arc::new(bytes)).unwrap()
}

#[test]
fn damaged_weights_are_refused() {
    let o_proj = "model.layers.1.self_attn.o_proj.weight";
    let refusal = |damage: &dyn Fn(&mut Stored)| {
        let damaged = damaged(|tensors| damage(tensors.iter_mut().find(|tensor| tensor.0 == o_proj).unwrap()));
        refused(load(&config(), &damaged, &device()))
    };
    assert!(load(&config(), &damaged(|_| ()), &device()).is_ok());
    assert_eq!(
        refusal(&|tensor| tensor.0 = "other".into()),
        "weight `model.layers.1.self_attn.o_proj.weight`: expected shape [8, 8], \
         found no such tensor in model.safetensors"
    );
    assert_eq!(
        refusal(&|tensor| tensor.1 = vec![4, 16]),
        "weight `model.layers.1.self_attn.o_proj.weight`: expected shape [8, 8], \
         found shape [4, 16] in model.safetensors"
    );
    assert_eq!(
        refusal(&|tensor| tensor.2[13] = f32::NAN),
        "weight `model.layers.1.self_attn.o_proj.weight`: expected finite numbers only, found NaN at [1, 5]"
    );
    assert_eq!(
        refusal(&|tensor| tensor.2[0] = f32::INFINITY),
        "weight `model.layers.1.self_attn.o_proj.weight`: expected finite numbers only, found inf at [0, 0]"
    );
}

#[test]
fn impossible_configs_are_refused() {
    let refusal = |fields| refused(load(&with(fields), &weights(), &device()));
    assert_eq!(
        refusal(json!({"num_experts_per_tok": 5})),
        "config: num_experts_per_tok: expected an integer of 0 to n_routed_experts, 4, found 5"
    );
    assert_eq!(
        refusal(json!({"num_attention_heads": 3})),
        "config: hidden_size: expected a multiple of num_attention_heads, 3, found 8"
    );
    assert_eq!(
        refusal(json!({"hidden_act": "prelu"})),
        "config: hidden_act: expected one of silu, swish, gelu, gelu_python, gelu_10, gelu_pytorch_tanh, \
         gelu_python_tanh, gelu_new, gelu_accurate, gelu_fast, quick_gelu, relu, relu2, relu6, leaky_relu, sigmoid, \
         tanh, mish, hardswish, laplace, sqrtsoftplus, linear, found \"prelu\""
    );
    assert_eq!(
        refusal(json!({"vocab_size": 0})),
        "config: vocab_size: expected an integer of 1 to 2147483647, found 0"
    );
    assert_eq!(
        refusal(json!({"n_routed_experts": 1025, "num_hidden_layers": 2})),
        "RoutingRule: experts: expected 1 to 1024, found 1025"
    );
}

#[test]
fn a_device_with_too_little_memory_is_told_before_anything_is_taken() {
    let device: Arc<dyn Device> = Emulated::with_memory(Library::embedded(), 4096);
    assert_eq!(
        refused(load(&config(), &weights(), &device)),
        "CausalLm::load: device memory: expected 6480 bytes, found 4096 free"
    );
    assert_eq!(device.memory().unwrap(), (4096, 4096));
}

#[test]
fn a_pass_for_which_memory_does_not_suffice_leaves_the_cache_as_it_was() {
    let device: Arc<dyn Device> = Emulated::with_memory(Library::embedded(), 48 << 10);
    let model = load(&config(), &weights(), &device).unwrap();
    let free = device.memory().unwrap().0;
    let too_much = LatentCache::new(model.model().config(), &device, Element::F32, 1, 1 << 12, 2);
    assert_eq!(refused(too_much), "LatentCache::new: device memory: expected 327680 bytes, found 42672 free");
    assert_eq!(device.memory().unwrap().0, free);
    survives(&model, 200, &undisturbed(&model), |cache| {
        let refusal = refused(model.forward(&input(1, 190), Some(cache), AttentionForm::Expanded, None));
        // Which allocation it is depends on what else a pass takes, and in what order.
        let (start, end) = ("device memory: an allocation of ", " of 49152 bytes are in use");
        assert!(refusal.starts_with(start) && refusal.ends_with(end), "{refusal}");
    });
}

#[test]
fn impossible_caches_are_refused() {
    let (config, device) = (config(), device());
    let refusal =
        |batch, tokens, page_size| refused(LatentCache::new(&config, &device, Element::F32, batch, tokens, page_size));
    assert_eq!(refusal(1, 8, 0), "LatentCache::new: page_size: expected at least 1, found 0");
    assert_eq!(
        refusal(3, usize::MAX, 2),
        "LatentCache::new: tokens: expected at most 2147480000 in all, found 18446744073709551615 pages of 2"
    );
    assert_eq!(
        refusal(1 << 16, 1 << 15, 1),
        "LatentCache::new: tokens: expected at most 2147480000 in all, found 2147483648 pages of 1"
    );
    let mut cache = LatentCache::new(&config, &device, Element::F32, 2, 4, 2).unwrap();
    assert_eq!(refused(cache.reorder(&[0, 2])), "LatentCache::reorder: from: expected sequences below 2, found 2");
    assert_eq!(cache.lengths(), [0, 0]);
}

/// Tokens alone.
fn input(batch: usize, length: usize) -> CausalLmInput {
    let ids = Array2::from_shape_fn((batch, length), |(b, s)| ((3 * b + 5 * s) % 11) as i64);
    CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::default(), labels: None }
}

/// The logits of so many tokens of one sequence.
fn run(model: &CausalLm, cache: &mut LatentCache, length: usize) -> Vec<f32> {
    let (logits, _) = model.forward(&input(1, length), Some(cache), AttentionForm::Absorbed, None).unwrap();
    logits.to_f32().unwrap()
}

/// What two tokens after three others give.
fn undisturbed(model: &CausalLm) -> Vec<f32> {
    let mut cache = cache(model.model(), 1, 5);
    run(model, &mut cache, 3);
    run(model, &mut cache, 2)
}

/// The same with a cache that goes through an attempt in between.
fn survives(model: &CausalLm, tokens: usize, expected: &[f32], attempt: impl Fn(&mut LatentCache)) {
    let mut cache = cache(model.model(), 1, tokens);
    run(model, &mut cache, 3);
    attempt(&mut cache);
    assert_eq!(cache.lengths(), [3]);
    assert_eq!(run(model, &mut cache, 2), expected);
}

#[test]
fn impossible_inputs_are_refused_and_the_cache_is_as_it_was() {
    let model = load(&config(), &weights(), &device()).unwrap();
    let masked = |mask| change(4, |input| input.input.attention_mask = Some(mask));
    let placed = |positions| change(4, |input| input.input.position_ids = Some(positions));
    let embedded = |embeds| change(4, |input| input.input.tokens = Tokens::InputsEmbeds(embeds));
    let labelled = |labels| change(4, |input| input.labels = Some(CausalLmLabels::new(labels)));
    let kept = |keep| change(4, |input| input.logits_to_keep = keep);
    let with_token = |token| change(2, |input| input.input.tokens = Tokens::InputIds(array![[3, token]]));
    let additive =
        |x: f32| AttentionMask::Additive(Array4::from_shape_fn((1, 1, 4, 7), |at| if at.3 == 6 { x } else { 0.0 }));
    let rows: Vec<(CausalLmInput, &str)> = vec![
        (input(1, 0), "forward: input_ids: expected at least one sequence of one token, found [1, 0]"),
        (input(0, 3), "forward: input_ids: expected at least one sequence of one token, found [0, 3]"),
        (input(2, 3), "forward: past_key_values: expected a cache of 2 sequences, found 1"),
        (input(1, 30), "LatentCache: pages: expected 15 for 30 more tokens, found 6 free of 2 tokens"),
        (with_token(11), "forward: input_ids: expected tokens 0 to 10, found 11"),
        (with_token(-1), "forward: input_ids: expected tokens 0 to 10, found -1"),
        (with_token(i64::MIN), "forward: input_ids: expected tokens 0 to 10, found -9223372036854775808"),
        (
            placed(array![[3, 4, 5, i64::from(i32::MAX) + 1]]),
            "forward: position_ids: expected positions up to 2147483647, found 2147483648",
        ),
        (
            placed(array![[3, 4, 5, i64::MAX]]),
            "forward: position_ids: expected positions up to 2147483647, found 9223372036854775807",
        ),
        (placed(array![[3, 4, 5]]), "forward: position_ids: expected shape [1 or 1, 4], found [1, 3]"),
        (placed(array![[3], [4], [5], [6]]), "forward: position_ids: expected shape [1 or 1, 4], found [4, 1]"),
        (placed(Array2::zeros((0, 4))), "forward: position_ids: expected shape [1 or 1, 4], found [0, 4]"),
        (
            masked(AttentionMask::Padding(Array2::from_elem((1, 4), true))),
            "forward: attention_mask: expected shape [1, 7], cached and new tokens, found [1, 4]",
        ),
        (
            masked(AttentionMask::Padding(Array2::from_elem((2, 7), true))),
            "forward: attention_mask: expected shape [1, 7], cached and new tokens, found [2, 7]",
        ),
        (
            masked(AttentionMask::Additive(Array4::zeros((1, 1, 4, 4)))),
            "forward: attention_mask: expected shape [1 or 1, 1, 4, 7], found [1, 1, 4, 4]",
        ),
        (
            masked(AttentionMask::Additive(Array4::zeros((1, 2, 4, 7)))),
            "forward: attention_mask: expected shape [1 or 1, 1, 4, 7], found [1, 2, 4, 7]",
        ),
        (masked(additive(f32::NAN)), "forward: attention_mask: expected no NaN and no plus infinity, found NaN"),
        (masked(additive(f32::INFINITY)), "forward: attention_mask: expected no NaN and no plus infinity, found inf"),
        (embedded(Array3::zeros((1, 4, 7))), "forward: inputs_embeds: expected rows of 8, found [1, 4, 7]"),
        (
            embedded(Array3::from_elem((1, 4, 8), f32::NAN)),
            "forward: inputs_embeds: expected finite numbers, found NaN",
        ),
        (labelled(array![[1, 2, 11, 3]]), "loss: labels: expected 0 to 10, or -100 to ignore, found 11"),
        (labelled(array![[1, 2, -1, 3]]), "loss: labels: expected 0 to 10, or -100 to ignore, found -1"),
        (labelled(array![[1, 2, 3]]), "loss: labels: expected shape [1, 4], found [1, 3]"),
        (kept(LogitsToKeep::Positions(vec![0, 4])), "forward: logits_to_keep: expected positions -4 to 3, found 4"),
        (kept(LogitsToKeep::Positions(vec![-5])), "forward: logits_to_keep: expected positions -4 to 3, found -5"),
        (
            kept(LogitsToKeep::Positions(vec![i64::MIN, i64::MAX])),
            "forward: logits_to_keep: expected positions -4 to 3, found -9223372036854775808",
        ),
        (
            kept(LogitsToKeep::PerSample(array![[0], [1]])),
            "forward: logits_to_keep: expected shape [1, n], found [2, 1]",
        ),
        (kept(LogitsToKeep::PerSample(array![[9]])), "forward: logits_to_keep: expected positions -4 to 3, found 9"),
        (
            kept(LogitsToKeep::Mask(Array2::from_elem((1, 5), true))),
            "forward: logits_to_keep: expected shape [1, 4], found [1, 5]",
        ),
    ];
    let undisturbed = undisturbed(&model);
    let forms = [AttentionForm::Expanded, AttentionForm::Absorbed].into_iter().cycle();
    for ((input, expected), form) in rows.into_iter().zip(forms) {
        survives(&model, 16, &undisturbed, |cache| {
            assert_eq!(refused(model.forward(&input, Some(cache), form, None)), expected);
        });
    }
}

/// An input of one sequence with something changed.
fn change(length: usize, change: impl FnOnce(&mut CausalLmInput)) -> CausalLmInput {
    let mut input = input(1, length);
    change(&mut input);
    input
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let model = load(&config(), &weights(), &device()).unwrap();
    let refusal = |config: &DeepseekV2Config, device: &Arc<dyn Device>, element| {
        let mut cache = LatentCache::new(config, device, element, 1, 8, 2).unwrap();
        let refusal = refused(model.forward(&input(1, 3), Some(&mut cache), AttentionForm::Absorbed, None));
        assert_eq!(cache.lengths(), [0]);
        refusal
    };
    let own = model.model().device();
    assert_eq!(
        refusal(&with(json!({"num_hidden_layers": 1})), own, Element::F32),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 1 layers of 10 numbers f32 per token"
    );
    assert_eq!(
        refusal(&with(json!({"kv_lora_rank": 5})), own, Element::F32),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 2 layers of 9 numbers f32 per token"
    );
    assert_eq!(
        refusal(&config(), own, Element::Bf16),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 2 layers of 10 numbers bf16 per token"
    );
    assert_eq!(
        refusal(&config(), &device(), Element::F32),
        "forward: past_key_values: expected a cache on the model's device, found one on another (emulator)"
    );
}

#[test]
fn positions_of_another_shape_are_refused_where_packed_sequences_are_looked_for() {
    // Without a cache and a mask, positions say where sequences begin: they are looked at before anything else.
    let model = load(&config(), &weights(), &device()).unwrap();
    let refusal = |positions| {
        let input = change(4, |input| input.input.position_ids = Some(positions));
        refused(model.forward(&input, None, AttentionForm::Expanded, None))
    };
    assert_eq!(refusal(array![[0, 1, 0]]), "forward: position_ids: expected shape [1 or 1, 4], found [1, 3]");
    assert_eq!(refusal(Array2::zeros((0, 4))), "forward: position_ids: expected shape [1 or 1, 4], found [0, 4]");
    assert_eq!(refusal(array![[0], [5], [0], [1]]), "forward: position_ids: expected shape [1 or 1, 4], found [4, 1]");
}

#[test]
fn impossible_classifications_are_refused_and_the_cache_is_as_it_was() {
    let device = device();
    let load = |fields| {
        let config = with(fields);
        SequenceClassifier::load(&config, Dialect::Hf, &weights(), &device, SETTINGS, &mut |_| ()).unwrap()
    };
    let refusal = |model: &SequenceClassifier, batch, labels: &ClassificationLabels<f32>| {
        let mut cache = cache(model.model(), batch, 8);
        let input = input(batch, 3).input;
        let refusal = refused(model.forward(&input, Some(labels), Some(&mut cache), AttentionForm::Expanded, None));
        assert_eq!(cache.lengths(), vec![0; batch]);
        refusal
    };
    let model = load(json!({"num_labels": 3}));
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![3])),
        "loss: labels: expected classes 0 to 2, found 3"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![-1])),
        "loss: labels: expected classes 0 to 2, found -1"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![0, 1])),
        "loss: labels: expected labels of a SingleLabelClassification for 1 sequences and 3 labels, found 2 classes"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Values(array![0.0, 1.0].into_dyn())),
        "loss: labels: expected labels of a MultiLabelClassification for 1 sequences and 3 labels, \
         found numbers of shape [2]"
    );
    assert_eq!(
        refusal(&model, 2, &ClassificationLabels::Class(array![0, 1])),
        "forward: pad_token_id: expected a token, to find the ends of several sequences, found null"
    );
}

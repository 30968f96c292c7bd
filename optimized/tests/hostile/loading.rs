//! What no model or cache can be made of: weights, configs, memory, sizes.

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::{Device, Element, Emulated, Library};
use dsv2_reference::Dialect;
use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::Checkpoint;
use serde_json::{Value, json};

use super::{config, device, load, refused, weights, with};

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

//! The bytes of packed caches: those that PyTorch's casts and plain Python give, and no more than are said.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use dsv2_reference::model::cache::{CacheFormat, PackedFormat};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, DeepseekV2Model, Dialect, LatentCache, ModelInput, NoTap, Run};
use ndarray::Array2;
use serde::Deserialize;
use serde_json::json;

/// One line of golden/cache/vectors.json; numbers and bytes are hexadecimal, little-endian.
#[derive(Deserialize)]
struct Vector {
    name: String,
    latent: String,
    key: String,
    bytes: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Vectors {
    schema: String,
    vectors: Vec<Vector>,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn numbers(text: &str) -> Vec<f32> {
    unhex(text).as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn vectors() -> Vec<Vector> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/cache/vectors.json");
    let vectors: Vectors = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(vectors.schema, "dsv2-cache-bytes/1");
    vectors.vectors
}

#[test]
fn every_format_writes_the_bytes_of_the_golden_vectors() {
    let vectors = vectors();
    assert!(vectors.len() >= 14);
    for vector in vectors {
        let (latent, key) = (numbers(&vector.latent), numbers(&vector.key));
        for format in PackedFormat::ALL {
            let expected = unhex(&vector.bytes[&format.to_string()]);
            assert_eq!(format.encode(&latent, &key), expected, "{format}, {}", vector.name);
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            assert_eq!(format.encode(&wide(&latent), &wide(&key)), expected, "{format}, {}, from f64", vector.name);
        }
    }
}

#[test]
fn golden_bytes_are_read_and_written_again_as_they_were() {
    for vector in vectors() {
        let (c, r) = (numbers(&vector.latent).len(), numbers(&vector.key).len());
        for format in PackedFormat::ALL {
            let bytes = unhex(&vector.bytes[&format.to_string()]);
            let (latent, key) = format.decode::<f32>(&bytes, c, r).unwrap();
            assert_eq!(format.encode(&latent, &key), bytes, "{format}, {}", vector.name);
        }
    }
}

thread_local! {
    /// What this thread has asked for and not given back.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, and how many bytes each thread holds of it.
struct Counting;

// SAFETY: the system's own allocator does the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn allocated_bytes_are_those_that_the_allocator_gave_out() {
    let config = DeepseekV2Config::from_value(json!({
        "model_type": "deepseek_v2", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "first_k_dense_replace": 2, "q_lora_rank": null,
        "kv_lora_rank": 512, "qk_nope_head_dim": 4, "qk_rope_head_dim": 64, "v_head_dim": 4,
    }))
    .unwrap();
    let weights: GeneratedWeights =
        serde_json::from_value(json!({"seed": 3, "rules": [{"suffix": "weight", "gain": 1.0}]})).unwrap();
    let model = DeepseekV2Model::<f32>::load(&config, Dialect::Hf, &weights).unwrap();
    let feed = |cache: &mut LatentCache<f32>, tokens| {
        let ids = Array2::from_shape_fn((3, tokens), |(b, s)| ((b + 7 * s) % 20) as i64);
        model.forward(&ModelInput::ids(ids), Some(cache), &Run::default(), &mut NoTap).unwrap();
    };
    let packed = PackedFormat::ALL.map(CacheFormat::Packed);
    for format in packed.into_iter().chain([CacheFormat::Plain]) {
        let empty = LatentCache::<f32>::with_format(&config, 3, format);
        let mut cache = empty.clone();
        feed(&mut cache, 5);
        feed(&mut cache, 1);
        // A copy has what a cache has, and it is this thread that makes both. An empty one holds no tokens.
        let cost = |cache: &LatentCache<f32>| {
            let before = HELD.get();
            let copy = cache.clone();
            let held = HELD.get() - before;
            assert_eq!(copy.len(), cache.len());
            held
        };
        assert_eq!(cost(&cache) - cost(&empty), cache.allocated_bytes() as isize, "{format}");
        // Room for ten tokens, after the sixth did not fit.
        let per_token = match format {
            CacheFormat::Plain => 4 * (512 + 64),
            CacheFormat::Packed(format) => format.bytes_per_token(512, 64),
        };
        assert_eq!(cache.allocated_bytes(), 2 * 3 * 10 * per_token, "{format}");
    }
}

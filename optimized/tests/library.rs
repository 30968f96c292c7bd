//! A model whose plain products a library makes. There is none without a GPU; so here one is played on the host, which does
//! what the library's manual says with the numbers that it is given, on an emulator for everything else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::forward::rest_by_inner;
use dsv2_optimized::device::products::{ColumnMajor, MatrixLibrary, MatrixProduct};
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::{Products, Settings};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, DeepseekV2ForCausalLM, Dialect};
use ndarray::Array2;

const CONFIG: &str = r#"{"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 12, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "topk_method": "greedy", "first_k_dense_replace": 1, "kv_lora_rank": 24, "q_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "eos_token_id": null, "attention_bias": BIAS}"#;
const WEIGHTS: &str = r#"{"seed": 4, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
    {"suffix": "embed_tokens.weight", "std": 1.0}, {"suffix": "bias", "std": 0.3}, {"suffix": "weight", "gain": 1.3}]}"#;

/// An emulator beside a library on the host.
#[derive(Debug)]
struct WithLibrary {
    inner: Arc<Emulated>,
    calls: AtomicUsize,
    /// One call at a time.
    working: Mutex<()>,
}

impl WithLibrary {
    fn new() -> Arc<Self> {
        let inner = Emulated::new(Library::embedded());
        Arc::new(WithLibrary { inner, calls: AtomicUsize::new(0), working: Mutex::new(()) })
    }

    /// The elements of one column.
    fn column(&self, of: &ColumnMajor, address: u64, column: usize) -> Result<Vec<f32>> {
        assert_eq!(of.element, Element::F32);
        let mut bytes = vec![0; 4 * of.rows];
        self.inner.read(address + (4 * column * of.leading) as u64, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn columns(&self, of: &ColumnMajor, address: u64) -> Result<Vec<Vec<f32>>> {
        (0..of.columns).map(|column| self.column(of, address, column)).collect()
    }
}

impl MatrixLibrary for WithLibrary {
    fn multiply(&self, product: &MatrixProduct, a: u64, b: u64, d: u64) -> Result<()> {
        let _working = self.working.lock().unwrap();
        self.calls.fetch_add(1, Ordering::Relaxed);
        let MatrixProduct { a: of_a, a_transposed, b: of_b, d: of_d } = product;
        assert!(*a_transposed, "weights are stored row after row");
        let (left, right) = (self.columns(of_a, a)?, self.columns(of_b, b)?);
        for (j, right) in right.iter().enumerate() {
            let dot = |left: &Vec<f32>| left.iter().zip(right).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let column: Vec<u8> = left.iter().flat_map(|left| (dot(left) as f32).to_le_bytes()).collect();
            self.inner.write(d + (4 * j * of_d.leading) as u64, &column)?;
        }
        Ok(())
    }
}

impl Device for WithLibrary {
    fn name(&self) -> String {
        "emulator with a library".into()
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.inner.allocate(bytes)
    }
    fn free(&self, address: u64) {
        self.inner.free(address);
    }
    rest_by_inner!();
    fn products(&self) -> Result<&dyn MatrixLibrary> {
        Ok(self)
    }
}

fn config(bias: bool) -> DeepseekV2Config {
    DeepseekV2Config::from_json_str(&CONFIG.replace("BIAS", &bias.to_string())).unwrap()
}

fn weights() -> GeneratedWeights {
    serde_json::from_str(WEIGHTS).unwrap()
}

fn load(bias: bool, device: &Arc<dyn Device>, products: Products) -> Result<CausalLm> {
    let settings = Settings { products, ..Settings::new(Element::F32, Variant::Tuned) };
    CausalLm::load(&config(bias), Dialect::Hf, &weights(), device, settings, &mut |_| ())
}

#[test]
fn a_library_is_asked_for_every_plain_product_and_the_text_stays_the_same() {
    let prompt = Array2::from_shape_fn((2, 5), |(b, s)| (37 * b as i64 + 23 * s as i64 + 5) % 90);
    for bias in [false, true] {
        let expected = DeepseekV2ForCausalLM::<f32>::load(&config(bias), Dialect::Hf, &weights()).unwrap();
        let expected = expected.generate(&prompt, None, 6).unwrap();
        let device = WithLibrary::new();
        let shared: Arc<dyn Device> = device.clone();
        for products in [Products::Library, Products::Ours] {
            let lm = load(bias, &shared, products).unwrap();
            assert_eq!(lm.generate(&prompt, None, &GenerateOptions::new(6)).unwrap(), expected, "bias {bias}");
            // Of each layer q_a with kv_a, and o (which may have a bias), q_b, and three of an MLP; of the prompt keys and
            // values; the logits.
            let plain = if bias { 4 } else { 6 };
            let calls = 6 * (2 * plain + 1) + 2;
            let asked = if products == Products::Library { calls } else { 0 };
            assert_eq!(device.calls.swap(0, Ordering::Relaxed), asked, "bias {bias}, {products:?}");
        }
    }
}

#[test]
fn where_there_is_no_library_a_model_that_asks_for_one_is_refused_before_anything_is_taken() {
    let device: Arc<dyn Device> = Emulated::new(Library::embedded());
    let (free, total) = device.memory().unwrap();
    let error = load(false, &device, Products::Library).unwrap_err().to_string();
    assert_eq!(error, "products: library: expected a GPU with cuBLASLt, found emulator");
    assert_eq!(free, total);
    assert_eq!(device.memory().unwrap().0, free);
}

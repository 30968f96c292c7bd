//! DeepSeek-V2, written to be read: Multi-head Latent Attention and DeepSeekMoE on plain [`ndarray`], in `f64` or
//! `f32`.
//!
//! The model is that of the paper "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model"
//! (arXiv 2405.04434), as the published checkpoints and Hugging Face Transformers have it. One module is one section of
//! the paper, one function one equation. Notes marked **Trap** tell where real implementations went wrong.
//!
//! # Where to read what
//!
//! Imports run downwards in this table only, from the model to the arithmetic; nothing imports what stands above it.
//!
//! | module | paper | what |
//! |---|---|---|
//! | **[`paper`]** | | **what the paper has beyond the forward pass** |
//! | [`paper::training`] | 2.2.3, 2.2.4, eq. 23-31 | balance losses, token dropping |
//! | [`paper::parallel`] | 2.2.2, 3.1.3 | device-limited routing; experts on many devices, heads and columns on many ranks, computed on one |
//! | `paper::linalg` (feature) | 2.1.2 | ranks, factorisations and condition numbers of the model's matrices |
//! | **[`deepseek_v3`]** | none | **two parts of DeepSeek-V3**, which V2's documentation speaks of: routing with biases, multi-token prediction |
//! | **[`model`]** | 2, figure 2 | **the model**: embedding, layers, final norm |
//! | [`model::causal_lm`], [`model::sequence_classification`], [`model::loss`] | | heads and losses, greedy generation |
//! | [`model::layer`] | 2, figure 2 | the residual stream |
//! | [`model::attention`] | 2.1, eq. 9-19; C, eq. 37-47 | MLA, expanded and absorbed side by side; why the key is decoupled |
//! | [`model::rope`] | 2.1.3, 3.1.4 | rotary embedding, YaRN, the softmax scale |
//! | [`model::cache`] | 2.1.4, 3.2.3 | the latent KV cache, plain or packed in 6 to 16 bits per element |
//! | [`model::mask`] | | causal rule, padding, packed sequences |
//! | [`model::experts`] | 2.2.1, eq. 20 | the gated MLP, shared and routed experts |
//! | [`model::router`] | 2.2.1, 2.2.2, eq. 20-22 | which experts, with what weight; limited to M groups |
//! | [`model::linear`], [`model::norm`] | | the two building blocks with weights |
//! | **[`weights`]** | | **where weights come from** |
//! | [`weights::checkpoint`], [`weights::safetensors_file`], [`weights::generator`] | | a Hugging Face folder, its files, or a seed |
//! | **[`config`]**, [`dialect`] | 3.1.2 | **config.json**, its symbols, the published models as presets; where Transformers, its old versions and DeepSeek's own code disagree |
//! | **[`arithmetic`]** | | **fixed-order products**, softmax, activations, stored types |
//!
//! Beside them stand [`stage`], the table of the named tensors, [`tap`], the hook at each of them, [`round`], which
//! rounds to bf16 with it, and [`mod@file`].
//!
//! Shapes are written with the letters B (batch), S (new tokens), T (cached and new tokens), D (`hidden_size`), H
//! (heads), n, r, v (`qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`), c (`kv_lora_rank`), E (routed experts), k
//! (`num_experts_per_tok`), V (`vocab_size`), L (layers).
//!
//! # What is promised
//!
//! * **The same bits** from run to run, for any number of threads, on any processor as far as the arithmetic goes (the
//!   exponential and the trigonometric functions are the platform's): every sum has a fixed order ([`arithmetic::matmul`]).
//! * **Batch-invariant.** A sequence gives the same bits alone and in a batch, as a whole and in chunks.
//! * **`f64` is the truth**, with two roundings that every implementation shares: the rotary frequencies and the angles
//!   are fp32 ([`model::rope`]). Transformers' own `.double()` keeps five more fp32 islands and is no such truth.
//! * Weights are mapped and stay in the checkpoint's type, widened where they are used; widening is exact.
//!
//! # An example
//!
//! ```
//! use dsv2_reference::weights::generator::GeneratedWeights;
//! use dsv2_reference::{CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, LogitsToKeep, ModelInput, NoTap, Run};
//! use ndarray::array;
//!
//! let config = DeepseekV2Config::from_json_str(
//!     r#"{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
//!         "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
//!         "kv_lora_rank": 6, "q_lora_rank": null, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5}"#,
//! )?;
//! let weights: GeneratedWeights = serde_json::from_str(r#"{"seed": 1, "rules": [{"suffix": "weight", "gain": 1.0}]}"#)?;
//! let model = DeepseekV2ForCausalLM::<f64>::load(&config, Dialect::Hf, &weights)?;
//! let input = CausalLmInput {
//!     input: ModelInput::ids(array![[3, 1, 4, 1, 5]]),
//!     logits_to_keep: LogitsToKeep::Last(1),
//!     labels: None,
//! };
//! let output = model.forward(&input, None, &Run::default(), &mut NoTap)?;
//! assert_eq!(output.logits.dim(), (1, 1, 50));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(missing_docs)]

pub mod arithmetic;
pub mod config;
pub mod deepseek_v3;
pub mod dialect;
mod error;
pub mod file;
#[cfg(all(debug_assertions, not(test)))]
mod instances;
mod json;
pub mod model;
pub mod paper;
pub mod round;
pub mod stage;
pub mod tap;
pub mod weights;

pub use arithmetic::activation::Activation;
pub use arithmetic::real::Real;
pub use arithmetic::stored::Dtype;
pub use config::DeepseekV2Config;
pub use dialect::Dialect;
pub use error::{Error, Result};
pub use model::attention::AttentionForm;
pub use model::cache::LatentCache;
pub use model::causal_lm::{CausalLmInput, CausalLmOutput, DeepseekV2ForCausalLM, LogitsToKeep};
pub use model::loss::{CausalLmLabels, ClassificationLabels};
pub use model::mask::AttentionMask;
pub use model::sequence_classification::DeepseekV2ForSequenceClassification;
pub use model::{DeepseekV2Model, ModelInput, Run, Tokens};
pub use tap::{NoTap, StageValue, Tap};
pub use weights::tensor::{SharedBytes, Tensor};

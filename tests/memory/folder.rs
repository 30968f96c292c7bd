//! A checkpoint in a folder, and dumps of it in the shapes in which programs have them.

use std::path::PathBuf;

use dsv2::backend::{Precision, Reference, Settings, Streaming};
use dsv2::case::{Case, Feed};
use dsv2::check::shards::plans::{How, Rule};
use dsv2::check::{Candidates, Conclusion, Request};
use dsv2::planned::{self, Planned};
use dsv2::trace::{Stream, Trace};
use dsv2::values::Values;
use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, Tensor};
use dsv2_testing::hot_weights;
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::concluded;

/// A checkpoint in a folder, and what is fed to it.
pub struct Folder {
    pub dir: TempDir,
    pub case: Case,
    pub planned: IndexMap<String, Planned>,
}

pub const TOKENS: usize = 256;

impl Folder {
    pub fn new(layers: usize) -> Self {
        Self::with_words(layers, 64)
    }

    /// The same with so many logits for each token.
    pub fn with_words(layers: usize, vocab: usize) -> Self {
        Self::with(layers, json!({"vocab_size": vocab}))
    }

    /// The same with other `settings`.
    pub fn with(layers: usize, settings: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 64,
            "hidden_size": 64, "intermediate_size": 192, "moe_intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 32,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
            "topk_method": "greedy", "routed_scaling_factor": 1.0, "norm_topk_prob": false, "max_position_embeddings": 512,
            "rope_theta": 10000, "rope_scaling": null, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        });
        let settings = settings.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(settings);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let config = DeepseekV2Config::from_file(&dir.path().join("config.json")).unwrap();
        let weights = hot_weights(7);
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let tensor = weights.tensor(&name, &shape).unwrap().to_array::<f64, IxDyn>();
            (name, Data::Real(Tensor::from_values(Dtype::Bf16, &shape, tensor.iter().copied())))
        };
        let tensors: Vec<_> = config.weight_shapes(Head::CausalLm, Dialect::Hf).into_iter().map(tensor).collect();
        write_safetensors(&dir.path().join("model.safetensors"), &tensors).unwrap();
        let ids = ArrayD::from_shape_fn(vec![1, TOKENS], |at| (at[1] * 37 % 61) as i64);
        let inputs = dir.path().join("inputs.safetensors");
        write_safetensors(&inputs, &[("input_ids".to_owned(), Data::Index(ids))]).unwrap();
        let case = Case::open(dir.path(), &inputs, Dialect::Hf, None).unwrap();
        let planned = planned::stages(&case, AttentionForm::Expanded, Precision::F32);
        Folder { dir, case, planned }
    }

    pub fn dump(&self) -> PathBuf {
        self.dir.path().join("dump.safetensors")
    }

    /// The dump in bytes.
    pub fn bytes(&self) -> u64 {
        self.planned.values().map(Planned::bytes).sum()
    }

    pub fn trace(&self) {
        let mut stream = Stream::create(&self.dump(), &self.case, &self.planned).unwrap();
        let settings = Settings { precision: Precision::F32, ..Settings::default() };
        Reference.show(&self.case, &settings, &mut NoTap, &mut stream).unwrap();
        stream.finish().unwrap();
    }

    pub fn check(&self, request: &Request) -> Conclusion {
        concluded(request, &Candidates::open(&[self.dump()], None, &self.case).unwrap())
    }

    /// What two ranks hold of the dump, in a file each.
    pub fn ranks(&self, rule: &Rule) -> [PathBuf; 2] {
        let dump = Trace::read(&self.dump()).unwrap();
        let half = |a: &ArrayD<f64>, axis: usize, rank: usize| {
            let (first, second) = a.view().split_at(Axis(axis), a.len_of(Axis(axis)) / 2);
            [first, second][rank].to_owned()
        };
        [0, 1].map(|rank| {
            let part = |(name, values): (&str, &Values)| {
                let part = match (rule.how(name), values) {
                    (How::Columns, Values::Real(dtype, a)) => Values::Real(*dtype, half(a, a.ndim() - 1, rank)),
                    (How::Heads, Values::Real(dtype, a)) => Values::Real(*dtype, half(a, 1, rank)),
                    (How::Sum, Values::Real(dtype, a)) => Values::Real(*dtype, a * rank as f64),
                    (_, values) => values.clone(),
                };
                (name.to_owned(), part)
            };
            let path = self.dir.path().join(format!("rank{rank}.safetensors"));
            dump.iter().map(part).collect::<Trace>().write(&path).unwrap();
            path
        })
    }

    /// The same fed in chunks.
    pub fn in_chunks(self) -> Self {
        self.in_chunks_of(vec![TOKENS / 2, TOKENS / 4, TOKENS / 4])
    }

    pub fn in_chunks_of(self, chunks: Vec<usize>) -> Self {
        let case = Case { chunks, ..self.case };
        Folder { planned: planned::stages(&case, AttentionForm::Expanded, Precision::F32), case, ..self }
    }

    /// The same fed so, with these inputs beside the ids, which lie in `shape`.
    pub fn fed(self, feed: Feed, shape: [usize; 2], others: &[(&str, ArrayD<i64>)]) -> Self {
        let ids = ArrayD::from_shape_fn(&shape[..], |at| ((at[0] * 11 + at[1] * 37) % 61) as i64);
        let others = others.iter().map(|(name, values)| ((*name).to_owned(), Data::Index(values.clone())));
        let tensors: Vec<_> = [("input_ids".to_owned(), Data::Index(ids))].into_iter().chain(others).collect();
        let inputs = self.dir.path().join("inputs.safetensors");
        write_safetensors(&inputs, &tensors).unwrap();
        let case = Case::open_as(self.dir.path(), &inputs, feed).unwrap();
        Folder { planned: planned::stages(&case, AttentionForm::Expanded, Precision::F32), case, ..self }
    }

    /// Rounds each stage of the dump to bf16, puts the heads of queries behind the tokens, and makes a stage wrong.
    pub fn saved_in_bf16_with_heads_behind(&self) {
        let dump = Trace::read(&self.dump()).unwrap();
        let saved = |(name, values): (&str, &Values)| {
            let Values::Real(_, a) = values else { return (name.to_owned(), values.clone()) };
            let turned = match name.ends_with(".q_pe") {
                true => a.clone().permuted_axes(IxDyn(&[0, 2, 1, 3])).as_standard_layout().into_owned(),
                false => a * if name == "model.layers.1.mlp" { 1.1 } else { 1.0 },
            };
            let rounded = Tensor::from_values(Dtype::Bf16, turned.shape(), turned.iter().copied());
            (name.to_owned(), Values::Real(Dtype::Bf16, rounded.to_array()))
        };
        dump.iter().map(saved).collect::<Trace>().write(&self.dump()).unwrap();
    }

    /// Puts what is cached into one tensor, tokens one after another with more rows behind them, and leaves the last logits.
    pub fn as_an_engine_dumps(&self) {
        let mut dump = Trace::read(&self.dump()).unwrap();
        let cached = |layer: usize| ["compressed_kv", "k_pe"].map(|part| format!("past_key_values.{layer}.{part}"));
        let mut tensors = Vec::new();
        for layer in 0..self.case.config.num_hidden_layers {
            let [latent, key] = cached(layer).map(|part| dump.get(&part).unwrap().real().unwrap().clone());
            let both = concatenate(Axis(2), &[latent.view(), key.view()]).unwrap();
            tensors.push((format!("past_key_values.{layer}.latent"), Values::Real(Dtype::F32, both)));
            dump.retain(|name| !cached(layer).iter().any(|part| part == name));
        }
        tensors.extend(dump.iter().map(|(name, values)| (name.to_owned(), values.clone())));
        let dumped = tensors.into_iter().map(|(name, values)| match values {
            Values::Real(dtype, a) if name == "lm_head" => {
                (name, Values::Real(dtype, a.slice_axis(Axis(1), Slice::from(-1..)).to_owned()))
            }
            Values::Real(dtype, a) if a.ndim() == 3 => {
                let beyond = ArrayD::zeros(IxDyn(&[1, 5, a.shape()[2]]));
                let longer = concatenate(Axis(1), &[a.view(), beyond.view()]).unwrap();
                (name, Values::Real(dtype, longer.remove_axis(Axis(0))))
            }
            values => (name, values),
        });
        dumped.collect::<Trace>().write(&self.dump()).unwrap();
    }

    /// Makes these stages of the dump wrong.
    pub fn spoil(&self, wrong: impl Fn(&str) -> bool) {
        let dump = Trace::read(&self.dump()).unwrap();
        let spoilt = |(name, values): (&str, &Values)| match values {
            Values::Real(dtype, a) if wrong(name) => (name.to_owned(), Values::Real(*dtype, a * 1.01)),
            values => (name.to_owned(), values.clone()),
        };
        dump.iter().map(spoilt).collect::<Trace>().write(&self.dump()).unwrap();
    }
}

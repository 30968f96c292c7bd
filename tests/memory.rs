//! Memory: what is taken, by a counting allocator, against what is planned; and that layers take no more.

use std::path::PathBuf;
use std::sync::Mutex;

use dsv2::backend::{Precision, Reference, Settings, Streaming};
use dsv2::case::Case;
use dsv2::check::{self, Candidates, Conclusion, Request};
use dsv2::memory;
use dsv2::planned::{self, Planned};
use dsv2::trace::{Stream, Trace};
use dsv2::values::Values;
use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV, LAYER, ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, Tensor};
use dsv2_testing::hot_weights;
use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use peak_alloc::PeakAlloc;
use serde_json::json;
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What one test allocates is no other's.
static ALONE: Mutex<()> = Mutex::new(());

/// How many bytes `run` allocates at a time, at most, beside what there was before.
fn taken<T>(run: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = run();
    (ALLOCATOR.peak_usage().saturating_sub(before) as u64, result)
}

/// A checkpoint in a folder, and what is fed to it.
struct Folder {
    dir: TempDir,
    case: Case,
    planned: IndexMap<String, Planned>,
}

const TOKENS: usize = 256;

impl Folder {
    fn new(layers: usize) -> Self {
        Self::with_words(layers, 64)
    }

    /// The same with so many logits for each token.
    fn with_words(layers: usize, vocab: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": vocab,
            "hidden_size": 64, "intermediate_size": 192, "moe_intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 32,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
            "topk_method": "greedy", "routed_scaling_factor": 1.0, "norm_topk_prob": false, "max_position_embeddings": 512,
            "rope_theta": 10000, "rope_scaling": null, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        });
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

    fn dump(&self) -> PathBuf {
        self.dir.path().join("dump.safetensors")
    }

    /// The dump in bytes.
    fn bytes(&self) -> u64 {
        self.planned.values().map(Planned::bytes).sum()
    }

    fn trace(&self) {
        let mut stream = Stream::create(&self.dump(), self.planned.clone()).unwrap();
        let settings = Settings { precision: Precision::F32, ..Settings::default() };
        Reference.show(&self.case, &settings, &mut NoTap, &mut stream).unwrap();
        stream.finish().unwrap();
    }

    fn check(&self, request: &Request) -> Conclusion {
        let candidates = Candidates::open(&[self.dump()], None, &self.case).unwrap();
        let checked = check::check_files(request, &candidates, false, &mut |_, _, _| ()).unwrap();
        checked.expect("it is judged stage by stage").conclusion()
    }

    /// Makes these stages of the dump wrong.
    fn spoil(&self, wrong: impl Fn(&str) -> bool) {
        let dump = Trace::read(&self.dump()).unwrap();
        let spoilt = |(name, values): (&str, &Values)| match values {
            Values::Real(dtype, a) if wrong(name) => (name.to_owned(), Values::Real(*dtype, a * 1.01)),
            values => (name.to_owned(), values.clone()),
        };
        dump.iter().map(spoilt).collect::<Trace>().write(&self.dump()).unwrap();
    }
}

#[test]
fn a_trace_takes_what_is_planned_however_many_layers_there_are() {
    let _alone = ALONE.lock();
    for layers in [2, 4, 8] {
        let folder = Folder::new(layers);
        folder.trace();
        let (peak, ()) = taken(|| folder.trace());
        let (planned, dump) = (memory::of_run(&folder.planned, Precision::F32), folder.bytes());
        let layer = 4 * memory::at_a_time(&folder.planned);
        println!("trace of {layers} layers: {peak} bytes, planned {planned}, one layer {layer}, dump {dump}");
        assert!(peak <= layer + dump / 5, "{layers} layers: {peak} bytes of {dump}, beside a layer's {layer}");
        assert!((peak..=2 * peak).contains(&planned), "{layers} layers: planned {planned}, taken {peak}");
    }
}

#[test]
fn a_check_takes_what_is_planned_however_many_layers_there_are() {
    let _alone = ALONE.lock();
    let mut peaks = Vec::new();
    for (layers, vocab) in [(2, 64), (4, 64), (8, 64), (2, 8192)] {
        let folder = Folder::with_words(layers, vocab);
        folder.trace();
        let request = Request::new(folder.case.clone(), Trace::default());
        let candidates = Candidates::open(&[folder.dump()], None, &folder.case).unwrap();
        let planned = check::need_by_stage(&folder.case, &candidates).unwrap().size.0;
        let stages = 8 * memory::at_a_time(&folder.planned);
        let all = |kinds: &[&str]| memory::of_kinds(&folder.planned, kinds);
        let kept = 20 * all(&[CACHED_KV, CACHED_K_PE]) + 24 * all(&[ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS]);
        // the residual stream that enters a layer, in all runs, and some rows of what is compared
        let kept = kept + 24 * all(&[LAYER]) / layers as u64 + 8 * 8 * vocab.max(TOKENS) as u64;
        let what = format!("{layers} layers, {vocab} logits");
        let check = |kind: &str, conclusion: Conclusion| {
            let (peak, concluded) = taken(|| folder.check(&request));
            println!("{kind} dump of {what}: {peak} bytes, planned {planned}, a layer's stages {stages}, kept {kept}");
            assert_eq!(concluded, conclusion, "{what}");
            assert!((peak..=2 * peak).contains(&planned), "{kind}, {what}: planned {planned}, taken {peak}");
            assert!(2 * peak <= 3 * stages + 2 * kept, "{kind}, {what}: {peak} bytes, a layer's stages {stages}");
            peak
        };
        let right = check("right", Conclusion::Pass);
        folder.spoil(|name| name.ends_with(".o_proj"));
        let wrong = check("wrong", Conclusion::Fail);
        if vocab == 64 {
            peaks.extend([right - kept, wrong - kept]);
        }
    }
    let (least, most) = (peaks.iter().min().unwrap(), peaks.iter().max().unwrap());
    assert!(4 * most <= 5 * least, "{peaks:?}");
}

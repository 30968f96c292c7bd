//! Memory: what is taken, by a counting allocator, against what is planned; and that layers take no more.

use std::path::PathBuf;
use std::sync::Mutex;

use dsv2::backend::{Precision, Reference, Settings, Streaming};
use dsv2::case::Case;
use dsv2::check::shards::plans::{How, Rule};
use dsv2::check::{self, Candidates, Conclusion, Request};
use dsv2::memory;
use dsv2::planned::{self, Planned};
use dsv2::trace::{Stream, Trace};
use dsv2::values::Values;
use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::{LAYER, ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, Tensor};
use dsv2_testing::hot_weights;
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};
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
        concluded(request, &Candidates::open(&[self.dump()], None, &self.case).unwrap())
    }

    /// What two ranks hold of the dump, in a file each.
    fn ranks(&self, rule: &Rule) -> [PathBuf; 2] {
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
    fn in_chunks(self) -> Self {
        let case = Case { chunks: vec![TOKENS / 2, TOKENS / 4, TOKENS / 4], ..self.case };
        Folder { planned: planned::stages(&case, AttentionForm::Expanded, Precision::F32), case, ..self }
    }

    /// Rounds each stage of the dump to bf16, puts the heads of queries behind the tokens, and makes a stage wrong.
    fn saved_in_bf16_with_heads_behind(&self) {
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
    fn as_an_engine_dumps(&self) {
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
    fn spoil(&self, wrong: impl Fn(&str) -> bool) {
        let dump = Trace::read(&self.dump()).unwrap();
        let spoilt = |(name, values): (&str, &Values)| match values {
            Values::Real(dtype, a) if wrong(name) => (name.to_owned(), Values::Real(*dtype, a * 1.01)),
            values => (name.to_owned(), values.clone()),
        };
        dump.iter().map(spoilt).collect::<Trace>().write(&self.dump()).unwrap();
    }
}

/// What is said of a dump, stage by stage.
fn concluded(request: &Request, candidates: &Candidates) -> Conclusion {
    let checked = check::check_files(request, candidates, false, &mut |_, _, _| ()).unwrap();
    checked.expect("it is judged stage by stage").conclusion()
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
        let kept = 24 * all(&[ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS]);
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

/// How a dump is asked about otherwise than as one file that was computed at once.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Ranks,
    Chunks,
    Expected,
    /// In the shapes that engines have.
    Engine,
    /// A failing one, in another order, of a kernel that keeps what it computes from unrounded.
    Fused,
}

#[test]
fn ranks_chunks_and_expected_stages_take_no_more_than_a_dump_alone() {
    let _alone = ALONE.lock();
    for asked in [Asked::Ranks, Asked::Chunks, Asked::Expected, Asked::Engine, Asked::Fused] {
        let mut peaks = Vec::new();
        for layers in [2, 4, 8] {
            let folder = Folder::new(layers);
            folder.trace();
            let folder = if matches!(asked, Asked::Chunks) { folder.in_chunks() } else { folder };
            let rule: Rule = "vllm".parse().unwrap();
            let candidates = match asked {
                Asked::Ranks => Candidates::open(&folder.ranks(&rule), Some(&rule), &folder.case).unwrap(),
                Asked::Chunks => Candidates::open(&[folder.dump()], None, &folder.case).unwrap(),
                Asked::Engine => {
                    folder.as_an_engine_dumps();
                    Candidates::open(&[folder.dump()], None, &folder.case).unwrap()
                }
                Asked::Fused => {
                    folder.saved_in_bf16_with_heads_behind();
                    Candidates::open(&[folder.dump()], None, &folder.case).unwrap()
                }
                Asked::Expected => {
                    let expected = folder.dir.path().join("expected.safetensors");
                    std::fs::copy(folder.dump(), &expected).unwrap();
                    Candidates::open(&[folder.dump()], None, &folder.case).unwrap().against(&expected).unwrap()
                }
            };
            let request = Request::new(folder.case.clone(), Trace::default());
            let planned = check::need_by_stage(&folder.case, &candidates).unwrap().size.0;
            let (peak, conclusion) = taken(|| concluded(&request, &candidates));
            let stages = 8 * memory::at_a_time(&folder.planned);
            let kept = 24 * memory::of_kinds(&folder.planned, &[ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS]);
            let ratio = (peak - kept) as f64 / stages as f64;
            println!("{asked:?}, {layers} layers: {peak} bytes ({ratio:.2} of a layer's stages), planned {planned}");
            let expected = if matches!(asked, Asked::Fused) { Conclusion::Fail } else { Conclusion::Pass };
            assert_eq!(conclusion, expected, "{asked:?}");
            let most = if matches!(asked, Asked::Chunks | Asked::Fused) { 3 } else { 2 };
            assert!((peak..=most * peak).contains(&planned), "{asked:?}: planned {planned}, taken {peak}");
            // the residual stream that enters a layer, in all runs, some rows of what is compared, and names, errors and weights'
            // places of each layer
            let stream = memory::of_kinds(&folder.planned, &[LAYER]) / layers as u64;
            let of_layers = 100_000 * layers as u64;
            let rest = 24 * stream + 64 * TOKENS as u64 + of_layers;
            assert!(2 * (peak - kept) <= 3 * stages + 2 * rest, "{asked:?}, {layers} layers: {ratio:.2}");
            peaks.push(peak - kept - of_layers);
        }
        let (least, most) = (peaks.iter().min().unwrap(), peaks.iter().max().unwrap());
        assert!(4 * most <= 5 * least, "{asked:?}: {peaks:?}");
    }
}

//! Memory: what is taken, by a counting allocator, against what is planned; and that layers take no more.

mod folder;
mod plan;
mod whole;

use std::sync::Mutex;

use dsv2::backend::Precision;
use dsv2::case::Feed;
use dsv2::check::shards::plans::Rule;
use dsv2::check::{self, Candidates, Conclusion, Request};
use dsv2::memory;
use dsv2::trace::Trace;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::{LAYER, ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use folder::{Folder, TOKENS};
use peak_alloc::PeakAlloc;
use plan::{FIXED, ends};
use serde_json::json;

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

/// What is said of a dump, stage by stage.
fn concluded(request: &Request, candidates: &Candidates) -> Conclusion {
    let checked = check::check_files(request, candidates, false, &mut |_, _, _| ()).unwrap();
    checked.expect("it is judged stage by stage").conclusion()
}

#[test]
fn a_trace_takes_what_is_planned_however_many_layers_there_are_and_however_it_is_fed() {
    let _alone = ALONE.lock();
    for layers in [2, 4, 8] {
        let end_to_end = || Folder::new(layers).fed(Feed::default(), [1, TOKENS], &[("cu_seqlens", ends())]);
        let step = Feed { decode: Some(4), ..Feed::default() };
        for (fed, folder) in [
            ("at once", Folder::new(layers)),
            ("in chunks", Folder::new(layers).in_chunks()),
            ("end to end", end_to_end()),
            ("a step", end_to_end().fed(step, [1, TOKENS], &[("cu_seqlens", ends())])),
        ] {
            folder.trace();
            let (peak, ()) = taken(|| folder.trace());
            let (form, dump) = (AttentionForm::Expanded, folder.bytes());
            let planned = memory::of_run(&folder.case, &folder.planned, form, Precision::F32);
            // also where few of the tokens are looked at
            let layer = 4 * memory::at_a_time(&Folder::new(layers).planned);
            let says = format!("{layers} layers {fed}: {peak} bytes, planned {planned}, a layer {layer}, dump {dump}");
            println!("{says}");
            assert!(peak <= layer + dump / 5, "{says}");
            assert!(peak <= planned && 2 * planned <= 3 * peak, "{says}");
        }
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

#[test]
fn what_many_experts_and_wide_norms_keep_of_each_layer_is_planned() {
    let _alone = ALONE.lock();
    let experts = json!({"n_routed_experts": 160, "moe_intermediate_size": 8});
    let norms = json!({"hidden_size": 2048, "moe_intermediate_size": 2, "intermediate_size": 2, "n_routed_experts": 2});
    for (what, settings) in [("experts", experts), ("norms", norms)] {
        let of = |layers: usize| {
            let folder = Folder::with(layers, settings.clone());
            let form = AttentionForm::Expanded;
            let planned_trace = memory::of_run(&folder.case, &folder.planned, form, Precision::F32);
            folder.trace();
            let (trace, ()) = taken(|| folder.trace());
            let request = Request::new(folder.case.clone(), Trace::default());
            let candidates = Candidates::open(&[folder.dump()], None, &folder.case).unwrap();
            let planned = check::need_by_stage(&folder.case, &candidates).unwrap().size.0;
            let (peak, concluded) = taken(|| folder.check(&request));
            assert_eq!(concluded, Conclusion::Pass);
            println!(
                "{what}, {layers} layers: trace {trace}, planned {planned_trace}; check {peak}, planned {planned}"
            );
            assert!(trace <= planned_trace && peak <= planned, "{what}, {layers} layers");
            [trace, planned_trace]
        };
        let [few, many] = [4, 16].map(of);
        // of a check, what is held at a time differs from run to run by more than this
        assert!(many[0] - few[0] <= many[1] - few[1], "{what}: a trace takes more for each layer than is planned");
    }
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
            let most = if matches!(asked, Asked::Fused) { 3 } else { 2 };
            assert!((peak..=most * peak + FIXED).contains(&planned), "{asked:?}: planned {planned}, taken {peak}");
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

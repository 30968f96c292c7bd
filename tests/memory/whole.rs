//! What is planned for a dump that is read whole is what it takes: where near ties are tried, known bugs, or many plain runs.

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Feed;
use dsv2::check::{self, Candidates, Checked, Conclusion, Request};
use dsv2::trace::Trace;
use dsv2_reference::tap::NoTap;
use serde_json::json;

use super::folder::{Folder, TOKENS};
use super::plan::FIXED;
use super::{ALONE, taken};

/// What the search for near ties may keep, whether it does or not.
const SEARCHED: u64 = 8 << 23;

/// Judges the dump as it is judged where it has to be read whole: what is said beforehand must be enough, and not far too much, `beside`
/// what may be kept.
fn judged_within_the_plan(what: &str, folder: &Folder, hints: bool, beside: u64) -> Checked {
    let dump = folder.dump();
    let planned = check::need_whole(&folder.case, [dump.as_path()], false).unwrap().size.0;
    let (peak, checked) = taken(|| {
        let request = Request::new(folder.case.clone(), check::read(&folder.case, &dump).unwrap());
        if hints { check::check(&request).unwrap() } else { check::check_without_hint(&request).unwrap() }
    });
    println!("{what}: {peak} bytes taken, {planned} planned: {:.2}", planned as f64 / peak as f64);
    assert!(peak <= planned, "{what}: {peak} bytes taken, {planned} planned");
    assert!(planned <= 3 * peak + FIXED + beside, "{what}: {peak} bytes taken, {planned} planned");
    checked
}

/// What is recorded of a bf16 run, of the stages that are `held`.
fn dump(folder: &Folder, held: impl Fn(&str) -> bool) {
    let settings = Settings { precision: Precision::Bf16, stages: Some(&held), ..Settings::default() };
    let trace: Trace = Reference.run(&folder.case, &settings, &mut NoTap).unwrap();
    trace.write(&folder.dump()).unwrap();
}

#[test]
fn near_ties_that_are_tried_take_what_is_planned() {
    let _alone = ALONE.lock();
    // so far from the stages that it is judged from that some tokens go elsewhere
    let far = |name: &str| {
        !["topk_", "router_logits", "layernorm", "o_proj", "attn_output"].iter().any(|lacking| name.contains(lacking))
    };
    let layers = |name: &str| {
        name == "model.embed_tokens" || name.rsplit('.').next().is_some_and(|last| last.parse::<usize>().is_ok())
    };
    let mut assumed = 0;
    for (what, held) in [("nearly all", &far as &dyn Fn(&str) -> bool), ("hidden states", &layers)] {
        let folder = Folder::with(3, json!({"n_routed_experts": 32, "num_experts_per_tok": 4, "hidden_size": 128}));
        dump(&folder, held);
        let candidates = Candidates::open(&[folder.dump()], None, &folder.case).unwrap();
        assert!(!candidates.are_read_whole(&folder.case).unwrap(), "{what}: it is judged stage by stage at first");
        let request = Request::new(folder.case.clone(), Trace::default());
        let by_stage = check::check_files(&request, &candidates, false, &mut |_, _, _| ()).unwrap();
        assert!(by_stage.is_none(), "{what}: near ties are for a dump that is read whole");
        let checked = judged_within_the_plan(what, &folder, false, SEARCHED);
        assert_ne!(checked.conclusion(), Conclusion::Fail, "{what}: {:?}", checked.verdict.first_failure());
        assumed += checked.assumed_ties.len();
    }
    assert!(assumed > 0, "no near tie was put to the test");
}

#[test]
fn known_bugs_that_are_tried_on_a_small_model_take_what_is_planned() {
    let _alone = ALONE.lock();
    let small = json!({
        "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "qk_rope_head_dim": 2,
        "qk_nope_head_dim": 4,
    });
    for (what, settings) in [("many plain runs", small), ("one plain run", json!({}))] {
        let folder = Folder::with(2, settings);
        folder.trace();
        folder.spoil(|name| name.ends_with(".o_proj"));
        assert_eq!(judged_within_the_plan(what, &folder, true, 0).conclusion(), Conclusion::Fail, "{what}");
    }
}

#[test]
fn a_step_with_the_rows_of_all_tokens_is_planned_by_the_rows_that_are_judged_before_it_is_read() {
    let _alone = ALONE.lock();
    let step = Feed { decode: Some(4), chunks: Some(vec![TOKENS - 4, 4]), ..Feed::default() };
    let folder = Folder::new(2);
    folder.trace();
    let rows_of_all = folder.bytes() / 4;
    let folder = folder.fed(step, [1, TOKENS], &[]);
    let candidates = Candidates::open(&[folder.dump()], None, &folder.case).unwrap();
    assert!(candidates.are_read_whole(&folder.case).unwrap(), "which rows are looked at is seen from the numbers");
    let planned = check::need_whole(&folder.case, [folder.dump().as_path()], false).unwrap().size.0;
    assert!(planned < 64 * rows_of_all, "{planned} planned for {rows_of_all} numbers, of which few are judged");
    assert_eq!(judged_within_the_plan("a step", &folder, false, 0).conclusion(), Conclusion::Pass);
}

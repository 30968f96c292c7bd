use dsv2_reference::stage::table::TOPK_INDICES;
use dsv2_reference::stage::{self};
use dsv2_reference::tap::NoTap;
use ndarray::{Axis, Slice, s};

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::golden::GoldenCases;
use crate::trace::Trace;

/// A right stage of numbers, spoilt.
type Spoil = fn(&mut ArrayD<f64>);

struct Scene {
    case: Case,
    trace: Trace,
}

impl Scene {
    fn of(case: &str) -> Self {
        Scene::with(GoldenCases::embedded().load(case).unwrap().case)
    }

    /// The last `new` tokens of each sequence, after what is cached of the others.
    fn step(case: &str, new: usize) -> Self {
        let case = GoldenCases::embedded().load(case).unwrap().case;
        let inputs = case.inputs.clone().decoding(new).unwrap();
        Scene::with(Case { use_cache: true, chunks: vec![inputs.past(), new], inputs, ..case }.checked().unwrap())
    }

    fn with(case: Case) -> Self {
        let trace = Reference.run(&case, &Settings::default(), &mut NoTap).unwrap();
        Scene { case, trace }
    }

    fn experts(&self) -> ArrayD<i64> {
        self.trace.get(&stage::name(TOPK_INDICES, 1)).unwrap().index().unwrap().clone()
    }

    fn facts(&self, name: &str, spoil: impl Fn(&mut ArrayD<f64>)) -> Vec<String> {
        self.facts_within(1e-6, name, spoil)
    }

    fn facts_within(&self, budget: f64, name: &str, spoil: impl Fn(&mut ArrayD<f64>)) -> Vec<String> {
        let want = self.trace.get(name).unwrap().real().unwrap();
        let mut got = want.clone();
        spoil(&mut got);
        let (stage, experts) = (Stage::parse(name).unwrap(), self.experts());
        let budget = Metrics::from_values([budget; 4]);
        let experts = stage.layer.is_some_and(|layer| layer > 0).then_some(&experts);
        facts(&Seen { stage, case: &self.case, got: &got, want, budget, compared: None, experts })
    }
}

const SCORES: &str = "model.layers.0.self_attn.attn_scores";

/// Stages of the case `v2` (two sequences of 11 tokens, 4 heads), what is done to them, and what is then true.
const CASES: &[(&str, Spoil, &[&str])] = &[
    (
        "model.layers.1.mlp.gate.topk_weights",
        |a| *a /= 16.0,
        &["every number is 0.0625 times what it should be: 1/routed_scaling_factor"],
    ),
    (
        "model.layers.1.mlp.experts",
        |a| *a *= 16.0,
        &["every number is 16 times what it should be: routed_scaling_factor"],
    ),
    (
        SCORES,
        |a| *a /= (0.0707 * 40f64.ln() + 1.0).powi(2),
        &["every number is 0.6291 times what it should be: 1/mscale²"],
    ),
    ("model.embed_tokens", |a| *a *= 44f64.sqrt(), &["every number is 6.633 times what it should be: √hidden_size"]),
    ("model.layers.0.self_attn.o_proj", |a| *a *= 3.25, &["every number is 3.25 times what it should be"]),
    ("model.layers.0", |a| *a *= -1.0, &["every number has the wrong sign, and is right otherwise"]),
    ("model.layers.1.mlp", |a| *a *= 0.0, &["every number is 0"]),
    // a factor of 1 within the noise is none, and neither is one that leaves an error behind
    ("model.layers.0", |a| *a *= 1.0 + 2e-6, &[]),
    ("model.layers.0", |a| a.mapv_inplace(|x| 2.0 * x + 0.01 * (1e3 * x).sin()), &[]),
    (
        "model.layers.0.self_attn.k_pe",
        |a| a.slice_axis_mut(Axis(2), Slice::from(1..)).mapv_inplace(|x| x + 0.1),
        &["the first token of each sequence is right, all others are wrong: look at the rotary angles"],
    ),
    (
        "model.layers.0.self_attn.o_proj",
        |a| a.slice_axis_mut(Axis(0), Slice::from(1..)).mapv_inplace(|x| x + 0.1),
        &["sequence 2 of 2 is wrong at every token, the other is right"],
    ),
    (
        "model.norm",
        |a| a.slice_axis_mut(Axis(1), Slice::from(10..)).mapv_inplace(|x| x + 0.1),
        &["only the last token of each sequence is wrong"],
    ),
    (
        "model.layers.0",
        |a| a.slice_mut(s![1, 3, ..]).mapv_inplace(|x| x + 0.1),
        &["only one token is wrong: sequence 2 of 2, place 3 (counted from 0)"],
    ),
    (
        "model.layers.0",
        |a| a.slice_axis_mut(Axis(1), Slice::from(6..)).mapv_inplace(|x| x + 0.1),
        &["right up to place 5, wrong from place 6 on (counted from 0)"],
    ),
    (
        "model.layers.0.self_attn.q_pe",
        |a| a.slice_axis_mut(Axis(1), Slice::from(2..3)).mapv_inplace(|x| x + 0.1),
        &["only head 2 is wrong (counted from 0)"],
    ),
    (
        "model.layers.0.self_attn.attn_output",
        |a| a.slice_axis_mut(Axis(2), Slice::from(14..)).mapv_inplace(|x| x + 0.1),
        &["only head 0 is right (counted from 0)"],
    ),
    (
        "model.layers.0.self_attn.kv_a_proj_with_mqa",
        |a| a.slice_axis_mut(Axis(2), Slice::from(18..)).mapv_inplace(|x| x + 0.1),
        &["only the rotary key of each row is wrong"],
    ),
    (
        "model.layers.0.self_attn.q_b_proj",
        |a| (0..4).for_each(|h| a.slice_axis_mut(Axis(2), Slice::from(18 * h..18 * h + 10)).mapv_inplace(|x| x + 0.1)),
        &["only the part without position of each row is wrong"],
    ),
    (
        "model.layers.0",
        |a| a.slice_axis_mut(Axis(2), Slice::from(22..)).mapv_inplace(|x| x + 0.1),
        &["only the second half of each row is wrong"],
    ),
    (
        "model.layers.0",
        |a| a.slice_mut(s![.., .., 5]).mapv_inplace(|x| x + 0.1),
        &["only column 5 is wrong (counted from 0)"],
    ),
    (
        "model.layers.0.input_layernorm",
        |a| a.invert_axis(Axis(2)),
        &["each row holds the right numbers in another order"],
    ),
    (
        "lm_head",
        |a| {
            let before = a.slice(s![.., ..-1, ..]).to_owned();
            a.slice_mut(s![.., 1.., ..]).assign(&before);
        },
        &["each row is that of the token before"],
    ),
    (
        SCORES,
        |a| (0..10).for_each(|i| a.slice_mut(s![.., .., i, i + 1]).fill(0.5)),
        &["80 scores are not masked and should be, all of later tokens"],
    ),
];

#[test]
fn what_is_said_of_a_stage_is_what_was_done_to_it() {
    let scene = Scene::of("v2");
    for (name, spoil, said) in CASES {
        let facts = scene.facts(name, spoil);
        assert!(said.iter().all(|said| facts.iter().any(|fact| fact == said)), "{name}: {said:?} in {facts:?}");
        assert!(!said.is_empty() || facts.is_empty(), "{name}: {facts:?}");
    }
}

#[test]
fn a_factor_is_told_from_1_however_loose_the_budget() {
    let scene = Scene::of("v2");
    for (factor, said) in [(1.02, "1.02"), (1.08, "1.08"), (0.95, "0.95"), (1e300, "1.0e300")] {
        let facts = scene.facts_within(3.6e-3, "model.layers.1.mlp.experts", |a| *a *= factor);
        assert_eq!(facts, [format!("every number is {said} times what it should be")]);
    }
}

#[test]
fn a_small_error_is_no_other_order() {
    let scene = Scene::of("v2");
    let facts = scene.facts_within(0.02, "model.layers.0.input_layernorm", |a| {
        let mut sign = 1.0;
        a.mapv_inplace(|x| {
            sign = -sign;
            x + sign * 0.04
        });
    });
    assert!(!facts.iter().any(|fact| fact.contains("another order")), "{facts:?}");
}

#[test]
fn only_these_is_said_where_the_others_are_surely_right() {
    let scene = Scene::of("v2");
    let said = |others: f64| {
        scene.facts("model.layers.0", |a| {
            let mut row = 0.0;
            for mut numbers in a.lanes_mut(Axis(2)) {
                row += 1.0;
                numbers.mapv_inplace(|x| x * if row == 4.0 { 2.0 } else { 1.0 + others * 1e-6 });
            }
        })
    };
    assert_eq!(said(0.1), ["only one token is wrong: sequence 1 of 2, place 3 (counted from 0)"]);
    assert_eq!(said(0.9), [""; 0]);
}

#[test]
fn nothing_is_said_where_an_error_has_no_pattern() {
    let scene = Scene::of("v2");
    let noise = |a: &mut ArrayD<f64>| {
        let mut i = 0.0;
        a.mapv_inplace(|x| {
            i += 1.0;
            x + 0.1 * (i * i * 0.77_f64).sin()
        });
    };
    for (name, _) in scene.trace.iter().filter(|(_, values)| values.real().is_some()) {
        // a number alone is always a multiple of another
        if name != "loss" && name != SCORES {
            assert_eq!(scene.facts(name, noise), [""; 0], "{name}");
        }
    }
}

#[test]
fn the_experts_that_wrong_tokens_visit_are_named() {
    each_pair_of_experts_is_named_if_any_is(&Scene::of("v2"), 6);
    each_pair_of_experts_is_named_if_any_is(&Scene::step("v2", 9), 6);
}

fn each_pair_of_experts_is_named_if_any_is(scene: &Scene, least: usize) {
    let experts = scene.experts();
    let visitors = |of: &[i64]| -> Vec<usize> {
        let visits = |token: &usize| experts.index_axis(Axis(0), *token).iter().any(|e| of.contains(e));
        (0..experts.len_of(Axis(0))).filter(visits).collect()
    };
    let mut named = [0, 0, 0];
    for (a, b) in (0..12).flat_map(|a| (a..12).map(move |b| (a, b))) {
        let wrong = visitors(&[a, b]);
        let facts = scene.facts("model.layers.1.mlp.experts", |values| {
            for token in &wrong {
                values.index_axis_mut(Axis(0), *token).mapv_inplace(|x| x + 0.1 * (token + 1) as f64);
            }
        });
        let said = facts.iter().find_map(|fact| fact.strip_prefix("the tokens that go to expert"));
        let Some(said) = said.and_then(|said| said.strip_suffix(" are wrong, and no others")) else { continue };
        let numbers: Vec<i64> =
            said.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        assert_eq!(visitors(&numbers), wrong, "{a} and {b}: {facts:?}");
        named[numbers.len() - 1] += 1;
    }
    assert!(named[0] >= least && named[1] >= least, "{named:?}");
}

#[test]
fn the_first_row_of_a_step_is_no_sequences_first_token_and_no_place_of_it_a_chunks_beginning() {
    let wrong_from = |new: usize, from: usize| {
        let wrong = |a: &mut ArrayD<f64>| a.slice_axis_mut(Axis(1), Slice::from(from..)).mapv_inplace(|x| x + 0.1);
        Scene::step("v2", new).facts("model.layers.0.self_attn.o_proj", wrong)
    };
    assert_eq!(wrong_from(3, 1), ["right up to place 0, wrong from place 1 on (counted from 0)"]);
    // two tokens are cached
    assert_eq!(wrong_from(9, 2), ["right up to place 1, wrong from place 2 on (counted from 0)"]);
    assert_eq!(wrong_from(2, 1), ["only the last token of each sequence is wrong"]);
}

#[test]
fn a_chunk_that_is_wrong_is_told_by_where_it_begins() {
    let scene = Scene::of("chunked-prefill");
    let first = scene.case.chunks[0];
    let facts =
        scene.facts("model.layers.0", |a| a.slice_axis_mut(Axis(1), Slice::from(first..)).mapv_inplace(|x| x + 0.1));
    assert_eq!(facts.len(), 1);
    assert!(facts[0].ends_with(&format!(", where chunk 2 of {} begins", scene.case.chunks.len())), "{facts:?}");
}

#[test]
fn padding_is_no_token() {
    let scene = Scene::of("left-padding");
    let rows = crate::rows::ComparedRows::of(&scene.case.inputs);
    let name = "model.layers.0.self_attn.o_proj";
    let want = scene.trace.get(name).unwrap().real().unwrap();
    let stage = Stage::parse(name).unwrap();
    let compared = rows.of_stage(&stage, want.shape()).unwrap();
    // wrong wherever a real token is not the first, and at the padding
    let mut got = want.clone();
    let mut seen = vec![0; scene.case.inputs.batch()];
    let length = scene.case.inputs.length();
    for (row, mut numbers) in got.lanes_mut(Axis(2)).into_iter().enumerate() {
        if compared[row] {
            seen[row / length] += 1
        }
        if seen[row / length] != 1 {
            numbers.mapv_inplace(|x| x + 0.1)
        }
    }
    let seen = Seen {
        stage,
        case: &scene.case,
        got: &got,
        want,
        budget: Metrics::from_values([1e-6; 4]),
        compared: Some(&compared),
        experts: None,
    };
    assert!(
        facts(&seen)[0].starts_with("the first token of each sequence is right, all others are wrong"),
        "{:?}",
        facts(&seen)
    );
}

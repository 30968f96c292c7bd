//! The reference's own runs, rearranged into what engines dump: right ones pass, and a bug in them is still named.

use dsv2_reference::stage::Layout;
use dsv2_reference::tap::NoTap;
use ndarray::{Array2, ArrayD, Axis, Slice, concatenate, s};

use super::*;
use crate::backend::{Backend, Precision, Reference, Settings};
use crate::check::{Checked, check};
use crate::golden::GoldenCases;
use crate::inputs::{Inputs, Tokens};
use crate::trace::Trace;

mod joined_caches;

const TYPES: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn golden(name: &str) -> Case {
    GoldenCases::embedded().load(name).unwrap().case
}

fn run(case: &Case, precision: Precision) -> Trace {
    Reference.run(case, &Settings { precision, ..Settings::default() }, &mut NoTap).unwrap()
}

fn layout(name: &str) -> Layout {
    Stage::parse(name).unwrap().layout
}

/// Each tensor changed; left out, where nothing comes of it.
fn each(trace: &Trace, change: impl Fn(&str, &ArrayD<f64>) -> Option<ArrayD<f64>>) -> Trace {
    let changed = |(name, values): (&str, &Values)| {
        let values = match values {
            Values::Real(dtype, a) => Values::Real(*dtype, change(name, a)?),
            Values::Index(a) => Values::Index(change(name, &a.mapv(|x| x as f64))?.mapv(|x| x as i64)),
            Values::Bool(_) => return None,
        };
        Some((name.to_owned(), values))
    };
    trace.iter().filter_map(changed).collect()
}

fn judged(case: &Case, dump: Trace, precision: Precision) -> Checked {
    check(&Request { precision: Some(precision), ..Request::new(case.clone(), dump) }).unwrap()
}

#[track_caller]
fn passes(case: &Case, dump: Trace, precision: Precision) -> Checked {
    let stages = dump.len();
    let checked = judged(case, dump, precision);
    let failure = checked.verdict.first_failure();
    assert!(failure.is_none(), "{precision}: {failure:?}");
    assert_eq!(checked.verdict.compared(), stages, "{precision}: {:?}", checked.unknown);
    checked
}

#[track_caller]
fn fails_at(stage: &str, case: &Case, dump: Trace, precision: Precision) {
    let checked = judged(case, dump, precision);
    assert_eq!(checked.verdict.first_failure().map(|stage| &*stage.stage), Some(stage), "{precision}");
}

const O_PROJ: &str = "model.layers.1.self_attn.o_proj";

/// The dump with a bug in one stage.
fn scaled(dump: &Trace, stage: &str, factor: f64) -> Trace {
    each(dump, |name, a| Some(if name == stage { a * factor } else { a.clone() }))
}

/// With rows of nonsense behind along these axes.
fn longer(a: &ArrayD<f64>, more: &[(usize, usize)]) -> ArrayD<f64> {
    more.iter().fold(a.clone(), |a, &(axis, rows)| {
        let mut shape = a.shape().to_vec();
        shape[axis] = rows;
        let nonsense = if a.iter().all(|x| x.fract() == 0.0) { -7.0 } else { f64::NAN };
        concatenate(Axis(axis), &[a.view(), ArrayD::from_elem(shape, nonsense).view()]).unwrap()
    })
}

fn by_rows(a: &ArrayD<f64>) -> ArrayD<f64> {
    let width = *a.shape().last().unwrap();
    a.to_shape((a.len() / width, width)).unwrap().into_owned().into_dyn()
}

/// `[B,H,S,..]` to `[B·S,H,..]`.
fn heads_behind(a: &ArrayD<f64>) -> ArrayD<f64> {
    let behind = a.view().permuted_axes(vec![0, 2, 1, 3]);
    let (rows, heads, width) = (a.shape()[0] * a.shape()[2], a.shape()[1], a.shape()[3]);
    behind.as_standard_layout().into_owned().into_shape_with_order(vec![rows, heads, width]).unwrap()
}

#[test]
fn rows_beyond_the_tokens_are_said_and_left_out() {
    let padded_batch = |name: &str, a: &ArrayD<f64>| match layout(name) {
        Layout::Tokens | Layout::Keys | Layout::Logits => Some(longer(a, &[(0, 1), (1, 5)])),
        Layout::Table => Some(longer(a, &[(1, 5)])),
        Layout::Heads => Some(longer(a, &[(0, 1), (2, 5)])),
        Layout::Scores | Layout::Weights => Some(longer(a, &[(0, 1), (2, 5), (3, 5)])),
        Layout::Flat => Some(longer(a, &[(0, 8)])),
        Layout::Whole => Some(a.clone()),
    };
    let graph = |name: &str, a: &ArrayD<f64>| match layout(name) {
        Layout::Tokens | Layout::Keys | Layout::Logits | Layout::Flat | Layout::Table => {
            Some(longer(&by_rows(a), &[(0, 3)]))
        }
        Layout::Heads => Some(longer(&heads_behind(a), &[(0, 3)])),
        Layout::Scores | Layout::Weights | Layout::Whole => None,
    };
    type Change<'a> = &'a dyn Fn(&str, &ArrayD<f64>) -> Option<ArrayD<f64>>;
    for (name, change) in [("v2", &padded_batch as Change), ("v2-lite", &padded_batch), ("batch-of-one", &graph)] {
        let case = golden(name);
        for precision in TYPES {
            let dump = each(&run(&case, precision), change);
            let checked = passes(&case, dump.clone(), precision);
            let said = checked.layouts.iter().filter(|found| found.layout.contains("beyond the"));
            let whole = dump.iter().filter(|(name, _)| layout(name) == Layout::Whole).count();
            assert_eq!(said.count(), dump.len() - whole, "{name}");
            fails_at(O_PROJ, &case, scaled(&dump, O_PROJ, 1.02), precision);
        }
    }
    let case = golden("batch-of-one");
    let dump = each(&run(&case, Precision::F32), graph);
    let checked = passes(&case, dump, Precision::F32);
    let tokens = case.inputs.length();
    let says = checked.layouts.iter().find(|found| found.stage == "model.norm").unwrap();
    assert_eq!(says.layout, format!("3 rows beyond the {tokens} tokens are not looked at"));
}

/// The sequences of `v2`, of unequal lengths, and what each is by itself.
fn by_themselves(precision: Precision) -> (Case, Vec<Trace>) {
    let case = golden("v2");
    let Tokens::InputIds(ids) = &case.inputs.tokens else { panic!("ids") };
    let alone = |(b, length): (usize, usize)| {
        let ids = ids.slice(s![b..=b, ..length]).to_owned();
        let inputs = Inputs::new(Tokens::InputIds(ids));
        run(&Case { chunks: vec![length], inputs, ..case.clone() }, precision)
    };
    let lengths = [(0, 11), (1, 6), (0, 4)];
    let ids = lengths.iter().flat_map(|&(b, length)| ids.slice(s![b, ..length]).to_vec()).collect();
    let ids = Array2::from_shape_vec((1, 21), ids).unwrap();
    let inputs = Inputs::new(Tokens::InputIds(ids)).laid_end_to_end(vec![11, 6, 4]).unwrap();
    (Case { chunks: vec![21], inputs, ..case.clone() }, lengths.map(alone).into())
}

/// Rows of each sequence, one behind another; `rows` takes some of a tensor that has a row for each token.
fn end_to_end(alone: &[Trace], rows: impl Fn(&str, ArrayD<f64>) -> ArrayD<f64>) -> Trace {
    let values = |trace: &Trace, name: &str| match trace.get(name).unwrap() {
        Values::Real(_, a) => a.clone(),
        Values::Index(a) => a.mapv(|x| x as f64),
        Values::Bool(_) => panic!("{name}"),
    };
    each(&alone[0], |name, _| {
        let of_tokens = |a: ArrayD<f64>| match layout(name) {
            Layout::Tokens | Layout::Keys | Layout::Logits | Layout::Flat | Layout::Table => Some(by_rows(&a)),
            Layout::Heads => Some(heads_behind(&a)),
            Layout::Scores | Layout::Weights | Layout::Whole => None,
        };
        let all: Option<Vec<_>> = alone.iter().map(|trace| Some(rows(name, of_tokens(values(trace, name))?))).collect();
        let all = all?;
        Some(concatenate(Axis(0), &all.iter().map(|a| a.view()).collect::<Vec<_>>()).unwrap())
    })
}

#[test]
fn sequences_laid_end_to_end_are_judged_each_by_itself() {
    for precision in TYPES {
        let (case, alone) = by_themselves(precision);
        let dump = end_to_end(&alone, |_, a| a);
        passes(&case, dump.clone(), precision);
        fails_at(O_PROJ, &case, scaled(&dump, O_PROJ, 1.02), precision);

        // the logits of the last token of each
        let last = |name: &str, a: ArrayD<f64>| match layout(name) {
            Layout::Logits => a.slice_axis(Axis(0), Slice::from(-1..)).to_owned(),
            _ => a,
        };
        let dump = end_to_end(&alone, last);
        assert_eq!(dump.get("lm_head").unwrap().shape()[0], 3);
        let checked = passes(&case, dump.clone(), precision);
        assert!(checked.layouts.iter().any(|found| found.layout.starts_with("the last token of each sequence")));
        fails_at("lm_head", &case, scaled(&dump, "lm_head", 1.02), precision);

        // the reference's own trace of them
        let traced = case.inputs.packed.as_ref().unwrap().as_dumped(&run(&case, precision));
        assert_eq!(traced.get("model.norm").unwrap().shape(), [21, 44]);
        passes(&case, traced, precision);
    }
}

#[test]
fn sequences_that_see_each_other_fail_where_they_do() {
    let (case, _) = by_themselves(Precision::F32);
    // positions begin anew, the mask does not
    let plain = Inputs { attention_mask: None, packed: None, ..case.inputs.clone() };
    let leaking = Case { inputs: plain.clone(), use_cache: true, ..case.clone() };
    let dump = each(&run(&leaking, Precision::F32), |name, a| {
        (!matches!(layout(name), Layout::Scores | Layout::Weights)).then(|| a.clone())
    });
    fails_at("model.layers.0.self_attn.attn_output", &case, dump, Precision::F32);
    // nor do positions
    let one = Case { inputs: Inputs { position_ids: None, ..plain }, ..leaking };
    fails_at("model.rotary_emb.cos", &case, run(&one, Precision::F32), Precision::F32);
}

/// The last `new` tokens of a run, and the cache after or before them.
fn step(trace: &Trace, new: usize, cache_before: bool) -> Trace {
    let length = trace.get("model.norm").unwrap().shape()[1];
    let last = Slice::from(length - new..);
    each(trace, |name, a| {
        Some(match layout(name) {
            Layout::Tokens | Layout::Logits | Layout::Table => a.slice_axis(Axis(1), last).to_owned(),
            Layout::Heads | Layout::Scores | Layout::Weights => a.slice_axis(Axis(2), last).to_owned(),
            Layout::Flat => {
                let batch = a.shape()[0] / length;
                let split = a.to_shape((batch, length, a.shape()[1])).unwrap();
                by_rows(&split.slice_axis(Axis(1), last).to_owned().into_dyn())
            }
            Layout::Keys if cache_before && name.starts_with("past_key_values") => {
                a.slice_axis(Axis(1), Slice::from(..length - new)).to_owned()
            }
            Layout::Keys => a.clone(),
            Layout::Whole => return None,
        })
    })
}

fn decoding(case: &Case, new: usize) -> Case {
    let inputs = case.inputs.clone().decoding(new).unwrap();
    Case { chunks: vec![inputs.past(), new], inputs, ..case.clone() }.checked().unwrap()
}

#[test]
fn one_decoding_step_is_judged_by_its_new_tokens() {
    for name in ["v2", "v2-lite", "left-padding", "gapped-positions"] {
        for precision in TYPES {
            let whole = golden(name);
            let whole = Case { use_cache: true, ..whole };
            let trace = run(&whole, precision);
            for (new, cache_before) in [(1, false), (1, true), (3, false), (3, true)] {
                let case = decoding(&whole, new);
                let dump = step(&trace, new, cache_before);
                println!("{name} {precision} {new} {cache_before}");
                let checked = judged(&case, dump.clone(), precision);
                let failure = checked.verdict.first_failure();
                assert!(failure.is_none(), "{failure:?}");
                assert_eq!(checked.verdict.compared(), dump.len());

                fails_at(O_PROJ, &case, scaled(&dump, O_PROJ, 1.02), precision);
                let cached = "past_key_values.1.k_pe";
                fails_at(cached, &case, scaled(&dump, cached, 1.05), precision);
                // without the cache, the reference makes it
                let alone = each(&dump, |name, a| (layout(name) != Layout::Keys).then(|| a.clone()));
                let checked = judged(&case, alone.clone(), precision);
                assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
                let attention = "model.layers.0.self_attn.attn_output";
                fails_at(attention, &case, scaled(&alone, attention, 1.02), precision);
            }
        }
    }
}

#[test]
fn a_wrong_new_key_is_found_in_each_layer_and_caches_of_different_tokens_are_refused() {
    let new = 2;
    for name in ["v2", "left-padding"] {
        let whole = Case { use_cache: true, ..golden(name) };
        let (case, trace) = (decoding(&whole, new), run(&whole, Precision::F32));
        let [after, before] = [false, true].map(|cache_before| step(&trace, new, cache_before));
        let cached: Vec<&str> =
            after.iter().map(|(name, _)| name).filter(|name| name.starts_with("past_key_values")).collect();
        assert!(cached.len() >= 4);
        for &wrong in &cached {
            let dump = each(&after, |name, a| {
                let mut a = a.clone();
                if name == wrong {
                    a.slice_axis_mut(Axis(1), Slice::from(-(new as isize)..)).mapv_inplace(|x| x * 1.05);
                }
                Some(a)
            });
            fails_at(wrong, &case, dump.clone(), Precision::F32);
            for &short in cached.iter().filter(|short| **short != wrong) {
                let mixed = dump.clone().with(short, before.get(short).unwrap().clone());
                let refused = check(&Request::new(case.clone(), mixed)).unwrap_err().to_string();
                assert!(refused.contains(&format!("as `{short}` has")), "{refused}");
                assert!(!refused.contains('\n') && refused.ends_with(']'), "{refused}");
            }
        }
        let all_before =
            cached.iter().fold(after.clone(), |dump, &name| dump.with(name, before.get(name).unwrap().clone()));
        passes(&case, all_before, Precision::F32);
    }
}

#[test]
fn a_step_of_sequences_of_unequal_lengths_is_judged_too() {
    for precision in TYPES {
        let (case, alone) = by_themselves(precision);
        let inputs = case.inputs.clone().decoding(1).unwrap();
        let case = Case { chunks: vec![inputs.past(), 3], inputs, ..case };
        for cache_before in [false, true] {
            let step = |name: &str, a: ArrayD<f64>| match layout(name) {
                Layout::Keys if cache_before && name.starts_with("past_key_values") => {
                    a.slice_axis(Axis(0), Slice::from(..-1)).to_owned()
                }
                Layout::Keys => a,
                _ => a.slice_axis(Axis(0), Slice::from(-1..)).to_owned(),
            };
            let dump = end_to_end(&alone, step);
            assert_eq!(dump.get("model.norm").unwrap().shape()[0], 3);
            passes(&case, dump.clone(), precision);
            fails_at(O_PROJ, &case, scaled(&dump, O_PROJ, 1.02), precision);
            fails_at("past_key_values.0.k_pe", &case, scaled(&dump, "past_key_values.0.k_pe", 1.05), precision);
        }
        let traced = case.inputs.packed.as_ref().unwrap().as_dumped(&run(&case, precision));
        assert_eq!(traced.get("past_key_values.0.k_pe").unwrap().shape()[0], 21);
        let checked = judged(&case, traced, precision);
        assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
    }
}

#[test]
fn a_step_whose_dump_has_all_tokens_is_judged_by_the_new_ones() {
    for (name, new) in [("v2", 1), ("v2-lite", 3), ("batch-of-one", 1), ("batch-of-one", 2), ("left-padding", 1)] {
        for precision in TYPES {
            let whole = Case { use_cache: true, ..golden(name) };
            let (case, dump) = (decoding(&whole, new), run(&whole, precision));
            let checked = judged(&case, dump.clone(), precision);
            assert!(checked.verdict.passes(), "{name} {precision} {new}: {:?}", checked.verdict.first_failure());
            let said =
                checked.layouts.iter().filter(|found| found.layout.contains("before the step are not looked at"));
            assert!(said.count() > 20, "{name}: {:?}", checked.layouts);
            fails_at(O_PROJ, &case, scaled(&dump, O_PROJ, 1.02), precision);
        }
    }
    // as many rows as there are tokens, of which the first are the new ones
    let whole = Case { use_cache: true, ..golden("batch-of-one") };
    let (case, all) = (decoding(&whole, 1), run(&whole, Precision::F32));
    let behind = whole.inputs.length() - 1;
    let padded = each(&step(&all, 1, false), |name, a| match layout(name) {
        Layout::Tokens | Layout::Logits | Layout::Flat => Some(longer(&by_rows(a), &[(0, behind)])),
        _ => Some(a.clone()),
    });
    let checked = judged(&case, padded, Precision::F32);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
}

#[test]
fn logits_of_a_padded_vocabulary_are_cut_and_it_is_said_what_is_beyond() {
    let case = golden("v2");
    let vocab = case.config.vocab_size;
    for precision in TYPES {
        let trace = run(&case, precision);
        for (multiple, value, says) in [
            (64, 0.0, "they hold zeros"),
            (128, f64::NEG_INFINITY, "they hold minus infinity or the lowest number"),
            (64, f64::NAN, "they hold numbers that are not finite"),
            (1024, 1.5, "they hold numbers from 1.500 to 1.500, which a sampler must not take"),
        ] {
            let extra = vocab.next_multiple_of(multiple) - vocab;
            let padded = |a: &ArrayD<f64>| {
                let mut shape = a.shape().to_vec();
                shape[2] = extra;
                concatenate(Axis(2), &[a.view(), ArrayD::from_elem(shape, value).view()]).unwrap()
            };
            let dump = each(&trace, |name, a| Some(if name == "lm_head" { padded(a) } else { a.clone() }));
            let checked = passes(&case, dump.clone(), precision);
            let said = checked.layouts.iter().find(|found| found.stage == "lm_head").unwrap();
            let beyond = format!("{extra} columns beyond the vocabulary of {vocab} are not looked at: {says}");
            assert_eq!(said.layout, beyond);
            fails_at("lm_head", &case, scaled(&dump, "lm_head", 1.02), precision);
            // of the last tokens alone, too
            let last = |name: &str, a: &ArrayD<f64>| {
                (name == "lm_head").then(|| a.slice_axis(Axis(1), Slice::from(-1..)).to_owned())
            };
            passes(&case, each(&dump, last), precision);
        }
        let odd = each(&trace, |name, a| Some(if name == "lm_head" { longer(a, &[(2, 1)]) } else { a.clone() }));
        fails_at("lm_head", &case, odd, precision);
    }
}

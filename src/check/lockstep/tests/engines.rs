//! What engines dump: tensors that hold several stages, more rows or columns than the model has, fewer logits, sequences end to end.

use std::collections::BTreeMap;

use dsv2_reference::stage::{self, Layout, Stage};
use ndarray::{ArrayD, Axis, Slice, concatenate};

use super::*;
use crate::inputs::{Inputs, Tokens};

/// Two stages of each layer side by side in one tensor, where the dump holds both.
fn side_by_side(dump: &Trace, [first, second]: [&str; 2], joined: &str) -> Trace {
    let of = |kind: &str, layer: usize| Some((stage::name(kind, layer), dump.get(&stage::name(kind, layer))?.real()?));
    let pairs = (0..8).filter_map(|layer| {
        let ((first, a), (second, b)) = (of(first, layer)?, of(second, layer)?);
        let both = concatenate(Axis(a.ndim() - 1), &[a.view(), b.view()]).unwrap();
        let dtype = dump.get(&first)?.dtype()?;
        Some(([first, second], (joined.replace('*', &layer.to_string()), Values::Real(dtype, both))))
    });
    let (parts, joined): (Vec<_>, Vec<_>) = pairs.unzip();
    let mut others = dump.clone();
    others.retain(|name| !parts.iter().flatten().any(|part| part == name));
    others.iter().map(|(name, values)| (name.to_owned(), values.clone())).chain(joined).collect()
}

fn fused(dump: &Trace) -> Trace {
    let dump = side_by_side(
        dump,
        ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"],
        "model.layers.*.mlp.gate_up_proj",
    );
    let cached = ["past_key_values.*.compressed_kv", "past_key_values.*.k_pe"];
    let dump = side_by_side(&dump, cached, "past_key_values.*.latent");
    let projected = ["model.layers.*.self_attn.q_a_proj", "model.layers.*.self_attn.kv_a_proj_with_mqa"];
    side_by_side(&dump, projected, "model.layers.*.self_attn.fused_qkv_a_proj")
}

fn the_other_way_round(dump: &Trace) -> Trace {
    let dump = side_by_side(
        dump,
        ["model.layers.*.mlp.up_proj", "model.layers.*.mlp.gate_proj"],
        "model.layers.*.mlp.gate_up_proj",
    );
    side_by_side(&dump, ["past_key_values.*.k_pe", "past_key_values.*.compressed_kv"], "past_key_values.*")
}

/// The numbers of each tensor changed.
fn each(dump: &Trace, change: impl Fn(Stage, &ArrayD<f64>) -> ArrayD<f64>) -> Trace {
    renamed(dump, |name, values| {
        let changed = |a: &ArrayD<f64>| Stage::parse(name).map_or_else(|| a.clone(), |stage| change(stage, a));
        let values = match values {
            Values::Real(dtype, a) => Values::Real(*dtype, changed(a)),
            Values::Index(a) => Values::Index(changed(&a.mapv(|x| x as f64)).mapv(|x| x as i64)),
            values => values.clone(),
        };
        (name.to_owned(), values)
    })
}

fn is_logits(stage: Stage) -> bool {
    stage.layout == Layout::Logits
}

/// Three rows behind those of the tokens, which lie one after another.
fn longer(dump: &Trace) -> Trace {
    each(dump, |stage, a| match (stage.layout, a.shape()) {
        (Layout::Tokens | Layout::Keys | Layout::Logits | Layout::Flat, &[.., width]) => {
            let rows = a.to_shape((a.len() / width, width)).unwrap().into_owned();
            let beyond = ndarray::Array2::from_elem((3, width), 1.0);
            concatenate(Axis(0), &[rows.view(), beyond.view()]).unwrap().into_dyn()
        }
        _ => a.clone(),
    })
}

fn padded_vocabulary(dump: &Trace) -> Trace {
    each(dump, |stage, a| match a.shape().last() {
        Some(&width) if is_logits(stage) => {
            let last = Axis(a.ndim() - 1);
            let mut shape = a.shape().to_vec();
            shape[last.0] = (width + 1).next_multiple_of(64) - width;
            concatenate(last, &[a.view(), ArrayD::from_elem(shape, -2.5).view()]).unwrap()
        }
        _ => a.clone(),
    })
}

fn last_logits(dump: &Trace) -> Trace {
    each(dump, |stage, a| match is_logits(stage) && a.ndim() == 3 {
        true => a.slice_axis(Axis(1), Slice::from(-1..)).to_owned().remove_axis(Axis(1)),
        false => a.clone(),
    })
}

fn wrong(dump: &Trace) -> Trace {
    each(dump, |stage, a| if stage.kind.ends_with("o_proj") && stage.layer == Some(0) { a * 1.04 } else { a.clone() })
}

#[test]
fn dumps_in_the_shapes_of_engines_are_judged_to_the_bit_as_if_they_were_read_whole() {
    type Shaped = fn(&Trace) -> Trace;
    let shapes: [(&str, Shaped); 6] = [
        ("fused", fused),
        ("the other way round", the_other_way_round),
        ("rows beyond the tokens", longer),
        ("a padded vocabulary", padded_vocabulary),
        ("the last logits", last_logits),
        ("all", |dump| longer(&padded_vocabulary(&last_logits(&fused(dump))))),
    ];
    let mut judged = BTreeMap::<&str, usize>::new();
    for (number, mut request) in cases().into_iter().step_by(5).enumerate() {
        let precision = [Precision::F32, Precision::Bf16, Precision::F16][number % 3];
        let dump = dumped(&request, precision);
        for (what, shaped) in shapes {
            for (said, dump) in [("right", shaped(&dump)), ("wrong", shaped(&wrong(&dump)))] {
                *judged.entry(what).or_default() += assert_same(&mut request, &dump, &format!("{what}, {said}"));
            }
        }
    }
    // which of two parts is which is found out with the numbers, if they fail: then all of it is read
    let others = judged.iter().filter(|(what, _)| **what != "the other way round");
    assert!(others.into_iter().all(|(_, judged)| *judged > 4), "{judged:?}");
}

#[test]
fn sequences_end_to_end_are_judged_to_the_bit_as_if_they_were_read_whole() {
    let mut judged = 0;
    for name in ["v2", "v2-lite"] {
        let of = request(name, CacheFormat::Plain);
        let Tokens::InputIds(ids) = &of.case.inputs.tokens else { panic!("ids") };
        let row = ids.iter().copied().take(15).collect::<Vec<_>>();
        let ids = ndarray::Array2::from_shape_vec((1, 15), row).unwrap();
        let inputs = Inputs::new(Tokens::InputIds(ids)).laid_end_to_end(vec![8, 1, 6]).unwrap();
        let case = Case { chunks: vec![15], inputs, ..of.case };
        let mut request = Request::new(case, Trace::default());
        for precision in [Precision::F32, Precision::Bf16] {
            let dump = dumped(&request, precision);
            for dump in [fused(&dump), wrong(&dump), longer(&dump)] {
                let packed = request.case.inputs.packed.clone().unwrap();
                judged += assert_same(&mut request, &packed.as_dumped(&dump), name);
            }
            let ends = each(&dump, |stage, a| match is_logits(stage) {
                true => a.index_axis(Axis(0), 0).select(Axis(0), &[7, 8, 14]),
                false => a.clone(),
            });
            judged += assert_same(&mut request, &ends, name);
        }
    }
    assert!(judged > 12, "{judged}");
}

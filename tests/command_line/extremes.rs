//! Values at the ends of their types: legal or not, nothing panics.

use std::fs;

use dsv2::values::Values;
use ndarray::ArrayD;
use serde_json::{Value, json};

use crate::process::{Room, Tensors, edit, names, run};

/// A change of the files of a room.
type Change<'a> = &'a dyn Fn(&Room);

fn inputs(room: &Room, change: impl FnOnce(&mut Tensors)) {
    edit(&room.file("inputs.safetensors"), change);
}

fn input(room: &Room, name: &str, values: Values) {
    inputs(room, |inputs| drop(inputs.insert(name.into(), values)));
}

fn ids(shape: &[usize]) -> Values {
    Values::Index(ArrayD::zeros(shape))
}

/// Sets a key of config.json; null is a value like any other.
fn config(room: &Room, key: &str, value: Value) {
    let path = room.file("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(&path, config.to_string()).unwrap();
}

/// Whether these are legal or not, the model refuses them or computes something, in any type and form of attention.
#[test]
fn extreme_values_never_panic() {
    let positions = |a: ArrayD<i64>| move |room: &Room| input(room, "position_ids", Values::Index(a.clone()));
    let fill = |name: &'static str, x: f64| {
        move |room: &Room| {
            inputs(room, |i| match &mut i[name] {
                Values::Real(_, a) => a.fill(x),
                Values::Index(a) => a.fill(x as i64),
                Values::Bool(a) => a.fill(x != 0.0),
            })
        }
    };
    let keep = |k: i64| move |room: &Room| input(room, "logits_to_keep", Values::Index(ndarray::arr0(k).into_dyn()));
    let config = |key: &'static str, value: Value| move |room: &Room| config(room, key, value.clone());
    let of_length = |length: usize, x: i64| ArrayD::from_elem(&[1, length][..], x);
    let rows: &[(&str, Change<'_>)] = &[
        ("rope-dynamic", &positions(of_length(13, i64::MAX))),
        ("rope-dynamic", &positions(of_length(13, i64::MIN))),
        ("rope-linear", &positions(of_length(11, i64::MAX))),
        ("v2", &positions(of_length(11, -1))),
        ("no-cache", &positions(of_length(9, i64::MIN))),
        ("no-cache", &positions(of_length(9, i64::MAX))),
        ("right-padding", &fill("attention_mask", 0.0)),
        ("right-padding", &fill("attention_mask", -7.0)),
        ("mask-4d", &fill("attention_mask", f64::NEG_INFINITY)),
        ("mask-4d", &fill("attention_mask", f32::MIN.into())),
        ("mask-4d", &fill("attention_mask", f32::MAX.into())),
        ("inputs-embeds", &fill("inputs_embeds", f32::MAX.into())),
        ("inputs-embeds", &fill("inputs_embeds", 0.0)),
        ("inputs-embeds", &fill("inputs_embeds", 1e-45)),
        ("labels", &fill("labels", -100.0)),
        ("labels-num-items", &fill("num_items_in_batch", 0.0)),
        ("labels-num-items", &fill("num_items_in_batch", i64::MAX as f64)),
        ("v2", &keep(i64::MIN)),
        ("v2", &keep(i64::MAX)),
        ("v2", &keep(-11)),
        ("v2", &|room| input(room, "logits_to_keep", ids(&[0]))),
        ("v2", &|room| input(room, "logits_to_keep", ids(&[2, 0]))),
        ("v2", &|room| input(room, "logits_to_keep", Values::Bool(ArrayD::from_elem(&[2, 11][..], false)))),
        ("v2", &config("num_experts_per_tok", json!(0))),
        ("v2", &config("rms_norm_eps", json!(0.0))),
        ("v2", &config("routed_scaling_factor", json!(1e300))),
        ("v2", &config("rope_theta", json!(1e-300))),
        ("v2", &config("rope_theta", json!(1e300))),
        ("v2", &config("max_position_embeddings", json!(1))),
        ("v2", &config("max_position_embeddings", json!(i32::MAX))),
        (
            "v2",
            &config("rope_scaling", json!({"type": "yarn", "factor": 1e300, "mscale": -1e300, "mscale_all_dim": 0})),
        ),
        ("v2", &config("rope_scaling", json!({"type": "yarn", "factor": 4, "beta_fast": -1, "beta_slow": 0}))),
        ("v2", &config("rope_scaling", json!({"type": "dynamic", "factor": 1e-300}))),
        ("classify-single-label", &config("pad_token_id", Value::Null)),
        ("classify-single-label", &config("pad_token_id", json!(-1))),
        ("classify-single-label", &fill("labels", -100.0)),
        ("classify-regression", &fill("labels", f32::MAX.into())),
    ];
    for (i, (case, change)) in rows.iter().enumerate() {
        let room = Room::of(case);
        change(&room);
        for args in [&["--dtype", "f64"][..], &["--dtype", "bf16", "--attention", "absorbed"]] {
            let ran = run(room.trace().args(args));
            let traced = ran.ends_well() == 0;
            assert_eq!(names(&room.path().join("out")).len(), usize::from(traced), "row {i}, {case}");
            if traced {
                let ran = run(&mut room.check(&room.out("trace.safetensors")));
                if ran.code == Some(0) {
                    drop(ran.passes())
                } else {
                    drop(ran.fails())
                }
                fs::remove_file(room.out("trace.safetensors")).unwrap();
            }
        }
    }
}

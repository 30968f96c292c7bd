//! Dumps and inputs in the shapes of engines: varlen batches, one decoding step, ids alone, some layers.

use std::fs;
use std::path::Path;

use dsv2::values::Values;
use dsv2_reference::weights::safetensors_file::{Data, SafetensorsFile, write_safetensors};
use ndarray::{Axis, Slice, array};
use serde_json::Value;

use crate::process::{Room, Tensors, edit, names, read, run, scale, write};

const LAYER: &str = "model.layers.1";

/// The case with its tokens laid end to end, as sequences of these lengths.
fn laid_end_to_end(room: &Room, lengths: [i64; 2]) {
    edit(&room.file("inputs.safetensors"), |inputs| {
        let Values::Index(ids) = &inputs["input_ids"] else { panic!("ids") };
        let ids = ids.iter().take(lengths.iter().sum::<i64>() as usize).copied().collect();
        inputs.clear();
        inputs.insert("input_ids".into(), Values::Index(ndarray::Array1::from_vec(ids).into_dyn()));
        inputs.insert("seq_lens".into(), Values::Index(array![lengths[0], lengths[1]].into_dyn()));
    });
}

fn last_rows(stages: &mut Tensors, name: &str) {
    let Values::Real(dtype, a) = stages[name].clone() else { panic!("{name}") };
    stages[name] = Values::Real(dtype, a.slice_axis(Axis(0), Slice::from(-1..)).to_owned());
}

#[test]
fn a_trace_of_sequences_laid_end_to_end_has_a_row_for_each_token() {
    let room = Room::of("v2");
    laid_end_to_end(&room, [11, 6]);
    run(&mut room.trace()).passes();
    let traced = read(&room.out("trace.safetensors"));
    assert_eq!(traced["model.norm"].shape(), [17, 44]);
    assert_eq!(traced["model.rotary_emb.cos"].shape()[0], 17);
    run(&mut room.check(&room.out("trace.safetensors"))).passes();
    // the first sequence is what it is alone
    laid_end_to_end(&room, [11, 1]);
    run(&mut room.trace()).passes();
    let (Values::Real(_, both), Values::Real(_, other)) =
        (&traced["model.norm"], &read(&room.out("trace.safetensors"))["model.norm"])
    else {
        panic!("numbers")
    };
    let first = |a: &ndarray::ArrayD<f64>| a.slice_axis(Axis(0), Slice::from(..11)).to_owned();
    approx::assert_abs_diff_eq!(first(both), first(other), epsilon = 1e-5);
}

#[test]
fn a_decoding_step_is_traced_and_judged_alone() {
    let room = Room::of("v2");
    run(room.trace().args(["--decode", "2"])).passes();
    let traced = room.out("trace.safetensors");
    assert_eq!(read(&traced)["model.norm"].shape(), [2, 2, 44]);
    assert_eq!(read(&traced)["past_key_values.0.k_pe"].shape()[1], 11);
    run(room.check(&traced).args(["--decode", "2"])).passes();
    let mut stages = read(&traced);
    scale(&mut stages["lm_head"], 1.01);
    let stdout = run(room.check(&room.dump(&stages)).args(["--decode", "2"])).fails();
    assert!(stdout.contains("FAIL: first wrong stage lm_head"), "{stdout}");

    laid_end_to_end(&room, [11, 6]);
    run(room.trace().arg("--decode")).passes();
    assert_eq!(read(&traced)["model.norm"].shape(), [2, 44]);
    run(room.check(&traced).arg("--decode")).passes();
}

#[test]
fn packed_rows_need_no_edit_of_the_config() {
    let room = Room::of("packed");
    let config = room.file("config.json");
    let expected = room.file("expected.safetensors");
    let mut cached: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    cached.as_object_mut().unwrap().remove("use_cache");
    fs::write(&config, cached.to_string()).unwrap();
    run(&mut room.check(&expected)).fails();
    run(room.check(&expected).args(["--use-cache", "false"])).passes();
    run(room.trace().args(["--use-cache", "false"])).passes();
    run(room.check(&room.out("trace.safetensors")).args(["--use-cache", "false"])).passes();
}

#[test]
fn an_engine_that_takes_ids_only_is_given_no_more() {
    let room = Room::of("v2-real-heads");
    let held = read(&room.file("inputs.safetensors"));
    assert!(held.contains_key("position_ids"), "{:?}", held.keys());
    let stdout = run(room.trace().arg("--ids-only")).passes();
    assert!(stdout.contains("(not fed: ") && stdout.contains("position_ids)"), "{stdout}");
    let traced = room.out("trace.safetensors");
    let stdout = run(room.check(&traced).arg("--ids-only")).passes();
    assert!(stdout.contains("position_ids: not fed (--ids-only)"), "{stdout}");
    run(&mut room.check(&traced)).fails();
    let room = Room::of("left-padding");
    let line = run(room.trace().arg("--ids-only")).refused();
    assert!(line.ends_with("--ids-only: expected an attention_mask that masks nothing, found padding"), "{line}");
}

/// The weights of some layers, alone in the folder's one shard.
fn keep_weights(room: &Room, keep: impl Fn(&str) -> bool) {
    let path = room.file("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let kept: Vec<_> = file.names().into_iter().filter(|name| keep(name)).collect();
    let map: serde_json::Map<String, Value> = file
        .names()
        .into_iter()
        .map(|name| (name.clone(), if kept.contains(&name) { "model-some" } else { "model-gone" }.into()))
        .collect();
    let kept: Vec<_> = kept.into_iter().map(|name| (name.clone(), Data::Real(file.real(&name).unwrap()))).collect();
    write_safetensors(&room.file("model-some"), &kept).unwrap();
    drop(file);
    fs::remove_file(path).unwrap();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(room.file("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn layers_alone_need_their_own_weights_only() {
    for dtype in ["f32", "bf16"] {
        let room = Room::of("v2");
        run(room.trace().args(["--dtype", dtype])).passes();
        let traced = room.out("trace.safetensors");
        keep_weights(&room, |name| name.starts_with("model.layers.1.") || name.starts_with("model.layers.2."));
        let line = run(&mut room.check(&traced)).refused();
        assert!(line.contains("model-gone: "), "{line}");
        let args = ["--layers", "1..3", "--dtype", dtype];
        let stdout = run(room.check(&traced).args(args)).passes();
        assert!(stdout.contains("model.layers.0: enters layers 1 to 2, taken as it is"), "{stdout}");
        assert!(stdout.contains("outside layers 1 to 2, not judged"), "{stdout}");

        // a bug before them is not theirs, one in them is
        for (wrong, fails) in [("model.layers.0.mlp.down_proj", None), ("model.layers.2.self_attn.o_proj", Some(()))] {
            let mut stages = read(&traced);
            scale(&mut stages[wrong], 1.05);
            let ran = run(room.check(&room.dump(&stages)).args(args));
            match fails {
                None => drop(ran.passes()),
                Some(()) => assert!(ran.fails().contains(&format!("first wrong stage {wrong}")), "{wrong}"),
            }
        }
        // what enters them wrong makes nothing else wrong
        let mut stages = read(&traced);
        scale(&mut stages["model.layers.0"], 1.05);
        stages.retain(|name, _| name == "model.layers.0" || name == "model.layers.1" || name == "model.layers.2");
        let stdout = run(room.check(&room.dump(&stages)).args(args)).fails();
        assert!(stdout.contains("first wrong stage model.layers.1:"), "{stdout}");
    }
}

#[test]
fn the_first_layer_is_entered_by_the_embedding() {
    let room = Room::of("v2-lite");
    run(&mut room.trace()).passes();
    let traced = room.out("trace.safetensors");
    let stdout = run(room.check(&traced).args(["--layers", "0"])).passes();
    assert!(stdout.contains("model.embed_tokens: enters layer 0, taken as it is"), "{stdout}");
    let mut stages = read(&traced);
    stages.retain(|name, _| name != "model.embed_tokens");
    let line = run(room.check(&room.dump(&stages)).args(["--layers", "0"])).refused();
    assert!(line.ends_with("--candidate: expected `model.embed_tokens`, which enters layer 0, found none"), "{line}");
}

#[test]
fn what_cannot_be_fed_or_judged_so_is_refused() {
    let room = Room::of("v2");
    run(&mut room.trace()).passes();
    let traced = room.out("trace.safetensors");
    let without = |names: &dyn Fn(&str) -> bool| {
        let mut stages = read(&traced);
        stages.retain(|name, _| !names(name));
        stages
    };
    let refused = |dump: &Path, args: &[&str], says: &str| {
        let line = run(room.check(dump).args(args)).refused();
        assert!(line.contains(says), "{args:?}: {line}");
    };
    for (args, says) in [
        (&["--decode", "0"][..], "--decode: expected 1 to 10 new tokens, found 0"),
        (&["--decode", "11"], "--decode: expected 1 to 10 new tokens, found 11"),
        (&["--decode", "2", "--use-cache", "false"], "--decode: expected a cache, found none (use_cache is false)"),
        (
            &["--decode", "2", "--chunks", "8,3"],
            "--chunks: expected lengths of which the last is that of the new tokens, 2",
        ),
        (&["--layers", "3..3"], "expected layers such as 10, 10..12 or 10..=11"),
        (&["--layers", "two"], "expected layers such as 10, 10..12 or 10..=11"),
        (&["--layers", "2..9"], "--layers: expected layers from 0 to 2, found 2..9"),
        (&["--layers", "1", "--decode"], "--layers: expected whole sequences, found one decoding step (--decode)"),
        (&["--use-cache", "perhaps"], "--use-cache"),
    ] {
        refused(&traced, args, says);
    }
    let dump = room.dump(&without(&|name| name == "model.layers.0"));
    refused(&dump, &["--layers", "1"], "--candidate: expected `model.layers.0`, which enters layer 1, found none");
    let dump = room.dump(&without(&|name| name.contains(LAYER) || name.contains("past") || name.contains("rotary")));
    refused(&dump, &["--layers", "1"], "--candidate: expected a stage of layer 1, found none");

    let mut stages = read(&traced);
    let Values::Real(dtype, a) = stages["model.layers.0"].clone() else { panic!("numbers") };
    let mut spoilt = a.clone();
    spoilt[[1, 2, 3]] = f64::NAN;
    stages["model.layers.0"] = Values::Real(dtype, spoilt);
    let dump = room.dump(&stages);
    refused(&dump, &["--layers", "1"], "expected finite numbers in `model.layers.0`, found NaN at [1, 2, 3]");
    stages["model.layers.0"] = Values::Real(dtype, a.slice_axis(Axis(1), Slice::from(..4)).to_owned());
    let dump = room.dump(&stages);
    refused(&dump, &["--layers", "1"], "expected `model.layers.0` of shape [2, 11, 44], found F32 [2, 4, 44]");

    laid_end_to_end(&room, [11, 2]);
    refused(&traced, &["--decode", "2"], "--decode: expected 1 to 1 new tokens, found 2");
    refused(&traced, &["--ids-only"], "--ids-only: expected sequences that are not laid end to end");
    let out = names(&room.path().join("out"));
    assert_eq!(out, ["candidate.safetensors", "trace.safetensors"]);
}

#[test]
fn the_last_token_of_each_sequence_laid_end_to_end_is_enough() {
    let room = Room::of("v2");
    laid_end_to_end(&room, [11, 6]);
    run(&mut room.trace()).passes();
    let mut stages = read(&room.out("trace.safetensors"));
    last_rows(&mut stages, "lm_head");
    // one row of logits for two sequences is that of neither
    let stdout = run(&mut room.check(&room.dump(&stages))).fails();
    assert!(stdout.contains("first wrong stage lm_head: shape"), "{stdout}");
}

#[test]
fn models_that_know_no_rows_of_unequal_sequences_refuse_them() {
    for (case, says) in
        [("classify-single-label", "found a classifier"), ("rope-dynamic", "found a rope type whose angles")]
    {
        let room = Room::of(case);
        laid_end_to_end(&room, [2, 1]);
        let line = run(&mut room.trace()).refused();
        assert!(line.contains("input `input_ids`") && line.contains(says), "{line}");
    }
    let room = Room::of("v2");
    write(
        &room.file("inputs.safetensors"),
        &Tensors::from_iter([
            ("input_ids".to_owned(), Values::Index(ndarray::ArrayD::zeros(vec![9000]))),
            ("seq_lens".to_owned(), Values::Index(array![9000].into_dyn())),
        ]),
    );
    let line = run(&mut room.trace()).refused();
    assert!(line.contains("expected lengths that add up to 8192 at most, found 9000"), "{line}");
}

#[test]
fn the_sequence_before_the_batch_is_recognised_against_expected_stages_too() {
    let room = Room::of("v2-lite");
    run(&mut room.trace()).passes();
    let traced = read(&room.out("trace.safetensors"));
    let Values::Real(dtype, normed) = &traced["model.norm"] else { panic!("numbers") };
    let turned = normed.clone().permuted_axes(ndarray::IxDyn(&[1, 0, 2])).as_standard_layout().into_owned();
    let one = |values: Values| Tensors::from_iter([("model.norm".to_owned(), values)]);
    write(&room.out("turned.safetensors"), &one(Values::Real(*dtype, turned)));
    write(&room.out("expected.safetensors"), &one(traced["model.norm"].clone()));
    let mut check = room.check(&room.out("turned.safetensors"));
    run(check.arg("--expected").arg(room.out("expected.safetensors"))).passes();
}

/// A matrix of fp32 as NumPy writes it column by column.
fn fortran_npy(a: ndarray::ArrayView3<f64>) -> Vec<u8> {
    let (x, y, z) = a.dim();
    let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({x}, {y}, {z}), }}");
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    let columns = a.permuted_axes([2, 1, 0]);
    bytes.extend(columns.iter().flat_map(|x| (*x as f32).to_le_bytes()));
    bytes
}

#[test]
fn ranks_whose_parts_lie_column_by_column_are_joined_as_any() {
    let room = Room::of("v2-lite");
    run(&mut room.trace()).passes();
    let stage = "model.layers.0.self_attn.o_proj";
    let Values::Real(_, a) = &read(&room.out("trace.safetensors"))[stage] else { panic!("numbers") };
    let a = a.view().into_dimensionality::<ndarray::Ix3>().unwrap();
    let (first, second) = a.split_at(Axis(1), 5);
    let files = [("r0", first), ("r1", second)].map(|(rank, part)| {
        fs::create_dir(room.out(rank)).unwrap();
        let file = room.out(rank).join(format!("{stage}.npy"));
        fs::write(&file, fortran_npy(part)).unwrap();
        file
    });
    let mut check = room.check(&files[0]);
    check.arg("--candidate").arg(&files[1]).args(["--shards", "megatron-sequence"]);
    run(&mut check).passes();
}

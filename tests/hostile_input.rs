//! Damaged files and impossible requests: each is refused in one line that names the thing, what was expected and what
//! was found, with exit status 2, and leaves nothing behind. Nothing panics.
//!
//! Each row of a table is a good case with one thing damaged, and words that the line has to hold.

mod common;

use std::fs;
use std::path::Path;

use common::{Ran, Room, Tensors, dsv2, edit, names, read, run, write};
use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2::values::Values;
use dsv2_reference::tap::NoTap;
use dsv2_reference::{Dialect, Dtype};
use ndarray::{ArrayD, array};
use serde_json::{Value, json};

/// What is damaged, how, and words that the message has to hold.
type Row<'a> = (&'a str, Damage<'a>, &'a [&'a str]);

/// A change of the files of a room.
type Damage<'a> = &'a dyn Fn(&Room);

/// Runs `trace` and `check` on each damaged case. Both have to refuse it, in the same words.
#[track_caller]
fn each_is_refused(case: &str, rows: &[Row<'_>]) {
    for (what, damage, words) in rows {
        let room = Room::of(case);
        damage(&room);
        let before = names(&room.path().join("model"));
        let line = run(&mut room.trace()).refused();
        expected_and_found(what, &line, words);
        let out = room.path().join("out");
        assert_eq!(names(&out), [""; 0], "{what}: something was written");

        let candidate = room.dump(&Tensors::from_iter([("lm_head".to_owned(), real(Dtype::F32, &[1]))]));
        assert_eq!(run(&mut room.check(&candidate)).refused(), line, "{what}");
        assert_eq!(names(&room.path().join("model")), before, "{what}: something was written");
        assert_eq!(names(&out), ["candidate.safetensors"], "{what}: something was written");
    }
}

/// The line says what was expected and what was found, or what could not be done; and all the words.
#[track_caller]
fn expected_and_found(what: &str, line: &str, words: &[&str]) {
    let says = |word: &str| line.contains(word);
    let complete = says(": expected ") && says(", found ") || says(": cannot read: ") || says(": cannot write: ");
    assert!(complete && words.iter().all(|word| says(word)), "{what}: {words:?} in\n{line}");
}

/// Zeros.
fn real(dtype: Dtype, shape: &[usize]) -> Values {
    Values::Real(dtype, ArrayD::zeros(shape))
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

/// Sets one element, whatever its type.
fn set(values: &mut Values, index: &[usize], to: f64) {
    match values {
        Values::Real(_, a) => a[index] = to,
        Values::Index(a) => a[index] = to as i64,
        Values::Bool(a) => a[index] = to != 0.0,
    }
}

fn inputs(room: &Room, change: impl FnOnce(&mut Tensors)) {
    edit(&room.file("inputs.safetensors"), change);
}

fn input(room: &Room, name: &str, values: Values) {
    inputs(room, |inputs| drop(inputs.insert(name.into(), values)));
}

fn weights(room: &Room, change: impl FnOnce(&mut Tensors)) {
    edit(&room.file("model.safetensors"), change);
}

/// Rewrites the bytes of a file.
fn bytes(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Rewrites the header of a safetensors file, as text, without a word to the tensors behind it.
fn header(path: &Path, change: impl FnOnce(&str) -> String) {
    bytes(path, |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
        let tensors = bytes.split_off(8 + length);
        *bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &tensors].concat();
    });
}

// config.json

#[test]
fn config_that_is_no_config() {
    let with = |text: &'static [u8]| move |room: &Room| fs::write(room.file("config.json"), text).unwrap();
    each_is_refused(
        "one-token",
        &[
            ("missing", &|room| fs::remove_file(room.file("config.json")).unwrap(), &["config.json: cannot read"]),
            ("empty", &with(b""), &["config.json: expected a JSON object, found no JSON"]),
            ("cut off", &with(b"{\"hidden_size\": 44"), &["config.json: expected a JSON object, found no JSON"]),
            ("no UTF-8", &with(b"{\"hidden_size\xff\": 44}"), &["config.json: expected a JSON object, found no JSON"]),
            ("a list", &with(b"[44]"), &["expected a JSON object, found [44]"]),
            ("null", &with(b"null"), &["expected a JSON object, found null"]),
            (
                "nested deeply",
                &|room| fs::write(room.file("config.json"), "[".repeat(100_000)).unwrap(),
                &["config.json"],
            ),
        ],
    );
}

#[test]
fn config_values_of_the_wrong_type() {
    for (key, value, words) in [
        ("hidden_size", json!("44"), "hidden_size: expected an integer >= 0, found \"44\""),
        ("hidden_size", json!(44.5), "hidden_size: expected an integer >= 0, found 44.5"),
        ("hidden_size", json!(-1), "hidden_size: expected an integer >= 0, found -1"),
        ("hidden_size", Value::Null, "hidden_size: expected an integer >= 0, found null"),
        ("hidden_size", json!({"a\nb": [1]}), "hidden_size: expected an integer >= 0, found {\"a\\nb\":[1]}"),
        ("use_cache", json!("yes"), "use_cache: expected true or false, found \"yes\""),
        ("rms_norm_eps", json!([1e-6]), "rms_norm_eps: expected a number, found [1e-6]"),
        ("rope_scaling", json!(40), "rope_scaling: expected an object, found 40"),
        ("architectures", json!(["LlamaForCausalLM"]), "found \"LlamaForCausalLM\""),
        ("model_type", json!("llama"), "model_type: expected \"deepseek_v2\", found \"llama\""),
    ] {
        each_is_refused("one-token", &[(key, &|room| config(room, key, value.clone()), &[words])]);
    }
}

#[test]
fn config_values_that_contradict_each_other() {
    // 12 experts in 4 groups, 2 of which are kept, 3 experts for each token; 4 heads
    for (key, value, words) in [
        ("num_experts_per_tok", json!(13), "expected an integer of 0 to n_routed_experts, 12, found 13"),
        ("num_experts_per_tok", json!(7), "expected at most 6, the experts of topk_group = 2 groups, found 7"),
        ("num_experts_per_tok", Value::Null, "expected an integer of 0 to n_routed_experts, 12, found null"),
        ("n_routed_experts", json!(0), "expected an integer >= 1, found 0"),
        ("n_group", json!(5), "expected a divisor of n_routed_experts, 12, for group_limited_greedy, found 5"),
        ("n_group", json!(0), "found 0"),
        ("topk_group", json!(5), "expected an integer of 1 to n_group, 4, for group_limited_greedy, found 5"),
        ("topk_group", json!(0), "found 0"),
        ("topk_method", json!("noaux_tc"), "found \"noaux_tc\" (DeepSeek-V3's, not V2's)"),
        ("qk_rope_head_dim", json!(7), "expected an even integer, found 7"),
        ("num_attention_heads", json!(0), "expected an integer of 1 to 2147483647, found 0"),
        ("num_key_value_heads", json!(2), "expected num_attention_heads, 4, or null, found 2"),
        ("hidden_act", json!("swish9"), "\"swish9\""),
        ("hidden_size", json!(9_007_199_254_740_993_u64), "found 9007199254740993"),
        ("num_hidden_layers", json!(2_000_000_000), "found 24000000000"),
        ("vocab_size", json!(u64::MAX), "found 18446744073709551615"),
        ("rms_norm_eps", json!(-1.0), "found -1"),
        ("rope_scaling", json!({"type": "longrope"}), "found \"longrope\""),
        ("rope_scaling", json!({"type": "yarn"}), "factor"),
        ("rope_scaling", json!({"type": "yarn", "factor": -4.0}), "factor"),
        ("rope_theta", json!(0.0), "expected"),
        ("pad_token_id", json!(112), "expected a token below vocab_size, 112, or null, found 112"),
    ] {
        each_is_refused("one-token", &[(key, &|room| config(room, key, value.clone()), &["config: ", key, words])]);
    }
}

#[test]
fn config_of_another_model_than_the_weights() {
    for (key, value, words) in [
        ("num_hidden_layers", json!(3), &["`model.layers.2.", "no such tensor"][..]),
        ("num_hidden_layers", json!(1), &["`model.layers.1.", "no such tensor in a model of this config"]),
        ("vocab_size", json!(113), &["`model.embed_tokens.weight`", "expected shape [113, 44], found shape [112, 44]"]),
        ("vocab_size", json!(i32::MAX), &["`model.embed_tokens.weight`", "expected shape [2147483647, 44]"]),
        ("q_lora_rank", Value::Null, &["`model.layers.0.self_attn.q_proj.weight`", "no such tensor"]),
        ("attention_bias", json!(true), &["bias`", "no such tensor"]),
        ("architectures", json!(["DeepseekV2ForSequenceClassification"]), &["`score.weight`", "`lm_head.weight`"]),
    ] {
        each_is_refused(
            "one-token",
            &[(key, &|room| config(room, key, value.clone()), &[&["weight `"], words].concat())],
        );
    }
}

// model.safetensors

#[test]
fn weights_that_are_no_safetensors_file() {
    let file = |room: &Room| room.file("model.safetensors");
    each_is_refused(
        "one-token",
        &[
            ("missing", &|room| fs::remove_file(file(room)).unwrap(), &["model.safetensors", "found neither"]),
            ("empty", &|room| fs::write(file(room), "").unwrap(), &["model.safetensors: expected a safetensors file"]),
            (
                "a folder",
                &|room| {
                    fs::remove_file(file(room)).unwrap();
                    fs::create_dir(file(room)).unwrap();
                },
                &["model.safetensors: expected a file, found a folder"],
            ),
            ("7 bytes", &|room| bytes(&file(room), |b| b.truncate(7)), &["at least 8 bytes long, found 7 bytes"]),
            (
                "half a header",
                &|room| bytes(&file(room), |b| b.truncate(100)),
                &["file's 100 bytes, found a header length"],
            ),
            (
                "one byte short",
                &|room| bytes(&file(room), |b| b.truncate(b.len() - 1)),
                &["model.safetensors", "as the header says"],
            ),
            ("one byte long", &|room| bytes(&file(room), |b| b.push(0)), &["model.safetensors", "as the header says"]),
            (
                "half the tensors",
                &|room| bytes(&file(room), |b| b.truncate(b.len() / 2)),
                &["model.safetensors", "as the header says"],
            ),
            (
                "a header longer than any file",
                &|room| bytes(&file(room), |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
                &["found a header length of 18446744073709551615"],
            ),
            ("no header", &|room| header(&file(room), |_| String::new()), &["expected a safetensors header"]),
            (
                "a header that is no JSON",
                &|room| header(&file(room), |h| h.replace(':', ";")),
                &["expected a safetensors header"],
            ),
            (
                "a tensor that is larger than it says",
                &|room| header(&file(room), |h| h.replacen("[112,44]", "[112,45]", 1)),
                &["model.safetensors: expected 10080 bytes for `", ", found data_offsets ["],
            ),
            (
                "a tensor larger than memory",
                &|room| header(&file(room), |h| h.replacen("[112,44]", "[9223372036854775807,9223372036854775807]", 1)),
                &["model.safetensors"],
            ),
        ],
    );
}

#[test]
fn weights_that_are_not_those_of_the_model() {
    const NAME: &str = "model.layers.1.mlp.experts.3.gate_proj.weight";
    let change = |change: fn(&mut Tensors)| move |room: &Room| weights(room, change);
    each_is_refused(
        "one-token",
        &[
            ("missing", &change(|w| drop(w.shift_remove(NAME))), &[NAME, "shape [20, 44]", "no such tensor"]),
            (
                "too many",
                &change(|w| drop(w.insert("model.layers.1.mlp.experts.12.gate_proj.weight".into(), w[NAME].clone()))),
                &[
                    "`model.layers.1.mlp.experts.12.gate_proj.weight`",
                    "expected no such tensor in a model of this config",
                ],
            ),
            (
                "a name with a line break",
                &change(|w| drop(w.insert("a\nb".into(), w[NAME].clone()))),
                &["weight `a\\nb`"],
            ),
            (
                "transposed",
                &change(|w| w[NAME] = real(Dtype::Bf16, &[44, 20])),
                &[NAME, "expected shape [20, 44], found shape [44, 20]"],
            ),
            ("flat", &change(|w| w[NAME] = real(Dtype::Bf16, &[880])), &[NAME, "found shape [880]"]),
            ("no element", &change(|w| w[NAME] = real(Dtype::Bf16, &[20, 0])), &[NAME, "found shape [20, 0]"]),
            ("integers", &change(|w| w[NAME] = ids(&[20, 44])), &[NAME, "expected BF16, F16, F32 or F64", "found I64"]),
            (
                "NaN",
                &change(|w| set(&mut w[NAME], &[7, 40], f64::NAN)),
                &[NAME, "finite numbers only, found NaN at [7, 40]"],
            ),
            (
                "infinity",
                &change(|w| set(&mut w["lm_head.weight"], &[111, 43], f64::NEG_INFINITY)),
                &["lm_head.weight", "finite numbers only, found -inf at [111, 43]"],
            ),
            (
                "an 8-bit type",
                &|room| {
                    weights(room, |w| w[NAME] = ids(&[20, 11]));
                    header(&room.file("model.safetensors"), |h| {
                        let start = h.find(NAME).unwrap();
                        let tensor = &h[start..start + h[start..].find('}').unwrap()];
                        let eight_bit = tensor.replace("I64", "F8_E4M3").replace("[20,11]", "[40,44]");
                        h.replacen(tensor, &eight_bit, 1)
                    });
                },
                &[NAME, "[40, 44]"],
            ),
        ],
    );
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let index = |room: &Room| room.file("model.safetensors.index.json");
    let shard = |room: &Room| room.file("model-00002-of-00003.safetensors");
    let reindex = |room: &Room, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&fs::read(index(room)).unwrap()).unwrap();
        change(&mut value);
        fs::write(index(room), value.to_string()).unwrap();
    };
    let elsewhere = |file: &'static str| {
        move |room: &Room| reindex(room, &|value| value["weight_map"]["lm_head.weight"] = file.into())
    };
    let outside = "the name of a file in the folder for `lm_head.weight`, found \"../";
    each_is_refused(
        "checkpoint-sharded",
        &[
            (
                "a missing shard",
                &|room| fs::remove_file(shard(room)).unwrap(),
                &["model-00002-of-00003.safetensors: expected a safetensors file, found no such file"],
            ),
            (
                "a short shard",
                &|room| bytes(&shard(room), |b| b.truncate(b.len() - 1)),
                &["model-00002-of-00003", "as the header says"],
            ),
            ("an empty shard", &|room| fs::write(shard(room), "").unwrap(), &["model-00002-of-00003", "found 0 bytes"]),
            (
                "a shard without a tensor",
                &|room| edit(&shard(room), |w| drop(w.pop())),
                &["model-00002-of-00003", "as model.safetensors.index.json says, found no such tensor"],
            ),
            (
                "a tensor twice",
                &|room| {
                    let (name, tensor) = read(&shard(room)).pop().unwrap();
                    edit(&room.file("model-00003-of-00003.safetensors"), |w| drop(w.insert(name, tensor)));
                },
                &["in no other file, found it in "],
            ),
            (
                "no index",
                &|room| fs::remove_file(index(room)).unwrap(),
                &["model.safetensors.index.json", "found neither"],
            ),
            ("an index that is no JSON", &|room| fs::write(index(room), "{").unwrap(), &["index.json: expected JSON"]),
            ("an index of nothing", &|room| fs::write(index(room), "{}").unwrap(), &["weight_map", "found none"]),
            (
                "an index that is a list",
                &|room| reindex(room, &|i| i["weight_map"] = json!([])),
                &["weight_map", "found []"],
            ),
            ("a shard outside", &elsewhere("../model/model-00003-of-00003.safetensors"), &["index.json", outside]),
            (
                "a shard that is a number",
                &|room| reindex(room, &|i| i["weight_map"]["lm_head.weight"] = json!(3)),
                &["found 3"],
            ),
        ],
    );
}

// inputs.safetensors

#[test]
fn inputs_that_are_no_safetensors_file() {
    let file = |room: &Room| room.file("inputs.safetensors");
    each_is_refused(
        "labels",
        &[
            (
                "missing",
                &|room| fs::remove_file(file(room)).unwrap(),
                &["inputs.safetensors: expected", "found no such file"],
            ),
            ("empty", &|room| fs::write(file(room), "").unwrap(), &["inputs.safetensors", "found 0 bytes"]),
            ("garbage", &|room| fs::write(file(room), "no tensors at all").unwrap(), &["inputs.safetensors: expected"]),
            (
                "cut off",
                &|room| bytes(&file(room), |b| b.truncate(b.len() - 1)),
                &["inputs.safetensors", "as the header says"],
            ),
            ("no tensor", &|room| write(&file(room), &Tensors::new()), &["inputs.safetensors", "found neither"]),
        ],
    );
}

#[test]
fn inputs_that_are_impossible() {
    let change = |change: fn(&mut Tensors)| move |room: &Room| inputs(room, change);
    let with = |name: &'static str, values: Values| move |room: &Room| input(room, name, values.clone());
    // [2, 11] tokens of 104
    each_is_refused(
        "labels",
        &[
            (
                "neither ids nor embeddings",
                &change(|i| drop(i.shift_remove("input_ids"))),
                &["inputs.safetensors: expected `input_ids` or `inputs_embeds`, found neither"],
            ),
            (
                "both ids and embeddings",
                &with("inputs_embeds", real(Dtype::F32, &[2, 11, 30])),
                &["inputs.safetensors: expected one of `input_ids` and `inputs_embeds`, found both"],
            ),
            (
                "an unknown input",
                &with("attention_masks", ids(&[2, 11])),
                &["inputs.safetensors: expected `input_ids`", "found `attention_masks`"],
            ),
            ("an unknown input with a line break", &with("a\nb", ids(&[2, 11])), &["found `a\\nb`"]),
            (
                "a token past the last",
                &change(|i| set(&mut i["input_ids"], &[1, 10], 104.0)),
                &["input `input_ids`: expected ids from 0 to 103, found 104 at [1, 10]"],
            ),
            (
                "a token before the first",
                &change(|i| set(&mut i["input_ids"], &[0, 3], -1.0)),
                &["input `input_ids`: expected ids from 0 to 103, found -1 at [0, 3]"],
            ),
            (
                "the lowest token",
                &change(|i| set(&mut i["input_ids"], &[0, 0], i64::MIN as f64)),
                &["input `input_ids`", "found -9223372036854775808 at [0, 0]"],
            ),
            ("no sequence", &with("input_ids", ids(&[0, 11])), &["input `input_ids`", "found shape [0, 11]"]),
            ("no token", &with("input_ids", ids(&[2, 0])), &["input `input_ids`", "found shape [2, 0]"]),
            (
                "ids of one axis",
                &with("input_ids", ids(&[11])),
                &["input `input_ids`: expected [B,S] int64, found I64 [11]"],
            ),
            (
                "ids that are no integers",
                &with("input_ids", real(Dtype::F32, &[2, 11])),
                &["input `input_ids`: expected [B,S] int64, found F32 [2, 11]"],
            ),
            (
                "a short mask",
                &with("attention_mask", ids(&[2, 10])),
                &["`attention_mask`: expected shape [2, 11], found shape [2, 10]"],
            ),
            ("a long mask", &with("attention_mask", ids(&[2, 12])), &["`attention_mask`", "found shape [2, 12]"]),
            ("a mask of one row", &with("attention_mask", ids(&[1, 11])), &["`attention_mask`", "found shape [1, 11]"]),
            (
                "a 2-D mask to be added",
                &with("attention_mask", real(Dtype::F32, &[2, 11])),
                &["`attention_mask`: expected [B,S] int64 or bool, or [B,1,S,S] float, found F32 [2, 11]"],
            ),
            (
                "a 4-D mask for each head",
                &with("attention_mask", real(Dtype::F32, &[2, 4, 11, 11])),
                &["`attention_mask`: expected shape [1 or 2, 1, 11, 11], found shape [2, 4, 11, 11]"],
            ),
            (
                "positions of another batch",
                &with("position_ids", ids(&[3, 11])),
                &["`position_ids`: expected shape [1 or 2, 11], found shape [3, 11]"],
            ),
            (
                "positions of too few tokens",
                &with("position_ids", ids(&[1, 10])),
                &["`position_ids`", "found shape [1, 10]"],
            ),
            ("positions of one axis", &with("position_ids", ids(&[11])), &["`position_ids`", "found I64 [11]"]),
            (
                "positions that are no integers",
                &with("position_ids", real(Dtype::F32, &[1, 11])),
                &["`position_ids`", "found F32 [1, 11]"],
            ),
            (
                "a label past the last",
                &change(|i| set(&mut i["labels"], &[1, 4], 104.0)),
                &["`labels`: expected ids from 0 to 103, or -100, found 104 at [1, 4]"],
            ),
            (
                "a negative label",
                &change(|i| set(&mut i["labels"], &[0, 4], -1.0)),
                &["`labels`", "found -1 at [0, 4]"],
            ),
            ("labels of a classifier", &with("labels", ids(&[2])), &["`labels`", "found labels of a classifier"]),
            (
                "labels of too few tokens",
                &with("labels", ids(&[2, 10])),
                &["`labels`: expected shape [2, 11], found shape [2, 10]"],
            ),
            (
                "labels that are no numbers",
                &with("labels", Values::Bool(array![[true]].into_dyn())),
                &["`labels`", "found BOOL [1, 1]"],
            ),
            (
                "a kept position past the last",
                &with("logits_to_keep", Values::Index(array![11].into_dyn())),
                &["`logits_to_keep`", "found 11 at [0]"],
            ),
            (
                "a fraction of logits",
                &with("logits_to_keep", real(Dtype::F32, &[])),
                &["`logits_to_keep`", "found F32 []"],
            ),
            (
                "a negative number of items",
                &with("num_items_in_batch", Values::Index(ndarray::arr0(-1).into_dyn())),
                &["`num_items_in_batch`: expected 0 or more, found -1"],
            ),
            (
                "two numbers of items",
                &with("num_items_in_batch", ids(&[2])),
                &["`num_items_in_batch`: expected [] int64, found I64 [2]"],
            ),
        ],
    );
}

#[test]
fn numbers_that_are_none_in_the_inputs() {
    each_is_refused(
        "inputs-embeds",
        &[
            (
                "NaN",
                &|room| inputs(room, |i| set(&mut i["inputs_embeds"], &[1, 2, 3], f64::NAN)),
                &["input `inputs_embeds`: expected finite numbers, found NaN at [1, 2, 3]"],
            ),
            (
                "infinity",
                &|room| inputs(room, |i| set(&mut i["inputs_embeds"], &[0, 0, 0], f64::INFINITY)),
                &["input `inputs_embeds`: expected finite numbers, found inf at [0, 0, 0]"],
            ),
            (
                "another width",
                &|room| input(room, "inputs_embeds", real(Dtype::F32, &[2, 11, 44])),
                &["input `inputs_embeds`: expected shape [B,S,45], found shape [2, 11, 44]"],
            ),
            ("f64", &|room| input(room, "inputs_embeds", real(Dtype::F64, &[2, 11, 45])), &["found F64 [2, 11, 45]"]),
            ("integers", &|room| input(room, "inputs_embeds", ids(&[2, 11, 45])), &["found I64 [2, 11, 45]"]),
            (
                "no token",
                &|room| input(room, "inputs_embeds", real(Dtype::F32, &[2, 0, 45])),
                &["found shape [2, 0, 45]"],
            ),
        ],
    );
    each_is_refused(
        "mask-4d",
        &[(
            "NaN in a mask",
            &|room| inputs(room, |i| set(&mut i["attention_mask"], &[1, 0, 2, 3], f64::NAN)),
            &["input `attention_mask`: expected no NaN and no plus infinity, found NaN at [1, 0, 2, 3]"],
        )],
    );
}

#[test]
fn labels_that_are_no_classes() {
    let labels = |values: Values| move |room: &Room| input(room, "labels", values.clone());
    // 3 sequences, 5 classes
    each_is_refused(
        "classify-single-label",
        &[
            (
                "a class past the last",
                &|room| inputs(room, |i| set(&mut i["labels"], &[2], 5.0)),
                &["`labels`: expected classes from 0 to 4, or -100, found 5 at [2]"],
            ),
            ("too few classes", &labels(ids(&[2])), &["`labels`: expected shape [3], found shape [2]"]),
            ("labels of tokens", &labels(ids(&[3, 7])), &["`labels`", "found shape [3, 7]"]),
            (
                "NaN",
                &labels(Values::Real(Dtype::F32, array![0.0, f64::NAN, 0.0].into_dyn())),
                &["`labels`", "found NaN at [1]"],
            ),
        ],
    );
    each_is_refused(
        "classify-multi-label",
        &[("too few targets", &labels(real(Dtype::F32, &[3, 5])), &["`labels`", "found shape [3, 5]"])],
    );
}

/// Ends with a verdict or one line of refusal; its status.
#[track_caller]
fn ends_well(ran: Ran) -> i32 {
    let code = ran.code.expect("no signal ends it");
    match code {
        0 => drop(ran.passes()),
        1 => drop(ran.fails()),
        _ => drop(ran.refused()),
    }
    code
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
    let rows: &[(&str, Damage<'_>)] = &[
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
            let traced = ends_well(ran) == 0;
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

#[test]
#[cfg(unix)]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    for name in ["config.json", "model.safetensors", "inputs.safetensors"] {
        let room = Room::of("v2");
        fs::remove_file(room.file(name)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(room.file(name)).status().unwrap().success());
        let line = run(&mut room.trace()).refused();
        assert!(line.contains(&format!("{name}: expected a file, found neither a file nor a folder")), "{line}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_stdout_is_said_by_the_exit_status() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dsv2")).arg("kv-cache").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("dsv2: cannot write to stdout: "), "{line}");
}

#[test]
fn control_characters_of_a_path_do_not_reach_the_terminal() {
    let room = Room::of("v2");
    let inputs = room.file("inputs.safetensors");
    let arguments = ["trace", "--model", "a\rb\x1b[31m", "--output", "o", "--inputs", inputs.to_str().unwrap()];
    let mut command = dsv2(arguments);
    let line = run(&mut command).refused();
    assert!(line.contains("a\\rb\\u{1b}[31m"), "{line}");
}

// requests

#[test]
fn pieces_that_are_not_the_sequence() {
    for (case, chunks, words) in [
        ("v2", "7,1,2", "--chunks: expected lengths from 1 up that add up to 11, found [7, 1, 2]"),
        ("v2", "12", "--chunks: expected lengths from 1 up that add up to 11, found [12]"),
        ("v2", "18446744073709551615,12", "--chunks: expected lengths from 1 up that add up to 11, found"),
        ("v2", "7,0,4", "--chunks"),
        ("v2", "7,,4", "--chunks"),
        ("v2", "-7,18", "--chunks"),
        ("v2", "", "--chunks"),
        ("labels", "7,4", "--chunks: expected inputs without labels and logits_to_keep"),
        ("no-cache", "5,4", "--chunks: expected one piece where there is no cache (use_cache is false), found 2"),
    ] {
        let room = Room::of(case);
        let line = run(room.trace().arg(format!("--chunks={chunks}"))).refused();
        assert!(line.contains(words), "{chunks}: {line}");
        assert_eq!(names(&room.path().join("out")), [""; 0]);
    }
}

#[test]
fn places_that_cannot_be_written() {
    let room = Room::of("one-token");
    let trace = |output: &Path| {
        let mut command = dsv2(["trace", "--model"]);
        command.arg(room.path().join("model")).arg("--inputs").arg(room.file("inputs.safetensors"));
        run(command.arg("--output").arg(output)).refused()
    };
    fs::write(room.out("taken"), "").unwrap();
    for (output, words) in [
        (room.out("no/such/folder"), &["no/such/folder: cannot write: "][..]),
        (room.path().join("out"), &["out: expected a file to write, found something else"]),
        (room.out("taken/trace.safetensors"), &["taken/trace.safetensors", "expected a folder to write to"]),
        (room.out(".."), &["expected a file to write"]),
        ("".into(), &["--output"]),
    ] {
        let line = trace(&output);
        assert!(words.iter().all(|word| line.contains(word)), "{}: {line}", output.display());
        assert_eq!(names(&room.path().join("out")), ["taken"]);
        assert_eq!(names(room.path()), ["model", "out"]);
    }

    // the report of a check, in the place of a file
    let ran = run(room.check(&room.file("expected.safetensors")).arg("--report").arg(room.out("taken")));
    let line = ran.refused();
    assert!(line.contains("taken: cannot create: "), "{line}");
    assert_eq!(names(&room.path().join("out")), ["taken"]);
}

#[test]
fn a_refused_request_leaves_an_older_file_as_it_was() {
    let room = Room::of("one-token");
    run(&mut room.trace()).passes();
    let before = fs::read(room.out("trace.safetensors")).unwrap();
    weights(&room, |w| set(&mut w["lm_head.weight"], &[0, 0], f64::NAN));
    run(&mut room.trace()).refused();
    assert!(fs::read(room.out("trace.safetensors")).unwrap() == before);
    assert_eq!(names(&room.path().join("out")), ["trace.safetensors"]);
}

#[test]
fn dumps_that_are_none() {
    let room = Room::of("one-token");
    let good = room.file("expected.safetensors");
    let dump = room.out("dump.safetensors");
    let check = |what: &str, words: &[&str]| {
        for command in [&mut room.check(&dump), room.check(&good).arg("--expected").arg(&dump)] {
            let line = run(command).refused();
            expected_and_found(what, &line, words);
        }
    };
    check("missing", &["dump.safetensors: expected a safetensors file, found no such file"]);
    fs::write(&dump, "").unwrap();
    check("empty", &["dump.safetensors: expected a safetensors file, at least 8 bytes long, found 0 bytes"]);
    fs::write(&dump, "this is no safetensors file").unwrap();
    check("garbage", &["dump.safetensors: expected a safetensors header"]);
    fs::copy(&good, &dump).unwrap();
    bytes(&dump, |b| b.truncate(b.len() - 1));
    check("cut off", &["dump.safetensors", "as the header says"]);
    fs::copy(&good, &dump).unwrap();
    header(&dump, |h| h.replacen("\"F32\"", "\"U32\"", 1));
    check("of an unknown type", &["dump.safetensors", "expected BF16, F16, F32, F64, BOOL", "found U32"]);

    write(&dump, &Tensors::from_iter([("lm_head".to_owned(), real(Dtype::F32, &[3]))]));
    let line = run(room.check(&good).arg("--expected").arg(&dump)).refused();
    expected_and_found("of another shape", &line, &["--expected", "`lm_head` of shape [1, 1, 112]", "found shape [3]"]);
}

#[test]
fn candidates_that_are_wrong_are_failures_and_no_errors() {
    let room = Room::of("one-token");
    let stages = room.expected();
    for (name, values, words) in [
        ("lm_head", real(Dtype::F32, &[3]), "lm_head: shape [3] where [1, 1, 112] is expected"),
        ("lm_head", real(Dtype::F32, &[0]), "lm_head: shape [0] where [1, 1, 112] is expected"),
        ("lm_head", ids(&[1, 1, 112]), "lm_head: I64 [1, 1, 112] where F64 [1, 1, 112] is expected"),
        ("lm_head", Values::Real(Dtype::F16, ArrayD::from_elem(&[1, 1, 112][..], f64::INFINITY)), "lm_head: inf at"),
        ("model.norm", Values::Real(Dtype::F32, ArrayD::from_elem(&[1, 1, 44][..], f64::NAN)), "model.norm: NaN at"),
        ("model.layers.1.mlp.gate.topk_indices", ids(&[1, 4]), "model.layers.1.mlp.gate.topk_indices"),
        (
            "model.layers.1.mlp.gate.topk_indices",
            Values::Index(array![[i64::MIN, -1, i64::MAX]].into_dyn()),
            "model.layers.1.mlp.gate.topk_indices: token 0",
        ),
        ("model.layers.1.mlp.gate.topk_weights", real(Dtype::F32, &[1, 3]), "model.layers.1.mlp.gate.topk_weights"),
    ] {
        let mut stages = stages.clone();
        stages.insert(name.into(), values);
        let candidate = room.dump(&stages);
        let stdout = run(&mut room.check(&candidate)).fails();
        let last = stdout.trim_end().lines().last().unwrap();
        assert!(last.starts_with("FAIL: first wrong stage ") && last.contains(words), "{words}: {last}");
        let verdict: Value = serde_json::from_str(&run(room.check(&candidate).arg("--json")).fails()).unwrap();
        assert_eq!((&verdict["verdict"], &verdict["first_failing_stage"]), (&"fail".into(), &name.into()));
    }
}

// anything

/// A small generator of numbers, the same ones each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % sides as u64) as usize
    }

    /// Damages a byte or a few, most of them among the first `front`, or cuts something off.
    fn damage(&mut self, bytes: &mut Vec<u8>, front: usize) {
        for _ in 0..=self.roll(3) {
            if bytes.is_empty() {
                return;
            }
            let all = bytes.len();
            let at = if self.roll(4) > 0 { self.roll(front.min(all)) } else { self.roll(all) };
            match self.roll(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, b"0\"{}[],:-.e\xff"[self.roll(12)]),
                2 => drop(bytes.remove(at)),
                3 | 4 => bytes[at] ^= 1 << self.roll(8),
                5 => bytes[at] = self.roll(256) as u8,
                // a digit for a digit keeps JSON readable
                _ => match bytes[..front.min(all)].iter().skip(at).position(u8::is_ascii_digit) {
                    Some(next) => bytes[at + next] = b'0' + self.roll(10) as u8,
                    None => bytes[at] = self.roll(256) as u8,
                },
            }
        }
    }
}

/// Where the text of a file ends: all of a JSON file, the header of a safetensors file.
fn end_of_text(name: &str, bytes: &[u8]) -> usize {
    if name.ends_with(".json") { bytes.len() } else { 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize }
}

#[test]
fn damaged_bytes_never_panic() {
    let room = Room::of("labels");
    let mut dice = Dice(2);
    let (mut ran, mut refused) = (0, 0);
    for name in ["config.json", "inputs.safetensors", "model.safetensors"] {
        let path = room.file(name);
        let good = fs::read(&path).unwrap();
        for _ in 0..300 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(name, &good));
            fs::write(&path, damaged).unwrap();
            let case =
                Case::open(&room.path().join("model"), &room.file("inputs.safetensors"), Dialect::default(), None);
            let settings = Settings { precision: Precision::F32, ..Settings::default() };
            match case.and_then(|case| Reference.run(&case, &settings, &mut NoTap)) {
                Ok(_) => ran += 1,
                Err(error) => {
                    refused += 1;
                    let line = error.to_string();
                    assert!(!line.is_empty() && !line.chars().any(char::is_control), "{line:?}");
                }
            }
        }
        fs::write(&path, good).unwrap();
    }
    assert!(ran > 30 && refused > 300, "{ran} ran, {refused} were refused");
}

#[test]
fn a_process_ends_with_status_0_or_2_whatever_the_bytes_are() {
    let room = Room::of("labels");
    let mut dice = Dice(3);
    for name in ["config.json", "inputs.safetensors", "model.safetensors"] {
        let path = room.file(name);
        let good = fs::read(&path).unwrap();
        for _ in 0..20 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(name, &good));
            fs::write(&path, damaged).unwrap();
            let status = ends_well(run(&mut room.trace()));
            assert!(status == 0 || status == 2);
            if status == 0 {
                fs::remove_file(room.out("trace.safetensors")).unwrap();
            }
            assert_eq!(names(&room.path().join("out")), [""; 0]);
        }
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn a_damaged_dump_is_refused_or_judged() {
    let room = Room::of("one-token");
    let good = fs::read(room.file("expected.safetensors")).unwrap();
    let dump = room.out("dump.safetensors");
    let mut dice = Dice(4);
    for _ in 0..40 {
        let mut damaged = good.clone();
        dice.damage(&mut damaged, end_of_text("dump.safetensors", &good));
        fs::write(&dump, damaged).unwrap();
        ends_well(run(room.check(&dump).arg("--json")));
    }
}

#[test]
fn a_damaged_golden_case_is_refused_or_fails() {
    let room = tempfile::tempdir().unwrap();
    let folder = room.path().join("one-token");
    fs::create_dir(&folder).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases/one-token");
    for name in names(&golden) {
        fs::copy(golden.join(&name), folder.join(&name)).unwrap();
    }
    let mut dice = Dice(5);
    for name in names(&golden) {
        let path = folder.join(&name);
        let good = fs::read(&path).unwrap();
        for _ in 0..20 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(&name, &good));
            fs::write(&path, damaged).unwrap();
            let ran = run(dsv2(["verify", "--dtype", "f32", "--golden"]).arg(room.path()));
            ends_well(Ran { stderr: without_progress(&ran.stderr), ..ran });
        }
        fs::write(&path, good).unwrap();
    }
}

/// What `verify` says on stderr, besides how far it is.
fn without_progress(stderr: &str) -> String {
    stderr.lines().filter(|line| !line.starts_with('[')).collect::<Vec<_>>().join("\n")
}

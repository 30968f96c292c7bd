//! The forms in which checkpoints lie on disk: each gives the very tensors of the plain form, or is refused.

use std::collections::BTreeMap;
use std::path::Path;

use dsv2_reference::config::Head;
use dsv2_reference::weights::model_weights::ModelWeights;
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{
    CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Error, LogitsToKeep, ModelInput,
};
use dsv2_reference::{NoTap, Run, Tokens};
use float8::F8E4M3;
use ndarray::array;
use safetensors::tensor::{Dtype as FileDtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::common::{config, weights};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
struct Stored(FileDtype, Vec<usize>, Vec<u8>);

type Tensors = BTreeMap<String, Stored>;

/// The model's tensors as a checkpoint holds them.
fn plain(config: &DeepseekV2Config, head: Head) -> Tensors {
    let of = |(name, shape): (String, Vec<usize>)| {
        let bytes = weights().tensor(&name, &shape).unwrap().bytes().to_vec();
        (name, Stored(FileDtype::BF16, shape, bytes))
    };
    config.weight_shapes(head, Dialect::Hf).into_iter().map(of).collect()
}

fn opened(tensors: &Tensors, config: &DeepseekV2Config, head: Head) -> Result<ModelWeights, Error> {
    let folder = tempfile::tempdir().unwrap();
    write(tensors, &folder.path().join("model.safetensors"));
    ModelWeights::open(folder.path(), config, head, Dialect::Hf, |_| true)
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, Stored(dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// Without the prefix of a model with a head.
fn bare(tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (name.trim_start_matches("model.").to_owned(), tensor)).collect()
}

/// The experts of a layer in two tensors.
fn fused(mut tensors: Tensors) -> Tensors {
    for layer in 1..3 {
        let path = format!("model.layers.{layer}.mlp.experts");
        let mut joined = |parts: &[&str]| {
            let (mut bytes, mut dtype, mut shape) = (vec![], FileDtype::BF16, vec![]);
            for expert in 0..8 {
                for part in parts {
                    let one = tensors.remove(&format!("{path}.{expert}.{part}.weight")).unwrap();
                    (dtype, shape) = (one.0, one.1);
                    bytes.extend(one.2);
                }
            }
            Stored(dtype, vec![8, parts.len() * shape[0], shape[1]], bytes)
        };
        let (gate_up, down) = (joined(&["gate_proj", "up_proj"]), joined(&["down_proj"]));
        tensors.extend([(format!("{path}.gate_up_proj"), gate_up), (format!("{path}.down_proj"), down)]);
    }
    tensors
}

fn tie(mut tensors: Tensors, keep: &[&str]) -> Tensors {
    let embedding = tensors.remove("model.embed_tokens.weight").unwrap();
    tensors.extend(keep.iter().map(|name| ((*name).to_owned(), embedding.clone())));
    tensors
}

fn with_others(mut tensors: Tensors) -> Tensors {
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.9.eh_proj.weight", "new\n"] {
        tensors.insert(name.into(), Stored(FileDtype::F32, vec![2], vec![0; 8]));
    }
    tensors
}

#[test]
fn each_form_gives_the_tensors_of_the_plain_one() {
    type Form = fn(Tensors) -> Tensors;
    let forms: &[(&str, bool, Head, Form)] = &[
        ("plain", false, Head::CausalLm, |plain| plain),
        ("bare names under a head", false, Head::CausalLm, bare),
        ("bare", true, Head::Bare, bare),
        ("bare, with the prefix", false, Head::Bare, |plain| plain),
        ("classifier, bare names", false, Head::SequenceClassification, bare),
        ("fused", false, Head::CausalLm, fused),
        ("fused and bare", false, Head::Bare, |plain| bare(fused(plain))),
        ("others", false, Head::CausalLm, with_others),
        ("tied", true, Head::CausalLm, |plain| plain),
        ("tied, both", true, Head::CausalLm, |plain| tie(plain, &["model.embed_tokens.weight", "lm_head.weight"])),
        ("tied, head alone", true, Head::CausalLm, |plain| tie(plain, &["lm_head.weight"])),
        ("tied, both, bare", true, Head::CausalLm, |plain| {
            bare(tie(plain, &["model.embed_tokens.weight", "lm_head.weight"]))
        }),
    ];
    for (form, tied, head, dress) in forms {
        let config = config(json!({"tie_word_embeddings": tied}));
        let plain = plain(&config, *head);
        let weights = opened(&dress(plain.clone()), &config, *head).unwrap();
        assert!(!weights.unties(), "{form}");
        let shapes = config.weight_shapes(*head, Dialect::Hf);
        let others = check_complete(&weights, &shapes, &[]).unwrap();
        let expected: &[&str] = if *form == "others" { &["model.layers.9.eh_proj.weight", "new\n"] } else { &[] };
        assert_eq!(others, expected, "{form}");
        for (name, shape) in shapes {
            let read = weights.tensor(&name, &shape).unwrap();
            assert_eq!(read.bytes(), plain[&name].2, "{form}: {name}");
        }
        weights.watch().check().unwrap();
    }
}

#[test]
fn a_tied_config_does_not_tie_what_differs() {
    let config = config(json!({"tie_word_embeddings": true}));
    let mut tensors = plain(&config, Head::CausalLm);
    let mut head = tensors["model.embed_tokens.weight"].clone();
    head.2.rotate_left(2);
    tensors.insert("lm_head.weight".into(), head.clone());
    let weights = opened(&tensors, &config, Head::CausalLm).unwrap();
    assert!(weights.unties());
    assert_eq!(weights.tensor("lm_head.weight", &[50, 32]).unwrap().bytes(), head.2);
    let notes = weights.notes();
    assert!(notes.len() == 1 && notes[0].contains("they differ: not tied, as in Transformers"), "{notes:?}");
    // equal numbers in another type are equal
    let wide = |Stored(_, shape, bytes): Stored| {
        let bytes = bytes.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
        Stored(FileDtype::F32, shape, bytes)
    };
    tensors.insert("lm_head.weight".into(), wide(tensors["model.embed_tokens.weight"].clone()));
    assert!(!opened(&tensors, &config, Head::CausalLm).unwrap().unties());
}

/// How the scales of a matrix lie in the file: their shape, how many rows and columns share one, their type.
type Layout = (fn(usize, usize) -> Vec<usize>, fn(usize, usize) -> [usize; 2], FileDtype);

const LAYOUTS: &[Layout] = &[
    (|n, k| vec![n.div_ceil(5), k.div_ceil(7)], |_, _| [5, 7], FileDtype::F32),
    (|n, k| vec![n.div_ceil(5), k.div_ceil(7)], |_, _| [5, 7], FileDtype::F8_E8M0),
    (|n, _| vec![n, 1], |_, k| [1, k], FileDtype::BF16),
    (|n, _| vec![n], |_, k| [1, k], FileDtype::F16),
    (|_, _| vec![], |n, k| [n, k], FileDtype::F32),
    (|_, _| vec![1], |n, k| [n, k], FileDtype::F32),
    (|_, _| vec![1, 1], |n, k| [n, k], FileDtype::F32),
];

/// A scale, and its bytes; all types have it.
fn scale(i: usize, dtype: FileDtype) -> (f32, Vec<u8>) {
    let exponent = (i % 5) as i32 - 3;
    let x = if dtype == FileDtype::F8_E8M0 { 1.0 } else { 1.0 + (i % 4) as f32 / 4.0 } * 2.0_f32.powi(exponent);
    let bytes = match dtype {
        FileDtype::F32 => x.to_le_bytes().to_vec(),
        FileDtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        FileDtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        _ => vec![(127 + exponent) as u8],
    };
    (x, bytes)
}

/// Some matrices of the model in 8 bits; and the numbers that they are, under the names of the plain form.
fn in_fp8(tensors: &mut Tensors, layout: &Layout, end: &str) -> BTreeMap<String, Vec<f32>> {
    let (shape_of, block_of, dtype) = layout;
    let mut numbers = BTreeMap::new();
    let names: Vec<_> = tensors
        .keys()
        .filter(|name| name.ends_with("_proj.weight") || name.ends_with("_mqa.weight"))
        .cloned()
        .collect();
    for name in names {
        let [n, k] = tensors[&name].1[..] else { unreachable!("a matrix") };
        let codes: Vec<u8> =
            (0..n * k).map(|i| (i * 37 + n) as u8).map(|c| if c & 0x7f == 0x7f { 0x33 } else { c }).collect();
        let (shape, [r, c]) = (shape_of(n, k), block_of(n, k));
        let in_row = k.div_ceil(c);
        let scales: Vec<_> = (0..shape.iter().product()).map(|i| scale(i, *dtype)).collect();
        let number = |i: usize| F8E4M3::from_bits(codes[i]).to_f32() * scales[i / k / r * in_row + i % k / c].0;
        numbers.insert(name.clone(), (0..n * k).map(number).collect());
        let bytes = scales.into_iter().flat_map(|(_, bytes)| bytes).collect();
        tensors.insert(format!("{name}{end}"), Stored(*dtype, shape, bytes));
        tensors.insert(name, Stored(FileDtype::F8_E4M3, vec![n, k], codes));
    }
    numbers
}

fn fp8_config(block: Value) -> DeepseekV2Config {
    config(json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}))
}

#[test]
fn fp8_matrices_are_codes_times_scales_with_blocks_cut_off_at_the_end_by_rows_and_as_wholes() {
    for (i, layout) in LAYOUTS.iter().enumerate() {
        for end in ["_scale_inv", "_scale"] {
            let config = fp8_config(if i < 2 { json!([5, 7]) } else { json!(null) });
            let mut tensors = plain(&config, Head::CausalLm);
            let numbers = in_fp8(&mut tensors, layout, end);
            tensors.insert(
                "model.layers.0.self_attn.o_proj.input_scale".into(),
                Stored(FileDtype::F32, vec![], vec![0; 4]),
            );
            let weights = opened(&tensors, &config, Head::CausalLm).unwrap();
            assert_eq!(
                check_complete(&weights, &config.weight_shapes(Head::CausalLm, Dialect::Hf), &[]).unwrap(),
                [""; 0]
            );
            let notes = weights.notes();
            assert!(notes.len() == 1 && notes[0].starts_with("1 scales of activations"), "{notes:?}");
            for (name, numbers) in numbers {
                let tensor = weights.tensor(&name, &tensors[&name].1).unwrap();
                assert!(tensor.is_scaled());
                let mut read = vec![0.0f32; tensor.len()];
                tensor.widen(0, &mut read);
                assert_eq!(read, numbers, "{i} {name}");
                assert!(tensor.bytes().chunks(4).zip(&numbers).all(|(b, x)| b == x.to_le_bytes()), "{i} {name}");
                let columns = tensor.shape()[1];
                let mut rows = vec![0.0f64; 2 * columns - 1];
                tensor.rows(3..6).widen(1, &mut rows);
                assert!(rows.iter().zip(&numbers[3 * columns + 1..]).all(|(a, b)| *a == f64::from(*b)), "{i} {name}");
            }
            weights.watch().check().unwrap();
        }
    }
}

#[test]
fn fused_experts_in_fp8_have_their_own_scales() {
    let config = fp8_config(json!(null));
    let mut tensors = plain(&config, Head::CausalLm);
    let rows: &Layout = &(|n, _| vec![n, 1], |_, k| [1, k], FileDtype::F32);
    let numbers = in_fp8(&mut tensors, rows, "_scale_inv");
    let of_expert =
        |name: &str| name.strip_suffix("_scale_inv").filter(|name| name.contains(".experts.")).map(str::to_owned);
    let scales: Tensors =
        tensors.iter().filter_map(|(name, scales)| Some((of_expert(name)?, scales.clone()))).collect();
    tensors.retain(|name, _| of_expert(name).is_none());
    let mut tensors = fused(tensors);
    tensors.extend(fused(scales).into_iter().map(|(name, scales)| (format!("{name}_scale_inv"), scales)));
    let weights = opened(&tensors, &config, Head::CausalLm).unwrap();
    for (name, numbers) in numbers.iter().filter(|(name, _)| name.contains(".experts.")) {
        let shape = if name.contains("down_proj") { [32, 10] } else { [10, 32] };
        let mut read = vec![0.0f32; 320];
        weights.tensor(name, &shape).unwrap().widen(0, &mut read);
        assert_eq!(&read, numbers, "{name}");
    }
}

#[test]
fn what_is_wrong_with_fp8_is_said_by_the_name_of_the_tensor() {
    let name = "model.layers.0.self_attn.o_proj.weight";
    let refused = |change: &dyn Fn(&mut Tensors), config: &DeepseekV2Config| {
        let mut tensors = plain(config, Head::CausalLm);
        in_fp8(&mut tensors, &LAYOUTS[0], "_scale_inv");
        change(&mut tensors);
        let weights = opened(&tensors, config, Head::CausalLm).unwrap();
        let tensor = weights.tensor(name, &[32, 40]);
        let read = tensor.map(|tensor| drop(tensor.bytes())).and_then(|()| weights.watch().check());
        read.unwrap_err().to_string()
    };
    let (blocks, scales) = (fp8_config(json!([5, 7])), format!("{name}_scale_inv"));
    let set = |tensors: &mut Tensors, name: &str, at: usize, byte: &[u8]| {
        tensors.get_mut(name).unwrap().2[at..at + byte.len()].copy_from_slice(byte);
    };
    for (change, config, said) in [
        (
            &(|_: &mut Tensors| ()) as &dyn Fn(&mut Tensors),
            &config(json!({})),
            format!(
                "weight `{name}`: expected a type that config.json's quantization_config explains (it has none), found F8_E4M3"
            ),
        ),
        (
            &|tensors| drop(tensors.remove(&scales)),
            &blocks,
            format!("weight `{name}`: expected scales beside it (weight_scale_inv or weight_scale), found none"),
        ),
        (
            &|_| (),
            &fp8_config(json!([5, 8])),
            format!(
                "weight `{scales}`: expected scales [7, 5] (blocks of 5 x 8), [32, 1] (for each row) or [1], found shape [7, 6]"
            ),
        ),
        (
            &|tensors| set(tensors, &scales, 4, &f32::INFINITY.to_le_bytes()),
            &blocks,
            format!("weight `{scales}`: expected finite scales, found inf"),
        ),
        (
            &|tensors| set(tensors, name, 41, &[0xff]),
            &blocks,
            format!("weight `{name}`: expected finite numbers only, found NaN at [1, 1]"),
        ),
    ] {
        assert_eq!(refused(change, config), said);
    }
}

#[test]
fn a_nan_is_found_in_the_experts_that_are_read_and_in_no_others() {
    let config = config(json!({"num_hidden_layers": 2, "rope_scaling": null}));
    let plain = plain(&config, Head::CausalLm);
    let run = |tensors: &Tensors| {
        let weights = opened(tensors, &config, Head::CausalLm)?;
        let model = DeepseekV2ForCausalLM::<f32>::load(&config, Dialect::Hf, &weights)?;
        let input = ModelInput { tokens: Tokens::InputIds(array![[3]]), attention_mask: None, position_ids: None };
        let input = CausalLmInput { input, logits_to_keep: LogitsToKeep::default(), labels: None };
        model.forward(&input, None, &Run::default(), &mut NoTap).map(drop)
    };
    let spoilt = |name: &str, at: usize| {
        let mut tensors = plain.clone();
        tensors.get_mut(name).unwrap().2[at..at + 2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
        run(&tensors)
    };
    run(&plain).unwrap();
    let expert = |e: usize| format!("model.layers.1.mlp.experts.{e}.down_proj.weight");
    let found: Vec<_> =
        (0..8).filter_map(|e| spoilt(&expert(e), 26).err().map(|error| (e, error.to_string()))).collect();
    assert_eq!(found.len(), 3, "as many as are chosen for the one token");
    for (e, error) in found {
        assert_eq!(error, format!("weight `{}`: expected finite numbers only, found NaN at [1, 3]", expert(e)));
    }
    // the rows of the embedding that the tokens have, whatever else there is on the way
    assert!(spoilt("model.embed_tokens.weight", 64 * 4).is_ok());
    for (name, at) in [
        ("model.embed_tokens.weight", 64 * 3),
        ("model.layers.0.self_attn.q_b_proj.weight", 0),
        ("model.layers.1.mlp.gate.weight", 0),
        ("model.norm.weight", 0),
        ("lm_head.weight", 64),
    ] {
        let error = spoilt(name, at).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("weight `{name}`: expected finite numbers only, found NaN at [")),
            "{error}"
        );
    }
}

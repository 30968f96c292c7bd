use super::*;
use crate::Dtype;
use crate::weights::check_complete;
use crate::weights::finite::check_finite;
use crate::weights::generator::{GeneratedWeights, Rule, splitmix64};
use crate::weights::safetensors_file::{Data, write_safetensors};
use ndarray::arr1;
use serde_json::json;
use std::sync::Arc;

fn entries() -> Vec<Entry> {
    [
        ("model.embed_tokens.weight", Dtype::Bf16, [9, 4]),
        ("a.weight", Dtype::F32, [4, 8]),
        ("b.weight", Dtype::F16, [8, 4]),
    ]
    .map(|(name, dtype, shape)| Entry { name: name.into(), dtype, shape: shape.into() })
    .into()
}

fn make(entry: &Entry) -> Result<Tensor> {
    let seed = entry.name.len() as u64;
    let values =
        (0..entry.shape.iter().product::<usize>() as u64).map(|i| (splitmix64(seed + i) % 2001) as f64 - 1000.0);
    Ok(Tensor::from_values(entry.dtype, &entry.shape, values))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn refusal(result: Result<impl std::fmt::Debug>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn one_file_or_shards() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"hidden_size": 4, "model_type": "deepseek_v2"});
    // Sizes in bytes: 72, 128, 64.
    for (i, (limit, shards)) in
        [(None, 1), (Some(264), 1), (Some(263), 2), (Some(192), 2), (Some(10), 3)].iter().enumerate()
    {
        let dir = folder.path().join(format!("model-{i}"));
        write_checkpoint(&dir, &config, &entries(), make, *limit).unwrap();
        let found = files(&dir);
        let expected = if *shards == 1 { 2 } else { shards + 2 };
        assert_eq!(found.len(), expected, "{found:?}");
        assert_eq!(serde_json::from_slice::<Value>(&fs::read(dir.join("config.json")).unwrap()).unwrap(), config);
        if *shards > 1 {
            assert_eq!(found[1], format!("model-00001-of-0000{shards}.safetensors"));
            let index: Value = serde_json::from_slice(&fs::read(dir.join(INDEX)).unwrap()).unwrap();
            assert_eq!(index["metadata"]["total_size"], 264);
            assert_eq!(index["weight_map"].as_object().unwrap().len(), 3);
        }
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let expected: Vec<_> = entries().into_iter().map(|entry| (entry.name, entry.shape)).collect();
        check_complete(&checkpoint, &expected, &[]).unwrap();
        for entry in entries() {
            let read = checkpoint.tensor(&entry.name, &entry.shape).unwrap();
            assert_eq!((read.dtype(), read.bytes()), (entry.dtype, make(&entry).unwrap().bytes()));
        }
    }
}

#[test]
fn what_a_config_says_is_written_with_the_same_meaning_and_nothing_that_a_terminal_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "\u{1b}[2J\u{9b}2J\u{202e}\u{7f}"});
    let dir = folder.path().join("model");
    write_checkpoint(&dir, &config, &entries(), make, None).unwrap();
    let text = fs::read_to_string(dir.join("config.json")).unwrap();
    assert!(!text.chars().any(|c| c != '\n' && dsv2_foreign::is_harmful(c)), "{text:?}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), config);
}

#[test]
fn generated_weights_become_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let rule = Rule { suffix: "weight".into(), mean: 0.0, std: None, gain: Some(1.0) };
    let source = GeneratedWeights { seed: 3, rules: vec![rule] };
    let mut entries = entries();
    entries.iter_mut().for_each(|entry| entry.dtype = Dtype::Bf16);
    let dir = folder.path().join("model");
    fs::create_dir(&dir).unwrap();
    write_checkpoint(&dir, &json!({}), &entries, |entry| source.tensor(&entry.name, &entry.shape), None).unwrap();
    let bytes = fs::read(dir.join(SINGLE)).unwrap();
    let checkpoint = Checkpoint::from_bytes("embedded", Arc::new(bytes)).unwrap();
    assert_eq!(
        checkpoint.tensor("a.weight", &[4, 8]).unwrap().bytes(),
        source.tensor("a.weight", &[4, 8]).unwrap().bytes()
    );
    assert_eq!(
        refusal(checkpoint.tensor("c", &[1])),
        "weight `c`: expected shape [1], found no such tensor in embedded"
    );
    assert_eq!(
        refusal(checkpoint.tensor("a.weight", &[8, 4])),
        "weight `a.weight`: expected shape [8, 4], found shape [4, 8] in embedded"
    );
}

#[test]
fn nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    let twice = [entries(), entries()].concat();
    let fails = |entry: &Entry| if entry.name == "b.weight" { Err(Error::weight("b", "x", "y")) } else { make(entry) };
    let other = |entry: &Entry| make(&Entry { dtype: Dtype::F64, ..entry.clone() });
    assert!(refusal(write_checkpoint(&dir, &json!({}), &twice, make, None)).contains("`a.weight` again"));
    assert!(refusal(write_checkpoint(&dir, &json!({}), &twice, make, Some(1))).contains("only once"));
    assert!(refusal(write_checkpoint(&dir, &json!({}), &entries(), fails, Some(100))).contains("`b`"));
    assert!(refusal(write_checkpoint(&dir, &json!({}), &entries(), other, None)).contains("found F64 of shape"));
    assert!(
        refusal(write_checkpoint(&dir.join("x"), &json!({}), &entries(), make, None)).contains("model/x: cannot write")
    );
    assert!(refusal(write_checkpoint(Path::new("."), &json!({}), &entries(), make, None)).starts_with(".: expected "));
    assert_eq!(files(folder.path()), [""; 0]);

    write_checkpoint(&dir, &json!({}), &entries(), make, None).unwrap();
    let refused = refusal(write_checkpoint(&dir, &json!({}), &entries(), make, None));
    assert!(
        refused.ends_with("expected no such path or an empty folder, found a folder with files in it"),
        "{refused}"
    );
    let refused = refusal(write_checkpoint(&dir.join("config.json"), &json!({}), &entries(), make, None));
    assert!(refused.ends_with("found a file"), "{refused}");
    assert_eq!(files(folder.path()), ["model"]);
    assert_eq!(files(&dir), ["config.json", "model.safetensors"]);
}

#[test]
fn damaged_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    let refused = |message: &str| {
        let refused = refusal(Checkpoint::open(&dir));
        assert!(refused.contains(message), "{refused}");
    };
    refused("model: expected a checkpoint folder, found no such folder");
    write_checkpoint(&dir, &json!({}), &entries(), make, Some(100)).unwrap();
    let shard = |i| dir.join(format!("model-0000{i}-of-00003.safetensors"));
    let index = fs::read_to_string(dir.join(INDEX)).unwrap();
    let with_index = |content: &str, message: &str| {
        fs::write(dir.join(INDEX), content).unwrap();
        refused(message);
    };
    with_index("", "model.safetensors.index.json: expected JSON, found no JSON: EOF");
    with_index("{\"weight_map\": {", "expected JSON, found no JSON: EOF");
    with_index("[1]", "expected an object with \"weight_map\", found none");
    with_index(r#"{"weight_map": []}"#, "to be an object from tensors to files, found []");
    with_index(r#"{"weight_map": {}}"#, "found {}");
    with_index(r#"{"weight_map": {"a": "b", "a": "c"}}"#, "expected JSON, found no JSON: the key `a` twice");
    with_index(r#"{"weight_map": {"a": 1}}"#, "expected the name of a file in the folder for `a`, found 1");
    with_index(r#"{"weight_map": {"a": "../a"}}"#, "for `a`, found \"../a\"");
    with_index(r#"{"weight_map": {"a": "/etc/passwd"}}"#, "for `a`, found \"/etc/passwd\"");
    with_index(r#"{"weight_map": {"a": "."}}"#, "for `a`, found \".\"");
    with_index(
        r#"{"weight_map": {"a": "x.safetensors"}}"#,
        "x.safetensors: expected a safetensors file, found no such file",
    );
    with_index(
        &index.replace("b.weight", "c.weight"),
        "expected the tensor `c.weight`, as model.safetensors.index.json says",
    );
    fs::write(dir.join(INDEX), &index).unwrap();

    let good = fs::read(shard(1)).unwrap();
    fs::write(shard(1), &good[..good.len() - 3]).unwrap();
    refused("model-00001-of-00003.safetensors: expected ");
    fs::write(shard(1), b"").unwrap();
    refused("found 0 bytes");
    fs::remove_file(shard(1)).unwrap();
    refused("model-00001-of-00003.safetensors: expected a safetensors file, found no such file");
    let extra = Data::Real(Tensor::from_values(Dtype::F32, &[1], [0.0]));
    let embed = Data::Real(make(&entries()[0]).unwrap());
    let tensors = [("model.embed_tokens.weight".to_owned(), embed), ("b.weight".to_owned(), extra)];
    write_safetensors(&shard(1), &tensors).unwrap();
    refused("model-00003-of-00003.safetensors: expected `b.weight` in no other file, found it in ");
    fs::remove_file(dir.join(INDEX)).unwrap();
    refused("model: expected model.safetensors or model.safetensors.index.json in the folder, found neither");
    assert!(refusal(Checkpoint::open(&shard(2))).ends_with("expected a checkpoint folder, found a file"));
}

#[test]
fn only_finite_floats_are_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SINGLE);
    let mut tensors = vec![("ids".to_owned(), Data::Index(arr1(&[1, 2]).into_dyn()))];
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64] {
        let largest = [3.3e38, 65504.0, f64::from(f32::MAX), f64::MAX];
        let tiny = [1e-40, 6e-8, 1e-45, 5e-324];
        for (i, x) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, largest[dtype as usize], tiny[dtype as usize]]
            .iter()
            .enumerate()
        {
            let mut values = vec![1.0; 300 * 70];
            values[270 * 70 + 3] = *x;
            values[280 * 70] = *x;
            tensors.push((format!("{dtype:?}{i}"), Data::Real(Tensor::from_values(dtype, &[300, 70], values))));
        }
    }
    write_safetensors(&path, &tensors).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let refused = refusal(checkpoint.tensor("ids", &[2]));
    assert!(refused.ends_with("model.safetensors: expected BF16, F16, F32 or F64 for `ids`, found I64"), "{refused}");
    for dtype in ["Bf16", "F16", "F32", "F64"] {
        for (i, value) in ["NaN", "inf", "-inf"].iter().enumerate() {
            let name = format!("{dtype}{i}");
            let expected = format!("weight `{name}`: expected finite numbers only, found {value} at [270, 3]");
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let tensor = checkpoint.tensor(&name, &[300, 70]).unwrap();
            tensor.rows(0..270).bytes();
            tensor.widen(275 * 70, &mut [0.0f32; 70]);
            assert!(checkpoint.watch().check().is_ok(), "{name}: what is read is finite");
            tensor.bytes();
            assert_eq!(refusal(checkpoint.watch().check()), expected);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            checkpoint.tensor(&name, &[300, 70]).unwrap().widen(280 * 70, &mut [0.0f64; 70]);
            assert_eq!(refusal(checkpoint.watch().check()), expected, "a row shows that, and the first is named");
        }
        for extreme in ["3", "4"] {
            checkpoint.tensor(&format!("{dtype}{extreme}"), &[300, 70]).unwrap().bytes();
            assert!(checkpoint.watch().check().is_ok(), "the largest and the smallest {dtype} are numbers");
        }
    }
    let empty = Tensor::from_values(Dtype::Bf16, &[0, 3], []);
    assert!(check_finite("empty", &empty).is_ok());
    let scalar = Tensor::from_values(Dtype::F32, &[], [f64::NAN]);
    assert!(refusal(check_finite("scalar", &scalar)).ends_with("found NaN at []"));
}

#[test]
fn no_index_makes_it_panic() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    write_checkpoint(&dir, &json!({}), &entries(), make, Some(100)).unwrap();
    let good = fs::read(dir.join(INDEX)).unwrap();
    for round in 0..500 {
        let random = |i: u64, below: usize| (splitmix64(splitmix64(round) + i) % below as u64) as usize;
        let mut bytes = good.clone();
        let at = random(1, bytes.len());
        match random(2, 3) {
            0 => bytes[at] = random(3, 256) as u8,
            1 => bytes.truncate(at),
            _ => bytes[at] = b"/.0{}[]\",:"[random(3, 10)],
        }
        fs::write(dir.join(INDEX), bytes).unwrap();
        match Checkpoint::open(&dir) {
            Ok(checkpoint) => assert_eq!(checkpoint.names().unwrap().len(), 3),
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
}

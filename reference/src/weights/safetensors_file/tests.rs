use std::fs;
use std::sync::Arc;

use super::*;
use crate::weights::generator::splitmix64;
use ndarray::{IxDyn, arr0, arr2};

fn samples() -> Vec<(String, Data)> {
    let real = |dtype, shape: &[usize], values: &[f64]| Data::Real(Tensor::from_values(dtype, shape, values.to_vec()));
    [
        ("model.norm", real(Dtype::Bf16, &[3], &[1.0, -2.5, 0.0])),
        ("model.layers.0.self_attn.attn_scores", real(Dtype::F32, &[1, 2], &[f64::NEG_INFINITY, 0.1])),
        ("half", real(Dtype::F16, &[1], &[0.5])),
        ("loss", real(Dtype::F64, &[], &[0.1])),
        ("input_ids", Data::Index(arr2(&[[0, 7, -100], [i64::MAX, 2, 3]]).into_dyn())),
        ("num_items_in_batch", Data::Index(arr0(5).into_dyn())),
        ("mask", Data::Bool(arr2(&[[true, false, true]]).into_dyn())),
        ("nothing", Data::Index(ArrayD::zeros(IxDyn(&[2, 0])))),
    ]
    .map(|(name, data)| (name.to_owned(), data))
    .to_vec()
}

/// Whether a file holds just that under `name`.
fn holds(file: &SafetensorsFile, name: &str, data: &Data) -> bool {
    let Some(Raw { dtype, shape, bytes }) = file.raw(name) else { return false };
    let written: Vec<u8> = match data {
        Data::Real(tensor) => tensor.bytes().to_vec(),
        Data::Index(a) => a.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::Bool(a) => a.iter().map(|&x| x.into()).collect(),
    };
    (dtype, shape, bytes) == (data.file_dtype(), data.shape(), &written)
}

/// The bytes of a file with this header, followed by `data`.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn from(bytes: &[u8]) -> Result<SafetensorsFile> {
    SafetensorsFile::from_bytes("f", Arc::new(bytes.to_vec()))
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.safetensors");
    write_safetensors(&path, &samples()).unwrap();
    let read = SafetensorsFile::open(&path).unwrap();
    let names = read.names();
    assert_eq!(names.len(), samples().len());
    for (name, data) in samples() {
        assert!(holds(&read, &name, &data), "{name}: {data:?} {:?}", read.raw(&name));
    }
    // Eight-byte elements first, then the order in which they were given.
    assert_eq!(names[..4], ["loss", "input_ids", "num_items_in_batch", "nothing"]);
    assert_eq!(names[5..], ["model.norm", "half", "mask"]);
    // A reader of the format's own agrees, and finds the tensors aligned.
    let bytes = fs::read(&path).unwrap();
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(length % 8, 0);
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn damaged_files_are_refused() {
    let one = |entry: &str, data: &[u8]| file(&format!(r#"{{"w":{entry}}}"#), data);
    let good = one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, &[0; 8]);
    assert!(from(&good).is_ok());
    let two = r#"{"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    // Both say the same, so that no offset is wrong.
    let twins = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let huge = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    for (bytes, message) in [
        (vec![], "f: expected a safetensors file, at least 8 bytes long, found 0 bytes"),
        (good[..7].to_vec(), "found 7 bytes"),
        (huge(u64::MAX), "found a header length of 18446744073709551615"),
        (huge(1 << 40), "f: expected a safetensors header within the file's 70 bytes, found a header length of 10"),
        (good[..good.len() - 1].to_vec(), "f: expected 70 bytes, as the header says, found 69 bytes"),
        ([&good[..], &[0]].concat(), "f: expected 70 bytes, as the header says, found 71 bytes"),
        (good[..40].to_vec(), "found a header length of 54"),
        (file("{", &[]), "f: expected a safetensors header, found no such JSON: EOF"),
        (file("[]", &[]), "found no such JSON: invalid type: sequence, expected an object of tensors"),
        (file("\u{fffd}", &[]).iter().map(|&b| b | 0x80).collect(), "f: expected"),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#, &[0; 12]),
            "f: expected tensors without gap or overlap, `w` from byte 0 on, found data_offsets [4, 12]",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, &[0; 4]),
            "f: expected 8 bytes for `w`, F32 [2], found data_offsets [0, 4]",
        ),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, &[0; 8]), "`w` from byte 0 on"),
        (one(r#"{"dtype":"F32","shape":[0],"data_offsets":[0,-1]}"#, &[]), "found no such JSON: `w`: invalid value"),
        (one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#, &[0; 8]), "`w`: invalid value: integer `-2`"),
        (one(r#"{"dtype":"F\n3","shape":[2],"data_offsets":[0,8]}"#, &[0; 8]), r"`w`: unknown variant `F\n3`"),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#, &[0; 8]),
            "f: expected a possible shape for `w`, found F32 [4294967296, 4294967296]",
        ),
        (one(r#"{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}"#, &[]), "a possible shape"),
        (one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#, &[0]), "a possible shape for `w`, found F4 [3]"),
        (
            file(two, &[0; 3]),
            "f: expected tensors without gap or overlap, `w` from byte 2 on, found data_offsets [1, 3]",
        ),
        (file(twins, &[0]), "f: expected one tensor `w`, found two of that name"),
        (file(r#"{"__metadata__":{"a":1}}"#, &[]), "found no such JSON: `__metadata__`: invalid type: integer `1`"),
        (file(&" ".repeat(100_000), &[]), "found no such JSON: EOF"),
    ] {
        let refused = from(&bytes).unwrap_err().to_string();
        assert!(refused.contains(message), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
    }
}

#[test]
fn weights_are_real_numbers_and_there() {
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]},
        "b":{"dtype":"BOOL","shape":[1],"data_offsets":[1,2]}}"#;
    let file = from(&file(header, &[1, 2])).unwrap();
    let refused = |name: &str| file.real(name).unwrap_err().to_string();
    assert_eq!(refused("a"), "f: expected BF16, F16, F32 or F64 for `a`, found F8_E4M3");
    assert_eq!(refused("b"), "f: expected BF16, F16, F32 or F64 for `b`, found BOOL");
    assert_eq!(refused("c\n"), "f: expected a tensor `c\\n`, found none");
}

#[test]
fn files_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| SafetensorsFile::open(path).unwrap_err().to_string();
    assert!(refused(&folder.path().join("x")).ends_with("x: expected a safetensors file, found no such file"));
    assert!(refused(folder.path()).ends_with("expected a file, found a folder"));
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(refused(&empty).ends_with("empty: expected a safetensors file, at least 8 bytes long, found 0 bytes"));
    assert!(refused(&empty.join("x")).contains("empty/x: cannot read: "));
}

#[test]
fn nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let left = || fs::read_dir(folder.path()).unwrap().count();
    let twice = [samples(), samples()].concat();
    let refused = write_safetensors(&path, &twice).unwrap_err().to_string();
    assert!(refused.ends_with("t.safetensors: expected distinct names of tensors, found `loss` again"), "{refused}");
    assert_eq!(left(), 0);

    write_safetensors(&path, &samples()).unwrap();
    let mapped = SafetensorsFile::open(&path).unwrap();
    write_safetensors(&path, &samples()[..1]).unwrap();
    assert_eq!(left(), 1);
    assert_eq!(SafetensorsFile::open(&path).unwrap().names().len(), 1);
    assert!(samples().iter().all(|(name, data)| holds(&mapped, name, data)), "the old map is unharmed");

    let refused = write_safetensors(folder.path(), &samples()).unwrap_err().to_string();
    assert!(refused.ends_with("expected a file to write, found a folder"), "{refused}");
    let refused = write_safetensors(&folder.path().join("no/t"), &samples()).unwrap_err().to_string();
    assert!(refused.contains("no/t: cannot write: "), "{refused}");
    assert!(write_safetensors(Path::new("/"), &samples()).is_err() && write_safetensors(Path::new(".."), &[]).is_err());
}

#[test]
fn no_bytes_make_it_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    write_safetensors(&path, &samples()).unwrap();
    let good = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let (mut opened, mut refused) = (0, 0);
    for round in 0..20_000 {
        let random = |i: u64, below: usize| (splitmix64(splitmix64(round) + i) % below as u64) as usize;
        let mut bytes = good.clone();
        for i in 0..1 + random(0, 3) as u64 {
            let at =
                random(10 * i + 1, if random(10 * i + 2, 4) > 0 { header } else { bytes.len() }).min(bytes.len() - 1);
            match random(10 * i + 3, 6) {
                0 => bytes[at] ^= 1 << random(10 * i + 4, 8),
                1 => bytes[at] = random(10 * i + 4, 256) as u8,
                2 => bytes[at] = b"0123456789-[]{},:\"\\eE."[random(10 * i + 4, 22)],
                3 => bytes.truncate(at + 1),
                4 => bytes.insert(at, b"0123456789\n"[random(10 * i + 4, 11)]),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                break;
            }
            // Most insertions are caught by the header's length; let some through.
            if random(10 * i + 5, 2) == 0 && bytes.len() >= 8 {
                let length = (header + bytes.len()).saturating_sub(8 + good.len()) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
        match from(&bytes) {
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().contains('\n'), "{error}");
            }
            Ok(file) => {
                opened += 1;
                for name in file.names() {
                    if let Ok(tensor) = file.real(&name) {
                        assert_eq!(tensor.to_array::<f64, IxDyn>().shape(), tensor.shape());
                    }
                }
            }
        }
    }
    assert!(opened > 500 && refused > 500, "{opened} opened, {refused} refused: both sides are tried");
}

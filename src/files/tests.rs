//! The same tensors in every format, as NumPy, PyTorch and safetensors wrote them ([golden/files](../../golden/files)).

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::values::Values;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/files").join(name)
}

fn bits(a: &ndarray::ArrayD<f64>) -> Vec<Option<u64>> {
    a.iter().map(|x| (!x.is_nan()).then(|| x.to_bits())).collect()
}

fn same(got: &Values, want: &Values) -> bool {
    match (got, want) {
        (Values::Real(_, got), Values::Real(_, want)) => (got.shape(), bits(got)) == (want.shape(), bits(want)),
        (got, want) => got == want,
    }
}

/// Holds every tensor of a file against the truth. Gives the types of the numbers that are no Values of ours.
fn held_against(name: &str, truth: &str) -> usize {
    let (file, truth) = (TensorFile::open(&path(name)).unwrap(), TensorFile::open(&path(truth)).unwrap());
    for name in file.names() {
        let true_values = |name: &str| match truth.tensor(name) {
            Ok(Decoded::Values(values)) => values,
            other => panic!("{name}: {other:?}"),
        };
        match file.tensor(name).unwrap() {
            Decoded::Values(values) => assert!(same(&values, &true_values(name)), "{name}: {values:?}"),
            Decoded::Narrow(_, a) => {
                let values = Values::Real(dsv2_reference::Dtype::Bf16, a);
                assert!(same(&values, &true_values(name)), "{name}: {values:?}");
                // each is a bf16 number, so that nothing is lost
                let data = dsv2_reference::weights::safetensors_file::Data::from(&values);
                let dsv2_reference::weights::safetensors_file::Data::Real(tensor) = data else { panic!("{name}") };
                assert_eq!(bits(&tensor.to_array()), bits(values.real().unwrap()), "{name}");
            }
            Decoded::Complex(dtype, [re, im]) => {
                assert!(same(&Values::Real(dtype, re), &true_values(&format!("{name}.re"))), "{name}");
                assert!(same(&Values::Real(dtype, im), &true_values(&format!("{name}.im"))), "{name}");
            }
        }
    }
    file.names().len()
}

#[test]
fn rows_are_those_of_the_whole_tensor_wherever_they_lie_as_they_are() {
    let given = |name: &str| {
        let file = TensorFile::open(&path(name)).unwrap();
        let mut given = 0;
        for tensor in file.names() {
            let Ok(Decoded::Values(whole)) = file.tensor(tensor) else { continue };
            if whole.is_empty() {
                continue;
            }
            let count = whole.len().checked_div(whole.shape().last().copied().unwrap_or(1)).unwrap_or(0);
            let Some(rows) = file.rows(tensor, 0..count).unwrap() else { continue };
            assert!(same(&rows.in_shape(whole.shape()).unwrap(), &whole), "{name}: {tensor}");
            let one = file.rows(tensor, count.saturating_sub(1)..count).unwrap().unwrap();
            assert_eq!(one.len() * count, whole.len(), "{name}: {tensor}");
            assert!(file.rows(tensor, count..count + 1).unwrap().is_none(), "{name}: {tensor} has no more rows");
            given += 1;
        }
        given
    };
    assert!(given("types.safetensors") > 10 && given("types.pt") > 10 && given("types.npz") > 10);
    assert_eq!(given("compressed.npz"), 0, "its rows lie nowhere");
}

#[test]
fn every_type_is_read_out_of_every_format() {
    for (name, tensors) in [
        ("types.safetensors", 20),
        ("types.pt", 20),
        ("protocol-5.pt", 20),
        ("types.npz", 15),
        ("compressed.npz", 15),
        ("turned.npz", 15),
        ("float32.npy", 1),
    ] {
        println!("{name}");
        assert_eq!(held_against(name, "truth.safetensors"), tensors);
    }
}

#[test]
fn views_of_one_storage_and_nested_structures_are_read() {
    assert_eq!(held_against("views.pt", "views-truth.safetensors"), 9);
    assert_eq!(TensorFile::open(&path("alone.pt")).unwrap().names(), ["alone"]);
}

/// Reads all that a file holds. Whatever the bytes are, this ends, in numbers or in one line.
fn read_all(name: &str, bytes: Vec<u8>) -> bool {
    let one_line = |error: Error| {
        let line = error.to_string();
        assert!(!line.chars().any(char::is_control) && line.chars().count() < 1500, "{line}");
    };
    let file = match TensorFile::from_bytes(Path::new(name), Arc::new(bytes)) {
        Ok(file) => file,
        Err(error) => {
            one_line(error);
            return false;
        }
    };
    let read = file.names().iter().filter_map(|name| file.tensor(name).map_err(one_line).ok()).count();
    read == file.names().len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_are_read_or_refused_in_one_line(
        which in 0..6_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let names = ["types.pt", "protocol-5.pt", "views.pt", "types.npz", "compressed.npz", "float32.npy"];
        let mut bytes = std::fs::read(path(names[which])).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(names[which], bytes);
    }

    /// The pickle alone is damaged, or anything: its storages are in order.
    #[test]
    fn any_pickle_is_followed_or_refused_in_one_line(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        swap in any::<[prop::sample::Index; 3]>(),
    ) {
        let mut bytes = std::fs::read(path("views.pt")).unwrap();
        let archive = Archive::open(Arc::new(bytes.clone())).unwrap();
        let pickle = archive.stored("views/data.pkl").unwrap();
        let start = pickle.as_ptr() as usize - archive.stored("views/data.pkl").unwrap().as_ptr() as usize;
        let at = bytes.windows(pickle.len()).position(|window| window == pickle).unwrap() + start;
        let length = pickle.len();
        drop(archive);
        let pickle = &mut bytes[at..at + length];
        for (place, byte) in damage {
            let place = place.index(pickle.len());
            pickle[place] = byte;
        }
        // a piece of it once more, elsewhere
        let [from, to, pieces] = swap;
        let (from, to, size) = (from.index(length), to.index(length), pieces.index(40));
        let size = size.min(length - from.max(to));
        pickle.copy_within(from..from + size, to);
        read_all("views.pt", bytes);
    }
}

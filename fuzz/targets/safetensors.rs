//! Any bytes as a safetensors file, and every tensor that it is said to hold, as a weight and as a stage.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use dsv2::files::TensorFile;
use dsv2_fuzz::check_message;
use dsv2_fuzz::files::with_length_prefix;
use dsv2_fuzz::memory::bounded;
use dsv2_reference::weights::safetensors_file::SafetensorsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes.to_vec());
    read(with_length_prefix(bytes));
});

fn read(bytes: Vec<u8>) {
    let (length, bytes) = (bytes.len(), Arc::new(bytes));
    let file = match bounded(length, 4, || SafetensorsFile::from_bytes("f", bytes.clone())) {
        Ok(file) => file,
        Err(error) => return check_message(&error),
    };
    let stages = TensorFile::from_bytes(Path::new("f"), bytes).expect("it was read before");
    for name in file.names() {
        let shape = file.shape(&name).expect("a tensor that is there").to_vec();
        // A byte may become a number of eight, twice where the numbers are looked through before.
        if let Err(error) = bounded(length, 16, || stages.tensor(&name)) {
            check_message(&error);
        }
        match file.real(&name) {
            Err(error) => check_message(&error),
            Ok(tensor) => {
                assert_eq!(tensor.shape(), shape);
                let mut values = vec![0.0f64; tensor.len()];
                tensor.widen(0, &mut values);
            }
        }
    }
}

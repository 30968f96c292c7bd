//! Any bytes as a safetensors file, and every tensor that it is said to hold.

#![no_main]

use std::sync::Arc;

use dsv2_fuzz::check_message;
use dsv2_fuzz::files::with_length_prefix;
use dsv2_fuzz::memory::bounded;
use dsv2_reference::weights::safetensors_file::{Data, SafetensorsFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes.to_vec());
    read(with_length_prefix(bytes));
});

fn read(bytes: Vec<u8>) {
    let length = bytes.len();
    let file = match bounded(length, 4, || SafetensorsFile::from_bytes("f", Arc::new(bytes))) {
        Ok(file) => file,
        Err(error) => return check_message(&error),
    };
    for name in file.names() {
        let shape = file.shape(&name).expect("a tensor that is there").to_vec();
        // A byte may become an integer of eight.
        match bounded(length, 8, || file.data(&name)) {
            Err(error) => check_message(&error),
            Ok(data) => {
                assert_eq!(data.shape(), shape);
                if let Data::Real(tensor) = data {
                    let mut values = vec![0.0f64; tensor.len()];
                    tensor.widen(0, &mut values);
                }
            }
        }
    }
}

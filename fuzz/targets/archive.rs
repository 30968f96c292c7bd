//! Any bytes as a file of tensors: .npz, .npy and .pt by their first bytes. Seeds are the files of `golden/files` and
//! `golden/hostile/archive`.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use dsv2::files::TensorFile;
use dsv2_fuzz::check_message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = match TensorFile::from_bytes(Path::new("f.pt"), Arc::new(bytes.to_vec())) {
        Ok(file) => file,
        Err(error) => return check_message(&error),
    };
    for name in file.names() {
        if let Err(error) = file.tensor(name) {
            check_message(&error);
        }
    }
});

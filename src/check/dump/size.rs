//! How much a dump takes, before any of it is decoded.

use std::path::Path;

use dsv2_reference::stage::canonical;
use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::files::TensorFile;
use crate::planned::Planned;
use crate::trace::is_named;

/// So many times the elements of a stage a tensor of its name may have: padded batches and lengths have more rows.
const MOST_ROWS: u64 = 1024;
/// A tensor of so many elements is decoded whatever its shape, for the verdict to say what is wrong with it.
const SMALL: u64 = 1 << 20;

/// How many elements of a file are decoded: those of the tensors that are named as stages. `planned` are the stages of the model.
///
/// # Errors
/// If the file cannot be read, or a large tensor of it is far from any shape that its stage could have.
pub fn elements(path: &Path, planned: &IndexMap<String, Planned>) -> Result<u64> {
    let file = TensorFile::open(path)?;
    let mut all = 0_u64;
    for name in file.names().iter().filter(|name| is_named(name)) {
        let Some((_, shape)) = file.lies_as(name) else {
            // nobody knows: as if all of it were F32
            let bytes = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
            return Ok(bytes / 4);
        };
        let elements = shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64));
        if let Some(own) = planned.get(canonical(name))
            && elements > own.elements().saturating_mul(MOST_ROWS).max(SMALL)
        {
            let expected = format!("`{name}` of shape {:?}, or with some more rows", own.shape);
            return Err(Error::file(path, expected, format!("shape {shape:?}")));
        }
        all = all.saturating_add(elements);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Dtype;
    use dsv2_reference::weights::safetensors_file::StreamedFile;

    use super::*;

    fn refusal(stage: &str, shape: &[usize]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.safetensors");
        let bytes = shape.iter().product::<usize>() * 2;
        let mut file = StreamedFile::create(&path, [(stage, Some(Dtype::Bf16), shape)]).unwrap();
        file.append(stage, &vec![0; bytes]).unwrap();
        file.finish().unwrap();
        let planned = Planned { dtype: Some(Dtype::F32), shape: vec![1, 4, 8] };
        let planned = IndexMap::from([("lm_head".to_owned(), planned)]);
        elements(&path, &planned).err().map(|error| error.to_string().replace(&path.display().to_string(), "DUMP"))
    }

    #[test]
    fn a_large_tensor_of_no_possible_shape_is_refused_undecoded() {
        let large = [1, 1 << 18, 8];
        assert_eq!(
            refusal("lm_head", &large).unwrap(),
            "DUMP: expected `lm_head` of shape [1, 4, 8], or with some more rows, found shape [1, 262144, 8]"
        );
        assert_eq!(refusal("anything", &large), None, "it is not looked at");
        assert_eq!(refusal("lm_head", &[1, 4096, 8]), None);
    }
}

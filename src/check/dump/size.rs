//! How much a dump takes, before any of it is decoded.

use std::collections::BTreeSet;
use std::path::Path;

use dsv2_reference::stage::convention::name::{OtherName, other_name, unwrapped};
use dsv2_reference::stage::{self, Stage, canonical};
use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::files::TensorFile;
use crate::planned::Planned;
use crate::trace::is_named;

/// So many times the elements of a stage a tensor of its name may have: padded batches and lengths have more rows.
const MOST_ROWS: u64 = 1024;
/// A tensor of so many elements is decoded whatever its shape, for the verdict to say what is wrong with it.
const SMALL: u64 = 1 << 20;

/// Whether a tensor is left undecoded: a large one that is named as a stage, but as none of this model, such as one of a layer
/// behind its last. `planned` are the stages of the model.
pub fn is_left(name: &str, elements: u64, planned: &IndexMap<String, Planned>) -> bool {
    let bare = unwrapped(name).map(|(bare, _)| bare);
    let stage = canonical(bare.as_deref().unwrap_or(name));
    let own = Stage::parse(stage).map(|_| stage.to_owned());
    let parts =
        |(other, layer): (&'static OtherName, usize)| other.holds.iter().map(move |part| stage::name(part.kind, layer));
    let mut meant = own.into_iter().chain(other_name(stage).into_iter().flat_map(parts)).peekable();
    elements > SMALL && meant.peek().is_some() && meant.all(|stage| !planned.contains_key(&stage))
}

/// What is decoded of files.
#[derive(Debug, Default)]
pub struct Elements {
    /// The elements of all tensors that are named as stages.
    pub in_files: u64,
    /// Those of them that are judged: the rows that belong to tokens, of the layers that are asked for.
    pub judged: u64,
    /// The names of these tensors.
    pub names: BTreeSet<String>,
}

impl Elements {
    /// And those of another file.
    pub fn add(&mut self, other: Elements) {
        self.in_files = self.in_files.saturating_add(other.in_files);
        self.judged = self.judged.saturating_add(other.judged);
        self.names.extend(other.names);
    }

    fn tensor(&mut self, name: String, elements: u64, judged: u64) {
        self.in_files = self.in_files.saturating_add(elements);
        self.judged = self.judged.saturating_add(judged);
        self.names.insert(name);
    }
}

/// How much of a file is decoded. `planned` are the stages of the model, and `asked_for` those of them that are judged, in the
/// shapes that they are judged in.
///
/// # Errors
/// If the file cannot be read, or a large tensor of it is far from any shape that its stage could have.
pub fn elements(
    path: &Path,
    planned: &IndexMap<String, Planned>,
    asked_for: &IndexMap<String, Planned>,
) -> Result<Elements> {
    let file = TensorFile::open(path)?;
    let mut all = Elements::default();
    for name in file.names().iter().filter(|name| is_named(name)) {
        let Some((_, shape)) = file.lies_as(name) else {
            // nobody knows: as if all of it were F32
            let bytes = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
            return Ok(Elements { in_files: bytes / 4, judged: bytes / 4, ..Elements::default() });
        };
        let elements = shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64));
        if let Some(own) = planned.get(canonical(name))
            && elements > own.elements().saturating_mul(MOST_ROWS).max(SMALL)
        {
            let expected = format!("`{name}` of shape {:?}, or with some more rows", own.shape);
            return Err(Error::file(path, expected, format!("shape {shape:?}")));
        }
        if is_left(name, elements, planned) {
            continue;
        }
        let bare = unwrapped(name).map_or_else(|| canonical(name).to_owned(), |(bare, _)| bare);
        let judged = match (asked_for.get(&bare), planned.contains_key(&bare)) {
            (Some(own), _) => elements.min(own.elements()),
            (None, true) => 0,
            (None, false) => elements,
        };
        all.tensor(bare, elements, judged);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Dtype;
    use dsv2_reference::weights::safetensors_file::StreamedFile;

    use super::*;
    use crate::trace::Trace;

    fn refusal(stage: &str, shape: &[usize]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.safetensors");
        let bytes = shape.iter().product::<usize>() * 2;
        let mut file = StreamedFile::create(&path, [(stage, Some(Dtype::Bf16), shape)]).unwrap();
        file.write(stage, 0, &vec![0; bytes]).unwrap();
        file.finish().unwrap();
        let planned = Planned { dtype: Some(Dtype::F32), shape: vec![1, 4, 8] };
        let planned = IndexMap::from([("lm_head".to_owned(), planned)]);
        elements(&path, &planned, &planned)
            .err()
            .map(|error| error.to_string().replace(&path.display().to_string(), "DUMP"))
    }

    #[test]
    fn a_large_tensor_of_no_stage_of_this_model_is_not_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.safetensors");
        let shape = [1, 1 << 18, 8];
        let names = ["model.norm", "model.layers.77.mlp", "module.model.layers.77"];
        let tensors = names.map(|name| (name, Some(Dtype::Bf16), &shape[..]));
        let mut file = StreamedFile::create(&path, tensors).unwrap();
        for name in names {
            file.write(name, 0, &vec![0; 1 << 22]).unwrap();
        }
        file.finish().unwrap();
        let planned = Planned { dtype: Some(Dtype::F32), shape: shape.to_vec() };
        let planned = IndexMap::from([("model.norm".to_owned(), planned)]);
        let found = elements(&path, &planned, &IndexMap::default()).unwrap();
        assert_eq!((found.in_files, found.judged), (1 << 21, 0), "it is read, and of no layer that is asked for");
        let part = Planned { dtype: Some(Dtype::F32), shape: vec![1, 1 << 17, 8] };
        let found = elements(&path, &planned, &IndexMap::from([("model.norm".to_owned(), part)])).unwrap();
        assert_eq!((found.in_files, found.judged), (1 << 21, 1 << 20), "half of its rows belong to tokens");
        let dump = Trace::read_but(&path, |name, elements| is_left(name, elements, &planned)).unwrap();
        assert_eq!(dump.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["model.norm"]);
        assert_eq!(dump.unread(), ["model.layers.77.mlp", "module.model.layers.77"]);
        assert!(!is_left("model.layers.77.mlp", 1 << 10, &planned), "a small one is for the verdict to speak of");
        let own = Planned { dtype: Some(Dtype::F32), shape: shape.to_vec() };
        let planned = IndexMap::from([("model.layers.0.mlp.up_proj".to_owned(), own)]);
        assert!(!is_left("model.layers.0.mlp.gate_up_proj", 1 << 30, &planned), "it holds a stage under another name");
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

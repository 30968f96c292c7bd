//! What `torch.save` writes: a zip archive with a pickle of the structure (`data.pkl`) and one member for each storage.
//!
//! The pickle is a program. It is followed only as far as it builds dictionaries, lists and tensors (`pickle.rs`); whatever else
//! it would call is refused by its name, and nothing is ever run.

mod pickle;

use std::borrow::Cow;

use indexmap::IndexMap;

use super::Refusal;
use super::archive::Archive;
use super::element::{Decoded, Element, KNOWN};
use crate::error::one_line;
use pickle::{Built, Stored};

/// How deep dictionaries and lists may lie in each other.
const DEEPEST: usize = 16;

/// How long all names may be together: a list that holds one key a thousand times is short in a file.
const NAMES: usize = 1 << 24;

/// An open file.
pub struct TorchFile {
    archive: Archive,
    /// The folder that all members lie in, with a slash behind it.
    folder: String,
    tensors: IndexMap<String, Stored>,
}

impl TorchFile {
    /// Whether a zip archive is one of `torch.save`, or of its relatives.
    pub fn is_one(archive: &Archive) -> bool {
        folder(archive).is_some()
    }

    /// Reads the structure. `alone` is the name of a tensor that has none.
    ///
    /// # Errors
    /// If the archive is no such file, or holds something else than tensors.
    pub fn open(archive: Archive, alone: &str) -> Result<Self, Refusal> {
        let folder = folder(&archive).ok_or_else(|| Refusal::new("a file of torch.save", "no data.pkl"))?;
        let is_program = archive.names().any(|name| name.starts_with(&format!("{folder}code/")));
        if is_program {
            return Err(Refusal::new("tensors (torch.save of a dictionary of tensors)", "a program (torch.jit.save)"));
        }
        if let Ok(order) = archive.stored(&format!("{folder}byteorder"))
            && order != b"little"
        {
            return Err(Refusal::new("little-endian tensors", String::from_utf8_lossy(order)));
        }
        let built = pickle::read(archive.stored(&format!("{folder}data.pkl"))?)?;
        let tensors = named(&built, alone)?;
        Ok(TorchFile { archive, folder, tensors })
    }

    /// The names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The type and the shape of a tensor, if its type is one of ours and it is no larger than the file.
    pub fn lies_as(&self, name: &str) -> Option<(Element, &[usize])> {
        let stored = self.tensors.get(name)?;
        let element = element(&stored.dtype)?;
        element.bytes(&stored.shape).filter(|&bytes| bytes <= self.archive.length())?;
        Some((element, &stored.shape))
    }

    /// The bytes of a tensor where they lie, if they lie there row by row.
    pub fn in_order(&self, name: &str) -> Option<&[u8]> {
        let (stored, (element, _)) = (self.tensors.get(name)?, self.lies_as(name)?);
        let storage = self.archive.stored(&format!("{}data/{}", self.folder, stored.storage)).ok()?;
        match gathered(stored, element, storage, self.archive.length()).ok()? {
            Cow::Borrowed(bytes) => Some(bytes),
            Cow::Owned(_) => None,
        }
    }

    /// Decodes a tensor.
    ///
    /// # Errors
    /// If there is none, it is of another type than ours, or does not lie within its storage.
    pub fn tensor(&self, name: &str) -> Result<Decoded, Refusal> {
        let stored = self.tensors.get(name).ok_or_else(|| Refusal::new("a tensor", "none"))?;
        let element = element(&stored.dtype).ok_or_else(|| Refusal::new(KNOWN, &stored.dtype))?;
        let storage = self.archive.stored(&format!("{}data/{}", self.folder, stored.storage))?;
        let bytes = gathered(stored, element, storage, self.archive.length())?;
        element.decode(&bytes, &stored.shape)
    }
}

/// The folder of `data.pkl`, with a slash behind it: `archive/`, or the name that the file had when it was saved.
fn folder(archive: &Archive) -> Option<String> {
    let folder = archive.names().find_map(|name| name.strip_suffix("data.pkl"))?;
    (folder.is_empty() || folder.matches('/').count() == 1 && folder.ends_with('/')).then(|| folder.to_owned())
}

/// The tensors of a structure, each by the keys and places on the way to it.
fn named(built: &Built, alone: &str) -> Result<IndexMap<String, Stored>, Refusal> {
    let too_large = || {
        let expected = format!("a structure at most {DEEPEST} deep, with at most {NAMES} bytes of names");
        Refusal::new(expected, "a larger one")
    };
    let mut tensors = IndexMap::new();
    let mut open = vec![(String::new(), 0, built.root())];
    let mut left = NAMES;
    while let Some((path, depth, item)) = open.pop() {
        if let Some(stored) = built.tensor(item) {
            let name = if path.is_empty() { alone.to_owned() } else { path };
            if tensors.contains_key(&name) {
                return Err(Refusal::new(format!("one tensor `{}`", one_line(&name)), "two of that name"));
            }
            tensors.insert(name, stored.clone());
            continue;
        }
        let first = open.len();
        // numbers, texts and what else is in such files is no tensor, and of no interest
        for (key, item) in built.inside(item) {
            if depth == DEEPEST {
                return Err(too_large());
            }
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            left = left.checked_sub(path.len() + 1).ok_or_else(too_large)?;
            open.push((path, depth + 1, item));
        }
        open[first..].reverse();
    }
    Ok(tensors)
}

/// The elements of a tensor one after another, out of a storage in which they may lie in any order, more than once.
fn gathered<'a>(stored: &Stored, element: Element, storage: &'a [u8], file: usize) -> Result<Cow<'a, [u8]>, Refusal> {
    let Stored { offset, shape, strides, .. } = stored;
    let size = element.size();
    let held = storage.len() / size;
    let described = || format!("shape {shape:?}, strides {strides:?} and offset {offset}");
    let outside = || Refusal::new(format!("a tensor within its storage of {held} elements"), described());
    if shape.len() != strides.len() {
        return Err(Refusal::new("as many strides as axes", described()));
    }
    // strides of 0 make a large tensor out of a small storage
    let bytes = element.bytes(shape).filter(|&bytes| bytes <= file.max(storage.len()));
    let bytes = bytes.ok_or_else(|| Refusal::new("a tensor no larger than its file", described()))?;
    if bytes == 0 {
        return Ok(Cow::Borrowed(&[]));
    }
    let reach = shape
        .iter()
        .zip(strides)
        .try_fold(*offset, |last, (&n, &stride)| (n - 1).checked_mul(stride).and_then(|far| last.checked_add(far)));
    if reach.is_none_or(|last| last >= held) {
        return Err(outside());
    }
    let in_order =
        (0..shape.len()).all(|axis| shape[axis] == 1 || strides[axis] == shape[axis + 1..].iter().product::<usize>());
    if in_order {
        return Ok(Cow::Borrowed(&storage[offset * size..offset * size + bytes]));
    }
    let mut gathered = Vec::with_capacity(bytes);
    let mut index = vec![0; shape.len()];
    let mut at = *offset;
    loop {
        gathered.extend_from_slice(&storage[at * size..(at + 1) * size]);
        // the next index: the last axis first
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else { break };
        index[axis] += 1;
        at += strides[axis];
        for axis in axis + 1..shape.len() {
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    Ok(Cow::Owned(gathered))
}

/// The type that a storage or a dtype of PyTorch stands for.
fn element(dtype: &str) -> Option<Element> {
    Some(match dtype.strip_prefix("torch.")? {
        "BoolStorage" | "bool" => Element::Bool,
        "ByteStorage" | "uint8" => Element::U8,
        "uint16" => Element::U16,
        "uint32" => Element::U32,
        "uint64" => Element::U64,
        "CharStorage" | "int8" => Element::I8,
        "ShortStorage" | "int16" => Element::I16,
        "IntStorage" | "int32" => Element::I32,
        "LongStorage" | "int64" => Element::I64,
        "float8_e4m3fn" => Element::F8E4M3,
        "float8_e5m2" => Element::F8E5M2,
        "float8_e4m3fnuz" => Element::F8E4M3Fnuz,
        "float8_e5m2fnuz" => Element::F8E5M2Fnuz,
        "float8_e8m0fnu" => Element::F8E8M0,
        "HalfStorage" | "float16" => Element::F16,
        "BFloat16Storage" | "bfloat16" => Element::Bf16,
        "FloatStorage" | "float32" => Element::F32,
        "DoubleStorage" | "float64" => Element::F64,
        "ComplexFloatStorage" | "complex64" => Element::C64,
        "ComplexDoubleStorage" | "complex128" => Element::C128,
        _ => return None,
    })
}

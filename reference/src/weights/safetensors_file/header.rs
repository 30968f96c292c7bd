//! The header of a safetensors file: read, and held against the shapes it names and the length of the file.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::one_line;
use crate::{Error, Result};

/// The format's own limit on the length of a header.
const LONGEST: u64 = 100_000_000;

/// Reads the header of the file that holds `bytes`, and returns where it ends. Whatever the bytes are, this ends in `Ok`
/// or `Err`; if it is `Ok`, every tensor lies within the bytes and is as long as its shape says.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let held = bytes.len();
    let refuse = |expected: String, found: String| Error::file(path, expected, found);
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(refuse("a safetensors file, at least 8 bytes long".into(), format!("{held} bytes")));
    };
    let length = u64::from_le_bytes(*length);
    if let Some(format) = super::foreign(bytes) {
        return Err(refuse("a safetensors file".into(), format.into()));
    }
    if length > rest.len() as u64 {
        let expected = format!("a safetensors header within the file's {held} bytes");
        return Err(refuse(expected, format!("a header length of {length}")));
    }
    if length > LONGEST {
        return Err(refuse(format!("a safetensors header of at most {LONGEST} bytes"), format!("one of {length}")));
    }
    let (start, header) = (8 + length as usize, &rest[..length as usize]);
    // The format wants the brace first; other readers tell a safetensors file by it.
    if !header.starts_with(b"{") && header.trim_ascii_start().starts_with(b"{") {
        return Err(refuse("a safetensors header that begins with {".into(), "space before it".into()));
    }
    let Entries(mut entries) = serde_json::from_slice(header)
        .map_err(|error| refuse("a safetensors header".into(), format!("no such JSON: {}", one_line(&error))))?;
    refuse_twins(&entries).map_err(|(expected, found)| refuse(expected, found))?;
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let described = lie_in_line(&entries).map_err(|(expected, found)| refuse(expected, found))?;
    if held - start != described {
        let expected = format!("{} bytes, as the header says", start as u128 + described as u128);
        return Err(refuse(expected, format!("{held} bytes")));
    }
    let header = Metadata::new(None, entries);
    Ok((start, header.map_err(|error| refuse("a safetensors header".into(), one_line(&error)))?))
}

/// What was expected and what was found.
type Refusal = (String, String);

/// Two tensors of one name would be a matter of luck: readers take the first or the last.
fn refuse_twins(entries: &[(String, TensorInfo)]) -> Result<(), Refusal> {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twins) => Err((format!("one tensor `{}`", one_line(twins[0])), "two of that name".into())),
        None => Ok(()),
    }
}

/// Checks that the tensors, sorted by their offsets, follow each other without gap or overlap, each with just the bytes
/// of its shape. Returns where the last one ends.
fn lie_in_line(entries: &[(String, TensorInfo)]) -> Result<usize, Refusal> {
    let mut next = 0;
    for (name, info) in entries {
        let name = one_line(name);
        let shape = one_line(&format!("{} {:?}", info.dtype, info.shape));
        let (start, end) = info.data_offsets;
        let offsets = format!("data_offsets [{start}, {end}]");
        let bytes = bytes_of(info).ok_or_else(|| (format!("a possible shape for `{name}`"), shape.clone()))?;
        if start != next {
            let expected = format!("tensors without gap or overlap, `{name}` from byte {next} on");
            return Err((expected, offsets));
        }
        if end.checked_sub(start) != Some(bytes) {
            return Err((format!("{bytes} bytes for `{name}`, {shape}"), offsets));
        }
        next = end;
    }
    Ok(next)
}

/// How many bytes a tensor takes. `None` if no array can have the shape (an empty tensor may claim an axis of any
/// length), or if it does not end with a byte.
fn bytes_of(info: &TensorInfo) -> Option<usize> {
    let widest = info.shape.iter().filter(|&&n| n > 0).try_fold(8usize, |size, &n| size.checked_mul(n))?;
    let bits = info.shape.iter().product::<usize>().checked_mul(info.dtype.bitsize())?;
    (widest <= isize::MAX as usize && bits.is_multiple_of(8)).then_some(bits / 8)
}

/// The tensors of a header as they stand there, before anything is known to be true.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let (mut entries, mut has_metadata) = (Vec::new(), false);
        while let Some(name) = map.next_key::<String>()? {
            let in_entry = |error: A::Error| {
                let error = error.to_string().replace("expected usize", "expected an integer >= 0");
                A::Error::custom(format_args!("`{name}`: {error}"))
            };
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("`__metadata__` twice"));
                }
                map.next_value::<Option<HashMap<String, String>>>().map_err(in_entry)?;
            } else {
                let info = map.next_value().map_err(in_entry)?;
                entries.push((name, info));
            }
        }
        Ok(Entries(entries))
    }
}

//! Zip archives, as NumPy and PyTorch write them.
//!
//! Only names and sizes are read at first. A member that is stored lies in the file as it is; one that is compressed is inflated
//! when it is asked for. What it says of its size is held against what its compressed bytes can be at most, and against the
//! limit for all of them, before any memory is taken for it.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;

use dsv2_reference::weights::safetensors_file::SharedBytes;
use flate2::read::DeflateDecoder;
use rawzip::{CompressionMethod, ZipArchive};

use super::Refusal;
use crate::error::one_line;

/// How many bytes of one file may be inflated altogether: 4 GiB.
pub const INFLATED: u64 = 4 << 30;

/// Deflate makes at most so many bytes out of one.
const LARGEST_RATIO: u64 = 1032;

/// The members of a zip archive, by their names.
pub struct Archive {
    bytes: SharedBytes,
    members: Vec<Member>,
    by_name: HashMap<String, usize>,
    /// How many bytes may still be inflated.
    left: Cell<u64>,
}

struct Member {
    name: String,
    /// Where its bytes lie in the file.
    range: Range<usize>,
    compressed: bool,
    /// How many bytes it has when it is not compressed.
    size: u64,
    crc: u32,
    /// Whether it counts already among what was inflated; it may be asked for again.
    counted: Cell<bool>,
}

impl Archive {
    /// Reads the directory of the archive.
    ///
    /// # Errors
    /// If it has none, a member does not lie within the file, is there twice, is encrypted or compressed in another way than
    /// by Deflate.
    pub fn open(bytes: SharedBytes) -> Result<Self, Refusal> {
        let held = (*bytes).as_ref();
        let damaged = |what: &dyn std::fmt::Display| Refusal::new("a zip archive in good order", what);
        let archive = ZipArchive::from_slice(held).map_err(|error| damaged(&error))?;
        let (mut members, mut by_name) = (Vec::new(), HashMap::new());
        let mut entries = archive.entries();
        while let Some(entry) = entries.next_entry().map_err(|error| damaged(&error))? {
            if entry.is_dir() {
                continue;
            }
            let path = entry.file_path();
            let name = std::str::from_utf8(path.as_bytes()).map_err(|_| damaged(&"a name that is no UTF-8"))?;
            let quoted = one_line(name);
            let compressed = match entry.compression_method() {
                _ if entry.flags().is_encrypted() => {
                    return Err(Refusal::new("a zip archive that is not encrypted", format!("`{quoted}`, which is")));
                }
                CompressionMethod::STORE => false,
                CompressionMethod::DEFLATE => true,
                other => {
                    let found = format!("{other:?} in `{quoted}`");
                    return Err(Refusal::new("a zip archive that is stored or compressed by Deflate", found));
                }
            };
            let size = entry.uncompressed_size_hint();
            let lies =
                archive.get_entry(entry.wayfinder()).map_err(|_| damaged(&format!("no bytes for `{quoted}`")))?;
            let (start, end) = lies.compressed_data_range();
            let range = start as usize..end as usize;
            if !compressed && size != range.len() as u64 {
                return Err(damaged(&format!("{size} bytes for `{quoted}`, which has {}", range.len())));
            }
            if by_name.insert(name.to_owned(), members.len()).is_some() {
                return Err(Refusal::new(format!("one member `{quoted}`"), "two of that name"));
            }
            members.push(Member {
                name: name.to_owned(),
                range,
                compressed,
                size,
                crc: entry.crc32(),
                counted: Cell::new(false),
            });
        }
        Ok(Archive { members, by_name, left: Cell::new(INFLATED), bytes })
    }

    /// The names of all members, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// How long the whole file is.
    pub fn length(&self) -> usize {
        (*self.bytes).as_ref().len()
    }

    /// The bytes of a member that is not compressed, where they lie.
    ///
    /// # Errors
    /// If there is no such member, or it is compressed.
    pub fn stored(&self, name: &str) -> Result<&[u8], Refusal> {
        let member = self.member(name)?;
        match member.compressed {
            true => Err(Refusal::new(format!("`{}` as it is", one_line(name)), "it compressed")),
            false => Ok(self.lies(member)),
        }
    }

    /// The bytes of a member, inflated if need be.
    ///
    /// # Errors
    /// If there is no such member, it is damaged, or it is too long.
    pub fn whole(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        let member = self.member(name)?;
        let bytes = match member.compressed {
            true => Cow::Owned(self.inflated(member)?),
            false => Cow::Borrowed(self.lies(member)),
        };
        match rawzip::crc32(&bytes) == member.crc {
            true => Ok(bytes),
            false => Err(Refusal::new("an undamaged member of the archive", "another checksum")),
        }
    }

    /// The first bytes of a member, at most `most`, inflated if need be; its checksum is not looked at.
    ///
    /// # Errors
    /// If there is no such member, or it is damaged.
    pub fn beginning(&self, name: &str, most: usize) -> Result<Cow<'_, [u8]>, Refusal> {
        let member = self.member(name)?;
        let lies = self.lies(member);
        if !member.compressed {
            return Ok(Cow::Borrowed(&lies[..lies.len().min(most)]));
        }
        let mut bytes = Vec::new();
        let read = DeflateDecoder::new(lies).take(most as u64).read_to_end(&mut bytes);
        read.map_err(|error| Refusal::new("a compressed member in good order", error))?;
        Ok(Cow::Owned(bytes))
    }

    fn inflated(&self, member: &Member) -> Result<Vec<u8>, Refusal> {
        let (size, held) = (member.size, member.range.len() as u64);
        let found = |size: u64| format!("{size} bytes out of {held}");
        if size > held.saturating_mul(LARGEST_RATIO) {
            return Err(Refusal::new(
                format!("at most {LARGEST_RATIO} times as many bytes as compressed"),
                found(size),
            ));
        }
        let new = if member.counted.get() { 0 } else { size };
        let Some(left) = self.left.get().checked_sub(new) else {
            let expected =
                format!("at most {INFLATED} bytes altogether (np.savez, which does not compress, has no limit)");
            return Err(Refusal::new(expected, found(size)));
        };
        self.left.set(left);
        member.counted.set(true);
        let mut bytes = Vec::with_capacity(size as usize);
        let read = DeflateDecoder::new(self.lies(member)).take(size + 1).read_to_end(&mut bytes);
        read.map_err(|error| Refusal::new("a compressed member in good order", error))?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(Refusal::new(format!("{size} bytes, as the archive says"), "another number")),
        }
    }

    fn member(&self, name: &str) -> Result<&Member, Refusal> {
        let found = self.by_name.get(name).and_then(|&index| self.members.get(index));
        found.ok_or_else(|| Refusal::new(format!("`{}` in the archive", one_line(name)), "none"))
    }

    fn lies(&self, member: &Member) -> &[u8] {
        &(*self.bytes).as_ref()[member.range.clone()]
    }
}

//! Writing safetensors files, one tensor in memory at a time, and never half a file.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use safetensors::{Dtype as FileDtype, tensor::Metadata, tensor::TensorInfo};

use super::{Data, to_file};
use crate::error::one_line;
use crate::file::unfinished::Unfinished;
use crate::{Dtype, Error, Result};

/// Writes a file of named tensors. They keep their order, except that wider types come first, so that every element
/// lies at a multiple of its size. A file that exists is replaced, at once and only when the new one is complete.
///
/// # Errors
/// If a name occurs twice, or the file cannot be written; then there is no file, or the old one.
pub fn write_safetensors(path: &Path, tensors: &[(String, Data)]) -> Result<()> {
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_by_key(|(_, data)| wide_first(data.file_dtype()));
    let entries = tensors.iter().map(|(name, data)| (name.as_str(), data.file_dtype(), data.shape()));

    let unfinished = Unfinished::beside(path)?;
    let mut file = FileWriter::with_types(unfinished.path(), path, entries)?;
    for (_, data) in &tensors {
        file.append(&bytes_of(data))?;
    }
    file.finish()?;
    unfinished.finish()
}

/// The order of tensors in a file.
pub(super) fn wide_first(dtype: FileDtype) -> Reverse<usize> {
    Reverse(dtype.bitsize())
}

fn bytes_of(data: &Data) -> Cow<'_, [u8]> {
    match data {
        Data::Real(tensor) => tensor.bytes(),
        Data::Index(array) => array.iter().flat_map(|i| i.to_le_bytes()).collect(),
        Data::Bool(array) => array.iter().map(|&b| u8::from(b)).collect(),
    }
}

/// A file whose header is written, and whose tensors now follow in the header's order.
pub(crate) struct FileWriter {
    /// What messages call the file.
    shown: PathBuf,
    out: BufWriter<File>,
    remaining: u64,
}

impl FileWriter {
    /// Begins the file `path`, new or empty, which messages call `shown`, for tensors of real numbers.
    pub(crate) fn create<'a>(
        path: &Path,
        shown: &Path,
        tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
    ) -> Result<Self> {
        Self::with_types(path, shown, tensors.into_iter().map(|(name, dtype, shape)| (name, to_file(dtype), shape)))
    }

    pub(super) fn with_types<'a>(
        path: &Path,
        shown: &Path,
        tensors: impl IntoIterator<Item = (&'a str, FileDtype, &'a [usize])>,
    ) -> Result<Self> {
        let mut end = 0usize;
        let mut names = HashSet::new();
        let mut entries = Vec::new();
        for (name, dtype, shape) in tensors {
            if !names.insert(name) || name == "__metadata__" {
                return Err(Error::file(shown, "distinct names of tensors", format!("`{}` again", one_line(name))));
            }
            let start = end;
            let size = shape.iter().try_fold(dtype.bitsize() / 8, |size, &n| size.checked_mul(n));
            let Some(next) = size.and_then(|size| start.checked_add(size)) else {
                let expected = format!("a possible shape for `{}`", one_line(name));
                return Err(Error::file(shown, expected, format!("{shape:?}")));
            };
            end = next;
            entries.push((name.to_owned(), TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (start, end) }));
        }
        // Transformers refuses a checkpoint that does not say which framework's conventions it follows.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let header = Metadata::new(Some(format), entries)
            .map_err(|error| Error::file(shown, "tensors that can be written", one_line(&error)))?;
        let mut header = serde_json::to_vec(&header).expect("a header has text keys and no odd numbers");
        // Spaces up to a multiple of 8, so that the tensors are aligned.
        header.resize(header.len().next_multiple_of(8), b' ');

        let created = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = created.map_err(|source| cannot("create", shown, source))?;
        let whole = (8 + header.len() as u64).saturating_add(end as u64);
        reserve(&file, whole).map_err(|source| cannot("write", shown, source))?;
        let mut writer = FileWriter { shown: shown.to_owned(), out: BufWriter::new(file), remaining: end as u64 };
        writer.write(&(header.len() as u64).to_le_bytes())?;
        writer.write(&header)?;
        Ok(writer)
    }

    /// The bytes of the next tensor.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.remaining = self.remaining.checked_sub(bytes.len() as u64).expect("the header counted these bytes");
        self.write(bytes)
    }

    /// The file, behind its header, for whoever writes the tensors in another order; and where they begin.
    pub(super) fn into_file(mut self) -> Result<(File, u64)> {
        let start = self.out.stream_position().map_err(|source| cannot("write", &self.shown, source))?;
        let file = self.out.into_inner().map_err(|error| cannot("write", &self.shown, error.into_error()))?;
        Ok((file, start))
    }

    /// Ends the file, and reports what could not be written.
    pub(crate) fn finish(mut self) -> Result<()> {
        assert_eq!(self.remaining, 0, "as many bytes as the header says");
        self.out.flush().map_err(|source| cannot("write", &self.shown, source))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| cannot("write", &self.shown, source))
    }
}

/// Takes the room for all of the file: a full disk, or a limit on files, is known before the work, where the system can tell.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, bytes)) {
        Err(no_room @ (Errno::NOSPC | Errno::FBIG | Errno::DQUOT)) => Err(no_room.into()),
        // Not every file system can, and writing tells all the same.
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// An [`Error::Io`].
pub(crate) fn cannot(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source }
}

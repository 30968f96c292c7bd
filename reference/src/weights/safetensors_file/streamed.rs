//! A safetensors file whose tensors are written as they become known, piece by piece and in any order. Their types and shapes
//! are known before: the header stands in front.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype as FileDtype;

use super::to_file;
use super::write::{FileWriter, cannot, wide_first};
use crate::file::unfinished::Unfinished;
use crate::{Dtype, Error, Result};

/// A file that is being written. It has its name once it is whole.
pub struct StreamedFile {
    path: PathBuf,
    unfinished: Unfinished,
    file: File,
    places: HashMap<String, Place>,
}

/// Where a tensor lies, and how many bytes of it have been written.
struct Place {
    at: u64,
    length: u64,
    written: u64,
}

impl StreamedFile {
    /// Begins the file `path` for tensors of these names, types (integers, where there is none) and shapes. They lie in it as
    /// [`write_safetensors`](super::write_safetensors) puts them.
    ///
    /// # Errors
    /// If a name occurs twice, or the file cannot be made.
    pub fn create<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'a str, Option<Dtype>, &'a [usize])>,
    ) -> Result<Self> {
        let typed =
            |(name, dtype, shape): (&'a str, Option<Dtype>, _)| (name, dtype.map_or(FileDtype::I64, to_file), shape);
        let mut tensors: Vec<(&str, FileDtype, &[usize])> = tensors.into_iter().map(typed).collect();
        tensors.sort_by_key(|(_, dtype, _)| wide_first(*dtype));
        let unfinished = Unfinished::beside(path)?;
        let writer = FileWriter::with_types(unfinished.path(), path, tensors.iter().copied())?;
        let (file, mut at) = writer.into_file()?;
        let mut places = HashMap::new();
        for (name, dtype, shape) in tensors {
            let length = (dtype.bitsize() / 8 * shape.iter().product::<usize>()) as u64;
            places.insert(name.to_owned(), Place { at, length, written: 0 });
            at += length;
        }
        Ok(StreamedFile { path: path.to_owned(), unfinished, file, places })
    }

    /// Writes bytes of a tensor, from its byte `from` on. Each byte is written once, in whatever order; what is written anew is
    /// [begun again](Self::begin_again) before.
    ///
    /// # Errors
    /// If the file cannot be written, or the tensor is none of it or shorter than that.
    pub fn write(&mut self, name: &str, from: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let fits = |place: &&mut Place| {
            length <= place.length - place.written && from.checked_add(length).is_some_and(|end| end <= place.length)
        };
        let Some(place) = self.places.get_mut(name).filter(fits) else {
            return Err(Error::file(&self.path, format!("no more of `{name}`"), format!("{length} bytes")));
        };
        let written = self.file.seek(SeekFrom::Start(place.at + from)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| cannot("write", &self.path, source))?;
        place.written += length;
        Ok(())
    }

    /// What has been written of a tensor does not count.
    pub fn begin_again(&mut self, name: &str) {
        if let Some(place) = self.places.get_mut(name) {
            place.written = 0;
        }
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If a tensor is not whole, or the file cannot take the place of another.
    pub fn finish(self) -> Result<()> {
        if let Some((name, place)) = self.places.iter().find(|(_, place)| place.written < place.length) {
            let lacking = place.length - place.written;
            return Err(Error::file(&self.path, format!("all of `{name}`"), format!("{lacking} bytes less")));
        }
        self.unfinished.finish()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::super::{Data, write_safetensors};
    use super::*;
    use crate::Tensor;

    #[test]
    fn a_streamed_file_is_the_one_that_is_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let [at_once, streamed] = ["a", "b"].map(|name| folder.path().join(name));
        let narrow = Tensor::from_values(Dtype::Bf16, &[2, 1], [1.0, 2.0]);
        let wide = Tensor::from_values(Dtype::F32, &[1], [3.0]);
        let all = [
            ("narrow".to_owned(), Data::Real(narrow.clone())),
            ("index".to_owned(), Data::Index(array![7].into_dyn())),
            ("wide".to_owned(), Data::Real(wide.clone())),
        ];
        write_safetensors(&at_once, &all).unwrap();
        let planned: [(&str, Option<Dtype>, &[usize]); 3] =
            [("narrow", Some(Dtype::Bf16), &[2, 1]), ("index", None, &[1]), ("wide", Some(Dtype::F32), &[1])];
        let mut file = StreamedFile::create(&streamed, planned).unwrap();
        file.write("narrow", 2, &narrow.bytes()[2..]).unwrap();
        file.write("wide", 0, &wide.bytes()).unwrap();
        file.write("narrow", 0, &narrow.bytes()[..2]).unwrap();
        let refused = [("wide", 0), ("wide", 4), ("wide", u64::MAX), ("other", 0)];
        assert!(refused.into_iter().all(|(name, from)| file.write(name, from, &[0]).is_err()));
        file.write("index", 0, &8_i64.to_le_bytes()).unwrap();
        file.begin_again("index");
        file.write("index", 0, &7_i64.to_le_bytes()).unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&at_once).unwrap(), std::fs::read(&streamed).unwrap());
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let planned: [(&str, Option<Dtype>, &[usize]); 1] = [("x", Some(Dtype::F32), &[1])];
        drop(StreamedFile::create(&path, planned).unwrap());
        let refused = StreamedFile::create(&path, planned).unwrap().finish().unwrap_err().to_string();
        assert!(refused.ends_with("a: expected all of `x`, found 4 bytes less"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

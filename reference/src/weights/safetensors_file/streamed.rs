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

/// Where the next bytes of a tensor belong, and how many it lacks.
struct Place {
    at: u64,
    lacking: u64,
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
            let lacking = (dtype.bitsize() / 8 * shape.iter().product::<usize>()) as u64;
            places.insert(name.to_owned(), Place { at, lacking });
            at += lacking;
        }
        Ok(StreamedFile { path: path.to_owned(), unfinished, file, places })
    }

    /// Whether there is such a tensor in it.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Writes the next bytes of a tensor.
    ///
    /// # Errors
    /// If the file cannot be written, or the tensor is none of it or longer than was said.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let Some(place) = self.places.get_mut(name).filter(|place| length <= place.lacking) else {
            return Err(Error::file(&self.path, format!("no more of `{name}`"), format!("{length} bytes")));
        };
        let written = self.file.seek(SeekFrom::Start(place.at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| cannot("write", &self.path, source))?;
        (place.at, place.lacking) = (place.at + length, place.lacking - length);
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If a tensor is not whole, or the file cannot take the place of another.
    pub fn finish(self) -> Result<()> {
        let mut lacking = self.places.iter().filter(|(_, place)| place.lacking > 0);
        if let Some((name, Place { lacking, .. })) = lacking.next() {
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
        file.append("narrow", &narrow.bytes()[..2]).unwrap();
        file.append("wide", &wide.bytes()).unwrap();
        file.append("narrow", &narrow.bytes()[2..]).unwrap();
        assert!(file.append("wide", &[0]).is_err() && file.append("other", &[0]).is_err());
        file.append("index", &7_i64.to_le_bytes()).unwrap();
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

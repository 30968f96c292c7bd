//! A trace that is written as it is computed: no stage is kept, and none is held in a wider type than it was computed in.

use std::path::Path;

use dsv2_reference::stage::{Layout, Stage, canonical};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::safetensors_file::StreamedFile;
use dsv2_reference::{Dtype, Real, Tensor};
use indexmap::IndexMap;

use super::with_infinity;
use crate::error::Result;
use crate::planned::Planned;

/// The sink of a run that feeds what is looked at in one chunk.
pub struct Stream {
    file: StreamedFile,
    planned: IndexMap<String, Planned>,
    refused: Option<dsv2_reference::Error>,
}

/// So many elements are converted at a time.
const PIECE: usize = 1 << 16;

impl Stream {
    /// Begins the file `path` for these stages; all others that the run computes are passed over.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path, planned: IndexMap<String, Planned>) -> Result<Self> {
        let tensors = planned.iter().map(|(name, planned)| (name.as_str(), planned.dtype, planned.shape.as_slice()));
        Ok(Stream { file: StreamedFile::create(path, tensors)?, planned, refused: None })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If something could not be written, or the run lacked a stage.
    pub fn finish(self) -> Result<()> {
        self.refused.map_or(Ok(()), Err)?;
        Ok(self.file.finish()?)
    }

    fn write<T: Real>(&mut self, name: &str, value: StageValue<'_, T>) -> Result<(), dsv2_reference::Error> {
        match value {
            StageValue::Index(indices) => {
                let bytes: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
                self.file.append(name, &bytes)
            }
            StageValue::Real(numbers) => {
                let dtype = self.planned.get(name).and_then(|planned| planned.dtype).unwrap_or(Dtype::F32);
                let scores = Stage::parse(name).is_some_and(|stage| stage.layout == Layout::Scores);
                let stored = |x: &T| {
                    let x = Real::to_f64(*x);
                    if scores { with_infinity(dtype, x) } else { x }
                };
                let mut rest = numbers.iter().map(stored);
                loop {
                    let piece: Vec<f64> = rest.by_ref().take(PIECE).collect();
                    if piece.is_empty() {
                        return Ok(());
                    }
                    self.file
                        .append(name, &Tensor::from_values(dtype, &[piece.len()], piece.iter().copied()).bytes())?;
                }
            }
        }
    }
}

impl<T: Real> Tap<T> for Stream {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let name = canonical(name);
        if self.refused.is_none() && self.file.has(name) {
            self.refused = self.write(name, value).err();
        }
    }
}

//! A dump as the model would write it: every tensor that is named as a stage is one of this model's, in its shape. It is read by
//! the tensor.

use std::path::Path;

use dsv2_reference::Dtype;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::canonical;
use indexmap::IndexMap;

use crate::case::Case;
use crate::check::dump::{by_most, told};
use crate::error::Result;
use crate::files::{Decoded, Element, TensorFile};
use crate::planned;
use crate::precision::Precision;
use crate::trace::{Trace, is_named};
use crate::values::Values;

/// A file of stages that need no interpretation.
pub struct PlainDump {
    file: TensorFile,
    /// Stages, and their names in the file.
    stages: IndexMap<String, String>,
    unread: Vec<String>,
    precision: Precision,
}

impl PlainDump {
    /// Opens a dump, of which `asked` may say what it was computed in; nothing, if it is no plain one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path, case: &Case, asked: Option<Precision>) -> Result<Option<Self>> {
        let file = TensorFile::open(path)?;
        let planned = planned::stages(case, AttentionForm::Expanded, Precision::F64);
        let (mut stages, mut unread, mut types) = (IndexMap::new(), Vec::new(), Vec::new());
        for name in file.names() {
            if !is_named(name) {
                unread.push(name.clone());
                continue;
            }
            let stage = canonical(name).to_owned();
            let (Some(planned), Some((element, shape))) = (planned.get(&stage), file.lies_as(name)) else {
                return Ok(None);
            };
            let fits =
                shape == planned.shape && kind(element).is_some_and(|dtype| dtype.is_some() == planned.dtype.is_some());
            if !fits || stages.insert(stage, name.clone()).is_some() {
                return Ok(None);
            }
            types.extend(kind(element).flatten());
        }
        let mut dump = PlainDump { file, stages, unread, precision: by_most(types.into_iter()) };
        if dump.stages.is_empty() {
            return Ok(None);
        }
        let computed = dump.computed_in()?;
        if computed.narrow().is_some() && computed != dump.precision && asked.is_none_or(|asked| asked == computed) {
            return Ok(None);
        }
        dump.precision = asked.unwrap_or(dump.precision);
        Ok(Some(dump))
    }

    /// In which type it was computed, as the numbers tell.
    fn computed_in(&self) -> Result<Precision> {
        let mut types = Vec::new();
        for name in self.stages.keys() {
            let values = self.stage(name)?;
            types.extend(values.and_then(|values| told(name, &values)).map(|told| told.dtype));
        }
        Ok(by_most(types.into_iter()))
    }

    /// What the candidate is taken to compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The stages that it holds.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stages.keys().map(String::as_str)
    }

    /// Whether it holds a stage.
    pub fn holds(&self, stage: &str) -> bool {
        self.stages.contains_key(stage)
    }

    /// The tensors that are named as no stage.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// Decodes a stage, if it holds it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn stage(&self, stage: &str) -> Result<Option<Values>> {
        let Some(name) = self.stages.get(stage) else { return Ok(None) };
        let Decoded::Values(values) = self.file.tensor(name)? else { return Ok(None) };
        // as a trace has it: masked scores are minus infinity
        let trace: Trace = [(stage.to_owned(), values)].into_iter().collect();
        Ok(trace.get(stage).cloned())
    }
}

/// The type of numbers, or none of whole numbers; nothing, if it is neither of these.
fn kind(element: Element) -> Option<Option<Dtype>> {
    match element {
        Element::F16 => Some(Some(Dtype::F16)),
        Element::Bf16 => Some(Some(Dtype::Bf16)),
        Element::F32 => Some(Some(Dtype::F32)),
        Element::F64 => Some(Some(Dtype::F64)),
        Element::U8 | Element::U16 | Element::U32 | Element::U64 => Some(None),
        Element::I8 | Element::I16 | Element::I32 | Element::I64 => Some(None),
        _ => None,
    }
}

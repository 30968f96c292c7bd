//! A dump as the model would write it: every tensor that is named as a stage is one of this model's, in its shape. It is read by
//! the tensor, out of one file or several.

use std::path::PathBuf;

use dsv2_reference::Dtype;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::canonical;
use indexmap::IndexMap;

use crate::case::{Case, Part};
use crate::check::dump::{Computed, Recognised, Told, by_most, computed, retyped, told};
use crate::check::request::Request;
use crate::check::shapes::part;
use crate::error::Result;
use crate::files::{Decoded, Element, TensorFile};
use crate::planned;
use crate::precision::Precision;
use crate::trace::{as_held, is_named};
use crate::values::Values;

/// Files of stages that need no interpretation.
pub struct PlainDump {
    files: Vec<TensorFile>,
    /// Stages: the file, and their names in it.
    stages: IndexMap<String, (usize, String)>,
    unread: Vec<String>,
    precision: Precision,
    /// What most of it was computed in, if it was saved in a wider type.
    saved_wider: Option<Dtype>,
    /// What is taken for granted of the whole dump.
    assumed: Vec<String>,
    /// What is said of the layers that are judged alone.
    says: Vec<Recognised>,
}

impl PlainDump {
    /// Opens a dump, and says what case it is of: one of some layers begins with what the dump holds before them. Nothing, if it
    /// is no plain one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(paths: &[PathBuf], request: &Request) -> Result<Option<(Self, Case)>> {
        let case = &request.case;
        let whole = Case { part: None, ..case.clone() };
        let planned = planned::stages(&whole, AttentionForm::Expanded, Precision::F64);
        let files = paths.iter().map(|path| TensorFile::open(path)).collect::<Result<Vec<_>>>()?;
        let (mut stages, mut unread, mut types) = (IndexMap::new(), Vec::new(), Vec::new());
        for (place, name) in
            files.iter().enumerate().flat_map(|(i, file)| file.names().iter().map(move |name| (i, name)))
        {
            if !is_named(name) {
                unread.push(name.clone());
                continue;
            }
            let stage = canonical(name).to_owned();
            let (Some(planned), Some((element, shape))) = (planned.get(&stage), files[place].lies_as(name)) else {
                return Ok(None);
            };
            let fits =
                shape == planned.shape && kind(element).is_some_and(|dtype| dtype.is_some() == planned.dtype.is_some());
            if !fits || stages.insert(stage, (place, name.clone())).is_some() {
                return Ok(None);
            }
            types.extend(kind(element).flatten());
        }
        let (precision, assumed) = (by_most(types.into_iter()), case.config.notes(case.dialect));
        let mut dump = PlainDump { files, stages, unread, precision, saved_wider: None, assumed, says: Vec::new() };
        if let Some(Computed { precision, dtype, says }) = computed(&dump.telling()?, dump.precision)
            && request.precision.is_none_or(|asked| asked == precision)
        {
            (dump.precision, dump.saved_wider) = (precision, Some(dtype));
            dump.assumed.push(says);
        }
        dump.precision = request.precision.unwrap_or(dump.precision);
        let case = dump.of_its_layers(case)?;
        Ok(Some((dump, case)).filter(|(dump, _)| !dump.stages.is_empty()))
    }

    /// What its tensors tell of the type in which they were computed.
    fn telling(&self) -> Result<Vec<Told>> {
        let mut telling = Vec::new();
        for name in self.stages.keys() {
            telling.extend(self.stage(name)?.and_then(|values| told(name, &values)));
        }
        Ok(telling)
    }

    /// The case, in which some layers begin with what the dump holds before them, if they are alone; all else is left out.
    fn of_its_layers(&mut self, case: &Case) -> Result<Case> {
        let mut case = case.clone();
        if let Some(Part { layers, .. }) = case.part.clone() {
            let before = self.stage(&part::entering(&layers))?;
            self.says = part::enter(&mut case, &layers, before.as_ref(), self.stages.keys().map(String::as_str))?;
            self.stages.retain(|name, _| part::is_inside(name, &layers));
        }
        Ok(case)
    }

    /// What the candidate is taken to compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What is taken for granted of the whole dump.
    pub fn assumed(&self) -> &[String] {
        &self.assumed
    }

    /// What is said of the layers that are judged alone.
    pub fn says(&self) -> &[Recognised] {
        &self.says
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
        let Some((file, name)) = self.stages.get(stage) else { return Ok(None) };
        let Decoded::Values(values) = self.files[*file].tensor(name)? else { return Ok(None) };
        let values = as_held(stage, values);
        Ok(Some(match self.saved_wider {
            Some(dtype) => retyped(values, dtype),
            None => values,
        }))
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

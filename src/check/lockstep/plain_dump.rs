//! A dump that need not be decoded for it to be known which of its tensors is which stage of this model. It is read by the tensor,
//! or some rows of one, out of one file or several.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use dsv2_reference::Dtype;
use dsv2_reference::stage::table::LM_HEAD;
use indexmap::IndexMap;

use super::pieces::{Held, numbers, pieces};
use super::ranks::Sources;
use super::source::Source;
use super::tensors::{Meant, Tensor, Tensors, meant_case, says_of_padding, stages_of};
use crate::case::{Case, Part};
use crate::check::align::Order;
use crate::check::dump::order::is_sequence_first;
use crate::check::dump::{Computed, Recognised, Seen, Told, by_most, computed, is_wide, told};
use crate::check::request::Request;
use crate::check::shapes::part;
use crate::error::{Error, Result};
use crate::files::{Element, TensorFile};
use crate::local::is_choice;
use crate::precision::Precision;
use crate::trace::as_held;
use crate::values::Values;

/// Files of stages that need no interpretation.
pub struct PlainDump {
    files: Rc<[TensorFile]>,
    stages: IndexMap<String, Tensor>,
    /// Pairs of stages that came in one tensor, and may be in it the other way round.
    pairs: Vec<[String; 2]>,
    unread: Vec<String>,
    precision: Precision,
    /// The stages that were saved in a wider type than most of it was computed in, and hold numbers of this type.
    saved_wider: BTreeMap<String, Dtype>,
    /// What is taken for granted of the whole dump.
    assumed: Vec<String>,
    /// What is said of the names of its tensors, and of the layers that are judged alone.
    says: Vec<Recognised>,
    /// What is said of their shapes: they have more rows or columns than the model, or fewer.
    says_of_shapes: Vec<Recognised>,
}

impl PlainDump {
    /// A dump of these tensors, and what case it is of: one of some layers begins with what the dump holds before them. Nothing, if
    /// it is no plain one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(files: &Rc<[TensorFile]>, sources: &Sources, request: &Request) -> Result<Option<(Self, Case)>> {
        let Sources { tensors, says, unread } = sources;
        let Some((Meant { case, last_tokens }, tensors)) = plain(files, tensors, &request.case)? else {
            return Ok(None);
        };
        let Tensors { stages, recognised, pairs, beyond_vocabulary } = tensors;
        let says = says.iter().cloned().chain(recognised).collect();
        let precision = by_most(stages.values().filter_map(|tensor| kind(tensor.source.element)));
        let assumed = case.config.notes(case.dialect);
        let (files, unread, saved_wider, says_of_shapes) = (files.clone(), unread.clone(), BTreeMap::new(), Vec::new());
        let mut dump =
            PlainDump { files, stages, pairs, unread, precision, saved_wider, assumed, says, says_of_shapes };
        if let Some(Computed { precision, dtype, says }) = computed(&dump.telling()?, dump.precision)
            && request.precision.is_none_or(|asked| asked == precision)
        {
            (dump.precision, dump.saved_wider) = (precision, dump.of_numbers_of(dtype)?);
            dump.assumed.push(says);
        }
        dump.precision = request.precision.unwrap_or(dump.precision);
        dump.assumed.extend(case.partial_sums.says(dump.precision));
        let case = dump.of_its_layers(&case)?;
        if let Some(padding) = beyond_vocabulary.filter(|_| dump.holds(LM_HEAD)) {
            dump.says_of_shapes.push(says_of_padding(&dump.files, &padding, case.config.vocab_size)?);
        }
        let extra = dump.stages.iter().filter_map(|(name, tensor)| Some((name, tensor.extra_rows.as_ref()?)));
        let extra = extra.map(|(name, says)| Recognised::new(name, says));
        let (choices, others): (Vec<_>, Vec<_>) = extra.partition(|says| is_choice(&says.stage));
        let last_tokens = last_tokens.map(|(_, says)| Recognised::new(LM_HEAD, &says));
        dump.says_of_shapes.extend(choices.into_iter().chain(last_tokens).chain(others));
        Ok(Some((dump, case)).filter(|(dump, _)| !dump.stages.is_empty()))
    }

    /// What its tensors tell of the type in which they were computed.
    fn telling(&self) -> Result<Vec<Told>> {
        let stored = self.stages.iter().filter_map(|(name, tensor)| Some((name, tensor, kind(tensor.source.element)?)));
        let mut telling = Vec::new();
        for (name, tensor, stored) in stored {
            telling.extend(told(name, stored, || self.numbers_of(tensor))?);
        }
        Ok(telling)
    }

    /// The narrow type that all numbers of a tensor have, if there is one, in whatever order they lie.
    fn numbers_of(&self, tensor: &Tensor) -> Result<Option<Dtype>> {
        let (source, mut seen) = (&tensor.source, Seen::default());
        if source.rows(&self.files, 0..0)?.is_some() {
            for piece in pieces(&source.shape) {
                let rows = source.rows(&self.files, piece)?;
                seen.add(rows.iter().flat_map(numbers).copied());
            }
        } else {
            let whole = source.whole(&self.files)?;
            seen.add(whole.iter().filter_map(Values::real).flatten().copied());
        }
        Ok(seen.dtype())
    }

    /// The stages that are stored in a wider type than this one, and hold numbers of it.
    fn of_numbers_of(&self, dtype: Dtype) -> Result<BTreeMap<String, Dtype>> {
        let mut found = BTreeMap::new();
        for (name, tensor) in &self.stages {
            let is_wider = kind(tensor.source.element).is_some_and(is_wide);
            if is_wider && self.numbers_of(tensor)? == Some(dtype) {
                found.insert(name.clone(), dtype);
            }
        }
        Ok(found)
    }

    /// The case, in which some layers begin with what the dump holds before them, if they are alone; all else is left out.
    fn of_its_layers(&mut self, case: &Case) -> Result<Case> {
        let mut case = case.clone();
        if let Some(Part { layers, .. }) = case.part.clone() {
            let before = self.stage(&part::entering(&layers))?;
            let held = self.stages.keys().map(String::as_str);
            self.says.extend(part::enter(&mut case, &layers, before.as_ref(), held)?);
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

    /// What is said of the names of its tensors, and of the layers that are judged alone.
    pub fn says(&self) -> &[Recognised] {
        &self.says
    }

    /// What is said of their shapes: they have more rows or columns than the model, or fewer.
    pub fn says_of_shapes(&self) -> &[Recognised] {
        &self.says_of_shapes
    }

    /// Whether a stage came in one tensor with another one, and may be the other part of it.
    pub fn may_be_the_other_part(&self, stage: &str) -> bool {
        self.pairs.iter().flatten().any(|part| part == stage)
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

    /// Decodes a stage, if it holds it: in the model's shape, if it lies row by row as the model has it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn stage(&self, stage: &str) -> Result<Option<Values>> {
        let Some(Tensor { source, shape, order, .. }) = self.stages.get(stage) else { return Ok(None) };
        let Some(mut values) = source.whole(&self.files)? else { return Ok(None) };
        if let Order::Rows(_) = order {
            values = values.in_shape(shape).ok_or_else(|| self.lacks(stage))?;
        }
        Ok(Some(match (as_held(stage, values), self.saved_wider.get(stage)) {
            (Values::Real(_, a), Some(dtype)) => Values::Real(*dtype, a),
            (values, _) => values,
        }))
    }

    /// The type that a stage was computed in, if it holds numbers of it.
    pub fn dtype(&self, stage: &str) -> Option<Dtype> {
        let stored = self.stages.get(stage).and_then(|tensor| kind(tensor.source.element));
        self.saved_wider.get(stage).copied().or(stored)
    }

    /// How a stage lies in its file, if it holds it.
    pub fn order(&self, stage: &str) -> Option<Order> {
        self.stages.get(stage).map(|tensor| tensor.order)
    }

    /// A stage, if it holds it, to be read some rows at a time as the model has them.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn held(&self, stage: &str) -> Result<Option<Held<'_>>> {
        let Some(Tensor { source, shape, .. }) = self.stages.get(stage) else { return Ok(None) };
        let one_by_one = source.rows(&self.files, 0..0)?.is_some();
        Ok(Some(Held::in_file(self, stage, shape.clone(), self.dtype(stage), one_by_one)))
    }

    /// Some rows of a stage that lies in its file as the model has it.
    ///
    /// # Errors
    /// If it does not.
    pub fn rows(&self, stage: &str, rows: Range<usize>) -> Result<Values> {
        let of = |tensor: &Tensor| tensor.source.rows(&self.files, rows);
        let found = self.stages.get(stage).map(of).transpose()?.flatten();
        found.map(|values| as_held(stage, values)).ok_or_else(|| self.lacks(stage))
    }

    /// A stage is no longer where it was.
    pub fn lacks(&self, stage: &str) -> Error {
        Error::request("--candidate", format!("`{stage}` as before"), "none")
    }
}

/// What these tensors are, and what case they are of; nothing, if they are no plain dump, as their names, types and shapes tell.
///
/// # Errors
/// If they hold caches of different tokens, or one cannot be read.
pub fn plain(files: &[TensorFile], tensors: &[Source], case: &Case) -> Result<Option<(Meant, Tensors)>> {
    let meant = meant_case(tensors, case)?;
    let Some(found) = stages_of(files, tensors, &meant)? else { return Ok(None) };
    let came = found.stages.iter().map(|(name, tensor)| (name.as_str(), tensor.source.shape.as_slice()));
    let turned = is_sequence_first(came, meant.case.inputs.batch(), meant.case.inputs.length());
    Ok(if turned { None } else { Some((meant, found)) })
}

/// The type of numbers; nothing, if they are whole ones.
pub fn kind(element: Element) -> Option<Dtype> {
    match element {
        Element::F16 => Some(Dtype::F16),
        Element::Bf16 => Some(Dtype::Bf16),
        Element::F32 => Some(Dtype::F32),
        Element::F64 => Some(Dtype::F64),
        _ => None,
    }
}

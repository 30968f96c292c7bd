//! A dump against what somebody says that it should be: both are read some rows at a time. What they are allowed is what the model errs
//! in their types, in both forms of attention together, as runs say that are compared with the truth stage by stage, two at a time.

mod passes;

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use dsv2_metrics::Comparing;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::{Stage, canonical, forward_order};
use indexmap::{IndexMap, IndexSet};

use super::measured::{is_compared_with_help_of, is_routing};
use super::pieces::{Held, numbers, pieces};
use super::plain_dump::kind;
use super::source::Source;
use super::tensors::numbers as are_numbers;
use super::{PlainDump, Reached, Sources};
use crate::budget::{self, Budgets, FACTORS, Spreading};
use crate::check::Request;
use crate::check::align::{self, Order};
use crate::check::dump::by_most;
use crate::error::{Error, Result};
use crate::files::TensorFile;
use crate::judge::{self, Disposition, StageVerdict, Truth, Verdict};
use crate::local::plain;
use crate::planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::{Trace, as_held};
use crate::values::Values;
use passes::Passes;

/// What the stages should be, in a file.
pub struct Expected {
    files: Rc<[TensorFile]>,
    stages: IndexMap<String, Source>,
    precision: Precision,
}

/// What came of it.
pub struct Judged {
    pub verdict: Verdict,
    /// All stages of the model, in order.
    pub names: IndexSet<String>,
    /// What was read in another way than it came, and in which.
    pub readings: Vec<(String, &'static str)>,
}

impl Expected {
    /// Opens it; nothing, if a tensor has to be decoded for it to be known what it is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let files: Rc<[TensorFile]> = Rc::new([TensorFile::open(path)?]);
        let Some(Sources { tensors, .. }) = Sources::of(&files) else { return Ok(None) };
        let precision = by_most(tensors.iter().filter_map(|source| kind(source.element)));
        let mut stages = IndexMap::new();
        for source in tensors {
            if are_numbers(source.element).is_none()
                || stages.insert(canonical(&source.name).to_owned(), source).is_some()
            {
                return Ok(None);
            }
        }
        Ok(Some(Expected { files, stages, precision }))
    }

    /// A stage in the model's shape.
    fn whole(&self, name: &str, shape: &[usize]) -> Result<Option<Values>> {
        let Some(source) = self.stages.get(name) else { return Ok(None) };
        Ok(source.whole(&self.files)?.and_then(|values| values.in_shape(shape)).map(|values| as_held(name, values)))
    }

    /// A stage to be read some rows at a time.
    fn held(&self, name: &str, shape: &[usize]) -> Result<Option<impl Fn(Range<usize>) -> Result<Values>>> {
        let Some(source) = self.stages.get(name) else { return Ok(None) };
        let alike = source.shape.last() == shape.last();
        let decoded = match alike && source.rows(&self.files, 0..0)?.is_some() {
            true => None,
            false => self.whole(name, shape)?.map(Held::decoded),
        };
        let damaged = || Error::request("--expected", format!("`{}` as before", source.name), "none");
        Ok(Some(move |rows: Range<usize>| match &decoded {
            Some(decoded) => decoded.rows(rows),
            None => source.rows(&self.files, rows)?.map(|values| as_held(name, values)).ok_or_else(damaged),
        }))
    }
}

/// Judges a dump by what it should be; nothing, if it has to be read whole.
///
/// # Errors
/// If the reference refuses the case, or the expected tensors are not the model's.
pub fn judge(request: &Request, dump: &PlainDump, expected: &Expected, reached: Reached<'_>) -> Result<Option<Judged>> {
    let rows = ComparedRows::of(&request.case.inputs);
    let planned = planned::stages(&request.case, AttentionForm::Expanded, Precision::F64);
    if !dump.names().any(|name| expected.stages.contains_key(name)) {
        return Ok(None);
    }
    let mut passes =
        Passes { request, dump, rows: &rows, planned: &planned, names: None, readings: Vec::new(), reached };
    let Some(mut total) = passes.noise(dump.precision())? else { return Ok(None) };
    let own = match plain(expected.precision) == plain(dump.precision()) {
        true => total.clone(),
        false => match passes.noise(expected.precision)? {
            Some(own) => own,
            None => return Ok(None),
        },
    };
    for (stage, noise) in &mut total {
        *noise = own.get(stage).map_or(*noise, |own| noise.zip(own, |a, b| a + b));
    }
    let Passes { names, readings, .. } = passes;
    if align::are_mixed(dump.names(), |name| planned.get(name)?.shape.last().copied(), &readings) {
        return Ok(None);
    }
    // in the order of the model
    let in_model = |name: &str| planned.contains_key(name) && (dump.holds(name) || is_compared_with_help_of(name));
    for (name, source) in expected.stages.iter().filter(|(name, _)| in_model(name)) {
        let shape = &planned[name].shape;
        let long = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if long(&source.shape) != long(shape) {
            let found = format!("shape {:?}", source.shape);
            return Err(Error::request("--expected", format!("`{name}` of shape {shape:?}"), found));
        }
        if are_numbers(source.element) != Some(planned[name].dtype.is_some()) {
            return Ok(None);
        }
    }
    let (mut routing, mut should_be) = (Trace::default(), Trace::default());
    let (mut spreads, mut compared) = (IndexMap::new(), Vec::new());
    for name in planned.keys().filter(|name| in_model(name)) {
        let shape = &planned[name].shape;
        if is_routing(name) {
            let turned = |got| turned(name, got, shape, &readings, request);
            routing = dump.stage(name)?.map(turned).into_iter().fold(routing, |all, got| all.with(name, got));
            if let Some(want) = expected.whole(name, shape)? {
                spreads.extend(budget::spread(name, &want, &rows).map(|spread| (name.clone(), spread)));
                should_be = should_be.with(name, want);
            }
            continue;
        }
        let (Some(held), Some(want), Some(stage)) = (dump.held(name)?, expected.held(name, shape)?, Stage::parse(name))
        else {
            continue;
        };
        let is_turned = readings.iter().any(|(read, says)| read == name && !align::in_rows(says));
        let held = match is_turned || dump.order(name) == Some(Order::Other) {
            true => dump.stage(name)?.map_or(held, |got| Held::decoded(turned(name, got, shape, &readings, request))),
            false => held,
        };
        let counted = rows.of_stage(&stage, shape);
        let (mut off, mut spread) = (Comparing::new(shape), Spreading::new(stage, shape));
        for piece in pieces(shape) {
            let counted = counted.as_deref().map(|rows| &rows[piece.clone()]);
            let (got, want) = (held.rows(piece.clone())?, want(piece)?);
            off.add(numbers(&got), numbers(&want), counted);
            spread.add(numbers(&want), counted);
        }
        spreads.insert(name.clone(), spread.finish());
        compared.push((name, off.finish()));
    }
    let budgets = Budgets::by_spread(&budget::carried(total), |name| spreads.get(name).copied(), |_| true, FACTORS);
    let truth = Truth { trace: &should_be, budgets: &budgets, rows: &rows };
    let mut verdict = judge::judge(&routing, &truth, None, |_| false);
    let of_numbers = compared.into_iter();
    verdict
        .stages
        .extend(of_numbers.map(|(name, off)| judge::of_comparison(name, &planned[name].shape, off, budgets.get(name))));
    let unsaid = planned.keys().filter(|name| dump.holds(name) && !expected.stages.contains_key(*name));
    verdict.stages.extend(unsaid.map(|name| StageVerdict::new(name, Disposition::NotCompared)));
    verdict.stages.sort_by_key(|stage| forward_order(&stage.stage));
    Ok(names.map(|names| Judged { verdict, names, readings }))
}

/// A stage as it was read.
fn turned(name: &str, got: Values, shape: &[usize], readings: &[(String, &'static str)], request: &Request) -> Values {
    let says: Vec<&str> = readings.iter().filter(|(read, _)| read == name).map(|(_, says)| *says).collect();
    let heads = request.case.config.num_attention_heads;
    let in_rows = || got.clone().in_shape(shape).filter(|_| says.iter().all(|says| align::in_rows(says)));
    let found = in_rows().or_else(|| {
        let all = align::readings_in(name, &got, shape, heads);
        all.into_iter().find(|(_, said)| *said == says).map(|(values, _)| values)
    });
    found.unwrap_or(got)
}

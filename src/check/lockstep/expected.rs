//! A dump against what somebody says that it should be: both are read some rows at a time. What they are allowed is what the model errs
//! in their types, in both forms of attention together, as runs say that are compared with the truth stage by stage, two at a time.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::Builder;

use dsv2_metrics::{Comparing, Metrics};
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::KV_B_PROJ;
use dsv2_reference::stage::{Stage, canonical, forward_order};
use dsv2_reference::tap::NoTap;
use indexmap::{IndexMap, IndexSet};

use super::measured::{is_compared_with_help_of, is_routing};
use super::pieces::{Held, numbers, pieces};
use super::plain_dump::kind;
use super::source::Source;
use super::station::{Computed, Ended, Names, Station, Waiting, station};
use super::tensors::numbers as are_numbers;
use super::visit::{Chunks, Progress};
use super::{PlainDump, Reached, Sources};
use crate::backend::{Reference, Settings};
use crate::budget::{self, Budgets, FACTORS, Spreading};
use crate::check::Request;
use crate::check::align::{self, Order};
use crate::check::dump::by_most;
use crate::error::{Error, Result};
use crate::files::TensorFile;
use crate::judge::{self, Disposition, StageVerdict, Truth, Verdict};
use crate::local::{plain, root_mean_square};
use crate::planned::{self, Planned};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::trace::{Trace, as_held};
use crate::values::Values;

/// What the stages should be, in a file.
pub struct Expected {
    files: Arc<[TensorFile]>,
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
        let files: Arc<[TensorFile]> = Arc::new([TensorFile::open(path)?]);
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
        let held = match dump.stage(name)?.filter(|_| is_turned || dump.order(name) == Some(Order::Other)) {
            Some(got) => Held::decoded(turned(name, got, shape, &readings, request)),
            None => held,
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

/// Runs that are compared with the truth.
struct Passes<'a> {
    request: &'a Request,
    dump: &'a PlainDump,
    rows: &'a ComparedRows,
    planned: &'a IndexMap<String, Planned>,
    /// All stages of the model, and how those of the dump are read; of the first pass.
    names: Option<IndexSet<String>>,
    readings: Vec<(String, &'static str)>,
    reached: Reached<'a>,
}

/// What has been measured of a stage of which chunks are to come.
struct Open {
    noise: Comparing,
    /// How far the dump is from the truth, if it may have to be read otherwise.
    carried: Option<Comparing>,
}

impl Passes<'_> {
    /// How far off each stage is in both forms of attention together; nothing, if the dump has to be read whole.
    fn noise(&mut self, precision: Precision) -> Result<Option<IndexMap<String, Metrics>>> {
        let Some(mut both) = self.pass(precision, AttentionForm::Expanded)? else { return Ok(None) };
        let Some(absorbed) = self.pass(precision, AttentionForm::Absorbed)? else { return Ok(None) };
        for (stage, noise) in &mut both {
            let other = absorbed.get(stage).copied().unwrap_or(*noise);
            *noise = noise.zip(&other, |a, b| a + b);
        }
        Ok(Some(both))
    }

    fn pass(&mut self, precision: Precision, attention: AttentionForm) -> Result<Option<IndexMap<String, Metrics>>> {
        let (case, dump, precision) = (&self.request.case, self.dump, plain(precision));
        let computed = |name: &str| {
            let expands = Stage::parse(name).is_some_and(|stage| stage.kind == KV_B_PROJ);
            attention == AttentionForm::Expanded || !expands
        };
        let holds: IndexSet<&str> = dump.names().collect();
        let wanted = |name: &str| (holds.contains(name) || is_compared_with_help_of(name)) && computed(name);
        let run = |settings: Settings<'_>, tap: &mut dyn AnyTap, at: &mut Waiting<'_>| {
            Reference.show_by_layer(case, &settings, &|_| false, tap, at)
        };
        let mut names = Names::default();
        let measured = std::thread::scope(|scope| {
            let (mut at_truth, to_truth) = station(&wanted, Precision::F64);
            let (mut at_plain, to_plain) = station(&wanted, precision);
            let (names, run) = (&mut names, &run);
            let truthful =
                move || run(Settings { precision: Precision::F64, ..Settings::default() }, names, &mut at_truth);
            let as_plain =
                move || run(Settings { precision, attention, ..Settings::default() }, &mut NoTap, &mut at_plain);
            let no_threads = |error| Error::request("threads", "one for each run", error);
            let truth = Builder::new().spawn_scoped(scope, truthful).map_err(no_threads)?;
            let plain = Builder::new().spawn_scoped(scope, as_plain).map_err(no_threads)?;
            let measured = self.compare(&to_truth, &to_plain);
            drop((to_truth, to_plain));
            let ended = [truth, plain].map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            match measured {
                Ok(measured) => ended.into_iter().collect::<Result<()>>().map(|()| measured),
                Err(Stopped::Refused(error)) => ended.into_iter().collect::<Result<()>>().and(Err(error)),
                Err(Stopped::Ended) => {
                    let error = Error::request("--model", "runs of the same stages", "one that ends before the others");
                    ended.into_iter().collect::<Result<()>>().and(Err(error))
                }
            }
        })?;
        self.names.get_or_insert(names.0);
        Ok(measured)
    }

    /// Nothing, if the dump has to be read whole.
    fn compare(&mut self, truth: &Station, plain: &Station) -> Result<Option<IndexMap<String, Metrics>>, Stopped> {
        let (chunks, mut progress) = (Chunks::of(&self.request.case), Progress::default());
        let (mut open, mut found) = (IndexMap::<String, Open>::new(), IndexMap::new());
        let steps = 2 * self.dump.names().count();
        let is_first = self.names.is_none();
        while let Some(Computed { name, shape }) = truth.next() {
            if plain.next().is_none_or(|other| other.name != name) {
                return Err(Stopped::Ended);
            }
            let (Some(stage), Some(planned)) = (Stage::parse(&name), self.planned.get(&name)) else {
                return Err(Stopped::Ended);
            };
            let visit = progress.next(&name, &stage, &shape, &planned.shape, &chunks);
            let order = self.dump.order(&name).filter(|_| is_first);
            if planned.dtype.is_none() {
                // a token that goes elsewhere is no noise
                let chosen = truth.show()?;
                let rows: usize = shape.iter().rev().skip(1).product();
                plain.put(0..rows, Arc::new(chosen.clone()))?;
                if visit.is_last && !self.read(&name, order, Some(chosen), &chunks)? {
                    return Ok(None);
                }
            } else {
                let heads = self.request.case.config.num_attention_heads;
                let Open { mut noise, mut carried } = open.swap_remove(&name).unwrap_or_else(|| {
                    let otherwise = order.is_some_and(|order| order != Order::Other)
                        && (align::has_other_readings(&name, &planned.shape, heads));
                    Open {
                        noise: Comparing::new(&planned.shape),
                        carried: otherwise.then(|| Comparing::new(&planned.shape)),
                    }
                });
                let counted = self.rows.of_stage(&stage, &planned.shape);
                let held = self.dump.held(&name)?;
                for (own, piece) in visit.pieces().filter(|_| visit.counts) {
                    truth.ask(own.clone())?;
                    plain.ask(own)?;
                    let [want, other] = [truth, plain].map(|run| run.shown().map(|rows| visit.widened(rows)));
                    let (want, other) = (want?, other?);
                    let counted = counted.as_deref().map(|rows| &rows[piece.clone()]);
                    noise.go_to(piece.start);
                    noise.add(numbers(&other), numbers(&want), counted);
                    if let (Some(carried), Some(held)) = (&mut carried, &held) {
                        carried.go_to(piece.start);
                        carried.add(numbers(&held.rows(piece)?), numbers(&want), counted);
                    }
                }
                if visit.is_last {
                    found.insert(name.clone(), root_mean_square(&[noise.finish().metrics]));
                    (self.reached)(found.len().min(steps), steps, &name);
                    let carried = carried.map(Comparing::finish);
                    let as_it_lies = carried.as_ref().is_none_or(align::is_in_order) && order != Some(Order::Other);
                    let want = if as_it_lies || order.is_none() { None } else { Some(truth.show()?) };
                    if !self.read(&name, order, want, &chunks)? {
                        return Ok(None);
                    }
                } else {
                    open.insert(name.clone(), Open { noise, carried });
                }
            }
            truth.go_on()?;
            plain.go_on()?;
        }
        // in the order of the stages, as a run records them
        found.sort_by(|a, _, b, _| forward_order(a).cmp(&forward_order(b)));
        Ok(Some(found))
    }
}

impl Passes<'_> {
    /// Finds out how a stage is read that lies so in its file; `want` is the truth of it, if it may have to be read otherwise than it
    /// lies. Not, if there is more than one chunk of that.
    fn read(
        &mut self,
        name: &str,
        order: Option<Order>,
        want: Option<Values>,
        chunks: &Chunks,
    ) -> Result<bool, Stopped> {
        if let Some(Order::Rows(says)) = order {
            self.readings.push((name.to_owned(), says));
        }
        let (Some(_), Some(want)) = (order, want) else { return Ok(true) };
        if !chunks.are_one() {
            return Ok(matches!(want, Values::Index(_)) && order != Some(Order::Other));
        }
        let Some(got) = self.dump.stage(name)? else { return Ok(true) };
        let heads = self.request.case.config.num_attention_heads;
        let (_, says) = align::first_reading(name, got, Some(&want), self.rows, heads);
        self.readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
        Ok(true)
    }
}

/// Why nothing more is compared.
enum Stopped {
    /// A run has ended, and says itself why.
    Ended,
    Refused(Error),
}

impl From<Ended> for Stopped {
    fn from(_: Ended) -> Self {
        Stopped::Ended
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Stopped::Refused(error)
    }
}

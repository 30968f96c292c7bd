//! What the model errs, by runs that are compared with the truth stage by stage, two at a time; and how the dump is to be read.

use std::sync::Arc;
use std::thread::Builder;

use dsv2_metrics::{Comparing, Metrics};
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::KV_B_PROJ;
use dsv2_reference::stage::{Stage, forward_order};
use dsv2_reference::tap::NoTap;
use indexmap::{IndexMap, IndexSet};

use crate::backend::{Reference, Settings};
use crate::check::Request;
use crate::check::align::{self, Order};
use crate::check::lockstep::measured::is_compared_with_help_of;
use crate::check::lockstep::pieces::numbers;
use crate::check::lockstep::station::{Computed, Ended, Names, Station, Waiting, station};
use crate::check::lockstep::visit::{Chunks, Piece, Progress};
use crate::check::lockstep::{PlainDump, Reached};
use crate::error::{Error, Result};
use crate::local::{plain, root_mean_square};
use crate::planned::Planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::values::Values;

/// Runs that are compared with the truth.
pub struct Passes<'a> {
    pub request: &'a Request,
    pub dump: &'a PlainDump,
    pub rows: &'a ComparedRows,
    pub planned: &'a IndexMap<String, Planned>,
    /// All stages of the model, and how those of the dump are read; of the first pass.
    pub names: Option<IndexSet<String>>,
    pub readings: Vec<(String, &'static str)>,
    pub reached: Reached<'a>,
}

/// What has been measured of a stage of which chunks are to come.
struct Open {
    noise: Comparing,
    /// How far the dump is from the truth, if it may have to be read otherwise.
    carried: Option<Comparing>,
}

impl Passes<'_> {
    /// How far off each stage is in both forms of attention together; nothing, if the dump has to be read whole.
    pub fn noise(&mut self, precision: Precision) -> Result<Option<IndexMap<String, Metrics>>> {
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
            // there may be no threads to be had; what has been begun ends when nobody asks any more
            let Ok(truth) = Builder::new().spawn_scoped(scope, truthful) else { return Ok(None) };
            let Ok(plain) = Builder::new().spawn_scoped(scope, as_plain) else { return Ok(None) };
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
                for Piece { own, rows: piece, .. } in visit.compared() {
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

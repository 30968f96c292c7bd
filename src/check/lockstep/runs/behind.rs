//! What is compared of the runs that go on with the dump's stages.

use std::ops::Range;
use std::sync::Arc;

use dsv2_metrics::Comparison;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::stage::table::{EMBED_TOKENS, LAYER, O_PROJ};
use dsv2_reference::stage::{self, Layout, Stage};
use dsv2_reference::tap::{StageValue, Tap};
use ndarray::ArrayView1;

use super::{Ahead, Comparer, Stopped, known};
use crate::budget;
use crate::check::align;
use crate::check::lockstep::measured::{Off, Stagewise};
use crate::check::lockstep::pieces::{Held, numbers, taken};
use crate::check::lockstep::station::{Computed, Ended};
use crate::check::lockstep::visit::{Piece, Visit};
use crate::local::{Difference, Parts, Worst, is_cached_by_step, is_choice, is_exact, stored, usual_noise};
use crate::values::Values;

/// What has been measured of a stage of which chunks are to come.
pub enum Open {
    /// What it should be by itself, and what the plain runs make of it, as far as that is known.
    Routing { own: Option<Values>, plain: Vec<Option<Values>> },
    /// The same of any other stage.
    Numbers(Box<Numbers>),
}

/// What has been measured of a stage that is none of routing.
pub struct Numbers {
    /// Which chunk was the last.
    chunk: usize,
    /// How far off it is, and the plain runs are.
    parts: Parts,
    /// How far off the dump is in the tokens that are looked at, as it should be and as the computation stores that, if these must be
    /// bit-identical.
    copied: Option<[Difference; 2]>,
}

impl<'a> Comparer<'a> {
    /// Compares what a stage should be by itself with the dump, and with a plain run; then they go on with that of the dump. Says
    /// whether something was compared.
    pub(super) fn hold_against_own(&mut self, computed: &Computed) -> Result<bool, Stopped> {
        let stage = known(&computed.name)?;
        let ahead = self.ahead.remove(&computed.name);
        let last = match &ahead {
            None | Some(Ahead::Nothing) => None,
            Some(Ahead::Routing { .. }) => Some(self.own_routing(&stage, computed, ahead.as_ref())?),
            Some(Ahead::Numbers { held, unread, .. }) => {
                let visit = self.progress[1].next(&computed.name, &stage, &computed.shape, &held.shape, &self.chunks);
                let at = self.own_numbers(&computed.name, &stage, held, &visit, ahead.as_ref())?;
                self.teach(&computed.name, held, &visit, unread.get(at).map_or(&[], Vec::as_slice))?;
                Some(visit.is_last)
            }
        };
        if last != Some(true) {
            self.ahead.extend(ahead.map(|ahead| (computed.name.clone(), ahead)));
        }
        self.to_own.go_on()?;
        self.to_plain.iter().try_for_each(|plain| plain.go_on())?;
        Ok(last == Some(true))
    }

    /// Whether this was the last chunk of a stage of routing.
    fn own_routing(
        &mut self,
        stage: &Stage,
        Computed { name, shape }: &Computed,
        ahead: Option<&Ahead<'a>>,
    ) -> Result<bool, Stopped> {
        let Some(Ahead::Routing { got, truth: Some(truth), lesson }) = ahead else { return Ok(false) };
        let whole = self.chunks.flat(shape.last().copied().unwrap_or(1));
        let visit = self.progress[1].next(name, stage, shape, &whole, &self.chunks);
        if !visit.counts() {
            return Ok(false);
        }
        let (mut own, mut plain) = match self.open.remove(name) {
            Some(Open::Routing { own, plain }) => (own, plain),
            _ => (None, vec![None; self.to_plain.len()]),
        };
        visit.put_into(&mut own, self.to_own.show()?, &whole);
        for (run, plain) in self.to_plain.iter().zip(&mut plain) {
            visit.put_into(plain, run.show()?, &whole);
        }
        let Some(mut by_itself) = own else { return Err(Stopped::Ended) };
        // a token that goes elsewhere is no noise
        let chosen = lesson.as_deref().or_else(|| is_choice(name).then_some(&by_itself));
        if let Some(lesson) = lesson {
            for (rows, part) in visit.of_all(lesson) {
                self.to_own.put(rows, Arc::new(part))?;
            }
        }
        for (rows, part) in chosen.map(|chosen| visit.of_all(chosen)).unwrap_or_default() {
            let part = Arc::new(part);
            self.to_plain.iter().try_for_each(|plain| plain.put(rows.clone(), part.clone()))?;
        }
        if !visit.is_last {
            self.open.insert(name.to_owned(), Open::Routing { own: Some(by_itself), plain });
            return Ok(false);
        }
        let (config, measured) = (&self.request.case.config, &mut *self.measured);
        let noise: Option<Vec<_>> =
            plain.iter().map(|plain| Some(measured.rows.measure(name, plain.as_ref()?, &by_itself)?.metrics)).collect();
        if let Some(noise) = noise {
            let written = lesson.as_deref().and_then(Values::dtype);
            measured.keep_noise(name, &noise, usual_noise(name, written, &self.request.case, self.way.precision));
        }
        if let (Values::Index(_), Some(lesson)) = (&by_itself, lesson) {
            by_itself = (**lesson).clone();
        }
        if let Some(spread) = budget::spread(name, &by_itself, &measured.rows) {
            measured.spreads.insert(name.to_owned(), spread);
        }
        measured.keep(name, got.clone(), truth.clone(), by_itself, config);
        Ok(true)
    }

    /// Compares one chunk of a stage, and says which it is.
    fn own_numbers(
        &mut self,
        name: &str,
        stage: &Stage,
        held: &Held<'_>,
        visit: &Visit,
        ahead: Option<&Ahead<'a>>,
    ) -> Result<usize, Stopped> {
        let case = &self.request.case;
        let (config, precision) = (&case.config, self.way.precision);
        let compared = self.measured.rows.of_stage(stage, &held.shape);
        let difference = || Difference::of(*stage, &held.shape);
        let mut numbers_so_far = match self.open.remove(name) {
            Some(Open::Numbers(open)) => Numbers { chunk: open.chunk + 1, ..*open },
            _ => {
                let is_taught = |source: &str| self.measured.taught.contains(source);
                let is_copy = (self.way.given)(name) && is_exact(name, is_taught, config, self.request.cache);
                let are_two = is_cached_by_step(case, name, &held.shape);
                let parts = Parts::of(*stage, &held.shape, self.to_plain.len(), are_two);
                Numbers { chunk: 0, parts, copied: is_copy.then(|| [difference(), difference()]) }
            }
        };
        let Numbers { chunk, parts, copied } = &mut numbers_so_far;
        let mut asked = visit.compared();
        let mut ask = || -> Result<(), Ended> {
            let Some(Piece { own, .. }) = asked.next() else { return Ok(()) };
            self.to_own.ask(own.clone())?;
            self.to_plain.iter().try_for_each(|plain| plain.ask(own.clone()))
        };
        ask()?;
        for Piece { rows: piece, .. } in visit.compared() {
            let own = visit.widened(self.to_own.shown()?);
            let plain: Vec<Values> = self.to_plain.iter().map(|plain| plain.shown()).collect::<Result<_, _>>()?;
            ask()?;
            let (own, compared) = (numbers(&own), compared.as_deref().map(|rows| &rows[piece.clone()]));
            let plain: Vec<Values> = plain.into_iter().map(|plain| visit.widened(plain)).collect();
            let got = held.rows(piece.clone())?;
            let plain: Vec<&[f64]> = plain.iter().map(numbers).collect();
            parts.add((piece.start, visit.is_looked_at), (numbers(&got), own), &plain, compared);
            if let Some([as_it_is, as_stored]) = copied {
                let stored = stored(precision, name, &ArrayView1::from(own).into_dyn().to_owned());
                // of what was cached before, the dump does not hold the source
                let [own, stored] = match visit.is_looked_at {
                    true => [own, numbers(&stored)],
                    false => [numbers(&got); 2],
                };
                as_it_is.add(piece.start, numbers(&got), own, compared);
                as_stored.add(piece.start, numbers(&got), stored, compared);
            }
        }
        let chunk = *chunk;
        if !visit.is_last {
            self.open.insert(name.to_owned(), Open::Numbers(Box::new(numbers_so_far)));
            return Ok(chunk);
        }
        let Numbers { parts, copied, .. } = numbers_so_far;
        let copied = copied.map(|[as_it_is, as_stored]| {
            let [(as_it_is, spread_as_it_is), (as_stored, spread_as_stored)] = [as_it_is.finish(), as_stored.finish()];
            let is_copy = !as_it_is.differs() || !as_stored.differs();
            match as_it_is.differs() {
                true => (as_stored, spread_as_stored, is_copy),
                false => (as_it_is, spread_as_it_is, is_copy),
            }
        });
        // what was cached before a step is no copy of anything that the dump holds
        let has_more = case.inputs.past() > 0 && stage.layout == Layout::Keys;
        let are_copies = has_more && matches!(copied, Some((.., true)));
        let usual = usual_noise(name, held.dtype, case, precision);
        let Some(worst) = parts.worst(are_copies, usual, self.measured.factors()) else { return Err(Stopped::Ended) };
        let Worst { noise, off, spread, .. } = worst;
        self.measured.noise.insert(name.to_owned(), noise);
        let (off, spread, exact) = match copied {
            Some((copied, spread, is_copy)) if !(has_more && is_copy) => (copied, spread, true),
            _ => (off, spread, false),
        };
        if exact {
            self.measured.exact.insert(name.to_owned());
        }
        self.measured.spreads.insert(name.to_owned(), spread.finish());
        let by_others = match self.measured.surely_passes(name, &off) {
            true => Vec::new(),
            false => self.by_others(name, held)?,
        };
        let Some(Ahead::Numbers { carried: Some(carried), .. }) = ahead else { return Err(Stopped::Ended) };
        let (shape, off) = (held.shape.clone(), Off { carried: carried.clone(), own: off });
        self.measured.stages.insert(name.to_owned(), Stagewise { shape, off, by_others, exact });
        Ok(chunk)
    }

    /// How far off a stage is by its other readings.
    fn by_others(&mut self, name: &str, held: &Held<'_>) -> Result<Vec<Comparison>, Stopped> {
        let heads = self.request.case.config.num_attention_heads;
        if !align::has_other_readings(name, &held.shape, heads) {
            return Ok(Vec::new());
        }
        if !self.chunks.are_one() {
            self.measured.may_be_another_reading(name);
            return Ok(Vec::new());
        }
        let (own, Some(got)) = (self.to_own.show()?, held.whole()?) else { return Ok(Vec::new()) };
        let readings = align::all_readings(name, &got, Some(&own), heads);
        let others = readings.into_iter().filter(|(_, says)| !says.is_empty());
        Ok(others.filter_map(|(values, _)| self.measured.rows.measure(name, &values, &own)).collect())
    }

    /// Puts what the dump holds of a stage in the place of what the others computed; where nobody may read it, the truth's.
    fn teach(&self, name: &str, held: &Held<'_>, visit: &Visit, unread: &[f64]) -> Result<(), Stopped> {
        if !(self.way.given)(name) {
            return Ok(());
        }
        let taken = taken(&known(name)?, &held.shape, &self.measured.rows);
        let width = held.shape.last().copied().unwrap_or(1);
        let mut unread = unread.chunks(width.max(1));
        for Piece { own: rows, rows: piece, .. } in visit.pieces() {
            let mut lesson = self.with_rounded_stream(name, held.rows(piece.clone())?, piece.clone())?;
            if let (Some(taken), Values::Real(_, rows)) = (&taken, &mut lesson) {
                let rows = rows.rows_mut().into_iter().zip(&taken[piece]).filter(|(_, taken)| !**taken);
                rows.zip(&mut unread).for_each(|((mut row, _), truth)| row.assign(&ArrayView1::from(truth)));
            }
            let lesson = Arc::new(visit.narrowed(lesson));
            self.to_own.put(rows.clone(), lesson.clone())?;
            self.to_plain.iter().try_for_each(|plain| plain.put(rows.clone(), lesson.clone()))?;
        }
        Ok(())
    }

    /// Rows of a stage of the dump, if need be with what [the way](super::Way) has in their place.
    fn with_rounded_stream(&self, name: &str, rows: Values, piece: Range<usize>) -> Result<Values, Stopped> {
        let (Some((narrow, layers)), Values::Real(dtype, a)) = (self.way.rounded_stream, &rows) else {
            return Ok(rows);
        };
        let stage = known(name)?;
        let behind = match (stage.kind, stage.layer) {
            (EMBED_TOKENS, _) => 0,
            (LAYER, Some(layer)) => layer + 1,
            (O_PROJ, Some(layer)) if layers.contains(&layer) => return Ok(Values::Real(*dtype, a * 0.0)),
            _ => return Ok(rows),
        };
        if !layers.contains(&behind) {
            return Ok(rows);
        }
        let added = stage::name(O_PROJ, behind);
        let added = self.dump.held(&added)?.ok_or_else(|| self.dump.lacks(&added))?.rows(piece)?;
        let mut sum = a + added.real().ok_or(Stopped::Ended)?;
        RoundingTap(narrow).stage(name, StageValue::Real(sum.view_mut()));
        Ok(Values::Real(*dtype, sum))
    }
}

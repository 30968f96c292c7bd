//! What is compared of the two runs that go on with the dump's stages.

use std::sync::Arc;

use dsv2_metrics::{Comparing, Comparison, Spread};
use dsv2_reference::stage::Stage;
use ndarray::ArrayView1;

use super::super::station::Ended;
use super::{Ahead, Comparer, Stopped, known, rows};
use crate::budget::{self, Spreading};
use crate::check::align;
use crate::check::lockstep::measured::{Off, Stagewise};
use crate::check::lockstep::pieces::{Held, numbers, pieces, taken};
use crate::local::{is_choice, is_exact, stored, usual_noise};
use crate::values::Values;

impl Comparer<'_> {
    /// Compares what a stage should be by itself with the dump, and with a plain run; then they go on with that of the dump. Says
    /// whether something was compared.
    pub(super) fn hold_against_own(&mut self, name: &str) -> Result<bool, Stopped> {
        match self.ahead.remove(name).ok_or(Stopped::Ended)? {
            Ahead::Nothing => {
                self.to_own.go_on()?;
                self.to_plain.go_on()?;
                return Ok(false);
            }
            Ahead::Routing { got, truth, lesson } => self.own_routing(name, got, truth, lesson)?,
            Ahead::Numbers { held, carried, unread } => {
                self.own_numbers(name, &held, carried)?;
                self.teach(&known(name)?, &held, &unread)?;
            }
        }
        self.to_own.go_on()?;
        self.to_plain.go_on()?;
        Ok(true)
    }

    fn own_routing(
        &mut self,
        name: &str,
        got: Option<Values>,
        truth: Values,
        lesson: Option<Arc<Values>>,
    ) -> Result<(), Stopped> {
        let (mut own, plain) = (self.to_own.show()?, self.to_plain.show()?);
        let (config, measured) = (&self.request.case.config, &mut *self.measured);
        if let Some(noise) = measured.rows.measure(name, &plain, &own) {
            let written = lesson.as_deref().and_then(Values::dtype);
            measured.keep_noise(name, &noise, usual_noise(name, written, config, self.dump.precision()));
        }
        // a token that goes elsewhere is no noise
        let chosen = lesson.clone().or_else(|| is_choice(name).then(|| Arc::new(own.clone())));
        if let (Values::Index(_), Some(lesson)) = (&own, &lesson) {
            own = (**lesson).clone();
        }
        if let Some(spread) = budget::spread(name, &own, &measured.rows) {
            measured.spreads.insert(name.to_owned(), spread);
        }
        measured.keep(name, got, truth, own, config);
        if let Some(lesson) = lesson {
            self.to_own.put(0..rows(&lesson), lesson)?;
        }
        if let Some(chosen) = chosen {
            self.to_plain.put(0..rows(&chosen), chosen)?;
        }
        Ok(())
    }

    fn own_numbers(&mut self, name: &str, held: &Held<'_>, carried: Comparison) -> Result<(), Stopped> {
        let (config, precision, stage) = (&self.request.case.config, self.dump.precision(), known(name)?);
        let compared = self.measured.rows.of_stage(&stage, &held.shape);
        let comparing = || Comparing::new(&held.shape);
        let (mut noise, mut off, mut spread) = (comparing(), comparing(), Spreading::new(stage, &held.shape));
        let mut asked = pieces(&held.shape);
        let mut ask = || -> Result<(), Ended> {
            let Some(rows) = asked.next() else { return Ok(()) };
            self.to_own.ask(rows.clone())?;
            self.to_plain.ask(rows)
        };
        ask()?;
        for piece in pieces(&held.shape) {
            let (own, plain) = (self.to_own.shown()?, self.to_plain.shown()?);
            ask()?;
            let (own, compared) = (numbers(&own), compared.as_deref().map(|rows| &rows[piece.clone()]));
            noise.add(numbers(&plain), own, compared);
            off.add(numbers(&held.rows(piece)?), own, compared);
            spread.add(own, compared);
        }
        let (noise, off) = (noise.finish(), off.finish());
        self.measured.keep_noise(name, &noise, usual_noise(name, held.dtype, config, precision));
        let exact = is_exact(name, |source| self.measured.taught.contains(source), config, self.request.cache);
        if exact {
            self.measured.exact.insert(name.to_owned());
        }
        // a copy may have been stored as the computation stores it
        let (off, spread) = match exact && (off.nonfinite.is_some() || off.worst.is_some()) {
            true => self.off_as_stored(name, &stage, held)?,
            false => (off, spread.finish()),
        };
        self.measured.spreads.insert(name.to_owned(), spread);
        let by_others = match self.measured.surely_passes(name, &off, precision) {
            true => Vec::new(),
            false => self.by_others(name, held)?,
        };
        let (shape, off) = (held.shape.clone(), Off { carried, own: off });
        self.measured.stages.insert(name.to_owned(), Stagewise { shape, off, by_others, exact });
        Ok(())
    }

    /// How far off a stage is from what it should be by itself, stored as the computation stores it, and how that is spread.
    fn off_as_stored(
        &self,
        name: &str,
        stage: &Stage,
        held: &Held<'_>,
    ) -> Result<(Comparison, (Spread, f64)), Stopped> {
        let compared = self.measured.rows.of_stage(stage, &held.shape);
        let (mut off, mut spread) = (Comparing::new(&held.shape), Spreading::new(*stage, &held.shape));
        for piece in pieces(&held.shape) {
            self.to_own.ask(piece.clone())?;
            let Values::Real(_, own) = self.to_own.shown()? else { continue };
            let own = stored(self.dump.precision(), name, &own);
            let compared = compared.as_deref().map(|rows| &rows[piece.clone()]);
            off.add(numbers(&held.rows(piece)?), numbers(&own), compared);
            spread.add(numbers(&own), compared);
        }
        Ok((off.finish(), spread.finish()))
    }

    /// How far off a stage is by its other readings.
    fn by_others(&self, name: &str, held: &Held<'_>) -> Result<Vec<Comparison>, Stopped> {
        let heads = self.request.case.config.num_attention_heads;
        if !align::has_other_readings(name, &held.shape, heads) {
            return Ok(Vec::new());
        }
        let (own, Some(got)) = (self.to_own.show()?, held.whole()?) else { return Ok(Vec::new()) };
        let readings = align::all_readings(name, &got, Some(&own), heads);
        let others = readings.into_iter().filter(|(_, says)| !says.is_empty());
        Ok(others.filter_map(|(values, _)| self.measured.rows.measure(name, &values, &own)).collect())
    }

    /// Puts a stage of the dump in the place of what the others computed; where nobody may read it, the truth's.
    fn teach(&self, stage: &Stage, held: &Held<'_>, unread: &[f64]) -> Result<(), Stopped> {
        let taken = taken(stage, &held.shape, &self.measured.rows);
        let width = held.shape.last().copied().unwrap_or(1);
        let mut unread = unread.chunks(width.max(1));
        for piece in pieces(&held.shape) {
            let mut lesson = held.rows(piece.clone())?;
            if let (Some(taken), Values::Real(_, rows)) = (&taken, &mut lesson) {
                let rows = rows.rows_mut().into_iter().zip(&taken[piece.clone()]).filter(|(_, taken)| !**taken);
                rows.zip(&mut unread).for_each(|((mut row, _), truth)| row.assign(&ArrayView1::from(truth)));
            }
            let lesson = Arc::new(lesson);
            self.to_own.put(piece.clone(), lesson.clone())?;
            self.to_plain.put(piece, lesson)?;
        }
        Ok(())
    }
}

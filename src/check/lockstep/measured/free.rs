//! The end of the computation, if the truth goes its own way.

use dsv2_metrics::Comparing;
use dsv2_reference::Real;
use dsv2_reference::stage::Stage;
use dsv2_reference::tap::{NoTap, StageValue, Tap};

use super::{Measured, Stagewise};
use crate::backend::{Reference, Settings};
use crate::check::Request;
use crate::check::judge::EndToEnd;
use crate::check::lockstep::PlainDump;
use crate::check::lockstep::pieces::{Held, numbers, shown};
use crate::check::lockstep::visit::{Chunks, Piece, Progress};
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::rows::ComparedRows;

impl Measured {
    /// How far off the last stage is if the truth follows the dump's experts, and if it does not.
    ///
    /// # Errors
    /// If the reference refuses the case, or the stage cannot be decoded.
    pub fn end_to_end(&self, request: &Request, dump: &PlainDump) -> Result<Option<EndToEnd>> {
        let Some((stage, Stagewise { off, .. })) = self.last() else { return Ok(None) };
        let (Some(held), Some(parsed)) = (dump.held(stage)?, Stage::parse(stage)) else { return Ok(None) };
        let comparing = Comparing::new(&held.shape);
        let (chunks, progress) = (&self.chunks, Progress::default());
        let mut free =
            Free { name: stage, stage: parsed, held, rows: &self.rows, chunks, progress, comparing, refused: None };
        let settings = Settings { precision: Precision::F64, ..Settings::default() };
        Reference.show_by_layer(&request.case, &settings, &|_| false, &mut NoTap, &mut free)?;
        let Free { comparing, refused, .. } = free;
        refused.map_or(Ok(()), Err)?;
        let free = comparing.finish().metrics.l2;
        Ok(Some(EndToEnd { stage: stage.clone(), replayed: off.carried.metrics.l2, free }))
    }
}

/// The sink of a run that goes its own way, for one stage to be compared.
struct Free<'a> {
    name: &'a str,
    stage: Stage,
    held: Held<'a>,
    rows: &'a ComparedRows,
    chunks: &'a Chunks,
    progress: Progress,
    comparing: Comparing,
    refused: Option<Error>,
}

impl Free<'_> {
    fn compare<T: Real>(&mut self, value: &StageValue<'_, T>) -> Result<()> {
        let StageValue::Real(a) = value else { return Ok(()) };
        let visit = self.progress.next(self.name, &self.stage, a.shape(), &self.held.shape, self.chunks);
        let compared = self.rows.of_stage(&self.stage, &self.held.shape);
        for Piece { own, rows: piece, .. } in visit.compared() {
            let truth = visit.widened(shown(Precision::F64, self.name, value, own));
            let compared = compared.as_deref().map(|rows| &rows[piece.clone()]);
            self.comparing.go_to(piece.start);
            self.comparing.add(numbers(&self.held.rows(piece)?), numbers(&truth), compared);
        }
        Ok(())
    }
}

impl<T: Real> Tap<T> for Free<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if name == self.name && self.refused.is_none() {
            self.refused = self.compare(&value).err();
        }
    }
}

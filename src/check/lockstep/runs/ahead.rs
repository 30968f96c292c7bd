//! What is compared with the truth's own run, a layer ahead.

use std::sync::Arc;

use dsv2_metrics::{Comparing, Comparison};
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{EXPERTS, MLP};

use super::{Ahead, Comparer, Stopped, known};
use crate::check::align::Order;
use crate::check::lockstep::measured::{is_routing, put};
use crate::check::lockstep::pieces::{Held, numbers, taken};
use crate::check::lockstep::station::Computed;
use crate::check::lockstep::visit::{Piece, Visit};
use crate::check::{Request, align, truth};
use crate::local::{is_choice, usable_stage};
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

impl<'a> Comparer<'a> {
    /// Compares the truth's own run with the dump, and lets it go on.
    pub(super) fn hold_against_truth(&mut self, computed: &Computed) -> Result<(), Stopped> {
        let Computed { name, shape } = computed;
        let stage = known(name)?;
        if is_routing(name) {
            return self.hold_routing(&stage, computed);
        }
        let dump = self.dump;
        let held = match self.ahead.remove(name) {
            Some(ahead) => Some(ahead),
            None => dump.held(name)?.map(|held| {
                let comparing = Some(Comparing::new(&held.shape));
                Ahead::Numbers { held, comparing, carried: None, unread: Vec::new() }
            }),
        };
        let ahead = match held {
            Some(Ahead::Numbers { mut held, comparing: Some(mut comparing), mut unread, .. }) => {
                let visit = self.progress[0].next(name, &stage, shape, &held.shape, &self.chunks);
                let mut carried = None;
                if unread.is_empty() && self.says_of_rows(name) == Some(Order::Other) {
                    let (turned, off, kept) = self.turned(name, &stage)?;
                    unread.push(kept);
                    (held, carried) = (turned, Some(off));
                } else {
                    unread.push(self.carried(&stage, &held, &visit, &mut comparing)?);
                }
                if visit.is_last {
                    if carried.is_none() {
                        let off;
                        (held, off) =
                            self.read(name, held, std::mem::replace(&mut comparing, Comparing::new(&[])).finish())?;
                        carried = Some(off);
                    }
                    self.hold_experts_against_mlp(&stage, &held)?;
                    self.measured.taught.extend((self.way.given)(name).then(|| name.to_owned()));
                }
                Ahead::Numbers { held: held.put_down(), comparing: Some(comparing), carried, unread }
            }
            _ => Ahead::Nothing,
        };
        self.ahead.insert(name.to_owned(), ahead);
        self.to_truth.go_on()?;
        Ok(())
    }

    /// The same of a stage of routing, which is kept as it is.
    fn hold_routing(&mut self, stage: &Stage, Computed { name, shape }: &Computed) -> Result<(), Stopped> {
        let (config, rows) = (&self.request.case.config, &self.measured.rows);
        let whole = self.chunks.flat(shape.last().copied().unwrap_or(1));
        let visit = self.progress[0].next(name, stage, shape, &whole, &self.chunks);
        if !visit.counts() {
            self.to_truth.go_on()?;
            return Ok(());
        }
        let (known, mut truth) = match self.ahead.remove(name) {
            Some(Ahead::Routing { got, truth, .. }) => (Some(got), truth),
            _ => (None, None),
        };
        visit.put_into(&mut truth, self.to_truth.show()?, &whole);
        let Some(mut truth) = truth else { return Err(Stopped::Ended) };
        let got = match known {
            Some(got) => got,
            None => self.dump.stage(name)?.map(|got| {
                let readings = &mut self.measured.readings;
                if let Some(Order::Rows(says)) = self.dump.order(name) {
                    readings.push((name.to_owned(), says));
                }
                if !self.chunks.are_one() {
                    return got;
                }
                let (got, says) = align::first_reading(name, got, Some(&truth), rows, config.num_attention_heads);
                readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
                got
            }),
        };
        if let Some(followed) = got.as_ref().and_then(|got| choice(name, got, self.request, rows)) {
            for (rows, part) in visit.of_all(&followed) {
                self.to_truth.put(rows, Arc::new(part))?;
            }
            if visit.is_last {
                put(&mut self.measured.choices, name, followed.clone());
                truth = followed;
            }
        }
        let given = got.as_ref().filter(|_| (self.way.given)(name));
        let lesson = given.and_then(|got| usable_stage(name, got, &truth, config, rows)).map(Arc::new);
        if lesson.is_some() && visit.is_last {
            self.measured.taught.insert(name.to_owned());
        }
        self.to_truth.go_on()?;
        self.ahead.insert(name.to_owned(), Ahead::Routing { got, truth: Some(truth), lesson });
        Ok(())
    }

    /// How a stage lies in its file; if it lies row by row in another shape, that is said.
    fn says_of_rows(&mut self, name: &str) -> Option<Order> {
        let order = self.dump.order(name);
        if let Some(Order::Rows(says)) = order {
            self.measured.readings.push((name.to_owned(), says));
        }
        order
    }

    /// A stage of the dump that lies otherwise than the model has it, as the model has it, and the same of it as of
    /// [others](Self::carried).
    fn turned(&mut self, name: &str, stage: &Stage) -> Result<(Held<'a>, Comparison, Vec<f64>), Stopped> {
        if !self.chunks.are_one() {
            return Err(Stopped::Whole);
        }
        let heads = self.request.case.config.num_attention_heads;
        let truth = self.to_truth.show()?;
        let got = self.dump.stage(name)?.ok_or_else(|| self.dump.lacks(name))?;
        let (got, says) = align::first_reading(name, got, Some(&truth), &self.measured.rows, heads);
        self.measured.readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
        let carried = self.measured.rows.measure(name, &got, &truth).ok_or_else(|| self.dump.lacks(name))?;
        let taken = taken(stage, truth.shape(), &self.measured.rows).unwrap_or_default();
        let width = truth.shape().last().copied().unwrap_or(1);
        let rows = numbers(&truth).chunks(width.max(1)).zip(&taken).filter(|(_, taken)| !**taken);
        let unread = rows.flat_map(|(row, _)| row).copied().collect();
        Ok((Held::decoded(got), carried, unread))
    }

    /// How far a stage of the dump is from the truth, as it lies, in one chunk; and the truth's rows there that nobody may read, if
    /// the dump's do not count there.
    fn carried(
        &self,
        stage: &Stage,
        held: &Held<'_>,
        visit: &Visit,
        comparing: &mut Comparing,
    ) -> Result<Vec<f64>, Stopped> {
        let compared = self.measured.rows.of_stage(stage, &held.shape);
        let taken = taken(stage, &held.shape, &self.measured.rows);
        let mut kept = Vec::new();
        let width = held.shape.last().copied().unwrap_or(1);
        let looked_at = || visit.pieces().filter(|piece| piece.counts || taken.is_some());
        let mut asked = looked_at();
        asked.next().map(|first| self.to_truth.ask(first.own)).transpose()?;
        for Piece { rows: piece, counts, .. } in looked_at() {
            let truth = self.to_truth.shown()?;
            asked.next().map(|next| self.to_truth.ask(next.own)).transpose()?;
            let truth = visit.widened(truth);
            let truth = numbers(&truth);
            if counts {
                let got = held.rows(piece.clone())?;
                comparing.go_to(piece.start);
                comparing.add(numbers(&got), truth, compared.as_deref().map(|rows| &rows[piece.clone()]));
            }
            if let Some(taken) = &taken {
                let rows = truth.chunks(width.max(1)).zip(&taken[piece]);
                kept.extend(rows.filter(|(_, taken)| !**taken).flat_map(|(row, _)| row));
            }
        }
        Ok(kept)
    }

    /// A stage of the dump as the model has it, and how far it then is from the truth: it may lie otherwise, if it is far off as
    /// it lies.
    fn read(&mut self, name: &str, held: Held<'a>, carried: Comparison) -> Result<(Held<'a>, Comparison), Stopped> {
        let heads = self.request.case.config.num_attention_heads;
        if align::is_in_order(&carried) || !align::has_other_readings(name, &held.shape, heads) {
            return Ok((held, carried));
        }
        if !self.chunks.are_one() {
            return Err(Stopped::Whole);
        }
        let truth = self.to_truth.show()?;
        let Some(got) = held.whole()? else { return Ok((held, carried)) };
        let rows = &self.measured.rows;
        let (got, says) = align::first_reading(name, got, Some(&truth), rows, heads);
        if says.is_empty() {
            return Ok((held, carried));
        }
        let carried = rows.measure(name, &got, &truth).unwrap_or(carried);
        self.measured.readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
        Ok((Held::decoded(got), carried))
    }

    /// Some programs have the shared experts among the experts: then these are the `mlp`.
    fn hold_experts_against_mlp(&mut self, stage: &Stage, held: &Held<'a>) -> Result<(), Stopped> {
        match (stage.kind, stage.layer) {
            (EXPERTS, Some(layer)) => self.experts = Some((layer, held.clone().put_down())),
            (MLP, Some(layer)) => {
                let Some((_, experts)) = self.experts.take().filter(|(of, _)| *of == layer) else { return Ok(()) };
                if let Some(experts) = experts.in_shape(&held.shape) {
                    let off = experts.against(stage, &self.measured.rows, |rows| held.rows(rows))?;
                    self.measured.experts_as_mlp.insert(layer, off);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The dump's choice of experts, if the stage is one that the truth can follow.
fn choice(name: &str, got: &Values, request: &Request, rows: &ComparedRows) -> Option<Values> {
    if !is_choice(name) {
        return None;
    }
    let singly: Trace = [(name.to_owned(), got.clone())].into_iter().collect();
    truth::choices(&singly, &request.case, rows).get(name).cloned()
}

//! What is compared with the truth's own run, a layer ahead.

use std::sync::Arc;

use dsv2_metrics::{Comparing, Comparison};
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{EXPERTS, MLP};

use super::{Ahead, Comparer, Stopped, known, rows};
use crate::check::align::Order;
use crate::check::lockstep::measured::{is_routing, put};
use crate::check::lockstep::pieces::{Held, numbers, pieces, taken};
use crate::check::{Request, align, truth};
use crate::local::{is_choice, usable_stage};
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

impl<'a> Comparer<'a> {
    /// Compares the truth's own run with the dump, and lets it go on.
    pub(super) fn hold_against_truth(&mut self, name: &str) -> Result<Ahead<'a>, Stopped> {
        let dump = self.dump;
        let ahead = match dump.held(name)? {
            _ if is_routing(name) => return self.hold_routing(name),
            None => Ahead::Nothing,
            Some(held) => {
                let stage = known(name)?;
                let (held, carried, unread) = match self.says_of_rows(name) {
                    Some(Order::Other) => self.turned(name, &stage)?,
                    _ => {
                        let (carried, unread) = self.carried(&stage, &held)?;
                        let (held, carried) = self.read(name, held, carried)?;
                        (held, carried, unread)
                    }
                };
                self.hold_experts_against_mlp(&stage, &held)?;
                self.measured.taught.insert(name.to_owned());
                Ahead::Numbers { held: held.put_down(), carried, unread }
            }
        };
        self.to_truth.go_on()?;
        Ok(ahead)
    }

    /// The same of a stage of routing, which is kept as it is.
    fn hold_routing(&mut self, name: &str) -> Result<Ahead<'a>, Stopped> {
        self.says_of_rows(name);
        let (config, measured) = (&self.request.case.config, &mut *self.measured);
        let mut truth = self.to_truth.show()?;
        let got = self.dump.stage(name)?.map(|got| {
            let (got, says) = align::first_reading(name, got, Some(&truth), &measured.rows, config.num_attention_heads);
            measured.readings.extend(says.into_iter().map(|says| (name.to_owned(), says)));
            got
        });
        if let Some(followed) = got.as_ref().and_then(|got| choice(name, got, self.request, &measured.rows)) {
            put(&mut measured.choices, name, followed.clone());
            truth = followed.clone();
            self.to_truth.put(0..rows(&followed), Arc::new(followed))?;
        }
        let lesson = got.as_ref().and_then(|got| usable_stage(name, got, &truth, config, &measured.rows)).map(Arc::new);
        if lesson.is_some() {
            measured.taught.insert(name.to_owned());
        }
        self.to_truth.go_on()?;
        Ok(Ahead::Routing { got, truth, lesson })
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

    /// How far a stage of the dump is from the truth, as it lies; and the truth's rows that nobody may read, if the dump's do not
    /// count there.
    fn carried(&self, stage: &Stage, held: &Held<'_>) -> Result<(Comparison, Vec<f64>), Stopped> {
        let compared = self.measured.rows.of_stage(stage, &held.shape);
        let taken = taken(stage, &held.shape, &self.measured.rows);
        let (mut comparing, mut kept) = (Comparing::new(&held.shape), Vec::new());
        let width = held.shape.last().copied().unwrap_or(1);
        let mut asked = pieces(&held.shape);
        asked.next().map(|first| self.to_truth.ask(first)).transpose()?;
        for piece in pieces(&held.shape) {
            let truth = self.to_truth.shown()?;
            asked.next().map(|next| self.to_truth.ask(next)).transpose()?;
            let truth = numbers(&truth);
            let got = held.rows(piece.clone())?;
            comparing.add(numbers(&got), truth, compared.as_deref().map(|rows| &rows[piece.clone()]));
            if let Some(taken) = &taken {
                let rows = truth.chunks(width.max(1)).zip(&taken[piece]);
                kept.extend(rows.filter(|(_, taken)| !**taken).flat_map(|(row, _)| row));
            }
        }
        Ok((comparing.finish(), kept))
    }

    /// A stage of the dump as the model has it, and how far it then is from the truth: it may lie otherwise, if it is far off as
    /// it lies.
    fn read(&mut self, name: &str, held: Held<'a>, carried: Comparison) -> Result<(Held<'a>, Comparison), Stopped> {
        let heads = self.request.case.config.num_attention_heads;
        if align::is_in_order(&carried) || !align::has_other_readings(name, &held.shape, heads) {
            return Ok((held, carried));
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

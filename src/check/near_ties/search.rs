//! The search for near ties that explain all that is off in a dump.
//!
//! Rows that a choice reaches only by itself (no attention between the choice and the stage) are searched side by side: each
//! run of the reference tries something for every one of them. Where attention lies between, the first row of each sequence
//! that is off comes first, since what it hears is least; sequences go side by side.

use std::collections::BTreeSet;
use std::rc::Rc;

use dsv2_reference::stage::sibling;

use super::Question;
use super::moves::{Accepted, Moves};
use super::reach::{Span, choice_of};
use super::rows::{Held, Row};
use super::unit::{State, Unit};
use crate::budget::Budgets;
use crate::error::Result;
use crate::local::taught;
use crate::taps::Assumed;
use crate::trace::Trace;

/// How often the reference is run for one dump. A bound on runs, not on time: a verdict must not depend on the machine.
pub const MOST_RUNS: usize = 64;
/// So many numbers are kept at most of how far moves take rows, or twice those of the stages that are off. A bound on memory that
/// does not depend on the machine either.
const MOST_KEPT: u64 = 1 << 23;
/// An error this many times what near ties do is none of theirs.
const GROSS: f64 = 2.0;

/// Of how many layers, the last ones, the near ties are tried alone before an error is called far larger than theirs.
const LAYERS: usize = 4;
/// How many choices of each token are tried for that.
const RANKS: usize = 3;

/// How many numbers are kept at most of how far moves take rows, if stages of so many numbers are off.
pub fn most_kept(off: u64) -> u64 {
    // each run tries something for each row, and all moves together are one more
    MOST_KEPT.min(off.saturating_mul(MOST_RUNS as u64 + 1)).max(off.saturating_mul(2))
}

/// What came of the search.
pub enum Found {
    /// Near ties explain everything.
    Settled,
    /// Rows are off that no near ties explain: stages, and places in them, as far as they are known.
    Refuted(Vec<(String, usize)>),
    /// Neither, in so many runs.
    Open,
}

/// A search; it goes on from dump to dump of budgets, and counts its runs.
pub struct Search<'a> {
    question: &'a Question<'a>,
    /// How many numbers are kept at most, if stages of so many are off.
    most_kept: fn(u64) -> u64,
    runs: usize,
}

impl<'a> Search<'a> {
    /// Nothing was tried yet. Of how far moves take rows, no more is kept than `most_kept` says.
    pub fn new(question: &'a Question<'a>, most_kept: fn(u64) -> u64) -> Self {
        Search { question, most_kept, runs: 0 }
    }

    /// Looks for near ties that bring the `failing` stages within `budgets`, from `start` on, where they are off and nothing but
    /// `accepted` is assumed. What explains them is added to it.
    pub fn explain(
        &mut self,
        failing: &[&str],
        start: &Trace,
        budgets: &Budgets,
        accepted: &mut Accepted,
    ) -> Result<Found> {
        let question = self.question;
        let with_span = failing
            .iter()
            .filter_map(|name| Some((Held::new(name, budgets.get(name)?, start, question)?, Span::of(name, question))));
        let stages: Vec<(Held<'_>, Span)> = with_span.collect();
        if stages.len() < failing.len() {
            return Ok(Found::Open);
        }
        let layers: BTreeSet<usize> = stages.iter().flat_map(|(_, span)| span.layers.iter().copied()).collect();
        let wanted = |name: &str| {
            let routing = |layer: &usize| {
                let choice = choice_of(*layer);
                name == choice || name == sibling(&choice, "router_logits")
            };
            failing.contains(&name) || layers.iter().any(routing)
        };
        let moves_of = |run: &Trace| Moves::of(run, layers.iter().copied(), budgets, question);
        let moves = moves_of(start);
        if let Some(rows) = self.beyond_reach(&stages, start, &moves) {
            return Ok(Found::Refuted(rows));
        }
        // all at once: an error far beyond what that does is none of theirs
        let mut together = accepted.assumed(question);
        moves.nearest().for_each(|m| m.assume(&mut together));
        let Some(all) = self.run(&wanted, &together)? else { return Ok(Found::Open) };
        let gross = self.gross(&stages, start, &all, (&moves, accepted), &wanted)?;
        if !gross.is_empty() {
            return Ok(Found::Refuted(gross));
        }

        let off = start.iter().filter(|(name, _)| failing.contains(name));
        let off: Trace = off.map(|(name, values)| (name.to_owned(), values.clone())).collect();
        let most_kept = (self.most_kept)(off.iter().map(|(_, values)| values.len() as u64).sum());
        let (mut start, mut moves) = (Rc::new(off), moves);
        let mut settled_sequences = BTreeSet::new();
        let mut settled_nothing = true;
        loop {
            // What was assumed before may be wrong, where attention carries it on: then nothing is proved.
            let refuted = |units: &[Unit<'_>]| {
                let nothing_before = |unit: &Unit<'_>| match unit.row.owner.sequence {
                    _ if unit.span.is_by_token() => true,
                    Some(sequence) => !settled_sequences.contains(&sequence),
                    None => settled_sequences.is_empty(),
                };
                let impossible = units.iter().filter(|unit| unit.state == State::Impossible && nothing_before(unit));
                impossible.map(|unit| (unit.held.name.to_owned(), unit.row.at)).collect::<Vec<_>>()
            };
            // only of the start is it known what all near ties together do
            let together = settled_nothing.then_some(&all);
            let mut units = units(&stages, &start, together, &moves, question);
            if units.is_empty() {
                let off =
                    |(held, _): &(Held<'_>, Span)| held.over(&start, question).is_none_or(|rows| !rows.is_empty());
                return Ok(if stages.iter().any(off) { Found::Open } else { Found::Settled });
            }
            let start_of_units = start.clone();
            while units.iter().any(|unit| unit.state == State::Searching) {
                let mut trial = accepted.assumed(question);
                for unit in &mut units {
                    unit.next();
                    unit.moves.iter().for_each(|m| m.assume(&mut trial));
                }
                let Some(run) = self.run(&wanted, &trial)? else { return Ok(Found::Open) };
                let run_moves = moves_of(&run);
                for unit in units.iter_mut().filter(|unit| unit.state == State::Searching) {
                    unit.tried(&start_of_units, &run, &run_moves, question);
                }
                (start, moves) = (Rc::new(run), run_moves);
                if units.iter().map(Unit::kept).sum::<u64>() > most_kept {
                    return Ok(Found::Open);
                }
                let rows = refuted(&units);
                if !rows.is_empty() {
                    return Ok(Found::Refuted(rows));
                }
            }
            let rows = refuted(&units);
            if !rows.is_empty() {
                return Ok(Found::Refuted(rows));
            }
            if units.iter().any(|unit| unit.state != State::Settled) {
                return Ok(Found::Open);
            }
            settled_nothing = false;
            for unit in &units {
                unit.moves.iter().for_each(|m| accepted.accept(m));
                settled_sequences.extend(unit.row.owner.sequence.filter(|_| !unit.span.is_by_token()));
            }
        }
    }

    /// One run, if there is one left.
    fn run(&mut self, wanted: &dyn Fn(&str) -> bool, assumed: &Assumed) -> Result<Option<Trace>> {
        if self.runs == MOST_RUNS {
            return Ok(None);
        }
        self.runs += 1;
        taught(self.question.case, self.question.teacher, wanted, assumed).map(Some)
    }

    /// The rows that are off by far more than near ties do to them: `all` together, and those of one layer alone. (Together they may
    /// undo each other, or the one of them that did it; and of the choices that a token could have made, the nearest need not be
    /// the one that moves it most.)
    fn gross(
        &self,
        stages: &[(Held<'_>, Span)],
        start: &Trace,
        all: &Trace,
        (moves, accepted): (&Moves, &Accepted),
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(String, usize)>> {
        let question = self.question;
        let mut gross: Vec<(&Held<'_>, &Span, Row)> = Vec::new();
        for (held, span) in stages {
            let rows = held.over(start, question).unwrap_or_default().into_iter();
            gross.extend(rows.filter(|row| is_gross(held, row, start, all, question)).map(|row| (held, span, row)));
        }
        for rank in 0..RANKS {
            let layers: BTreeSet<usize> = gross.iter().flat_map(|(_, span, _)| span.layers.iter().copied()).collect();
            for layer in layers.into_iter().rev().take(LAYERS) {
                let mut of_layer = moves.of_rank(layer, rank).peekable();
                if gross.is_empty() || of_layer.peek().is_none() {
                    continue;
                }
                let mut assumed = accepted.assumed(question);
                of_layer.for_each(|m| m.assume(&mut assumed));
                let run = taught(question.case, question.teacher, wanted, &assumed)?;
                gross.retain(|(held, _, row)| is_gross(held, row, start, &run, question));
            }
        }
        Ok(gross.into_iter().map(|(held, _, row)| (held.name.to_owned(), row.at)).collect())
    }

    /// The rows that are off and that no near tie can move, if there are some, or if nothing is known of where a stage is off.
    fn beyond_reach(&self, stages: &[(Held<'_>, Span)], start: &Trace, moves: &Moves) -> Option<Vec<(String, usize)>> {
        let mut found = Vec::new();
        let mut nowhere = false;
        for (held, span) in stages {
            let rows = held.over(start, self.question).unwrap_or_default();
            nowhere |= rows.is_empty();
            let untouched = |row: &Row| {
                let (reaching, complete) = moves.reaching(&row.owner, span, self.question);
                reaching.is_empty() && complete
            };
            found.extend(rows.into_iter().filter(untouched).map(|row| (held.name.to_owned(), row.at)));
        }
        (nowhere || !found.is_empty()).then_some(found)
    }
}

/// Whether a row is off by far more than it is moved in a run.
fn is_gross(held: &Held<'_>, row: &Row, start: &Trace, run: &Trace, question: &Question<'_>) -> bool {
    let moved = held.moved(row.at, start, run).and_then(|moved| held.measure(row.at, &moved, start, question));
    moved.is_some_and(|moved| row.size > 1.0 + GROSS * moved)
}

/// The rows to be explained next.
fn units<'a>(
    stages: &'a [(Held<'a>, Span)],
    start: &Trace,
    together: Option<&Trace>,
    moves: &Moves,
    question: &Question<'_>,
) -> Vec<Unit<'a>> {
    let mut taken = BTreeSet::new();
    let mut units = Vec::new();
    for (held, span) in stages {
        let rows = held.over(start, question).unwrap_or_default();
        // one choice cannot be searched for two stages at once
        if rows.is_empty() || !span.layers.is_disjoint(&taken) {
            continue;
        }
        taken.extend(span.layers.iter().copied());
        let mut claimed = Vec::new();
        for row in rows {
            let alike = (row.owner.sequence, row.owner.place.filter(|_| span.is_by_token()));
            if !claimed.contains(&alike) {
                claimed.push(alike);
                units.push(Unit::new(held, span, row, (start, together), moves, question));
            }
        }
    }
    units
}

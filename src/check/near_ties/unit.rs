//! One row that is off, and the search for choices that explain it.
//!
//! Nodes of the search are sets of moves. Below a node are those with one more move, at a later layer or token, so that no set
//! comes up twice; which moves there are is seen from the run of the node itself. The most promising node is next: one below
//! a node that brought the row near, with few moves, of the row's own token, that need little.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Question;
use super::moves::{Move, Moves};
use super::reach::Span;
use super::rows::{Held, Row};
use crate::trace::Trace;

/// How many moves may explain a row.
const DEEPEST: usize = 4;

/// A set of moves to be tried.
struct Node {
    moves: Vec<Move>,
    /// How far off the row is without the last of them, in halvings.
    before: i32,
    own: bool,
}

impl Node {
    fn order(&self, other: &Node) -> Ordering {
        let key = |node: &Node| (node.before, node.moves.len(), !node.own);
        let needed = |node: &Node| node.moves.iter().map(|m| m.needed).sum::<f64>();
        key(self).cmp(&key(other)).then_with(|| needed(self).total_cmp(&needed(other)))
    }
}

/// Where the search for a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is more to try.
    Searching,
    /// The moves tried last bring the row within its budget.
    Settled,
    /// No moves do.
    Impossible,
    /// None of those that were looked at do, and there are more.
    Open,
}

/// See the module.
pub struct Unit<'a> {
    /// The stage.
    pub held: &'a Held<'a>,
    /// What lies between it and the dump.
    pub span: &'a Span,
    /// The row.
    pub row: Row,
    /// Where the search stands.
    pub state: State,
    /// What is tried, or what was found.
    pub moves: Vec<Move>,
    frontier: Vec<Node>,
    complete: bool,
    /// How far single moves take the row, by layer and token: the nearest of each first.
    alone: BTreeMap<(usize, usize), Vec<Vec<f64>>>,
    /// How far all moves together do, if that is known.
    together: Option<Vec<f64>>,
    rounds: usize,
}

impl<'a> Unit<'a> {
    /// The search for a row, from the run in which it is off, and that with all moves together, if that is known.
    pub fn new(
        held: &'a Held<'a>,
        span: &'a Span,
        row: Row,
        (start, together): (&Trace, Option<&Trace>),
        moves: &Moves,
        question: &Question<'_>,
    ) -> Self {
        let together = together.and_then(|together| held.moved(row.at, start, together));
        let mut unit = Unit {
            held,
            span,
            row,
            state: State::Searching,
            moves: Vec::new(),
            frontier: Vec::new(),
            complete: true,
            alone: BTreeMap::new(),
            together,
            rounds: 0,
        };
        unit.grow(unit.row.size, moves, question);
        unit.look_for_an_end(start, question);
        unit
    }

    /// The next moves to try, if there is need for any.
    pub fn next(&mut self) {
        // Every other time it is a single move: what these do tells what all can do.
        self.rounds += 1;
        let single = |at: &usize| self.frontier[*at].moves.len() == 1;
        let singles = self.rounds.is_multiple_of(2) && (0..self.frontier.len()).any(|at| single(&at));
        let among = (0..self.frontier.len()).filter(|at| !singles || single(at));
        let best = among.min_by(|&a, &b| self.frontier[a].order(&self.frontier[b]));
        if let (State::Searching, Some(best)) = (self.state, best) {
            self.moves = self.frontier.swap_remove(best).moves;
        }
    }

    /// What a run with these moves says; `start` is the run without any.
    pub fn tried(&mut self, start: &Trace, run: &Trace, moves: &Moves, question: &Question<'_>) {
        let excess = self.held.excess_of(self.row.at, run, question).unwrap_or(f64::INFINITY);
        if excess <= 1.0 {
            self.state = State::Settled;
            return;
        }
        if let [only] = &self.moves[..] {
            let moved = self.held.moved(self.row.at, start, run);
            self.alone.entry((only.layer, only.token)).or_default().extend(moved);
        }
        self.grow(excess, moves, question);
        self.look_for_an_end(start, question);
    }

    /// How many numbers are kept of how far moves take the row.
    pub fn kept(&self) -> u64 {
        let alone = self.alone.values().flatten();
        alone.chain(&self.together).map(|row| row.len() as u64).sum()
    }

    /// The nodes below the one that was tried last.
    fn grow(&mut self, excess: f64, moves: &Moves, question: &Question<'_>) {
        let (reaching, complete) = moves.reaching(&self.row.owner, self.span, question);
        let last = self.moves.last().map(|m| (m.layer, m.token));
        let later = reaching.into_iter().filter(|m| last.is_none_or(|last| (m.layer, m.token) > last));
        let below: Vec<Node> = later
            .map(|m| Node {
                moves: self.moves.iter().chain([m]).cloned().collect(),
                before: excess.log2().ceil() as i32,
                own: self.row.owner.is(m.token, question),
            })
            .collect();
        self.complete &= complete;
        match below.is_empty() {
            false if self.moves.len() == DEEPEST => self.complete = false,
            _ => self.frontier.extend(below),
        }
    }

    fn look_for_an_end(&mut self, start: &Trace, question: &Question<'_>) {
        let singles_tried = !self.frontier.iter().any(|node| node.moves.len() == 1);
        let beyond = singles_tried && self.complete && self.is_beyond(start, question).unwrap_or(false);
        self.state = match () {
            () if beyond => State::Impossible,
            () if !self.frontier.is_empty() => State::Searching,
            () if self.complete => State::Impossible,
            () => State::Open,
        };
    }

    /// Whether the row is further off than all moves together can take it, or in another direction; each of them was tried
    /// alone.
    fn is_beyond(&self, start: &Trace, question: &Question<'_>) -> Option<bool> {
        let size = |difference: &[f64]| self.held.measure(self.row.at, difference, start, question);
        let mut reach = 0.0;
        for shifts in self.alone.values() {
            let sizes = shifts.iter().map(|shift| size(shift)).collect::<Option<Vec<_>>>()?;
            reach += sizes.into_iter().fold(0.0, f64::max);
        }
        if self.row.size > 1.0 + reach {
            return Some(true);
        }
        // What no sum of them can be, less what they do to each other.
        let Some(together) = &self.together else { return Some(false) };
        let mut mutual = together.clone();
        for shift in self.alone.values().filter_map(|shifts| shifts.first()) {
            mutual.iter_mut().zip(shift).for_each(|(left, shift)| *left -= shift);
        }
        let error = self.held.error(self.row.at, start)?;
        let left = outside(error, self.alone.values().flatten());
        Some(size(&left)? > 1.0 + size(&mutual)?)
    }
}

/// The part of `error` that is at right angles to all `shifts`.
fn outside<'b>(mut error: Vec<f64>, shifts: impl Iterator<Item = &'b Vec<f64>>) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let remove = |from: &mut Vec<f64>, unit: &[f64]| {
        let along = dot(from, unit);
        from.iter_mut().zip(unit).for_each(|(x, unit)| *x -= along * unit);
    };
    let mut units: Vec<Vec<f64>> = Vec::new();
    for shift in shifts {
        let mut new = shift.clone();
        // twice, since once is not exact
        for _ in 0..2 {
            units.iter().for_each(|unit| remove(&mut new, unit));
        }
        let length = dot(&new, &new).sqrt();
        if length > 1e-9 * dot(shift, shift).sqrt() {
            new.iter_mut().for_each(|x| *x /= length);
            remove(&mut error, &new);
            units.push(new);
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_at_right_angles() {
        let shifts = [vec![1.0, 0.0, 0.0], vec![2.0, 0.0, 0.0], vec![1.0, 1.0, 0.0]];
        assert_eq!(outside(vec![3.0, 4.0, 5.0], shifts.iter()), [0.0, 0.0, 5.0]);
        assert_eq!(outside(vec![3.0, 4.0, 5.0], shifts[..2].iter()), [0.0, 4.0, 5.0]);
        assert_eq!(outside(vec![3.0], [].iter()), [3.0]);
    }
}

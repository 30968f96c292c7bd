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
    /// How far single moves take the row; by layer and token.
    alone: BTreeMap<(usize, usize), Option<f64>>,
}

impl<'a> Unit<'a> {
    /// The search for a row, from the run in which it is off.
    pub fn new(held: &'a Held<'a>, span: &'a Span, row: Row, moves: &Moves, question: &Question<'_>) -> Self {
        let mut unit = Unit {
            held,
            span,
            row,
            state: State::Searching,
            moves: Vec::new(),
            frontier: Vec::new(),
            complete: true,
            alone: BTreeMap::new(),
        };
        unit.grow(unit.row.size, moves, question);
        let keys = unit.frontier.iter().map(|node| (node.moves[0].layer, node.moves[0].token));
        unit.alone = keys.map(|key| (key, None)).collect();
        unit.look_for_an_end();
        unit
    }

    /// The next moves to try, if there is need for any.
    pub fn next(&mut self) {
        let best = (0..self.frontier.len()).min_by(|&a, &b| self.frontier[a].order(&self.frontier[b]));
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
            let moved = self.held.moved(self.row.at, start, run, question).unwrap_or(f64::INFINITY);
            let alone = self.alone.entry((only.layer, only.token)).or_default();
            *alone = Some(alone.unwrap_or(0.0).max(moved));
        }
        self.grow(excess, moves, question);
        self.look_for_an_end();
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

    fn look_for_an_end(&mut self) {
        let singles_tried = !self.frontier.iter().any(|node| node.moves.len() == 1);
        let reach: Option<f64> = self.alone.values().copied().sum();
        let beyond = singles_tried && self.complete && reach.is_some_and(|reach| self.row.size > 1.0 + reach);
        self.state = match () {
            () if beyond => State::Impossible,
            () if !self.frontier.is_empty() => State::Searching,
            () if self.complete => State::Impossible,
            () => State::Open,
        };
    }
}

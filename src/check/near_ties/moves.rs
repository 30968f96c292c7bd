//! The choices that a token could have made otherwise, as far as the dump leaves that open.

use std::collections::BTreeMap;

use dsv2_reference::stage::Stage;

use super::Question;
use super::reach::{Owner, Span, choice_of};
use crate::budget::Budgets;
use crate::check::judge::AssumedTie;
use crate::judge::Truth;
use crate::judge::near_tie::alternatives;
use crate::judge::routing::{KnownLogits, as_choice};
use crate::taps::Assumed;
use crate::trace::Trace;

/// A token that goes to other experts than the router of the reference sends it to.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The layer.
    pub layer: usize,
    /// The token, in the order `b·S + s`.
    pub token: usize,
    /// Its experts.
    pub experts: Vec<i64>,
    /// How far off the logits must be for that.
    pub needed: f64,
    /// The same, in what logits may be off in the mean; nothing, if the dump holds them.
    pub strain: f64,
}

impl Move {
    /// Whether the other is of the same token in the same layer.
    fn is_of_same(&self, other: &Move) -> bool {
        (self.layer, self.token) == (other.layer, other.token)
    }

    /// Takes it to have happened.
    pub fn assume(&self, assumed: &mut Assumed) {
        assumed.assume(&choice_of(self.layer), self.token, self.experts.clone());
    }
}

impl Move {
    /// For a report, of sequences of `length` tokens.
    pub fn tie(&self, length: usize) -> AssumedTie {
        AssumedTie {
            stage: choice_of(self.layer),
            sequence: self.token / length.max(1),
            token: self.token % length.max(1),
            experts: self.experts.clone(),
            strain: self.strain,
        }
    }
}

/// Moves that are taken to have happened.
#[derive(Clone, Debug, Default)]
pub struct Accepted(BTreeMap<(usize, usize), Move>);

impl Accepted {
    /// One more; of two of the same token in the same layer, the later one counts.
    pub fn accept(&mut self, accepted: &Move) {
        self.0.insert((accepted.layer, accepted.token), accepted.clone());
    }

    /// Layer by layer.
    pub fn iter(&self) -> impl Iterator<Item = &Move> {
        self.0.values()
    }

    /// For a run of the reference.
    pub fn assumed(&self, question: &Question<'_>) -> Assumed {
        let mut assumed = Assumed::new(question.case.inputs.batch(), question.case.inputs.length());
        self.iter().for_each(|m| m.assume(&mut assumed));
        assumed
    }

    /// How often a right run would have a tie fall the other way that is at least as far from equal as the furthest of these:
    /// so many, in the mean, among all that there `are`. `factor` is that of the budgets, of which the noise is one part.
    pub fn likelihood(&self, are: &Moves, factor: f64) -> f64 {
        let furthest = self.iter().map(|m| m.strain).fold(0.0, f64::max);
        let as_far = are.nearest().filter(|m| m.strain >= furthest);
        // the gap is twice the error that is needed, and the noise of a difference is that of two logits
        as_far.map(|m| beyond(2.0_f64.sqrt() * factor * m.strain)).sum()
    }
}

/// How much of a normal distribution is beyond `z` standard deviations on one side, to within a few per cent.
fn beyond(z: f64) -> f64 {
    0.5 * (-0.717 * z - 0.416 * z * z).exp()
}

/// All moves of the tokens of a run.
#[derive(Default)]
pub struct Moves {
    /// Layer by layer, token by token, the nearest first.
    pub all: Vec<Move>,
    /// Tokens of which there are more than these.
    more: Vec<(usize, usize)>,
}

impl Moves {
    /// What `run` leaves open in these layers. `budgets` say how far off logits may be that the dump does not hold.
    pub fn of(run: &Trace, layers: impl Iterator<Item = usize>, budgets: &Budgets, question: &Question<'_>) -> Self {
        let mut moves = Moves::default();
        for layer in layers {
            moves.of_layer(run, layer, budgets, question);
        }
        moves
    }

    fn of_layer(&mut self, run: &Trace, layer: usize, budgets: &Budgets, question: &Question<'_>) -> Option<()> {
        let name = choice_of(layer);
        let truth = Truth { trace: run, budgets, rows: question.rows };
        let known = KnownLogits::of(&name, question.dump, &truth)?;
        let chosen = run.get(&name)?.index()?;
        let (&tokens, &k) = (chosen.shape().first()?, chosen.shape().last()?);
        let chosen = chosen.to_shape((tokens, k)).ok()?;
        let logits = known.logits.to_shape((tokens, known.logits.len().checked_div(tokens)?)).ok()?;
        let compared = question.rows.of_stage(&Stage::parse(&name)?, &[tokens, k]);
        for (token, (chosen, z)) in chosen.rows().into_iter().zip(logits.rows()).enumerate() {
            let z = z.to_vec();
            if compared.as_ref().is_some_and(|rows| !rows[token]) || z.iter().any(|z| !z.is_finite()) {
                continue;
            }
            let Some(chosen) = as_choice(chosen, z.len()) else { continue };
            let others = alternatives(question.method, &z, &chosen, known.epsilon(&z));
            if !others.complete {
                self.more.push((layer, token));
            }
            self.all.extend(others.sets.into_iter().map(|(needed, set)| {
                let mut experts: Vec<usize> = set.into_iter().collect();
                experts.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
                Move {
                    layer,
                    token,
                    experts: experts.into_iter().map(|e| e as i64).collect(),
                    needed,
                    strain: known.strain(needed),
                }
            }));
        }
        Some(())
    }

    /// Those that can move a row, and whether these are all.
    pub fn reaching(&self, owner: &Owner, span: &Span, question: &Question<'_>) -> (Vec<&Move>, bool) {
        let reaches =
            |layer: usize, token: usize| span.layers.contains(&layer) && owner.hears(token, layer, span, question);
        let moves = self.all.iter().filter(|m| reaches(m.layer, m.token)).collect();
        (moves, !self.more.iter().any(|(layer, token)| reaches(*layer, *token)))
    }

    /// Of each token in a layer, the nearest for rank 0, the next one for 1, and so on, where there are so many.
    pub fn of_rank(&self, layer: usize, rank: usize) -> impl Iterator<Item = &Move> {
        let place = move |at: usize| self.all[..at].iter().rev().take_while(|m| self.all[at].is_of_same(m)).count();
        self.all.iter().enumerate().filter(move |(at, m)| m.layer == layer && place(*at) == rank).map(|(_, m)| m)
    }

    /// The nearest of each token in each layer.
    pub fn nearest(&self) -> impl Iterator<Item = &Move> {
        self.all.iter().enumerate().filter(|(at, m)| *at == 0 || !m.is_of_same(&self.all[at - 1])).map(|(_, m)| m)
    }
}

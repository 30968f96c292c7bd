//! Which tokens, sequences, heads or experts are wrong, where the others are right.

use std::collections::BTreeSet;

use dsv2_reference::stage::Layout;

use super::{Seen, listed};

/// To which token and head each row belongs, and whether it is wrong.
pub struct Places {
    heads: usize,
    /// How many tokens each sequence has.
    pub length: usize,
    /// In the order of the rows; nothing of those that are not compared.
    wrong: Vec<Option<bool>>,
    /// Whether the rows of a sequence go head by head.
    by_head: bool,
}

impl Places {
    /// Of a stage that has a row for each token.
    pub fn of(seen: &Seen<'_>) -> Option<Self> {
        let shape = seen.want.shape();
        let batch = seen.case.inputs.batch();
        let (heads, length, by_head) = match (seen.stage.layout, shape) {
            (Layout::Tokens | Layout::Keys | Layout::Table, &[_, length, _]) => (1, length, false),
            (Layout::Heads | Layout::Scores | Layout::Weights, &[_, heads, length, _]) => (heads, length, true),
            (Layout::Logits, &[_, length, _]) if length == seen.case.inputs.length() => (1, length, false),
            (Layout::Flat, &[tokens, _]) => (1, tokens.checked_div(batch)?, false),
            _ => return None,
        };
        let wrong = seen.wrong_rows()?;
        (heads > 0 && length > 0 && wrong.len().is_multiple_of(heads * length)).then_some(Places {
            heads,
            length,
            wrong,
            by_head,
        })
    }

    /// Sequence, head and token of a row.
    pub fn place(&self, row: usize) -> (usize, usize, usize) {
        let (b, within) = (row / (self.heads * self.length), row % (self.heads * self.length));
        debug_assert!(self.by_head || self.heads == 1);
        (b, within / self.length, within % self.length)
    }

    /// The row of a sequence, head and token.
    pub fn row(&self, b: usize, h: usize, s: usize) -> usize {
        (b * self.heads + h) * self.length + s
    }

    /// All rows with their places.
    pub fn rows(&self) -> impl Iterator<Item = (usize, (usize, usize, usize))> {
        (0..self.wrong.len()).map(|row| (row, self.place(row)))
    }

    /// The tokens that are compared, with whether they are wrong in any head.
    fn tokens(&self) -> Vec<((usize, usize), bool)> {
        let mut tokens = std::collections::BTreeMap::new();
        for (row, (b, _, s)) in self.rows() {
            if let Some(wrong) = self.wrong[row] {
                *tokens.entry((b, s)).or_insert(false) |= wrong;
            }
        }
        tokens.into_iter().collect()
    }
}

/// The tokens of a stage, if some are wrong and some are right.
fn mixed(seen: &Seen<'_>) -> Option<Vec<((usize, usize), bool)>> {
    let tokens = Places::of(seen)?.tokens();
    let wrong = tokens.iter().filter(|(_, wrong)| *wrong).count();
    (0 < wrong && wrong < tokens.len()).then_some(tokens)
}

/// Whole sequences are wrong, the others right.
pub fn sequences(seen: &Seen<'_>) -> Option<String> {
    let tokens = mixed(seen)?;
    let of = |is_wrong: bool| -> BTreeSet<usize> {
        tokens.iter().filter(|(_, wrong)| *wrong == is_wrong).map(|((b, _), _)| *b).collect()
    };
    let (wrong, right) = (of(true), of(false));
    if !wrong.is_disjoint(&right) {
        return None;
    }
    let all = wrong.len() + right.len();
    let numbers: Vec<usize> = wrong.iter().map(|b| b + 1).collect();
    let are = if numbers.len() == 1 {
        format!("sequence {} of {all} is", numbers[0])
    } else {
        format!("sequences {} of {all} are", listed(&numbers))
    };
    let others = if right.len() == 1 { "the other is right" } else { "the others are right" };
    Some(format!("{are} wrong at every token, {others}"))
}

/// A single token is wrong.
pub fn one_token(seen: &Seen<'_>) -> Option<String> {
    let tokens = mixed(seen)?;
    let mut wrong = tokens.iter().filter(|(_, wrong)| *wrong);
    let ((b, s), _) = wrong.next()?;
    let batch = seen.case.inputs.batch();
    let in_sequence = if batch > 1 { format!("sequence {} of {batch}, ", b + 1) } else { String::new() };
    wrong.next().is_none().then(|| format!("only one token is wrong: {in_sequence}place {s} (counted from 0)"))
}

/// The last token of each sequence is wrong.
pub fn last_token(seen: &Seen<'_>) -> Option<String> {
    let tokens = mixed(seen)?;
    let last = |b: usize| tokens.iter().filter(|((of, _), _)| *of == b).map(|((_, s), _)| *s).max();
    let only_last = tokens.iter().all(|((b, s), wrong)| *wrong == (Some(*s) == last(*b)));
    only_last.then(|| "only the last token of each sequence is wrong".to_owned())
}

/// The first token of each sequence is right, all others are wrong. In a step and of sequences laid end to end, the first row is
/// no sequence's first token, or that of one of them.
pub fn first_token_right(seen: &Seen<'_>) -> Option<String> {
    let tokens = mixed(seen)?;
    let inputs = &seen.case.inputs;
    let earliest = tokens.iter().map(|((_, s), _)| *s).min()?;
    let begins = inputs.past() == 0 || (seen.stage.layout == Layout::Keys && earliest < inputs.past());
    if !begins || inputs.packed.is_some() {
        return None;
    }
    let first = |b: usize| tokens.iter().filter(|((of, _), _)| *of == b).map(|((_, s), _)| *s).min();
    let all_but_first = tokens.iter().all(|((b, s), wrong)| *wrong == (Some(*s) != first(*b)));
    let points = match seen.stage.layout {
        Layout::Table | Layout::Heads => "look at the rotary angles",
        Layout::Scores => "look at the rotary angles and the mask",
        _ => "it attends to itself alone, so look at rotation, softmax scale and mask",
    };
    all_but_first.then(|| format!("the first token of each sequence is right, all others are wrong: {points}"))
}

/// From a place on everything is wrong, and nothing before it.
pub fn from_on(seen: &Seen<'_>) -> Option<String> {
    let tokens = mixed(seen)?;
    let from = tokens.iter().filter(|(_, wrong)| *wrong).map(|((_, s), _)| *s).min()?;
    if from == 0 || !tokens.iter().all(|((_, s), wrong)| *wrong == (*s >= from)) {
        return None;
    }
    let mut end = 0;
    let ends: Vec<usize> = seen
        .case
        .chunks
        .iter()
        .map(|length| {
            end += length;
            end
        })
        .collect();
    let chunk = match ends.iter().position(|end| *end == from) {
        // the rows of a step do not count the tokens before it
        Some(chunk) if seen.case.inputs.past() == 0 => format!(", where chunk {} of {} begins", chunk + 2, ends.len()),
        _ => String::new(),
    };
    Some(format!("right up to place {}, wrong from place {from} on (counted from 0){chunk}", from - 1))
}

/// How many experts are suspected, the busiest first.
const SUSPECTS: usize = 24;

/// The tokens that visit certain experts are wrong, and no others.
pub fn visitors(seen: &Seen<'_>) -> Option<String> {
    let experts = seen.experts?;
    let (tokens, length) = (mixed(seen)?, seen.case.inputs.looked_at());
    // what is cached has rows of tokens that went nowhere in this step
    if Places::of(seen)?.length != length {
        return None;
    }
    let k = experts.shape().last().copied().filter(|k| *k > 0)?;
    let visited: Vec<i64> = experts.iter().copied().collect();
    let of = |(b, s): (usize, usize)| visited.get((b * length + s) * k..(b * length + s + 1) * k).unwrap_or(&[]);
    let visitors = |expert: i64| tokens.iter().filter(move |(token, _)| of(*token).contains(&expert));
    let all: BTreeSet<i64> = visited.iter().copied().collect();
    // those that only wrong tokens visit, and more than one of these; the busiest first
    let mut suspects: Vec<(usize, i64)> = all
        .into_iter()
        .filter(|expert| visitors(*expert).all(|(_, wrong)| *wrong))
        .map(|expert| (visitors(expert).count(), expert))
        .filter(|(count, _)| *count > 1)
        .collect();
    suspects.sort_by_key(|(count, expert)| (std::cmp::Reverse(*count), *expert));
    let explains =
        |set: &[i64]| tokens.iter().all(|(token, wrong)| *wrong == of(*token).iter().any(|e| set.contains(e)));
    let suspects: Vec<i64> = suspects.into_iter().map(|(_, expert)| expert).take(SUSPECTS).collect();
    let mut set = sets(&suspects).find(|set| explains(set))?;
    set.sort_unstable();
    let numbers: Vec<usize> = set.iter().map(|expert| *expert as usize).collect();
    let which = if numbers.len() == 1 { "expert" } else { "experts" };
    Some(format!("the tokens that go to {which} {} are wrong, and no others", listed(&numbers)))
}

/// The sets of up to three of some things, the smallest first.
fn sets(of: &[i64]) -> impl Iterator<Item = Vec<i64>> {
    let ones = of.iter().map(|a| vec![*a]);
    let after = move |i: usize| (i + 1)..of.len();
    let twos = (0..of.len()).flat_map(move |i| after(i).map(move |j| vec![of[i], of[j]]));
    let threes = (0..of.len())
        .flat_map(move |i| after(i).map(move |j| (i, j)))
        .flat_map(move |(i, j)| after(j).map(move |k| vec![of[i], of[j], of[k]]));
    ones.chain(twos).chain(threes)
}

/// Some heads are wrong at every token, the others right.
pub fn heads(seen: &Seen<'_>) -> Option<String> {
    let places = Places::of(seen)?;
    let mut of_head = vec![false; places.heads];
    for (row, (_, h, _)) in places.rows() {
        of_head[h] |= places.wrong[row] == Some(true);
    }
    which(&of_head, "head")
}

/// "only head 2 is wrong", "only heads 0 and 1 are wrong", "only head 0 is right"; nothing if all are alike or it takes too
/// many words.
pub fn which(wrong: &[bool], what: &str) -> Option<String> {
    let of = |is: bool| -> Vec<usize> { (0..wrong.len()).filter(|i| wrong[*i] == is).collect() };
    let (wrong, right) = (of(true), of(false));
    let said = |numbers: &[usize], how: &str| match numbers {
        [one] => format!("only {what} {one} is {how} (counted from 0)"),
        several => format!("only {what}s {} are {how} (counted from 0)", listed(several)),
    };
    match (wrong.len(), right.len()) {
        (0, _) | (_, 0) => None,
        (w, r) if w <= r && w <= 4 => Some(said(&wrong, "wrong")),
        (_, r) if r <= 4 => Some(said(&right, "right")),
        _ => None,
    }
}

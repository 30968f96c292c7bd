//! The readings of a tensor: how its numbers may lie, and in which order they then are the model's.

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::convention::place::{self, Turn};
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use crate::values::fit;

/// A tensor in the model's shape, and what is said of the way it came.
#[derive(Clone)]
pub struct Reading<A> {
    /// The numbers.
    pub values: ArrayD<A>,
    /// What there is to say.
    pub says: Vec<&'static str>,
}

/// All readings that the shape allows, the most natural one first. (A dump with the sequence before the batch has been turned
/// before, except for what has heads.)
pub fn readings<A: Clone>(stage: &Stage, got: &ArrayD<A>, shape: &[usize], heads: usize) -> Vec<Reading<A>> {
    let mut found = Vec::new();
    if got.shape() == shape {
        found.push(Reading { values: got.clone(), says: Vec::new() });
    }
    let mut ordered = false;
    for convention in place::of(stage) {
        let same_order = matches!(convention.turn, Turn::UnitAxes | Turn::Rows { .. });
        // one way to say that the numbers are in order is enough
        if same_order && (ordered || !found.is_empty()) {
            continue;
        }
        if let Some(values) = turned(convention.turn, got, shape, heads) {
            ordered |= same_order;
            found.push(Reading { values, says: vec![convention.says] });
        }
    }
    if place::of(stage).any(|convention| convention.turn == Turn::Halves) {
        let paired = found.iter().filter_map(|reading| {
            let says = [&reading.says[..], &[place::says(Turn::Halves)]].concat();
            Some(Reading { values: pairs_of_halves(&reading.values)?, says })
        });
        let paired: Vec<_> = paired.collect();
        found.extend(paired);
    }
    found
}

/// The numbers in the model's order, if the shape allows the turn.
fn turned<A: Clone>(turn: Turn, got: &ArrayD<A>, shape: &[usize], heads: usize) -> Option<ArrayD<A>> {
    let last = |shape: &[usize]| shape.last().copied();
    match (turn, shape) {
        (Turn::UnitAxes, _) => fit(got, shape),
        (Turn::Rows { fewer }, _) if fewer == (got.ndim() < shape.len()) && last(got.shape()) == last(shape) => {
            reshaped(got, shape)
        }
        (Turn::HeadsSplit, &[batch, length, columns]) => {
            let width = columns.checked_div(heads)?;
            got.shape().ends_with(&[heads, width]).then_some(())?;
            (got.len() == batch * length * columns).then(|| reshaped(got, shape))?
        }
        (Turn::HeadsApart, &[batch, length, columns]) => {
            let width = columns.checked_div(heads)?;
            let apart = permuted(got, &[batch, heads, length, width], &[batch, heads, length, width], [0, 2, 1, 3])?;
            reshaped(&apart, shape)
        }
        (Turn::SequenceFirst, &[batch, heads, length, width]) => {
            let first = [length, batch, heads, width];
            permuted(got, &first, &first, [1, 2, 0, 3])
        }
        (Turn::HeadsBehind, &[batch, heads, length, width]) => {
            let behind = [batch, length, heads, width];
            let ends = heads == 1 || got.shape().ends_with(&[heads, width]);
            ends.then(|| permuted(got, &behind, got.shape(), [0, 2, 1, 3]))?
        }
        (Turn::HeadsFirst, &[batch, heads, length, width]) => {
            let first = [heads, batch, length, width];
            let flat = [heads, batch * length, width];
            permuted(got, &first, &first, [1, 0, 2, 3]).or_else(|| permuted(got, &first, &flat, [1, 0, 2, 3]))
        }
        (Turn::HeadsFolded, &[batch, heads, length, width]) => {
            (got.shape() == [batch * heads, length, width]).then(|| reshaped(got, shape))?
        }
        _ => None,
    }
}

/// `got`, which must be of the shape `is`, with the axes `axes` of `split` in another order.
fn permuted<A: Clone>(got: &ArrayD<A>, split: &[usize], is: &[usize], order: [usize; 4]) -> Option<ArrayD<A>> {
    let split = reshaped(got, split).filter(|_| got.shape() == is)?;
    Some(split.permuted_axes(IxDyn(&order)).as_standard_layout().into_owned())
}

/// The same numbers in another shape.
fn reshaped<A: Clone>(a: &ArrayD<A>, shape: &[usize]) -> Option<ArrayD<A>> {
    (a.len() == shape.iter().product::<usize>()).then(|| a.to_shape(shape).ok().map(|a| a.into_owned()))?
}

/// x[0], x[r/2], x[1], x[r/2 + 1], .. along the last axis, if that is of even length.
pub fn pairs_of_halves<A: Clone>(a: &ArrayD<A>) -> Option<ArrayD<A>> {
    let last = Axis(a.ndim().checked_sub(1)?);
    let width = a.len_of(last);
    (width.is_multiple_of(2) && width > 0).then_some(())?;
    let mut paired = a.clone();
    for (start, from) in [(0, Slice::from(..width / 2)), (1, Slice::from(width / 2..))] {
        paired.slice_axis_mut(last, Slice::new(start, None, 2)).assign(&a.slice_axis(last, from));
    }
    Some(paired)
}

/// x[0], x[2], .., x[1], x[3], ..: the other way round.
pub fn halves_of_pairs<A: Clone>(a: &ArrayD<A>) -> Option<ArrayD<A>> {
    let last = Axis(a.ndim().checked_sub(1)?);
    let width = a.len_of(last);
    (width.is_multiple_of(2) && width > 0).then_some(())?;
    let mut halves = a.clone();
    for (start, to) in [(0, Slice::from(..width / 2)), (1, Slice::from(width / 2..))] {
        halves.slice_axis_mut(last, to).assign(&a.slice_axis(last, Slice::new(start, None, 2)));
    }
    Some(halves)
}

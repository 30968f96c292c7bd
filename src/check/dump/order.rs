//! Whether the sequence comes before the batch, `[S, B, ..]`: a program does so everywhere or nowhere.

use dsv2_reference::stage::convention::place::{self, Turn};
use dsv2_reference::stage::{Layout, Stage};
use ndarray::{Array, ArrayD};

use super::Recognised;
use crate::trace::Trace;
use crate::values::Values;

/// The dump with the batch first, if the shapes show that it has the sequence first. Flattened tensors, `[S·B, ..]`, go with
/// the others, if these agree.
pub fn by_shape(trace: &Trace, batch: usize, length: usize) -> Option<(Trace, Vec<Recognised>)> {
    let (sequence, other) = order(trace.iter().map(|(name, values)| (name, values.shape())), batch, length);
    (sequence > 0).then(|| batch_first(trace, batch, length, other == 0))
}

/// Whether tensors of these shapes have the sequence first.
pub fn is_sequence_first<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
    batch: usize,
    length: usize,
) -> bool {
    order(tensors, batch, length).0 > 0
}

/// The dump with the batch first; `flat`: of what is flattened, too.
pub fn batch_first(trace: &Trace, batch: usize, length: usize, flat: bool) -> (Trace, Vec<Recognised>) {
    let mut recognised = Vec::new();
    let stages = trace.iter().map(|(name, values)| {
        let stage = Stage::parse(name).filter(|_| flat || values.shape().len() > 2);
        let turned = stage.and_then(|stage| {
            Some(match values {
                Values::Real(dtype, a) => Values::Real(*dtype, turned(&stage, a, batch, length)?),
                Values::Index(a) => Values::Index(turned(&stage, a, batch, length)?),
                Values::Bool(_) => return None,
            })
        });
        if turned.is_some() {
            recognised.push(Recognised::new(name, place::says(Turn::SequenceFirst)));
        }
        (name.to_owned(), turned.unwrap_or_else(|| values.clone()))
    });
    let trace = stages.collect();
    (trace, recognised)
}

/// A tensor of a dump that has the sequence before the batch, turned: in the order of the model, flattened where it was.
/// `length` is S. Nothing, if the stage has no such axes or the shape is another.
fn turned<A: Clone>(stage: &Stage, got: &ArrayD<A>, batch: usize, length: usize) -> Option<ArrayD<A>> {
    place::of(stage).find(|convention| convention.turn == Turn::SequenceFirst)?;
    let (leading, rest) = match (stage.layout, got.shape()) {
        // another order of four axes is tried with the numbers
        (Layout::Heads, _) => return None,
        (_, &[s, b, width]) if (s, b) == (length, batch) => (vec![b, s], width),
        (_, &[tokens, width]) if tokens == length * batch => (vec![tokens], width),
        _ => return None,
    };
    let turned = got.to_shape((length, batch, rest)).ok()?.permuted_axes([1, 0, 2]);
    let turned: Array<A, _> = turned.as_standard_layout().into_owned();
    turned.to_shape([&leading[..], &[rest]].concat()).ok().map(|turned| turned.into_owned())
}

/// What the shapes say of the order of sequence and batch: how many tensors can only have the sequence first, and how many
/// only the batch.
fn order<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>, batch: usize, length: usize) -> (usize, usize) {
    let mut count = (0, 0);
    for (name, shape) in tensors {
        let by_tokens = Stage::parse(name).is_some_and(|stage| stage.layout == Layout::Tokens);
        match *shape {
            _ if !by_tokens || batch == length || batch == 1 || length == 1 => {}
            [s, b, _] if (s, b) == (length, batch) => count.0 += 1,
            [b, s, _] if (b, s) == (batch, length) => count.1 += 1,
            _ => {}
        }
    }
    count
}

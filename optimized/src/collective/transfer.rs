//! A collective whose ranks have all come to it: whether they agree, and what each gets.

use half::bf16;

use super::emulated::Fault;
use super::{Operation, Posted};
use crate::Element;

/// Whether the calls of a group's ranks are one collective; `calls` stand in the order of the group.
pub(super) fn agree(calls: &[&Posted]) -> Result<(), Fault> {
    let first = calls[0];
    let ranks = &first.ranks;
    let fault = |place: usize, expected: String, found: String| {
        Err(Fault { rank: ranks[place], call: calls[place].to_string(), expected, found })
    };
    for (place, call) in calls.iter().enumerate() {
        if (call.operation, &call.purpose) != (first.operation, &first.purpose) {
            return fault(place, format!("as on rank {}: {first}", ranks[0]), "another call".into());
        }
        if call.element != first.element {
            return fault(place, format!("{}, as on rank {}", first.element, ranks[0]), call.element.to_string());
        }
        for (other, sender) in calls.iter().enumerate() {
            let (sent, expected) = match call.operation {
                Operation::AllReduce | Operation::Broadcast { .. } => (sender.send.1[0], call.receive.1[0]),
                Operation::AllGather => (sender.send.1[0], call.receive.1[other]),
                Operation::ReduceScatter => (sender.send.1[place], call.receive.1[0]),
                Operation::AllToAll => (sender.send.1[place], call.receive.1[other]),
            };
            if sent != expected {
                let found = format!("{sent}");
                return fault(place, format!("{expected} elements from rank {}", ranks[other]), found);
            }
        }
    }
    Ok(())
}

/// What each rank gets of what all sent, in the order of the group.
pub(super) fn results(calls: &[&Posted], sent: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (operation, element) = (calls[0].operation, calls[0].element);
    let part = |from: usize, to: usize| {
        let counts = &calls[from].send.1;
        let start: usize = counts[..to].iter().sum();
        &sent[from][start * element.bytes()..(start + counts[to]) * element.bytes()]
    };
    let of = |place: usize| match operation {
        Operation::AllReduce => sum(element, sent.iter().map(Vec::as_slice)),
        Operation::AllGather => sent.concat(),
        Operation::ReduceScatter => sum(element, (0..sent.len()).map(|from| part(from, place))),
        Operation::AllToAll => (0..sent.len()).flat_map(|from| part(from, place)).copied().collect(),
        Operation::Broadcast { root } => sent[root].clone(),
    };
    (0..calls.len()).map(of).collect()
}

/// The sum in the order of the ranks, in fp32, rounded once. Integers wrap.
fn sum<'a>(element: Element, parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    match element {
        Element::F32 => added(parts, f32::from_le_bytes, |a, b| a + b, f32::to_le_bytes),
        Element::Bf16 => {
            added(parts, |x| bf16::from_le_bytes(x).to_f32(), |a, b| a + b, |x| bf16::from_f32(x).to_le_bytes())
        }
        Element::I32 => added(parts, i32::from_le_bytes, i32::wrapping_add, i32::to_le_bytes),
    }
}

fn added<'a, const N: usize, T: Copy>(
    parts: impl Iterator<Item = &'a [u8]>,
    decode: impl Fn([u8; N]) -> T,
    add: impl Fn(T, T) -> T,
    encode: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let numbers = |part: &[u8]| part.as_chunks::<N>().0.iter().map(|x| decode(*x)).collect::<Vec<T>>();
    let sum = parts.map(numbers).reduce(|sum, part| sum.iter().zip(part).map(|(a, b)| add(*a, b)).collect());
    sum.into_iter().flatten().flat_map(encode).collect()
}

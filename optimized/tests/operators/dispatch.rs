//! Sorting by expert: one token and thousands, experts without tokens, all tokens to one expert, dropped tokens.

use std::sync::Arc;

use dsv2_optimized::operators::dispatch::sort_by_expert;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};

use crate::harness::{Case, Output, output, random};
use crate::router::refused;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, experts, k, how) in [
        (3, 5, 2, How::Mixed),
        (0, 5, 2, How::Mixed),
        (1, 1, 1, How::Mixed),
        (19, 3, 2, How::OneExpert),
        (37, 5, 2, How::WithDropped),
        (1, 160, 6, How::Mixed),
        (1, 1024, 8, How::Mixed),
        (257, 64, 6, How::Mixed),
        (700, 33, 3, How::OneExpert),
        (300, 1024, 8, How::WithDropped),
        (4096, 160, 6, How::Mixed),
    ] {
        for variant in Variant::ALL {
            cases.push(Case {
                name: format!("sort_by_expert/{variant}/tokens={tokens},experts={experts},k={k},{how:?}"),
                module: "dispatch",
                watched: tokens * k <= 2100 && experts <= 64,
                run: Box::new(move |device| {
                    let indices = indices(how, tokens, experts, k);
                    run(device, variant, &indices, [tokens, k], experts)
                }),
            });
        }
    }
    cases.push(Case {
        name: "sort_by_expert/misfits".into(),
        module: "dispatch",
        watched: false,
        run: Box::new(misfits),
    });
    cases
}

/// Where the tokens go.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// To any k different experts.
    Mixed,
    /// All to the last expert, with their first choice; the other choices to the first.
    OneExpert,
    /// As `Mixed`, but a seventh of the pairs to no expert.
    WithDropped,
}

/// The experts of tokens, \[tokens, k\].
pub fn indices(how: How, tokens: usize, experts: usize, k: usize) -> Vec<i32> {
    let noise = random("indices", [tokens], 1000.0);
    let mut indices = vec![];
    for (token, noise) in noise.iter().enumerate() {
        let first = noise.abs() as usize % experts;
        indices.extend((0..k).map(|j| match how {
            How::OneExpert if j == 0 => experts as i32 - 1,
            How::OneExpert => 0,
            How::WithDropped if (token * k + j) % 7 == 2 => [-1, experts as i32][token % 2],
            // Some of the larger index first.
            _ => ((first + j * (experts - 1).min(7 * j + 1)) % experts) as i32,
        }));
    }
    indices
}

/// What is expected, computed by a stable sort: offsets, order, places.
pub fn sorted(indices: &[i32], experts: usize) -> [Vec<i32>; 3] {
    let bin = |pair: usize| usize::try_from(indices[pair]).unwrap_or(experts).min(experts);
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by_key(|pair| bin(*pair));
    let offsets = (0..=experts).map(|e| order.iter().filter(|pair| bin(**pair) < e).count() as i32).collect();
    let mut places = vec![-1; indices.len()];
    for (place, pair) in order.iter().enumerate().filter(|(_, pair)| bin(**pair) < experts) {
        places[*pair] = place as i32;
    }
    [offsets, order.into_iter().map(|pair| pair as i32).collect(), places]
}

fn run(
    device: &Arc<dyn Device>,
    variant: Variant,
    indices: &[i32],
    shape: [usize; 2],
    experts: usize,
) -> Result<Vec<Output>> {
    let uploaded = Tensor::from_i32(device, &shape, indices)?;
    let offsets = output(device, Element::I32, &[experts + 1])?;
    let [order, places] =
        [output(device, Element::I32, &[indices.len()])?, output(device, Element::I32, &[indices.len()])?];
    sort_by_expert(variant, &uploaded, experts, &offsets, &order, &places)?;
    let names = ["offsets", "order", "places"];
    let expected = sorted(indices, experts);
    let found = [offsets, order, places];
    names
        .into_iter()
        .zip(found.iter().zip(expected))
        .map(|(name, (found, expected))| Output::exactly(name, found, expected.into_iter().map(f64::from)))
        .collect()
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let table = |length: usize| Tensor::empty(device, Element::I32, &[length]);
    let indices = Tensor::empty(device, Element::I32, &[2, 3])?;
    let (offsets, pairs) = (table(5)?, table(6)?);
    for variant in Variant::ALL {
        let sort = |experts, offsets, order| sort_by_expert(variant, &indices, experts, offsets, order, &pairs);
        refused(sort(0, &offsets, &pairs), "sort_by_expert: experts: expected 1 to 1024, found 0")?;
        refused(sort(1025, &offsets, &pairs), "sort_by_expert: experts: expected 1 to 1024, found 1025")?;
        refused(sort(5, &offsets, &pairs), "sort_by_expert: offsets: expected the shape [6], found [5]")?;
        refused(sort(4, &offsets, &offsets), "sort_by_expert: order: expected the shape [6], found [5]")?;
    }
    Ok(vec![])
}

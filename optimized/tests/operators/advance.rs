//! The end of a decode step: what was chosen becomes the next input, over the edge of a page and of the table, with texts that
//! end and texts that have ended.

use std::sync::Arc;

use dsv2_optimized::operators::advance::{Draws, Sequences, advance};
use dsv2_optimized::{Device, Element, Result, Tensor};

use crate::harness::{Case, Output};
use crate::router::refused;

pub fn cases() -> Vec<Case> {
    let case = |what: &str, batch: usize, drawn: bool| Case {
        name: format!("advance/{what}"),
        module: "advance",
        watched: true,
        run: Box::new(move |device| steps(device, batch, drawn)),
    };
    let misfits = Case { name: "advance/misfits".into(), module: "advance", watched: false, run: Box::new(misfits) };
    vec![case("greedy", 3, false), case("drawn", 2, true), case("many", 131, true), misfits]
}

const PAGE: usize = 4;
const PAGES: usize = 3;
const STEPS: usize = 6;
const ENDS: [i32; 2] = [7, 9];
const FILLER: i32 = 5;

/// The page of each run of tokens: in no order.
fn page(b: usize, column: usize) -> i32 {
    ((b * PAGES + column) * 5 % (131 * PAGES)) as i32
}

/// Keys of each sequence before: so that one crosses a page in the first step, and one the end of the table in a later one.
fn length(b: usize) -> usize {
    [PAGE, 2, PAGE * PAGES - 2][b % 3]
}

/// What is chosen in a step: each end, at different times.
fn chosen(b: usize, step: usize) -> i32 {
    match (b % 3, step) {
        (0, 2) => ENDS[1],
        (1, 1) => ENDS[0],
        _ => (10 + b + step) as i32,
    }
}

fn draw(step: usize, b: usize) -> f32 {
    (step * 200 + b) as f32 / 4096.0
}

fn start(device: &Arc<dyn Device>, batch: usize, drawn: bool) -> Result<Sequences> {
    let integers =
        |of: &dyn Fn(usize) -> i32| Tensor::from_i32(device, &[batch], &(0..batch).map(of).collect::<Vec<_>>());
    let table: Vec<i32> = (0..batch * PAGES).map(|i| page(i / PAGES, i % PAGES)).collect();
    let draws: Vec<f32> = (0..STEPS * batch).map(|i| draw(i / batch, i % batch)).collect();
    Ok(Sequences {
        tokens: integers(&|_| 1)?,
        positions: integers(&|b| 3 + b as i32)?,
        lengths: integers(&|b| length(b) as i32)?,
        slots: integers(&|_| 0)?,
        ended: integers(&|_| 0)?,
        block_table: Tensor::from_i32(device, &[batch, PAGES], &table)?,
        draws: match drawn {
            false => None,
            true => Some(Draws {
                all: Tensor::from_f32(device, Element::F32, &[STEPS, batch], &draws)?,
                next: Tensor::from_f32(device, Element::F32, &[batch], &draws[..batch])?,
                drawn: integers(&|_| 1)?,
            }),
        },
    })
}

fn steps(device: &Arc<dyn Device>, batch: usize, drawn: bool) -> Result<Vec<Output>> {
    let sequences = start(device, batch, drawn)?;
    let ends = Tensor::from_i32(device, &[ENDS.len()], &ENDS)?;
    let mut ended = vec![false; batch];
    let mut outputs = vec![];
    for step in 0..STEPS - 1 {
        let choice: Vec<i32> = (0..batch).map(|b| chosen(b, step)).collect();
        advance(&sequences, &Tensor::from_i32(device, &[batch], &choice)?, &ends, FILLER, PAGE)?;
        let tokens: Vec<i32> = (0..batch).map(|b| if ended[b] { FILLER } else { choice[b] }).collect();
        (0..batch).for_each(|b| ended[b] |= ENDS.contains(&tokens[b]));
        // The place of the token that comes next: the sequence's keys so far are before it.
        let slot = |b: usize| match length(b) + step {
            place if place < PAGES * PAGE => page(b, place / PAGE) * PAGE as i32 + (place % PAGE) as i32,
            _ => -1,
        };
        let of = |expected: &dyn Fn(usize) -> i32| (0..batch).map(expected).collect::<Vec<_>>();
        outputs.push(Output::exactly("tokens", &sequences.tokens, tokens)?);
        outputs.push(Output::exactly("ended", &sequences.ended, of(&|b| i32::from(ended[b])))?);
        outputs.push(Output::exactly("positions", &sequences.positions, of(&|b| (4 + b + step) as i32))?);
        outputs.push(Output::exactly("lengths", &sequences.lengths, of(&|b| (length(b) + step + 1) as i32))?);
        outputs.push(Output::exactly("slots", &sequences.slots, of(&slot))?);
        if let Some(draws) = &sequences.draws {
            outputs.push(Output::exactly("draws", &draws.next, (0..batch).map(|b| draw(step + 1, b)))?);
        }
    }
    Ok(outputs)
}

fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let sequences = start(device, 3, true)?;
    let ends = Tensor::from_i32(device, &[1], &[7])?;
    let two = Tensor::from_i32(device, &[2], &[1, 2])?;
    refused(
        advance(&sequences, &two, &ends, 0, PAGE),
        "advance: block_table: expected the shape [2, 3], found [3, 3]",
    )?;
    let real = Tensor::from_f32(device, Element::F32, &[3], &[1.0; 3])?;
    refused(advance(&sequences, &real, &ends, 0, PAGE), "advance: chosen: expected i32, found f32")?;
    Ok(vec![])
}

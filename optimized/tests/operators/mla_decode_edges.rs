//! Attention on a paged cache where operands are at their edges: lengths that the block table has no room for, and results
//! that begin at an odd place.

use std::sync::Arc;

use dsv2_optimized::operators::mla_decode::{mla_decode, shared};
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};

use crate::harness::{Case, KINDS, Output, output, random, upload};

/// Two sequences; their block tables have room for two splits of keys each.
const SHAPE: [usize; 4] = [2, 1, 3, 12];
const ROPE: usize = 4;
const PAGE: usize = 16;
const PAGES: usize = 17;
const ROOM: i32 = (PAGE * PAGES) as i32;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        let mut case = |what: &str, run: fn(&Operands) -> Result<Vec<Output>>| {
            cases.push(Case {
                name: format!("mla_decode/{variant}/{element}/{what}"),
                module: "mla_decode",
                watched: false,
                run: Box::new(move |device| run(&Operands::new(device, element, variant)?)),
            });
        };
        case("a_length_beyond_the_table_is_its_room", Operands::lengths_beyond);
        case("results_that_begin_anywhere", Operands::results_anywhere);
    }
    cases
}

struct Operands {
    variant: Variant,
    q_latent: Tensor,
    q_pe: Tensor,
    cache: Tensor,
    block_table: Tensor,
    scratch: Scratch,
}

impl Operands {
    /// Every page is a sequence's own: there is nothing that nobody may read.
    fn new(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Self> {
        let [batch, tokens, heads, latent] = SHAPE;
        let pages = batch * PAGES;
        let numbers: Vec<i32> = (0..pages as i32).collect();
        let (numbers_needed, counters) = shared(variant, SHAPE, ROPE, ROOM as usize);
        Ok(Operands {
            variant,
            q_latent: upload(device, element, &random("q_latent", SHAPE, 1.0))?,
            q_pe: upload(device, element, &random("q_pe", [batch, tokens, heads, ROPE], 1.0))?,
            cache: upload(device, element, &random("cache", [pages, PAGE, latent + ROPE], 1.0))?,
            block_table: Tensor::from_i32(device, &[batch, PAGES], &numbers)?,
            scratch: Scratch::with_counters(device, numbers_needed, counters)?,
        })
    }

    /// Into an output that begins so many elements behind an aligned place.
    fn attend(&self, lengths: [i32; 2], skipped: usize) -> Result<[Tensor; 2]> {
        let (device, element) = (self.scratch.device(), self.q_latent.element());
        let count: usize = SHAPE.iter().product();
        let out = output(device, element, &[skipped + count])?.narrow(0, skipped..skipped + count)?.reshape(&SHAPE)?;
        let lse = output(device, Element::F32, &SHAPE[..3])?;
        let lengths = Tensor::from_i32(device, &[2], &lengths)?;
        let Operands { variant, q_latent, q_pe, cache, block_table, scratch } = self;
        mla_decode(*variant, q_latent, q_pe, cache, block_table, &lengths, None, 0.5, scratch, &out, &lse)?;
        Ok([out, lse])
    }

    /// And what comes next in the same scratch is as it would be in a new one.
    fn lengths_beyond(&self) -> Result<Vec<Output>> {
        let full = self.attend([ROOM, 40], 0)?;
        let mut outputs = vec![];
        for (name, length) in [("one more", ROOM + 1), ("a split more", ROOM + 256), ("the most", i32::MAX)] {
            outputs.extend(same(name, &self.attend([length, 40], 0)?, &full)?);
            outputs.extend(same("the next launch", &self.attend([ROOM, 40], 0)?, &full)?);
        }
        let none = self.attend([0, 40], 0)?;
        outputs.extend(same("less than none", &self.attend([i32::MIN, 40], 0)?, &none)?);
        Ok(outputs)
    }

    /// Of one split and of two.
    fn results_anywhere(&self) -> Result<Vec<Output>> {
        let mut outputs = vec![];
        for lengths in [[40, 7], [ROOM, 257]] {
            let aligned = self.attend(lengths, 0)?;
            for skipped in 1..4 {
                outputs.extend(same("not aligned", &self.attend(lengths, skipped)?, &aligned)?);
            }
        }
        Ok(outputs)
    }
}

fn same(name: &'static str, got: &[Tensor; 2], want: &[Tensor; 2]) -> Result<[Output; 2]> {
    Ok([Output::same(name, &got[0], &want[0])?, Output::same(name, &got[1], &want[1])?])
}

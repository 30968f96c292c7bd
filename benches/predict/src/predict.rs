//! The time of a launch, from what it did and a card's constants.
//!
//! ```text
//! T = node + max(memory, l2, issue, shared, tensor, chain)
//!
//! memory   different bytes read and written / bandwidth
//! l2       bytes asked for / bandwidth of the cache; or those of the busiest multiprocessor / what goes into it
//! issue    instructions of the busiest multiprocessor / 4
//! shared   passes through shared memory of the busiest multiprocessor
//! tensor   mma of the busiest multiprocessor / 4, times their cycles
//! chain    what happens one after the other: of a block, its trips to memory and its barriers, or the instructions of its
//!          longest warp, whichever take longer; and one block after the other where not all find room at once
//! ```
//!
//! The busiest multiprocessor: blocks go, in order, to the one that has least to do so far. This is how waves, and grids
//! smaller than the card, are accounted for.
//!
//! All terms but the chain are lower bounds *if the constants are right*. The chain is an estimate: a deep pipeline may spend less
//! than a trip on a stage, and loads that wait for each other between two waits count as one trip. The largest term stands for
//! all: what overlaps badly takes longer. Not known here: what latency the memory has under load, what the clock is, what the
//! caches hold by chance (the L1 cache is taken for none, so that naive kernels ask the L2 cache for everything), and what the
//! driver's compiler makes of the PTX's instructions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::occupancy::resident;
use crate::{Block, Card, Work};

/// The terms of a launch, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Different bytes from and to memory.
    pub memory: f64,
    /// Bytes from the L2 cache.
    pub l2: f64,
    /// Instructions.
    pub issue: f64,
    /// Shared memory.
    pub shared: f64,
    /// Tensor cores.
    pub tensor: f64,
    /// What happens one after the other.
    pub chain: f64,
    /// To get from one kernel to the next.
    pub node: f64,
}

/// What the busiest multiprocessor did of each.
#[derive(Clone, Copy, Debug, Default)]
struct Busiest {
    instructions: u64,
    matrix: u64,
    wavefronts: u64,
    sectors: u64,
}

impl Terms {
    /// Of a launch on a card.
    pub fn new(work: &Work, card: &Card) -> Self {
        let busiest = busiest(&work.blocks, card.multiprocessors);
        Terms {
            memory: memory(work, card),
            l2: l2(work, &busiest, card),
            issue: busiest.instructions as f64 / card.issue / card.clock,
            shared: busiest.wavefronts as f64 / card.wavefronts / card.clock,
            tensor: busiest.matrix as f64 / 4.0 * card.matrix / card.clock,
            chain: chain(work, card),
            node: card.node,
        }
    }

    /// With their names.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        let Terms { memory, l2, issue, shared, tensor, chain, .. } = *self;
        [("memory", memory), ("l2", l2), ("issue", issue), ("shared", shared), ("tensor", tensor), ("chain", chain)]
    }

    /// The largest term: its name and its seconds. Of equal ones the first.
    pub fn limit(&self) -> (&'static str, f64) {
        self.named().into_iter().reduce(|most, term| if term.1 > most.1 { term } else { most }).unwrap_or_default()
    }

    /// The predicted time, in seconds.
    pub fn time(&self) -> f64 {
        self.node + self.limit().1
    }
}

fn memory(work: &Work, card: &Card) -> f64 {
    (work.read + work.written) as f64 / card.memory
}

fn l2(work: &Work, busiest: &Busiest, card: &Card) -> f64 {
    let bytes = |sectors: u64| 32.0 * sectors as f64;
    let all: u64 = work.blocks.iter().map(|block| block.sectors).sum();
    (bytes(all) / card.l2).max(bytes(busiest.sectors) / card.port / card.clock)
}

fn chain(work: &Work, card: &Card) -> f64 {
    let places = card.multiprocessors as u64 * resident(work).unwrap_or(1);
    let cycles = work.blocks.iter().map(|block| {
        let waits = block.trips as f64 * card.trip + block.barriers as f64 * card.barrier;
        waits.max(block.longest as f64 * card.dependent) as u64
    });
    let loads = spread(cycles, places as usize);
    loads.into_iter().map(|(load, _)| load).max().unwrap_or(0) as f64 / card.clock
}

/// Of each count the most that a multiprocessor has.
fn busiest(blocks: &[Block], multiprocessors: usize) -> Busiest {
    let mut busiest = Busiest::default();
    for (_, own) in spread(blocks.iter().map(|block| block.instructions), multiprocessors) {
        let sum = |of: fn(&Block) -> u64| own.iter().map(|at| of(&blocks[*at])).sum::<u64>();
        busiest.instructions = busiest.instructions.max(sum(|block| block.instructions));
        busiest.matrix = busiest.matrix.max(sum(|block| block.matrix));
        busiest.wavefronts = busiest.wavefronts.max(sum(|block| block.wavefronts));
        busiest.sectors = busiest.sectors.max(sum(|block| block.sectors));
    }
    busiest
}

/// Gives each load, in order, to the place that has least so far, of several the one with the fewest loads: of each place that
/// has any, the sum and which loads.
fn spread(loads: impl Iterator<Item = u64>, places: usize) -> Vec<(u64, Vec<usize>)> {
    let mut spread = vec![(0, vec![]); places.max(1)];
    let mut least: BinaryHeap<_> = (0..spread.len()).map(|place| Reverse((0, 0, place))).collect();
    for (at, load) in loads.enumerate() {
        let Some(Reverse((sum, count, place))) = least.pop() else { break };
        spread[place].0 = sum + load;
        spread[place].1.push(at);
        least.push(Reverse((sum + load, count + 1, place)));
    }
    spread.retain(|(_, own)| !own.is_empty());
    spread
}

//! What is taken to be true of a card. Everything that a card's measurements can correct is a field here, and nothing else in
//! this crate knows a number of a card.

/// The constants of a card. Times are in seconds, cycles are those of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Such as `H200`.
    pub name: &'static str,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Cycles in a second, under load.
    pub clock: f64,
    /// Bytes in a second from memory.
    pub memory: f64,
    /// Bytes in a second from the L2 cache to all multiprocessors together.
    pub l2: f64,
    /// Bytes in a cycle from the L2 cache to one multiprocessor.
    pub port: f64,
    /// Instructions of warps that a multiprocessor begins in a cycle: one for each of its four schedulers.
    pub issue: f64,
    /// Passes through shared memory in a cycle, of 128 bytes each.
    pub wavefronts: f64,
    /// Operations in a second of products of bf16 matrices, at best: what floors are made of.
    pub products: f64,
    /// Cycles of `mma.m16n8k16` in one of a multiprocessor's four tensor cores.
    pub matrix: f64,
    /// Cycles from asking global memory for the next stage of a pipeline to having it: what a block spends at least on each
    /// interval between two waits in which it asks.
    pub trip: f64,
    /// Cycles of a barrier before which nothing was asked for.
    pub barrier: f64,
    /// Cycles from one instruction of a warp to its next one, where it depends on the one before as often as code does.
    pub dependent: f64,
    /// From the end of one kernel of a graph to the beginning of the next.
    pub node: f64,
}

/// The fields of a card's constants, for reports: name, unit, value.
pub type Constant = (&'static str, &'static str, f64);

impl Card {
    /// Memory and products were measured on such a card (4.3 TB/s, copying; 788 TFLOP/s). Multiprocessors, issue, port and
    /// wavefronts are the architecture's. The rest are estimates: a clock that power holds back (FlashMLA's authors: about 1.6
    /// GHz), the middle of 6.5 to 8 cycles for `mma`, of 1 to 1.5 us for a node, and what a trip, a barrier and a dependent
    /// instruction usually take. The first run on a card is to correct them.
    pub const H200: Card = Card {
        name: "H200",
        multiprocessors: 132,
        clock: 1.64e9,
        memory: 4.3e12,
        l2: 5.5e12,
        port: 64.0,
        issue: 4.0,
        wavefronts: 1.0,
        products: 788e12,
        matrix: 7.25,
        trip: 300.0,
        barrier: 40.0,
        dependent: 2.0,
        node: 1.25e-6,
    };

    /// The same chip with slower memory: 3.0 TB/s, and 798 TFLOP/s, measured.
    pub const H100: Card = Card { name: "H100", memory: 3.0e12, products: 798e12, ..Card::H200 };

    /// Both.
    pub const ALL: [Card; 2] = [Card::H100, Card::H200];

    /// All constants.
    pub fn constants(&self) -> [Constant; 13] {
        let Card { multiprocessors, clock, memory, l2, port, issue, wavefronts, products, .. } = *self;
        let Card { matrix, trip, barrier, dependent, node, .. } = *self;
        [
            ("multiprocessors", "", multiprocessors as f64),
            ("clock", "1/s", clock),
            ("memory", "B/s", memory),
            ("l2", "B/s", l2),
            ("port", "B/cycle", port),
            ("issue", "1/cycle", issue),
            ("wavefronts", "1/cycle", wavefronts),
            ("products", "flop/s", products),
            ("matrix", "cycles", matrix),
            ("trip", "cycles", trip),
            ("barrier", "cycles", barrier),
            ("dependent", "cycles", dependent),
            ("node", "s", node),
        ]
    }
}

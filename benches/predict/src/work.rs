//! What a launch did, block by block: what a time is predicted from.

use std::collections::HashMap;

use ptx_emulator::observe::{Access, Kind, Observer, Site, Sync};
use ptx_emulator::profile::Profile;
use ptx_emulator::{Grid, Space};

use crate::sectors::Sectors;

/// What one block did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Instructions of its warps.
    pub instructions: u64,
    /// Of these, `mma`.
    pub matrix: u64,
    /// Passes through shared memory.
    pub wavefronts: u64,
    /// Sectors of global memory that it asked for or wrote.
    pub sectors: u64,
    /// Instructions of the warp that has most.
    pub longest: u64,
    /// Of the warp that has most: intervals between two waits in which it asks global memory for something. A wait is a
    /// barrier of the block, or one for copies.
    pub trips: u64,
    /// Of the warp that has most: barriers before which it asked for nothing.
    pub barriers: u64,
}

/// What one launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The kernel's entry.
    pub kernel: String,
    /// Threads of a block.
    pub threads: u64,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u64,
    /// What each block did, in the order in which they begin.
    pub blocks: Vec<Block>,
    /// Bytes of different sectors that were read.
    pub read: u64,
    /// Bytes of different sectors that were written.
    pub written: u64,
    /// Of those read, the ones that no launch of the same step had written before: they come from memory.
    pub cold: u64,
}

/// A warp while it runs.
#[derive(Clone, Copy, Debug, Default)]
struct Warp {
    instructions: u64,
    trips: u64,
    barriers: u64,
    asks: bool,
}

impl Warp {
    /// An interval ends.
    fn waits(&mut self, barrier: bool) {
        if std::mem::take(&mut self.asks) {
            self.trips += 1;
        } else {
            self.barriers += u64::from(barrier);
        }
    }
}

/// Watches a launch.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) profile: Profile,
    blocks: Vec<Block>,
    warps: Vec<Vec<Warp>>,
    /// By their coordinates.
    places: HashMap<[u32; 3], usize>,
    current: usize,
    /// The profile's wavefronts and sectors when the current block began or went on.
    before: [u64; 2],
    read: Sectors,
    pub(crate) written: Sectors,
}

impl Watch {
    /// What was done. `earlier`: what earlier launches of the step have written.
    pub(crate) fn finish(&mut self, kernel: &str, grid: Grid, earlier: &Sectors) -> Work {
        self.settle();
        for (block, warps) in self.blocks.iter_mut().zip(&mut self.warps) {
            // The end of a warp waits for what it asked for.
            warps.iter_mut().for_each(|warp| warp.waits(false));
            let most = |of: fn(&Warp) -> u64| warps.iter().map(of).max().unwrap_or(0);
            block.longest = most(|warp| warp.instructions);
            block.trips = most(|warp| warp.trips);
            block.barriers = most(|warp| warp.barriers);
        }
        Work {
            kernel: kernel.into(),
            threads: grid.threads.iter().map(|size| u64::from(*size)).product(),
            shared: u64::from(grid.shared),
            blocks: std::mem::take(&mut self.blocks),
            read: self.read.bytes(),
            written: self.written.bytes(),
            cold: self.read.bytes_outside(earlier),
        }
    }

    /// Gives the current block what the profile has counted since it began or went on.
    fn settle(&mut self) {
        let total = self.profile.total();
        let now = [total.wavefronts, total.sectors];
        if let Some(block) = self.blocks.get_mut(self.current) {
            block.wavefronts += now[0] - self.before[0];
            block.sectors += now[1] - self.before[1];
        }
        self.before = now;
    }

    fn warp(&mut self, site: &Site<'_>) -> &mut Warp {
        &mut self.warps[self.current][site.warp as usize]
    }
}

impl Observer for Watch {
    fn begin(&mut self, block: [u32; 3], threads: u32) {
        self.settle();
        self.profile.begin(block, threads);
        self.current = self.blocks.len();
        self.places.insert(block, self.current);
        self.blocks.push(Block::default());
        self.warps.push(vec![Warp::default(); threads.div_ceil(32) as usize]);
    }

    fn leave(&mut self, _block: [u32; 3]) {
        self.settle();
    }

    fn resume(&mut self, block: [u32; 3]) {
        self.settle();
        self.current = self.places[&block];
    }

    fn issue(&mut self, site: &Site<'_>) {
        self.profile.issue(site);
        self.warp(site).instructions += 1;
        let block = &mut self.blocks[self.current];
        block.instructions += 1;
        block.matrix += u64::from(site.opcode.starts_with("mma."));
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        self.profile.access(site, access);
        if access.kind == Kind::CopyLand {
            return;
        }
        let reads = matches!(access.kind, Kind::Read | Kind::CopyRead | Kind::Atomic);
        let writes = matches!(access.kind, Kind::Write | Kind::CopyWrite | Kind::Atomic);
        for lane in (0..32).filter(|lane| site.lanes >> lane & 1 == 1) {
            let Some((Space::Global, address)) = access.place(lane) else { continue };
            let range = address..address + u64::from(access.bytes);
            if reads {
                self.read.add(range.clone());
                self.warps[self.current][site.warp as usize].asks = true;
            }
            if writes {
                self.written.add(range);
            }
        }
    }

    fn sync(&mut self, site: &Site<'_>, event: Sync) {
        match event {
            Sync::Arrive(_) => self.warp(site).waits(true),
            Sync::Wait(_) => self.warp(site).waits(false),
            _ => {}
        }
    }
}

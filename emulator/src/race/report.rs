//! What is told of a race.

use std::collections::HashMap;
use std::fmt;

use super::cell::Mark;
use super::order::Order;
use crate::Space;
use crate::error::located;
use crate::observe::{Kind, Site};

/// One side of a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The opcode with all its modifiers.
    pub opcode: String,
    /// The line in the PTX text.
    pub line: u32,
    /// File and line of the source, if the module has `.loc`.
    pub source: Option<(String, u32)>,
    /// What it does; `CopyRead` and `CopyWrite` go on until the copy is waited for.
    pub kind: Kind,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// The thread within the block, counted through all dimensions with x first.
    pub thread: u32,
}

/// Two accesses of the same bytes, at least one of them a write, that nothing orders.
#[derive(Clone, Debug, PartialEq)]
pub struct Race {
    /// The kernel.
    pub kernel: String,
    /// `Global` or `Shared`.
    pub space: Space,
    /// The first byte that both access.
    pub address: u64,
    /// How many bytes both access.
    pub bytes: u32,
    /// The access that came first in this run; in another it may be the later one.
    pub first: Party,
    /// The other access.
    pub second: Party,
    /// How many accesses of a thread were found to race in the same two lines. The other fields describe the first.
    pub count: u64,
    /// Of [rounded stores](super::RaceDetector::rounded_stores): how far two values are from each other at most, relative
    /// to the larger one. Zero for others.
    pub apart: f64,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Atomic => "atomic operation",
            Kind::CopyRead => "read of a copy under way",
            Kind::CopyWrite | Kind::CopyLand => "write of a copy under way",
        };
        let Self { block: [x, y, z], thread, .. } = self;
        f.write_str(kind)?;
        located(f, &self.source, self.line, &self.opcode)?;
        write!(f, " by block ({x}, {y}, {z}), thread {thread}")
    }
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, space, address, bytes, first, second, count, apart } = self;
        write!(f, "{kernel}: race on {bytes} bytes of {space} memory at {address:#x}: {first}, and {second}")?;
        if *apart > 0.0 {
            write!(f, "; the values differ by rounding, by {apart:.1e} of the larger one at most")?;
        }
        if *count > 1 {
            write!(f, "; {count} such accesses")?;
        }
        if self.is_within_a_warp() {
            f.write_str(
                "; both threads are of one warp, and by the rules of PTX its lanes are not in step: what orders them is \
                 __syncwarp() between the two, in Triton tl.debug_barrier()",
            )?;
        }
        Ok(())
    }
}

impl Race {
    /// Whether a barrier of one warp between the two instructions would order them: a GPU that does not part the lanes
    /// carries them out one after the other without it, and compilers rely on that.
    fn is_within_a_warp(&self) -> bool {
        let (one, other) = (&self.first, &self.second);
        let place = |party: &Party| (party.block, party.thread / 32);
        place(one) == place(other) && (one.line, &one.opcode) != (other.line, &other.opcode)
    }
}

/// An instruction that was seen.
struct Seen {
    kernel: String,
    opcode: String,
    line: u32,
    source: Option<(String, u32)>,
    order: Order,
}

/// The instructions that were seen, by number.
#[derive(Default)]
pub(super) struct Sites {
    seen: Vec<Seen>,
    /// By line and by where the opcode is stored, which is fixed within a launch.
    numbers: HashMap<(u32, usize), u32>,
}

impl Sites {
    /// Another launch begins.
    pub(super) fn restart(&mut self) {
        self.numbers.clear();
    }

    /// The number of an instruction, and the order that it asks for.
    pub(super) fn number(&mut self, site: &Site<'_>) -> (u32, Order) {
        let seen = &mut self.seen;
        let number = *self.numbers.entry((site.line, site.opcode.as_ptr() as usize)).or_insert_with(|| {
            let new = Seen {
                kernel: site.kernel.to_string(),
                opcode: site.opcode.to_string(),
                line: site.line,
                source: site.source.map(|(file, line)| (file.to_string(), line)),
                order: Order::of(site.opcode),
            };
            let is_same = |old: &Seen| (&old.kernel, &old.opcode, old.line) == (&new.kernel, &new.opcode, new.line);
            let at = seen.iter().position(|old| is_same(old) && old.source == new.source).unwrap_or_else(|| {
                seen.push(new);
                seen.len() - 1
            });
            at as u32
        });
        (number, seen[number as usize].order)
    }
}

/// Bytes that two accesses of this access's lane raced on.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) old: Mark,
    pub(super) address: u64,
    pub(super) bytes: u32,
}

/// The races found so far.
#[derive(Clone, Default)]
pub(super) struct Log {
    pub(super) races: Vec<Race>,
    /// By both instructions, the smaller number first.
    numbers: HashMap<[(u32, u8); 2], usize>,
}

impl Log {
    /// Whether a race of these two instructions was noted.
    pub(super) fn has(&self, found: &Found, new: &Mark) -> bool {
        let key = |mark: &Mark| (mark.site, mark.kind as u8);
        let (a, b) = (key(&found.old), key(new));
        self.numbers.contains_key(&[a.min(b), a.max(b)])
    }

    /// Notes a race, or that it was seen again.
    pub(super) fn note(
        &mut self,
        (sites, blocks, warps): (&Sites, &[[u32; 3]], u32),
        space: Space,
        (found, new): (&Found, &Mark),
        apart: f64,
    ) {
        let key = |mark: &Mark| (mark.site, mark.kind as u8);
        let (a, b) = (key(&found.old), key(new));
        let races = &mut self.races;
        let at = *self.numbers.entry([a.min(b), a.max(b)]).or_insert_with(|| {
            let party = |mark: &Mark| {
                let seen = &sites.seen[mark.site as usize];
                Party {
                    opcode: seen.opcode.clone(),
                    line: seen.line,
                    source: seen.source.clone(),
                    kind: mark.kind,
                    block: blocks[mark.block as usize],
                    thread: u32::from(mark.warp) % warps * 32 + mark.lanes.trailing_zeros(),
                }
            };
            let kernel = sites.seen[new.site as usize].kernel.clone();
            let (first, second) = (party(&found.old), party(new));
            races.push(Race {
                kernel,
                space,
                address: found.address,
                bytes: found.bytes,
                first,
                second,
                count: 0,
                apart,
            });
            races.len() - 1
        });
        races[at].count += 1;
        races[at].apart = races[at].apart.max(apart);
    }
}

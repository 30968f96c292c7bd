//! A law: the race detector, which keeps as little as it can, agrees with a search through the whole graph of what
//! orders what, for random small programs.

use std::collections::HashMap;

use proptest::prelude::*;
use ptx_emulator::Space;
use ptx_emulator::observe::{Access, Kind, Observer, Site, Sync};
use ptx_emulator::race::RaceDetector;

/// A block has two warps, of which two lanes each do something.
const THREADS: [usize; 4] = [0, 1, 32, 33];

#[derive(Clone, Debug)]
enum Step {
    /// A thread accesses 1, 2 or 4 bytes (the power of two) of 8; globally or in shared memory. A store leaves a value in
    /// each of them.
    Access {
        thread: usize,
        kind: Kind,
        global: bool,
        at: u64,
        size: u32,
        value: bool,
    },
    /// Lanes 0 and 1 of a warp.
    Warp {
        warp: usize,
    },
    Arrive {
        thread: usize,
        id: u32,
    },
    /// The threads of the mask wait at a barrier, which is complete with them.
    Barrier {
        mask: usize,
        id: u32,
    },
    Fence {
        thread: usize,
        device: bool,
    },
    Commit {
        thread: usize,
    },
    Wait {
        thread: usize,
        keep: Option<u32>,
    },
    NextBlock,
}

fn step() -> impl Strategy<Value = Step> {
    let thread = 0..4usize;
    let kind = prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::CopyRead), Just(Kind::CopyWrite)];
    prop_oneof![
        8 => (thread.clone(), kind, any::<bool>(), 0..8u64, 0..3u32, prop::bool::weighted(0.8))
            .prop_map(|(thread, kind, global, at, size, value)| {
                Step::Access { thread, kind, global, at: at >> size << size, size, value }
            }),
        3 => (thread.clone(), prop::bool::weighted(0.8), 0..2u64).prop_map(|(thread, global, word)| {
            Step::Access { thread, kind: Kind::Atomic, global, at: 4 * word, size: 2, value: true }
        }),
        1 => (0..2usize).prop_map(|warp| Step::Warp { warp }),
        1 => (thread.clone(), 0..2u32).prop_map(|(thread, id)| Step::Arrive { thread, id }),
        2 => (1..16usize, 0..2u32).prop_map(|(mask, id)| Step::Barrier { mask, id }),
        3 => (thread.clone(), prop::bool::weighted(0.8)).prop_map(|(thread, device)| Step::Fence { thread, device }),
        1 => thread.clone().prop_map(|thread| Step::Commit { thread }),
        1 => (thread, prop::option::of(0..2u32)).prop_map(|(thread, keep)| Step::Wait { thread, keep }),
        1 => Just(Step::NextBlock),
    ]
}

/// An access in the graph.
#[derive(Clone, Debug)]
struct Touch {
    node: usize,
    line: u32,
    kind: Kind,
    /// The block whose shared memory it is, or nothing for global memory.
    home: Option<usize>,
    bytes: std::ops::Range<u64>,
    /// Whether it is a store that leaves what is there.
    unchanged: bool,
}

/// What is in memory, as far as it was stored: by block, for shared memory, and byte.
#[derive(Default)]
struct Stored(HashMap<(Option<usize>, u64), bool>);

impl Stored {
    /// An access happens; whether it is a store that changes nothing.
    fn access(&mut self, kind: Kind, home: Option<usize>, bytes: std::ops::Range<u64>, value: bool) -> bool {
        let mut unchanged = kind == Kind::Write;
        for byte in bytes.filter(|_| !matches!(kind, Kind::Read | Kind::CopyRead)) {
            let value = (kind == Kind::Write).then_some(value);
            let before = match value {
                Some(value) => self.0.insert((home, byte), value),
                None => self.0.remove(&(home, byte)),
            };
            unchanged &= before == value;
        }
        unchanged
    }
}

impl Touch {
    fn races(&self, other: &Self, graph: &Graph) -> bool {
        let past = &graph.past;
        let writes = |touch: &Self| !matches!(touch.kind, Kind::Read | Kind::CopyRead);
        let atomic = self.kind == Kind::Atomic && other.kind == Kind::Atomic;
        let after = |one: usize, other: usize| one == other || past[one][other];
        let is_seen =
            |one: &Self, other: &Self| graph.seen.iter().any(|seen| seen.0 == one.node && after(other.node, seen.1));
        let ordered = after(self.node, other.node) || after(other.node, self.node);
        let ordered = ordered || is_seen(self, other) || is_seen(other, self);
        self.node != other.node && self.home == other.home && (writes(self) || writes(other)) && !atomic && !ordered
    }
}

/// What was fenced, for the block and for the device: nodes that a later atomic operation makes known.
type Fenced = [Vec<usize>; 2];

/// A block's part of the graph while it is built.
#[derive(Clone, Default)]
struct Thread {
    last: Option<usize>,
    fenced: Fenced,
    /// Atomic operations since the beginning: what can be heard there, from the same block and from all.
    heard: Fenced,
    open: Vec<usize>,
    groups: Vec<Vec<usize>>,
}

/// The whole graph: for each node all that lie before it.
#[derive(Default)]
struct Graph {
    past: Vec<Vec<bool>>,
    touches: Vec<Touch>,
    /// Atomic operations: where, in which block, and what they made known.
    atomics: Vec<(Option<usize>, u64, usize, Fenced)>,
    /// An atomic operation, and a store to its word by who came last with one.
    seen: Vec<(usize, usize)>,
}

const LIMIT: usize = 512;

impl Graph {
    fn node(&mut self, before: impl IntoIterator<Item = usize>) -> usize {
        let mut past = vec![false; LIMIT];
        for earlier in before {
            past.iter_mut().zip(&self.past[earlier]).for_each(|(mine, its)| *mine |= its);
            past[earlier] = true;
        }
        self.past.push(past);
        self.past.len() - 1
    }

    /// The next thing that a thread does.
    fn next(&mut self, thread: &mut Thread) -> usize {
        let node = self.node(thread.last);
        thread.last = Some(node);
        node
    }

    /// Threads and arrivals come together, and the threads go on.
    fn meet(&mut self, threads: &mut [Thread], who: &[usize], arrived: Vec<(usize, Fenced)>) {
        let mut fenced: Fenced = Default::default();
        let mut before = vec![];
        for (node, its) in arrived
            .into_iter()
            .chain(who.iter().filter_map(|at| threads[*at].last.map(|node| (node, threads[*at].fenced.clone()))))
        {
            before.push(node);
            (0..2).for_each(|reach| fenced[reach].extend(&its[reach]));
        }
        let node = self.node(before);
        for at in who {
            threads[*at].last = Some(node);
            threads[*at].fenced = fenced.clone();
        }
    }

    fn build(steps: &[Step]) -> Self {
        let mut graph = Self::default();
        let mut threads = vec![Thread::default(); 4];
        let mut arrived: [Vec<(usize, Fenced)>; 2] = Default::default();
        let mut block = 0;
        let mut last = HashMap::new();
        let mut stored = Stored::default();
        for (line, step) in steps.iter().enumerate() {
            match *step {
                Step::Access { thread: who, kind, global, at, size, value } => {
                    let home = (!global).then_some(block);
                    let thread = &mut threads[who];
                    let node = if matches!(kind, Kind::CopyRead | Kind::CopyWrite) {
                        let node = graph.node(thread.last);
                        thread.open.push(node);
                        node
                    } else {
                        graph.next(thread)
                    };
                    if kind == Kind::Atomic {
                        for (place, address, other, made) in &graph.atomics {
                            if (*place, *address) == (home, at) {
                                if *other == block {
                                    thread.heard[0].extend(&made[0]);
                                }
                                thread.heard[1].extend(&made[1]);
                            }
                        }
                        graph.atomics.push((home, at, block, thread.fenced.clone()));
                        last.insert((home, at), (block, who));
                    }
                    let bytes = at..at + (1 << size);
                    if kind == Kind::Write && size == 2 && last.get(&(home, at)) == Some(&(block, who)) {
                        let there =
                            |touch: &&Touch| touch.kind == Kind::Atomic && touch.home == home && touch.bytes == bytes;
                        graph.seen.extend(graph.touches.iter().filter(there).map(|touch| (touch.node, node)));
                    }
                    let unchanged = stored.access(kind, home, bytes.clone(), value);
                    graph.touches.push(Touch { node, line: line as u32, kind, home, bytes, unchanged });
                }
                Step::Warp { warp } => graph.meet(&mut threads, &[2 * warp, 2 * warp + 1], vec![]),
                Step::Arrive { thread, id } => {
                    let node = graph.next(&mut threads[thread]);
                    arrived[id as usize].push((node, threads[thread].fenced.clone()));
                }
                Step::Barrier { mask, id } => {
                    let who: Vec<usize> = (0..4).filter(|at| mask >> at & 1 == 1).collect();
                    graph.meet(&mut threads, &who, std::mem::take(&mut arrived[id as usize]));
                }
                Step::Fence { thread, device } => {
                    let thread = &mut threads[thread];
                    let heard = thread.heard[0].iter().chain(thread.heard[1].iter().filter(|_| device));
                    let node = graph.node(heard.copied().chain(thread.last));
                    thread.last = Some(node);
                    thread.fenced[0].push(node);
                    if device {
                        thread.fenced[1].push(node);
                    }
                }
                Step::Commit { thread } => {
                    let group = std::mem::take(&mut threads[thread].open);
                    threads[thread].groups.push(group);
                }
                Step::Wait { thread, keep } => {
                    let thread = &mut threads[thread];
                    let landed = thread.groups.len().saturating_sub(keep.unwrap_or(0) as usize);
                    let mut before: Vec<usize> = thread.groups[..landed].concat();
                    if keep.is_none() {
                        before.append(&mut thread.open);
                    }
                    let node = graph.node(before.into_iter().chain(thread.last));
                    thread.last = Some(node);
                }
                Step::NextBlock => {
                    block += 1;
                    threads = vec![Thread::default(); 4];
                    arrived = Default::default();
                }
            }
        }
        graph
    }

    /// Whether it does no harm that two accesses, of which one came first, race on a byte.
    fn is_harmless(&self, first: &Touch, then: &Touch, byte: u64) -> bool {
        // Whoever of both stores last, the same is there. (A copy that nothing changed after was overwritten by somebody.)
        if matches!(first.kind, Kind::Write | Kind::CopyWrite) && then.kind == Kind::Write {
            return then.unchanged;
        }
        // What was counted before the counter was set anew, to what it is set to again.
        if first.kind == Kind::Atomic && then.unchanged {
            return self.seen.iter().any(|(counted, _)| *counted == first.node);
        }
        // A read that gets from another store, which it comes after, what this one leaves.
        let stores = |touch: &&Touch| {
            let is_here = touch.home == then.home && touch.bytes.contains(&byte);
            is_here && touch.line < then.line && !matches!(touch.kind, Kind::Read | Kind::CopyRead)
        };
        let is_equal = |other: &Touch| {
            let since = |touch: &&Touch| touch.line > first.line.min(other.line);
            self.touches.iter().filter(stores).filter(since).all(|touch| touch.unchanged)
        };
        let stores = self.touches.iter().filter(stores);
        first.kind != Kind::Read
            && matches!(then.kind, Kind::Read | Kind::CopyRead)
            && stores.filter(|other| self.past[then.node][other.node]).any(is_equal)
    }
}

/// Shows the program to the detector.
fn watch(steps: &[Step]) -> RaceDetector {
    let mut races = RaceDetector::new();
    let mut block = [0; 3];
    let mut stored = Stored::default();
    races.begin(block, 64);
    for (line, step) in steps.iter().enumerate() {
        let site = |opcode, warp: usize, lanes| Site {
            kernel: "program",
            opcode,
            line: line as u32,
            source: None,
            block,
            warp: warp as u32,
            lanes,
        };
        let one = |opcode, thread: usize| site(opcode, THREADS[thread] / 32, 1 << (THREADS[thread] % 32));
        match *step {
            Step::Access { thread, kind, global, at, size, value } => {
                let opcode = match kind {
                    Kind::Read => "ld.u32",
                    Kind::Write => "st.u32",
                    Kind::Atomic => "atom.add.u32",
                    Kind::CopyRead | Kind::CopyWrite | Kind::CopyLand => "cp.async",
                };
                let space = if global { Space::Global } else { Space::Shared };
                let addresses = [at; 32];
                let mut access = Access::new(kind, space, &addresses, 1 << size);
                let home = (!global).then_some(block[0] as usize);
                if stored.access(kind, home, at..at + (1 << size), value) {
                    access.unchanged = u32::MAX;
                }
                races.access(&one(opcode, thread), &access);
            }
            Step::Warp { warp } => races.sync(&site("bar.warp.sync", warp, 3), Sync::Warp),
            Step::Arrive { thread, id } => races.sync(&one("barrier.arrive", thread), Sync::Arrive(id)),
            Step::Barrier { mask, id } => {
                let warps = [(0, mask as u32 & 3), (1, mask as u32 >> 2)];
                let warps = warps.into_iter().filter(|(_, lanes)| *lanes != 0);
                warps.clone().for_each(|(w, lanes)| races.sync(&site("barrier.sync", w, lanes), Sync::Arrive(id)));
                races.sync(&site("barrier.sync", 0, 0), Sync::Complete(id));
                warps.for_each(|(w, lanes)| races.sync(&site("barrier.sync", w, lanes), Sync::Leave(id)));
            }
            Step::Fence { thread, device } => {
                races.sync(&one(if device { "membar.gl" } else { "membar.cta" }, thread), Sync::Fence);
            }
            Step::Commit { thread } => races.sync(&one("cp.async.commit_group", thread), Sync::Commit),
            Step::Wait { thread, keep } => races.sync(&one("cp.async.wait_group", thread), Sync::Wait(keep)),
            Step::NextBlock => {
                block[0] += 1;
                races.begin(block, 64);
            }
        }
    }
    races
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_detector_agrees_with_the_whole_graph(steps in prop::collection::vec(step(), 1..60)) {
        let graph = Graph::build(&steps);
        let found = watch(&steps);
        let touch = |line: u32| graph.touches.iter().find(|touch| touch.line == line).unwrap();
        // Every race that is reported is one.
        for race in found.races().iter().chain(found.equal_stores()) {
            let (first, second) = (touch(race.first.line), touch(race.second.line));
            prop_assert!(first.races(second, &graph), "{race} is none");
            for byte in race.address..race.address + u64::from(race.bytes) {
                prop_assert!(first.bytes.contains(&byte) && second.bytes.contains(&byte), "{race}: not byte {byte}");
            }
        }
        // Every byte with a race that may do harm has one that is reported.
        for (at, one) in graph.touches.iter().enumerate() {
            for other in graph.touches[..at].iter().filter(|other| other.races(one, &graph)) {
                let both = |byte: &u64| other.bytes.contains(byte) && !graph.is_harmless(other, one, *byte);
                for byte in one.bytes.clone().filter(both) {
                    let here = |line: u32| touch(line).home == one.home && touch(line).bytes.contains(&byte);
                    let is_found = found.races().iter().any(|race| here(race.first.line) && here(race.second.line));
                    prop_assert!(is_found, "{other:?} and {one:?} race on byte {byte}");
                }
            }
        }
    }
}

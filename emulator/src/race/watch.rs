//! What the detector hears of a launch.

use super::RaceDetector;
use super::cell::Mark;
use super::clock::Lesson;
use super::order::Order;
use super::second::Pending;
use super::state::Step;
use super::thread::Thread;
use crate::Space;
use crate::exec::unknown::USED;
use crate::observe::{Access, Kind, Observer, Site, Sync, Words};

/// Addresses of shared memory beyond this are out of bounds on every device; the launch fails right after.
const SHARED: u64 = 1 << 20;

/// The threads that a site names.
fn threads(site: &Site<'_>) -> impl Iterator<Item = usize> + Clone {
    let (first, lanes) = (site.warp as usize * 32, site.lanes);
    (0..32).filter(move |lane| lanes >> lane & 1 == 1).map(move |lane| first + lane)
}

impl Observer for RaceDetector {
    fn hears_all(&self) -> bool {
        false
    }

    fn repeats(&self) -> bool {
        true
    }

    fn again(&mut self) -> Option<Words> {
        if !self.second.is_wanted() {
            return None;
        }
        self.second.runs = true;
        self.second.one_block = self.blocks.len() == 1;
        // What the first run has found is found once more.
        self.logs = self.before.clone();
        Some(self.second.words.clone())
    }

    fn outcome(&mut self, is_used: &dyn Fn(u32) -> bool) {
        let warps = self.warps() as u32;
        let (mut last, mut told) = (0, vec![]);
        for Pending { space, found, new, value, step } in self.second.finish() {
            let (used, site) = (is_used(value), found.old.site);
            if step != last {
                (last, told) = (step, vec![]);
            }
            if told.contains(&(site, used)) {
                continue;
            }
            told.push((site, used));
            let log = if used { &mut self.logs.races } else { &mut self.logs.unused };
            log.note((&self.sites, &self.blocks, warps), space, (&found, &new), 0.0);
        }
    }

    fn begin(&mut self, block: [u32; 3], threads: u32) {
        // Blocks begin in order, so this one is the first of a launch.
        if block == [0; 3] {
            self.sites.restart();
            self.blocks.clear();
            self.global.clear();
            self.aside.clear();
            if !self.second.runs {
                self.second.restart();
                self.before = self.logs.clone();
            }
        }
        let running = &mut self.running;
        running.number = self.blocks.len() as u32;
        self.blocks.push(block);
        running.threads.clear();
        running.threads.resize(threads.next_multiple_of(32) as usize, Thread::new());
        running.tick = 1;
        running.barriers.clear();
        running.shared.clear();
    }

    fn leave(&mut self, block: [u32; 3]) {
        self.aside.insert(block, std::mem::take(&mut self.running));
    }

    fn resume(&mut self, block: [u32; 3]) {
        if let Some(running) = self.aside.remove(&block) {
            self.running = running;
        }
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        let (number, order) = self.sites.number(site);
        let copies = match access.kind {
            Kind::CopyRead | Kind::CopyWrite => true,
            // The copy has its own time until the wait, and nothing has to be done when it lands.
            Kind::CopyLand => return,
            Kind::Read | Kind::Write | Kind::Atomic => false,
        };
        for index in threads(site) {
            let lane = index % 32;
            let Some((space, address)) = access.place(lane) else { continue };
            let Some(end) = address.checked_add(u64::from(access.bytes)) else { continue };
            let private = !matches!(space, Space::Shared | Space::Global);
            if private || space == Space::Shared && end > SHARED {
                continue;
            }
            let Some(thread) = self.running.threads.get(index) else { continue };
            let warp = if copies { self.warps() + index / 32 } else { index / 32 };
            let mark = Mark {
                block: self.block(),
                time: if copies { thread.copies.now } else { thread.now },
                site: number,
                lanes: 1 << lane,
                warp: warp as u16,
                kind: access.kind,
                reach: order.reach,
            };
            let unchanged = access.unchanged >> lane & 1 == 1;
            // A load whose value has no number may be used.
            let value = access.values.map_or(USED, |values| values[lane]);
            self.touch(
                (space, address..end),
                order,
                &Step { mark: &mark, unchanged, rounding: access.rounding, value, index },
            );
        }
    }

    fn sync(&mut self, site: &Site<'_>, event: Sync) {
        let (block, warps) = (self.block(), self.warps());
        if site.warp as usize >= warps {
            return;
        }
        self.running.tick += 1;
        match event {
            Sync::Warp if site.opcode.starts_with("bar.warp") => self.join_warp(threads(site)),
            Sync::Arrive(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                for index in threads(site) {
                    let thread = &mut self.running.threads[index];
                    barrier.arrived.add(&thread.known, index, thread.now);
                    thread.now = self.running.tick;
                }
            }
            Sync::Complete(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                barrier.complete = std::mem::take(&mut barrier.arrived).finish();
            }
            Sync::Leave(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                let mut lesson = Lesson::new(&barrier.complete);
                threads(site).for_each(|index| lesson.teach(&mut self.running.threads[index].known));
            }
            Sync::Fence => {
                let order = Order::of(site.opcode);
                for index in threads(site) {
                    self.running.threads[index].fence((block, index), order, self.running.tick);
                }
            }
            Sync::Commit => threads(site).for_each(|index| self.running.threads[index].copies.commit()),
            Sync::Wait(keep) => {
                for index in threads(site) {
                    let thread = &mut self.running.threads[index];
                    if let Some(landed) = thread.copies.wait(keep) {
                        thread.known.past.set(warps * 32 + index, landed);
                    }
                }
            }
            Sync::CopyArrive(barrier) => threads(site).for_each(|index| {
                self.running.threads[index].copies.arrive(barrier);
            }),
            Sync::CopyArrived(barrier) => {
                for index in threads(site) {
                    if let Some(time) = self.running.threads[index].copies.arrived(barrier) {
                        let location = self.running.shared.locations.entry(barrier).or_default();
                        location.add(block, warps * 32 + index, time);
                    }
                }
            }
            Sync::Warp | Sync::Exit => {}
        }
    }
}

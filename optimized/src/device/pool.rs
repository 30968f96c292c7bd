//! Memory that was given back is kept, and given out again: a GPU's driver takes long for both, and waits for all work
//! before it frees.
//!
//! A pass takes about twenty tensors for each layer, of the same few sizes in every layer and every step. After the first
//! step the driver is not asked any more.
//!
//! **Stream order.** All work is in one stream. What a block's new owner does comes after all that the old one asked for,
//! so nobody has to wait when a block changes hands.
//!
//! **No memory is lost by it.** A block serves its own size class alone, and the classes are what a driver hands out
//! anyway: multiples of 512 bytes, and of 2 MiB for what is larger. So what is kept counts as free, and is given back to
//! the driver before anybody is refused.

use std::collections::HashMap;

/// What small and large blocks are multiples of.
const SMALL: usize = 512;
const LARGE: usize = 2 << 20;

/// Blocks of a device's memory by their address: those given out, and those kept.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Of each block that is given out, its size.
    taken: HashMap<u64, usize>,
    /// Of each size, the blocks that nobody has.
    kept: HashMap<usize, Vec<u64>>,
}

/// Where a pool's memory comes from.
pub(super) trait Supply {
    /// Why there is none.
    type Error;

    /// Takes memory.
    fn take(&mut self, bytes: usize) -> Result<u64, Self::Error>;

    /// Whether there is none because all is given out. After any other error nothing is better for giving back.
    fn is_full(error: &Self::Error) -> bool;

    /// Gives it back.
    fn give_back(&mut self, address: u64);
}

impl Pool {
    /// A block of at least `bytes` bytes. If there is no room, all that is kept goes back first.
    pub(super) fn take<S: Supply>(&mut self, bytes: usize, supply: &mut S) -> Result<u64, S::Error> {
        let size = class(bytes);
        let address = match self.kept.get_mut(&size).and_then(Vec::pop) {
            Some(address) => address,
            None => match supply.take(size) {
                Err(error) if S::is_full(&error) => {
                    self.release(supply);
                    supply.take(size)?
                }
                taken => taken?,
            },
        };
        self.taken.insert(address, size);
        Ok(address)
    }

    /// Keeps a block for the next one who asks for its size. What was never given out is ignored.
    pub(super) fn give_back(&mut self, address: u64) {
        if let Some(size) = self.taken.remove(&address) {
            self.kept.entry(size).or_default().push(address);
        }
    }

    /// Gives all that is kept back to where it came from.
    pub(super) fn release<S: Supply>(&mut self, supply: &mut S) {
        self.kept.drain().flat_map(|(_, blocks)| blocks).for_each(|address| supply.give_back(address));
    }

    /// The bytes that nobody has.
    pub(super) fn kept(&self) -> usize {
        self.kept.iter().map(|(size, blocks)| size * blocks.len()).sum()
    }
}

/// The size of the block that serves so many bytes.
fn class(bytes: usize) -> usize {
    let step = if bytes < LARGE { SMALL } else { LARGE };
    // More than any device has; the driver says so.
    bytes.max(1).checked_next_multiple_of(step).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A driver with little memory. Blocks may lie anywhere: a real one maps pages.
    #[derive(Default)]
    struct Driver {
        total: usize,
        next: u64,
        out: BTreeMap<u64, usize>,
        calls: usize,
        lost: bool,
    }

    /// Why a driver gives nothing.
    #[derive(Debug, PartialEq)]
    enum Refused {
        Full { asked: usize, free: usize },
        Lost,
    }

    impl Driver {
        fn free(&self) -> usize {
            self.total - self.out.values().sum::<usize>()
        }
    }

    impl Supply for Driver {
        type Error = Refused;

        fn is_full(error: &Refused) -> bool {
            matches!(error, Refused::Full { .. })
        }

        fn take(&mut self, bytes: usize) -> Result<u64, Refused> {
            self.calls += 1;
            if self.lost {
                return Err(Refused::Lost);
            }
            if bytes > self.free() {
                return Err(Refused::Full { asked: bytes, free: self.free() });
            }
            self.next += 0x1_0000_0000;
            self.out.insert(self.next, bytes);
            Ok(self.next)
        }

        fn give_back(&mut self, address: u64) {
            self.calls += 1;
            self.out.remove(&address).expect("memory of the driver's, given back once");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        GiveBack(prop::sample::Index),
        Release,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let few = prop::sample::select(vec![0, 1, 511, 512, 513, 70_000, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE]);
        let size = prop_oneof![few, 0..8 * LARGE];
        let step = prop_oneof![
            5 => size.prop_map(Step::Take),
            4 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            1 => Just(Step::Release),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn a_block_has_one_owner_and_nobody_is_refused_what_a_driver_alone_would_give(steps in steps()) {
            let mut driver = Driver { total: 16 * LARGE, ..Driver::default() };
            let mut pool = Pool::default();
            let mut owned: Vec<(u64, usize)> = vec![];
            for step in steps {
                match step {
                    Step::Take(bytes) => {
                        let room = driver.free() + pool.kept();
                        match pool.take(bytes, &mut driver) {
                            Ok(address) => {
                                prop_assert!(owned.iter().all(|(other, _)| *other != address));
                                prop_assert!(driver.out[&address] >= bytes.max(1));
                                owned.push((address, bytes));
                            }
                            Err(_) => {
                                prop_assert!(class(bytes) > room, "{bytes} refused, {room} free");
                                prop_assert_eq!(pool.kept(), 0);
                            }
                        }
                    }
                    Step::GiveBack(which) if !owned.is_empty() => {
                        let (address, _) = owned.swap_remove(which.index(owned.len()));
                        let before = driver.calls;
                        pool.give_back(address);
                        // Twice is once.
                        pool.give_back(address);
                        prop_assert_eq!(driver.calls, before, "nobody waits");
                    }
                    Step::GiveBack(_) => (),
                    Step::Release => pool.release(&mut driver),
                }
                let used: usize = owned.iter().map(|(_, bytes)| class(*bytes)).sum();
                prop_assert_eq!(driver.free() + pool.kept(), driver.total - used, "what is kept counts as free");
            }
            owned.drain(..).for_each(|(address, _)| pool.give_back(address));
            pool.release(&mut driver);
            prop_assert!(driver.out.is_empty());
        }

        #[test]
        fn what_was_taken_once_in_a_step_asks_no_driver_in_the_next(
            sizes in prop::collection::vec(0..3 * LARGE, 1..20),
        ) {
            let mut driver = Driver { total: 100 * LARGE, ..Driver::default() };
            let mut pool = Pool::default();
            let mut step = |pool: &mut Pool| {
                let blocks: Vec<u64> = sizes.iter().map(|size| pool.take(*size, &mut driver).unwrap()).collect();
                blocks.into_iter().for_each(|block| pool.give_back(block));
                driver.calls
            };
            let first = step(&mut pool);
            prop_assert_eq!(step(&mut pool), first);
        }

        #[test]
        fn a_class_is_no_larger_than_what_a_driver_hands_out(bytes in 0..100 * LARGE) {
            let lost = class(bytes) - bytes;
            prop_assert!(lost < LARGE && (bytes >= LARGE || lost <= SMALL));
            prop_assert!(class(bytes) == class(class(bytes)));
        }
    }

    #[test]
    fn more_than_there_can_be_is_the_drivers_to_refuse() {
        let mut driver = Driver { total: LARGE, ..Driver::default() };
        let refused = Refused::Full { asked: usize::MAX, free: LARGE };
        assert_eq!(Pool::default().take(usize::MAX, &mut driver), Err(refused));
    }

    #[test]
    fn an_error_of_another_kind_is_handed_on_at_once_and_nothing_is_given_back() {
        let mut driver = Driver { total: 4 * LARGE, ..Driver::default() };
        let mut pool = Pool::default();
        let block = pool.take(LARGE, &mut driver).unwrap();
        pool.give_back(block);
        driver.lost = true;
        let before = driver.calls;
        assert_eq!(pool.take(2 * LARGE, &mut driver), Err(Refused::Lost));
        assert_eq!((driver.calls - before, pool.kept()), (1, LARGE));
    }
}

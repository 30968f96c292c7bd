//! The model's arithmetic: units, and what must hold whatever the constants are.

use dsv2_predict::{Block, Card, Terms, Work};
use proptest::prelude::*;

const CARD: Card = Card::H200;

/// A launch of such blocks, of a kernel whose registers nobody knows.
fn work(blocks: Vec<Block>) -> Work {
    Work { kernel: "of nobody".into(), threads: 128, blocks, ..Work::default() }
}

fn block() -> impl Strategy<Value = Block> {
    let count = || 0..100_000u64;
    (count(), count(), count(), count(), count(), 0..100u64, 0..100u64).prop_map(
        |(instructions, matrix, wavefronts, sectors, longest, trips, barriers)| Block {
            instructions,
            matrix,
            wavefronts,
            sectors,
            longest,
            trips,
            barriers,
        },
    )
}

fn launch() -> impl Strategy<Value = Work> {
    let bytes = || 0..1_000_000_000u64;
    (prop::collection::vec(block(), 1..600), bytes(), bytes()).prop_map(|(blocks, read, written)| Work {
        read,
        written,
        cold: read,
        ..work(blocks)
    })
}

#[track_caller]
fn assert_close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
}

#[test]
fn each_term_is_its_count_over_its_rate() {
    let busy = Block { instructions: 8, matrix: 8, wavefronts: 8, sectors: 8, longest: 8, trips: 3, barriers: 2 };
    let terms = Terms::new(&Work { read: 3000, written: 1300, ..work(vec![busy]) }, &CARD);
    let cycle = 1.0 / CARD.clock;
    assert_close(terms.memory, 1e-9);
    assert_close(terms.l2, 8.0 * 32.0 / 64.0 * cycle);
    assert_close(terms.issue, 2.0 * cycle);
    assert_close(terms.shared, 8.0 * cycle);
    assert_close(terms.tensor, 2.0 * 7.25 * cycle);
    assert_close(terms.chain, (3.0 * 300.0 + 2.0 * 40.0) * cycle);
    assert_close(terms.time(), 1.25e-6 + terms.chain);
    assert_eq!(terms.limit().0, "chain");
}

#[test]
fn many_blocks_share_the_bandwidth_of_the_cache() {
    let terms = Terms::new(&work(vec![Block { sectors: 1000, ..Block::default() }; 1320]), &CARD);
    assert_close(terms.l2, 1320.0 * 32_000.0 / 5.5e12);
}

#[test]
fn a_warp_that_never_waits_still_takes_its_instructions_one_after_the_other() {
    let terms = Terms::new(&work(vec![Block { longest: 1000, trips: 1, ..Block::default() }]), &CARD);
    assert_close(terms.chain, 2000.0 / CARD.clock);
}

#[test]
fn one_block_more_than_multiprocessors_takes_twice_as_long() {
    let of =
        |blocks: usize| Terms::new(&work(vec![Block { instructions: 4000, ..Block::default() }; blocks]), &CARD).issue;
    assert_close(of(132), of(1));
    assert_close(of(133), 2.0 * of(1));
}

#[test]
fn uneven_blocks_go_to_whoever_has_least() {
    let blocks = |sizes: &[u64]| sizes.iter().map(|size| Block { instructions: *size, ..Block::default() }).collect();
    let card = Card { multiprocessors: 2, ..CARD };
    let terms = Terms::new(&work(blocks(&[40, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4])), &card);
    assert_close(terms.issue, 10.0 / CARD.clock);
}

proptest! {
    #[test]
    fn no_time_is_below_its_floor_and_none_below_another_card_of_slower_memory(launch in launch()) {
        let [slower, faster] = Card::ALL.map(|card| {
            let time = Terms::new(&launch, &card).time();
            assert!(time >= card.node + (launch.read + launch.written) as f64 / card.memory);
            time
        });
        prop_assert!(faster <= slower);
    }

    #[test]
    fn more_of_anything_is_never_faster(launch in launch(), more in block(), at in any::<prop::sample::Index>()) {
        let time = |work: &Work| Terms::new(work, &CARD).named().map(|(_, seconds)| seconds);
        let sums = |work: &Work| Terms::new(work, &CARD).time();
        let read = Work { read: launch.read + more.sectors, ..launch.clone() };
        prop_assert!(sums(&read) >= sums(&launch));
        // A block more at the end finds all others where they were.
        let mut longer = launch.clone();
        longer.blocks.push(more);
        prop_assert!(time(&longer).iter().zip(time(&launch)).all(|(new, old)| *new >= old));
        // More of what does not decide where blocks go.
        let mut fuller = launch.clone();
        let block = at.get(&launch.blocks);
        let place = launch.blocks.iter().position(|other| std::ptr::eq(other, block)).unwrap();
        fuller.blocks[place].matrix += more.matrix;
        fuller.blocks[place].wavefronts += more.wavefronts;
        fuller.blocks[place].sectors += more.sectors;
        prop_assert!(time(&fuller).iter().zip(time(&launch)).all(|(new, old)| *new >= old));
    }

    #[test]
    fn the_same_work_in_twice_as_many_blocks_is_never_slower(half in block(), blocks in 1..600usize) {
        let Block { instructions, matrix, wavefronts, sectors, longest, trips, barriers } = half;
        let whole = Block {
            instructions: 2 * instructions,
            matrix: 2 * matrix,
            wavefronts: 2 * wavefronts,
            sectors: 2 * sectors,
            longest: 2 * longest,
            trips: 2 * trips,
            barriers: 2 * barriers,
        };
        let [few, many] = [vec![whole; blocks], vec![half; 2 * blocks]].map(|blocks| Terms::new(&work(blocks), &CARD));
        let pairs = many.named().into_iter().zip(few.named());
        for ((name, many), (_, few)) in pairs {
            prop_assert!(many <= few * (1.0 + 1e-12), "{name}: {many} {few}");
        }
    }
}

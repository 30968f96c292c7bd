//! Blocks that wait for one another: they take turns, and a grid in which nobody can go on is found and described.

use crate::common::{Bench, module};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Error, Grid, Jam, Options, Stuck};

/// `%rd1` is a word of global memory, `%r1` the block.
const HEAD: &str =
    ".reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %p<4>; ld.param.u64 %rd1, [p0]; mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %nctaid.x;\n";

fn run(body: &str, grid: Grid, options: Options, words: &[u32]) -> Result<Vec<u32>, Error> {
    let mut bench = Bench::new(&module(1, &format!("{HEAD}{body}\nret;")));
    let data = bench.put(words);
    bench.gpu.launch(&bench.module, "kernel", grid, &[data.into()], options).map(|_| bench.get(data))
}

/// Each block counts down from the last one to the first: none can end before those behind it.
const BACKWARDS: &str = "sub.u32 %r3, %r2, %r1; sub.u32 %r3, %r3, 1;
    WAIT: ld.acquire.gpu.global.u32 %r4, [%rd1]; setp.ne.u32 %p1, %r4, %r3; @%p1 bra WAIT;
    mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1; st.global.u32 [%rd2+4], %r4;
    add.u32 %r4, %r4, 1; st.release.gpu.global.u32 [%rd1], %r4;";

#[test]
fn the_last_block_may_have_to_go_first() {
    let out = run(BACKWARDS, Grid::linear(100, 1), Options::default(), &[0; 101]).unwrap();
    let wanted: Vec<u32> = std::iter::once(100).chain((0..100).rev()).collect();
    assert_eq!(out, wanted);
}

/// What only the first block writes is zero in the others, in every register file and however the launch is checked.
#[test]
fn a_block_finds_nothing_of_the_one_before_it_in_its_registers() {
    let body = "setp.eq.u32 %p1, %r1, 0; @%p1 mov.u32 %r5, 7; @%p1 mov.u64 %rd3, 9; @!%p1 bra BEHIND;
        setp.eq.u32 %p3, %r1, 0; mov.u32 %r7, 1000;
        BEHIND: cvt.u32.u64 %r6, %rd3; add.u32 %r6, %r6, %r5; add.u32 %r6, %r6, %r7; @%p3 add.u32 %r6, %r6, 100;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1; st.global.u32 [%rd2], %r6;";
    for options in [Options::default(), Options::unchecked()] {
        let options = Options { threads: 1, ..options };
        assert_eq!(run(body, Grid::linear(3, 32), options, &[1; 3]).unwrap(), [1116, 0, 0]);
    }
}

/// Blocks that are left for others are told apart by an observer: no race is invented, and a missing order is found.
#[test]
fn the_race_detector_follows_blocks_that_take_turns() {
    let races = |body: &str| {
        let body = format!(
            "{HEAD} .shared .b32 s[2]; mov.u32 %r7, %tid.x; setp.eq.u32 %p2, %r7, 0; @!%p2 bra JOIN; {body}
            mov.u32 %r5, s; st.shared.u32 [%r5], %r4; JOIN: bar.sync 0; mov.u32 %r5, s; ld.shared.u32 %r6, [%r5]; ret;"
        );
        let mut bench = Bench::new(&module(1, &body));
        let data = bench.put(&[0u32; 21]);
        let mut races = RaceDetector::new();
        let grid = Grid::linear(20, 64);
        bench
            .gpu
            .launch_watched(&bench.module, "kernel", grid, &[data.into()], Options::default(), &mut races)
            .unwrap();
        assert!(races.races().is_empty(), "{}", races.races()[0]);
        races.unused_reads().len()
    };
    // Each block reads what the one behind it stored in the ordinary way, and throws it away.
    let chain = BACKWARDS.replace(
        "st.global.u32 [%rd2+4], %r4;",
        "setp.eq.u32 %p3, %r3, 0; @!%p3 ld.global.u32 %r6, [%rd2+8]; st.global.u32 [%rd2+4], %r4;",
    );
    assert_eq!(races(&chain), 0);
    assert_ne!(races(&chain.replace("ld.acquire", "ld.relaxed")), 0);
    assert_ne!(races(&chain.replace("st.release", "st.relaxed")), 0);
}

#[test]
fn atomics_that_change_nothing_are_waiting_too() {
    let body = "sub.u32 %r3, %r2, %r1; sub.u32 %r3, %r3, 1;
        WAIT: atom.global.cas.b32 %r4, [%rd1], -1, -1; setp.ne.u32 %p1, %r4, %r3; @%p1 bra WAIT;
        atom.global.add.u32 %r6, [%rd1], 1;";
    assert_eq!(run(body, Grid::linear(30, 1), Options::default(), &[0]), Ok(vec![30]));
}

fn stuck(body: &str, grid: Grid) -> Stuck {
    match run(body, grid, Options::default(), &[0, 0]) {
        Err(Error::Stuck(stuck)) => *stuck,
        other => panic!("not stuck: {other:?}"),
    }
}

#[test]
fn a_grid_that_hangs_is_found_and_described() {
    let body = "WAIT: ld.volatile.global.u32 %r3, [%rd1]; setp.eq.u32 %p1, %r3, 0; @%p1 bra WAIT;";
    for blocks in [1, 3, 50] {
        let found = stuck(body, Grid::linear(blocks, 32));
        assert_eq!(found.jam, Jam::Grid { blocks: u64::from(blocks), not_begun: 0 });
        assert_eq!(found.waiting.len() as u32, blocks.min(4));
        assert_eq!(found.waiting.last().map(|waiting| waiting.block), Some([blocks.min(4) - 1, 0, 0]));
    }
    let text = stuck(body, Grid::linear(3, 32)).to_string();
    for part in [
        "the grid hangs: 3 blocks wait for one another:",
        "block (2, 0, 0), warp 0, lanes 0xffffffff: kernel (PTX line 8",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // One block of two never comes to the barrier.
    let barrier = "setp.eq.u32 %p2, %r1, 1; @%p2 exit; atom.global.add.u32 %r3, [%rd1], 1;
        WAIT: ld.volatile.global.u32 %r3, [%rd1]; setp.ne.u32 %p1, %r3, 2; @%p1 bra WAIT;";
    assert_eq!(stuck(barrier, Grid::linear(2, 32)).jam, Jam::Grid { blocks: 1, not_begun: 0 });
}

/// A loop that waits for nobody is still endless, and one that gives up after a while still ends.
#[test]
fn other_loops_are_left_alone() {
    let options = Options { limit: 100_000, ..Options::default() };
    let error = run("WAIT: bra WAIT;", Grid::linear(2, 32), options, &[0]).unwrap_err();
    assert!(error.to_string().contains("more than its limit"), "{error}");
    let patient = "mov.u32 %r5, 0; WAIT: ld.volatile.global.u32 %r3, [%rd1]; add.u32 %r5, %r5, 1;
        setp.lt.u32 %p1, %r5, 5000; @%p1 bra WAIT; st.global.u32 [%rd1+4], %r5;";
    assert_eq!(run(patient, Grid::linear(2, 1), Options::default(), &[0, 0]), Ok(vec![0, 5000]));
}

#[test]
fn only_a_cooperative_grid_has_a_workspace() {
    let body = "mov.u32 %r3, %envreg1; mov.u32 %r4, %envreg2; or.b32 %r3, %r3, %r4; st.global.u32 [%rd1], %r3;";
    let cooperative = Options { cooperative: true, ..Options::default() };
    assert_eq!(run(body, Grid::linear(1, 1), Options::default(), &[9]), Ok(vec![0]));
    assert_ne!(run(body, Grid::linear(1, 1), cooperative, &[9]), Ok(vec![0]));
    let error = run(body, Grid::linear(5000, 1), cooperative, &[9]).unwrap_err();
    assert!(error.to_string().contains("a cooperative grid of 5000 blocks"), "{error}");
}

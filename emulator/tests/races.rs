//! Planted races: each is found, with the lines of both accesses, and the right version of the kernel is silent.

use crate::common::{Bench, GEMM, module};
use ptx_emulator::observe::Kind;
use ptx_emulator::race::{Party, Race, RaceDetector};
use ptx_emulator::{Arg, Grid, Options, Space};

const KERNELS: &str = include_str!("ptx/race_kernels.ptx");
const PAIR: Grid = Grid { blocks: [1, 1, 1], threads: [64, 1, 1], shared: 0 };

/// Runs a kernel. Bytes that nobody wrote are allowed, since a race may well read them.
fn watch(bench: &mut Bench, kernel: &str, grid: Grid, args: &[Arg]) -> Vec<Race> {
    let mut races = RaceDetector::new();
    bench.gpu.launch_watched(&bench.module, kernel, grid, args, Options::unchecked(), &mut races).unwrap();
    races.races().to_vec()
}

/// The same for one of the kernels above, with two or three pieces of memory full of zeros.
fn races(kernel: &str, args: usize, grid: Grid) -> Vec<Race> {
    let mut bench = Bench::new(KERNELS);
    let args: Vec<Arg> = (0..args).map(|_| bench.put(&[0u32; 1024]).into()).collect();
    watch(&mut bench, kernel, grid, &args)
}

/// The line of the `.cu` file.
fn source(party: &Party) -> u32 {
    let (file, line) = party.source.clone().unwrap();
    assert_eq!(file, "race_kernels.cu");
    line
}

/// The pairs of lines, the smaller first.
fn lines(races: &[Race]) -> Vec<(u32, u32)> {
    let pair = |race: &Race| (source(&race.first), source(&race.second));
    let mut pairs: Vec<_> = races.iter().map(pair).map(|(a, b)| (a.min(b), a.max(b))).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

#[track_caller]
fn caught(kernel: &str, args: usize, grid: Grid, pair: (u32, u32)) -> Vec<Race> {
    let found = races(kernel, args, grid);
    assert_eq!(lines(&found), [pair], "{kernel}: {found:#?}");
    found
}

#[track_caller]
fn clean(kernel: &str, args: usize, grid: Grid) {
    let found = races(kernel, args, grid);
    assert!(found.is_empty(), "{}", found[0]);
}

#[test]
fn a_reduction_without_a_barrier() {
    clean("reduce_clean", 2, PAIR);
    let found = caught("reduce_bug", 2, PAIR, (7, 11));
    let race = &found[0];
    assert_eq!((race.space, race.bytes, race.kernel.as_str()), (Space::Shared, 4, "reduce_bug"));
    assert_eq!((race.first.kind, race.second.kind), (Kind::Write, Kind::Read));
    // Every thread reads the words of 63 others: those of its own warp, and either way round those of the other warp.
    assert_eq!(found.iter().map(|race| race.count).sum::<u64>(), 64 * 63 - 32 * 31);
    let text = race.to_string();
    for part in [
        "reduce_bug: race on 4 bytes of shared memory",
        "write at race_kernels.cu:7 (PTX line",
        "st.shared.f32",
        "thread 1",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

/// Kernels whose right version is silent and whose bug is found; the tests below look at the races of others.
#[test]
fn right_kernels_are_silent_and_bugs_are_found() {
    for (kernel, args, grid, pair) in [
        // A tile is overwritten while others read it.
        ("tiles", 2, PAIR, (21, 23)),
        // Lanes are not in lockstep.
        ("lanes", 1, PAIR, (32, 35)),
        // A plain read of a counter.
        ("counter", 2, Grid::linear(2, 64), (55, 56)),
        // A named barrier with another number.
        ("signal", 2, PAIR, (102, 107)),
    ] {
        clean(&format!("{kernel}_clean"), args, grid);
        caught(&format!("{kernel}_bug"), args, grid, pair);
    }
    clean("pipeline_clean", 2, PAIR);
}

#[test]
fn asynchronous_copies() {
    clean("copies_clean", 2, PAIR);
    let found = caught("copies_no_wait", 2, Grid::linear(1, 32), (41, 45));
    // Even the thread that copies must wait.
    assert_eq!((found[0].first.kind, found[0].first.thread, found[0].second.thread), (Kind::CopyWrite, 0, 0));
    let found = caught("copies_no_barrier", 2, PAIR, (41, 45));
    assert_eq!((found[0].first.thread, found[0].second.thread), (0, 1));
    clean("source_clean", 2, Grid::linear(1, 32));
    let found = caught("source_bug", 2, Grid::linear(1, 32), (121, 122));
    assert_eq!((found[0].space, found[0].first.kind, found[0].bytes), (Space::Global, Kind::CopyRead, 4));
}

#[test]
fn blocks_that_write_the_same_word() {
    clean("blocks_clean", 1, Grid::linear(3, 32));
    clean("blocks_bug", 1, Grid::linear(1, 32));
    let found = caught("blocks_bug", 1, Grid::linear(3, 32), (50, 50));
    assert_eq!((found[0].first.block, found[0].second.block, found[0].count), ([0; 3], [1, 0, 0], 2));
}

#[test]
fn the_last_block_reads_what_the_others_wrote() {
    clean("last_clean", 3, Grid::linear(4, 64));
    for kernel in ["last_no_release", "last_release_in_block", "last_no_acquire"] {
        caught(kernel, 3, Grid::linear(4, 64), (63, 75));
    }
    // A counter that is atomic within a block only is a race itself, and tells other blocks nothing.
    let text = KERNELS.replace("atom.global.add", "atom.relaxed.cta.global.add");
    let mut bench = Bench::new(&text);
    let args = [0u32; 3].map(|zero| bench.put(&[zero; 1024]).into());
    let found = lines(&watch(&mut bench, "last_clean", Grid::linear(4, 64), &args));
    assert_eq!(found, [(63, 75), (68, 68)]);
}

/// Who has counted last may set the counter anew; who has counted first may not.
#[test]
fn the_last_block_sets_the_counter_anew() {
    clean("last_sum_clean", 2, Grid::linear(4, 64));
    assert_eq!(lines(&races("last_sum_bug", 2, Grid::linear(4, 64))), [(166, 173), (173, 173)]);
}

/// Pairs of lanes that store to one word: different values are a race, equal ones a class of their own.
#[test]
fn lanes_of_one_store() {
    clean("one_store_clean", 1, PAIR);
    let mut bench = Bench::new(KERNELS);
    let mut races = RaceDetector::new();
    let args = [bench.put(&[0u32; 1024]).into()];
    bench.gpu.launch_watched(&bench.module, "one_store_bug", PAIR, &args, Options::unchecked(), &mut races).unwrap();
    assert!(races.races().is_empty(), "{}", races.races()[0]);
    let found = races.equal_stores();
    assert_eq!(lines(found), [(114, 114)]);
    assert_eq!((found[0].first.thread, found[0].second.thread, found[0].count), (0, 1, 32));
}

#[test]
fn stores_are_equal_by_what_they_leave_in_memory() {
    let run = |value: &str, before: u32| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %rd<4>; ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; shr.u32 %r2, %r1, 1;
            mul.wide.u32 %rd2, %r2, 4; add.s64 %rd1, %rd1, %rd2; {value} st.global.u32 [%rd1], %r3; ret;"
        );
        let mut bench = Bench::new(&module(1, &body));
        let mut races = RaceDetector::new();
        let args = [bench.put(&[before; 32]).into()];
        bench.gpu.launch_watched(&bench.module, "kernel", PAIR, &args, Options::default(), &mut races).unwrap();
        (races.races().iter().map(|r| r.count).sum::<u64>(), races.equal_stores().iter().map(|r| r.count).sum::<u64>())
    };
    assert_eq!(run("mov.u32 %r3, %r1;", 0), (32, 0));
    assert_eq!(run("mov.u32 %r3, %r2;", 0), (0, 32));
    // What was there before the launch is no excuse: the second thread of a pair stores it, the first something else.
    assert_eq!(run("and.b32 %r3, %r1, 1; xor.b32 %r3, %r3, 1;", 0), (32, 0));
    // Of four lanes of which one differs, each pair with it that meets is a race.
    assert_eq!(run("shr.u32 %r3, %r1, 5;", 9), (0, 32));
}

/// Threads 0, 32 and 64 do something each, one after the other, with one word that holds zero; `%rd2` is the address of
/// a word of its own for each of them. What is found: races, equal stores, and reads whose value is not used.
fn in_three_warps(codes: [&str; 3]) -> [usize; 3] {
    let [first, second, third] = codes;
    let body = format!(
        ".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p<3>; ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd1, %rd3; and.b32 %r2, %r1, 31; setp.ne.u32 %p1, %r2, 0;
        @%p1 bra OTHERS; setp.eq.u32 %p1, %r1, 32; @%p1 bra SECOND; setp.eq.u32 %p1, %r1, 64; @%p1 bra THIRD;
        {first} ret;
        SECOND: {second} ret;
        THIRD: {third} ret;
        OTHERS: ret;"
    );
    let mut bench = Bench::new(&module(1, &body));
    let mut races = RaceDetector::new();
    let args = [bench.put(&[0u32; 96]).into()];
    let grid = Grid::linear(1, 96);
    let launched = bench.gpu.launch_watched(&bench.module, "kernel", grid, &args, Options::unchecked(), &mut races);
    launched.unwrap_or_else(|error| panic!("{codes:?}: {error}"));
    [races.races(), races.equal_stores(), races.unused_reads()].map(<[Race]>::len)
}

/// Equal stores do no harm; what comes before them, or between them, may.
#[test]
fn equal_stores_hide_nothing() {
    let (five, keep, wait) = ("st.global.u32 [%rd1], 5;", "st.global.u32 [%rd2+4], %r3;", "bar.sync 0, 64;");
    let [before, again] = ["ld.global.u32 %r3, [%rd1];", "st.global.u32 [%rd1], 6;"];
    let count = "atom.global.add.u32 %r3, [%rd1], 1;";
    // A read before the own store: of zero, or of what the other one has stored.
    assert_eq!(in_three_warps([&format!("{before} {five} {keep}"), five, ""]), [1, 1, 0]);
    assert_eq!(in_three_warps([&format!("{before} {five}"), five, ""]), [0, 1, 1]);
    assert_eq!(in_three_warps([&format!("{before} {wait} {five} {keep}"), &format!("{wait} {five}"), ""]), [0, 1, 0]);
    // An atomic operation in its place.
    assert_eq!(in_three_warps([&format!("{count} {five} {keep}"), five, ""]), [1, 1, 0]);
    assert_eq!(in_three_warps([&format!("{count} {wait} {five} {keep}"), &format!("{wait} {five}"), ""]), [0, 1, 0]);
    // A third thread stores something else, and has waited for one of both only.
    assert_eq!(in_three_warps([five, &format!("{five} {wait}"), &format!("{wait} {again}")]), [1, 1, 0]);
    let all = "bar.sync 0, 96;";
    let [first, third] = [format!("{five} {all}"), format!("{all} {again}")];
    assert_eq!(in_three_warps([&first, &first, &third]), [0, 1, 0]);
    // A read behind one of them gets what both have left, but for what one had stored before.
    let read = format!("{five} {before} {keep}");
    assert_eq!(in_three_warps([&format!("{again} {five}"), &read, ""]), [1, 1, 0]);
    assert_eq!(in_three_warps([five, &read, ""]), [0, 1, 0]);
}

/// Eight lanes whose rows of a matrix lie in one place.
#[test]
fn rows_of_stmatrix_are_equal_stores_or_a_race_like_any_other() {
    let run = |value: &str| {
        let body = format!(
            ".reg .b32 %r<4>; .shared .align 16 .b8 rows[16]; mov.u32 %r1, %tid.x; {value} mov.u32 %r3, rows;
            stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {{%r2}}; ret;"
        );
        let mut bench = Bench::new(&module(0, &body).replace("sm_80", "sm_90"));
        let mut races = RaceDetector::new();
        let warp = Grid::linear(1, 32);
        bench.gpu.launch_watched(&bench.module, "kernel", warp, &[], Options::default(), &mut races).unwrap();
        (races.races().is_empty(), races.equal_stores().is_empty())
    };
    assert_eq!(run("mov.u32 %r2, 7;"), (true, false));
    assert!(!run("mov.u32 %r2, %r1;").0);
}

#[test]
fn bytes_are_told_apart() {
    clean("halves_clean", 2, PAIR);
    let found = caught("halves_bug", 2, PAIR, (132, 133));
    assert_eq!(found[0].bytes, 2);
}

#[test]
fn one_launch_comes_before_the_next() {
    let mut bench = Bench::new(KERNELS);
    let word = bench.put(&[0u32]);
    let mut races = RaceDetector::new();
    for _ in 0..2 {
        let args = [word.into()];
        let grid = Grid::linear(1, 32);
        bench.gpu.launch_watched(&bench.module, "blocks_bug", grid, &args, Options::default(), &mut races).unwrap();
    }
    assert!(races.races().is_empty());
}

/// Thread 0 writes a word and hands it to thread 1 of another warp through a flag.
fn hand_over(send: &str, receive: &str) -> usize {
    let body = format!(
        ".reg .b32 %r<4>; .reg .b64 %rd<2>; .reg .pred %p;
ld.param.u64 %rd1, [p0];
mov.u32 %r1, %tid.x;
setp.eq.u32 %p, %r1, 32;
@%p bra RECEIVE;
setp.ne.u32 %p, %r1, 0;
@%p ret;
st.global.u32 [%rd1], 7;
{send}
ret;
RECEIVE:
{receive}
setp.eq.u32 %p, %r2, 0;
@%p bra RECEIVE;
ld.global.u32 %r3, [%rd1];
st.global.u32 [%rd1+8], %r3;
ret;"
    );
    let mut bench = Bench::new(&module(1, &body));
    let data = bench.put(&[0u32; 4]);
    let found = watch(&mut bench, "kernel", PAIR, &[data.into()]);
    assert_eq!(bench.get::<u32>(data)[2], 7);
    found.len()
}

#[test]
fn release_and_acquire() {
    let relaxed = "ld.relaxed.gpu.global.u32 %r2, [%rd1+4];";
    let (fenced, acquire) = (format!("{relaxed} fence.acq_rel.gpu;"), "ld.acquire.cta.global.u32 %r2, [%rd1+4];");
    for send in [
        "membar.gl; st.volatile.global.u32 [%rd1+4], 1;",
        "membar.cta; st.relaxed.cta.global.u32 [%rd1+4], 1;",
        "st.release.cta.global.u32 [%rd1+4], 1;",
        "red.release.gpu.global.add.u32 [%rd1+4], 1;",
        "atom.acq_rel.gpu.global.exch.b32 %r2, [%rd1+4], 1;",
    ] {
        assert_eq!([hand_over(send, &fenced), hand_over(send, acquire), hand_over(send, relaxed)], [0, 0, 1], "{send}");
    }
    for send in ["st.relaxed.gpu.global.u32 [%rd1+4], 1;", "st.relaxed.gpu.global.u32 [%rd1+4], 1; membar.gl;"] {
        assert_eq!([hand_over(send, &fenced), hand_over(send, acquire)], [1, 1], "{send}");
    }
    // A weak flag is a race of its own.
    assert_eq!(hand_over("membar.gl; st.global.u32 [%rd1+4], 1;", &fenced), 2);
}

/// The races of the double-buffered matrix product.
fn gemm(text: &str) -> Vec<Race> {
    let mut bench = Bench::new(text);
    let (a, b) = (bench.put(&[0u16; 128 * 96]), bench.put(&[0u16; 64 * 96]));
    let c = bench.room::<f32>(128 * 64);
    let grid = Grid { blocks: [1, 2, 1], threads: [128, 1, 1], shared: 0 };
    watch(&mut bench, "gemm_bf16", grid, &[a.into(), b.into(), c.into(), 64i32.into(), 96i32.into()])
}

#[test]
fn a_matrix_product_without_one_of_its_barriers() {
    assert_eq!(gemm(GEMM), []);
    let start = GEMM.find(".entry gemm_bf16").unwrap();
    let barriers: Vec<usize> = GEMM[start..].match_indices("bar.sync").map(|(at, _)| start + at).collect();
    assert_eq!(barriers.len(), 2);
    for at in barriers {
        // A comment in its place keeps all line numbers.
        let found = gemm(&format!("{}//{}", &GEMM[..at], &GEMM[at..]));
        assert!(!found.is_empty());
        for race in &found {
            let kinds = [race.first.kind, race.second.kind];
            assert_eq!(race.space, Space::Shared);
            assert!(kinds.contains(&Kind::CopyWrite) && kinds.contains(&Kind::Read), "{race}");
        }
    }
}

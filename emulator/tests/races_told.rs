//! What the race detector tells apart from races, since it does not matter: each beside a twin in which it does.

use crate::common::{Bench, module};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Grid, Options};

/// Each lane adds up the squares of all lanes of its warp, the same in every warp, and all of them store the sum to one word. The first addition is one
/// instruction with the square, as compilers write it, so that two lanes round differently. `steps` are the distances
/// of the other additions; `after` makes `%sum` of `%f9`.
fn sum_of_squares(threads: u32, steps: &[u32], after: &str) -> RaceDetector {
    let mut body =
        ".reg .b32 %r<4>; .reg .b32 %f<10>; .reg .b32 %t<9>; .reg .b32 %sum; .reg .b32 %lane; .reg .b64 %rd<4>;
        ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1]; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 31;
        mul.wide.u32 %rd3, %r2, 4; add.s64 %rd1, %rd1, %rd3; ld.global.b32 %f7, [%rd1]; mul.f32 %f8, %f7, %f7;
        shfl.sync.bfly.b32 %t8, %f8, 16, 31, -1; fma.rn.f32 %f0, %f7, %f7, %t8;"
            .to_string();
    for (at, step) in steps.iter().enumerate() {
        let next = at + 1;
        body += &format!("shfl.sync.bfly.b32 %t{at}, %f{at}, {step}, 31, -1; add.f32 %f{next}, %f{at}, %t{at};");
    }
    body += &format!("mov.b32 %f9, %f{}; {after} st.global.b32 [%rd2], %sum; ret;", steps.len());
    let mut bench = Bench::new(&module(2, &body));
    let values: Vec<f32> = (0..32).map(|i| 2.6 + i as f32).collect();
    let args = [bench.put(&values).into(), bench.put(&[0f32]).into()];
    let mut races = RaceDetector::new();
    let grid = Grid::linear(1, threads);
    bench.gpu.launch_watched(&bench.module, "kernel", grid, &args, Options::default(), &mut races).unwrap();
    races
}

const SAME: &str = "mov.b32 %sum, %f9;";

#[test]
fn lanes_that_add_in_different_orders_store_the_same_but_for_rounding() {
    // In one warp, and in several.
    for threads in [32, 96] {
        let races = sum_of_squares(threads, &[8, 4, 2, 1], SAME);
        assert!(races.races().is_empty(), "{}", races.races()[0]);
        let [told] = races.rounded_stores() else { panic!("{:?}", races.rounded_stores()) };
        assert!(told.apart > 0.0 && told.apart < 1e-6, "{}", told.apart);
        assert!(told.to_string().contains("the values differ by rounding, by "), "{told}");
    }
}

/// However little they differ: what would differ without rounding too is a race.
#[test]
fn lanes_that_store_different_sums_race() {
    // One step of the reduction is missing, or is done twice.
    for steps in [&[8, 4, 2][..], &[8, 4, 1, 1]] {
        assert!(!sum_of_squares(32, steps, SAME).races().is_empty());
    }
    let less_than_rounding = "cvt.rn.f32.u32 %lane, %r1; fma.rn.f32 %sum, %lane, 0f33000000, %f9;";
    assert!(!sum_of_squares(32, &[8, 4, 2, 1], less_than_rounding).races().is_empty());
    // What a conversion cuts off is another part of each lane's value; 2^61 times a value is another value.
    let cut_off = "cvt.rn.f32.u32 %lane, %r1; fma.rn.f32 %r3, %lane, 0f3DCCCCCD, %f9; cvt.rmi.f32.f32 %r0, %r3;
        sub.f32 %sum, %r3, %r0;";
    let narrowed = ".reg .b16 %h; .reg .b32 %w; cvt.rn.f32.u32 %lane, %r1; fma.rn.f32 %r3, %lane, 0f3DCCCCCD, %f9;
        cvt.rn.f16.f32 %h, %r3; cvt.f32.f16 %w, %h; sub.f32 %sum, %r3, %w;";
    let far_apart = ".reg .pred %q; setp.eq.u32 %q, %r2, 0; selp.f32 %r3, 0f3F800000, 0f5E000000, %q;
        mul.f32 %sum, %r3, 0f40400000;";
    for after in [cut_off, narrowed, far_apart] {
        assert!(!sum_of_squares(32, &[8, 4, 2, 1], after).races().is_empty(), "{after}");
    }
    // One lane takes the sum, the others something else that happens to be the same.
    let chosen = |other: &str| format!(".reg .pred %q; {other} setp.eq.u32 %q, %r2, 0; selp.b32 %sum, %f9, %r3, %q;");
    assert!(sum_of_squares(32, &[8, 4, 2, 1], &chosen("mov.b32 %r3, %f9;")).races().is_empty());
    assert!(!sum_of_squares(32, &[8, 4, 2, 1], &chosen("add.u32 %r3, %f9, 0;")).races().is_empty());
    // Each warp has a sum of its own, by the same little.
    let by_warp = format!("and.b32 %r1, %r1, 32; {less_than_rounding}");
    assert!(!sum_of_squares(64, &[8, 4, 2, 1], &by_warp).races().is_empty());
}

/// A race of two instructions of one warp is told as what it is: a GPU that does not part the lanes has none.
#[test]
fn a_race_within_a_warp_says_that_a_barrier_of_the_warp_orders_it() {
    // Each thread reads a word and stores to the one that is `apart` further on, of 64.
    let told = |apart: u32, between: &str| {
        let body = format!(
            ".reg .b32 %r<5>; .reg .b64 %rd<5>; ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x;
            mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; ld.global.b32 %r2, [%rd2]; {between}
            add.u32 %r3, %r1, {apart}; and.b32 %r3, %r3, 63; mul.wide.u32 %rd3, %r3, 4; add.s64 %rd3, %rd1, %rd3;
            st.global.b32 [%rd3], %r2; ret;"
        );
        let mut bench = Bench::new(&module(1, &body));
        let args = [bench.put(&[0f32; 64]).into()];
        let mut races = RaceDetector::new();
        let grid = Grid::linear(1, 64);
        bench.gpu.launch_watched(&bench.module, "kernel", grid, &args, Options::default(), &mut races).unwrap();
        races.races().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let named = |race: &String| race.contains("both threads are of one warp") && race.contains("__syncwarp()");
    let within = told(1, "");
    assert!(within.iter().any(named), "{within:?}");
    let across = told(32, "");
    assert!(!across.is_empty() && !across.iter().any(named), "{across:?}");
    assert!(told(1, "bar.sync 0;").is_empty());
}

/// Two warps with `code` after: `%r2` is a lane's number modulo 16, `%rd1` the address of a word for each 16 lanes of
/// every warp, `%rd2` that of an own word in the second half of memory, `%p1` true in the first 16 lanes of warp 0.
/// What is found: races, and reads whose value is not used.
fn surplus(code: &str) -> (usize, usize) {
    let body = format!(
        ".reg .b32 %r<9>; .reg .b64 %rd<5>; .reg .pred %p<5>; .shared .b32 s[64]; ld.param.u64 %rd0, [p0];
        mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 15; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd1, %rd0, %rd3;
        mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd0, %rd3; add.s64 %rd2, %rd2, 256; setp.lt.u32 %p1, %r1, 16;
        {code}
        END: ret;"
    );
    let mut bench = Bench::new(&module(1, &body));
    let data = bench.put(&[1u32; 128]);
    let mut races = RaceDetector::new();
    let grid = Grid::linear(1, 64);
    let launched = bench.gpu.launch_watched(&bench.module, "kernel", grid, &[data.into()], FOLLOW, &mut races);
    launched.unwrap_or_else(|error| panic!("{code}: {error}"));
    (races.races().len(), races.unused_reads().len())
}

const FOLLOW: Options = Options {
    checked: true,
    unwritten: ptx_emulator::Unwritten::Follow,
    threads: 1,
    limit: 1 << 20,
    summation: ptx_emulator::numeric::mma::Summation::Wide,
    cooperative: false,
};

/// More threads than work, in place: all read, some store.
#[test]
fn what_a_thread_reads_and_throws_away_is_no_race() {
    let read = "ld.global.u32 %r3, [%rd1];";
    for code in [
        "add.u32 %r4, %r3, 1; @%p1 st.global.u32 [%rd1], %r4;",
        // Chosen away, before and after arithmetic.
        "@%p1 st.global.u32 [%rd1], 5; selp.u32 %r4, %r3, 7, %p1; add.u32 %r4, %r4, 1; st.global.u32 [%rd2], %r4;",
        // A comparison that only lanes with work look at.
        "setp.eq.u32 %p2, %r3, 1; and.pred %p3, %p1, %p2; @%p3 st.global.u32 [%rd1], 5;",
        // Brought to a lane that throws it away as well: 16 to 31 to those of the same half.
        "shfl.sync.bfly.b32 %r5, %r3, 1, 31, -1; add.u32 %r4, %r3, %r5; @%p1 st.global.u32 [%rd1], %r4;",
    ] {
        let (races, unused) = surplus(&format!("{read} {code}"));
        assert_eq!((races, unused > 0), (0, true), "{code}");
    }
}

#[test]
fn what_a_thread_reads_and_uses_is_a_race() {
    let write = "@%p1 st.global.u32 [%rd1], %r4;";
    for used in [
        // In memory of any kind.
        "st.global.u32 [%rd2], %r3;",
        "mov.u32 %r5, s; mad.lo.u32 %r5, %r1, 4, %r5; st.shared.u32 [%r5], %r3;",
        "st.global.u8 [%rd2], %r3;",
        "red.global.add.u32 [%rd2], %r3;",
        // For a branch, an address, a predicate.
        "setp.eq.u32 %p2, %r3, 9; @%p2 bra END;",
        "and.b32 %r5, %r3, 4; cvt.u64.u32 %rd4, %r5; add.s64 %rd4, %rd4, %rd2; ld.global.u32 %r6, [%rd4];",
        "setp.eq.u32 %p2, %r3, 9; @%p2 st.global.u32 [%rd2], 1;",
        // By one lane of all, and long after.
        "setp.eq.u32 %p2, %r1, 40; @%p2 st.global.u32 [%rd2], %r3;",
        "setp.ge.u32 %p2, %r1, 40; mov.u32 %r5, %r3; ld.global.u32 %r3, [%rd1]; @%p2 st.global.u32 [%rd2], %r5;",
        // As a part of what is stored.
        "add.u32 %r6, %r3, %r2; mul.lo.u32 %r6, %r6, 3; xor.b32 %r6, %r6, %r3; st.global.u32 [%rd2], %r6;",
        "mov.u32 %r6, 5; setp.eq.u32 %p2, %r3, 9; @%p2 mov.u32 %r6, 6; st.global.u32 [%rd2], %r6;",
        "ld.global.u32 %r6, [%rd2]; setp.ge.u32 %p2, %r1, 40; @%p2 add.u32 %r6, %r6, %r3; st.global.u32 [%rd2], %r6;",
        // By another lane.
        "shfl.sync.bfly.b32 %r5, %r3, 16, 31, -1; st.global.u32 [%rd2], %r5;",
        // That says which lane it is.
        "shfl.sync.idx.b32 %r5, %r3, %r3, 31, -1; st.global.u32 [%rd2], %r5;",
        "redux.sync.add.u32 %r5, %r3, -1; st.global.u32 [%rd2], %r5;",
        "setp.eq.u32 %p2, %r3, 9; vote.sync.any.pred %p3, %p2, -1; @%p3 bra END;",
    ] {
        // The other threads read before the write, or after it: warp 0 runs first.
        let read = "ld.global.u32 %r3, [%rd1]; add.u32 %r4, %r3, 1;";
        for code in [format!("{read} {write} {used}"), format!("{read} {used} {write}")] {
            assert!(surplus(&code).0 > 0, "{code}");
        }
    }
    // For the distance of a matrix's rows, which may be the same whatever was read.
    let rows = |stride: &str| {
        format!(
            "ld.global.u32 %r3, [%rd1]; add.u32 %r4, %r3, 1; {write}
            .reg .b32 %w<8>; .reg .b32 %at; .shared .align 32 .b8 tile[512]; mov.u32 %at, tile; {stride} add.u32 %r5, %r5, 16;
            wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {{%w0, %w1, %w2, %w3, %w4, %w5, %w6, %w7}}, [%at], %r5;"
        )
    };
    assert_eq!(surplus(&rows("mul.lo.u32 %r5, %r3, 0;")), (1, 0));
    assert_eq!(surplus(&rows("mul.lo.u32 %r5, %r2, 0;")), (0, 1));
    // For a barrier, which must come after the write.
    let waits = "mul.lo.u32 %r5, %r3, 0; add.u32 %r5, %r5, 64; barrier.sync 1, %r5;";
    assert_eq!(surplus(&format!("ld.global.u32 %r3, [%rd1]; {write} {waits}")), (1, 0));
    // One element of a vector, which is used, or is not.
    let vector = |used: &str| {
        surplus(&format!(
            "and.b32 %r5, %r2, 12; mul.wide.u32 %rd3, %r5, 4; add.s64 %rd4, %rd0, %rd3; setp.eq.u32 %p2, %r1, 0;
            ld.global.v4.u32 {{%r3, %r6, %r7, %r8}}, [%rd4]; st.global.u32 [%rd2], {used}; @%p2 st.global.u32 [%rd0], 5;"
        ))
    };
    assert_eq!((vector("%r3"), vector("%r6")), ((1, 0), (0, 1)));
    // Both kinds at once: some lanes use it, others do not.
    let both = "ld.global.u32 %r3, [%rd1]; add.u32 %r4, %r3, 1; @%p1 st.global.u32 [%rd1], %r4;
        setp.eq.u32 %p2, %r1, 63; @%p2 st.global.u32 [%rd2], %r3;";
    assert_eq!(surplus(both), (1, 1));
    // What is overwritten if another value says so is used as that one is.
    let either = "ld.global.u32 %r3, [%rd1];
        ld.global.u32 %r5, [%rd1]; add.u32 %r4, %r3, 1; mov.u32 %r6, %r3;
        setp.ge.u32 %p2, %r5, 1; @%p2 mov.u32 %r6, 7; st.global.u32 [%rd2], %r6; @%p1 st.global.u32 [%rd1], %r4;";
    assert_eq!(surplus(either), (2, 0));
}

/// The second run leaves no traces.
#[test]
fn a_launch_that_is_looked_at_twice_happens_once() {
    let body = ".reg .b32 %r<9>; .reg .b64 %rd<5>; .reg .pred %p<3>; .shared .b32 s[64]; ld.param.u64 %rd0, [p0];
        mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 16; and.b32 %r2, %r1, 15; mul.wide.u32 %rd3, %r2, 4;
        add.s64 %rd1, %rd0, %rd3; ld.global.u32 %r3, [%rd1]; add.u32 %r4, %r3, 1; @%p1 st.global.u32 [%rd1], %r4;
        red.global.add.u32 [%rd0+64], 1; mov.u32 %r5, s; ld.shared.u32 %r6, [%r5]; @%p1 st.global.u32 [%rd1+128], %r6;
        ret;";
    let mut bench = Bench::new(&module(1, body));
    let data = bench.put(&[1u32; 17]);
    let more = bench.gpu.allocate(4096).unwrap();
    let run = |bench: &mut Bench, races: &mut RaceDetector, data: ptx_emulator::DevicePointer| {
        let grid = Grid::linear(2, 32);
        bench.gpu.launch_watched(&bench.module, "kernel", grid, &[data.into()], FOLLOW, races)
    };
    // Out of bounds in the middle: no second run, and the error is that of the first.
    let mut races = RaceDetector::new();
    assert!(run(&mut bench, &mut races, data).is_err());
    bench.gpu.write(more, &[1, 0, 0, 0].repeat(32)).unwrap();
    let report = run(&mut bench, &mut races, more).unwrap();
    assert_eq!(report.unwritten.len(), 1);
    let words = |bench: &Bench, at: i64, count: u64| {
        let bytes = bench.gpu.read_bytes(more.offset(at), count).unwrap();
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!((words(&bench, 0, 8), words(&bench, 64, 4)), (vec![3, 3], vec![65]));
    // What was stored of unwritten bytes is unwritten.
    assert!(bench.gpu.read_bytes(more.offset(128), 4).is_err());
    let count = |races: &RaceDetector| races.unused_reads().iter().map(|race| race.count).sum::<u64>();
    let once = count(&races);
    run(&mut bench, &mut races, more).unwrap();
    assert_eq!(count(&races), 2 * once);
}

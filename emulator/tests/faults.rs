//! Planted bugs: each is found, and located by source line, block and thread.

use crate::common::{Bench, fault, module};
use ptx_emulator::{Arg, Cause, Error, Fault, Grid, Jam, Options, Space, Stuck};

const BUGS: &str = include_str!("ptx/bugs.ptx");

fn stuck(result: Result<(), Error>) -> Stuck {
    match result {
        Err(Error::Stuck(stuck)) => *stuck,
        other => panic!("not stuck: {other:?}"),
    }
}

/// The source line and thread of a fault.
fn place(fault: &Fault) -> (u32, u32) {
    let (file, line) = fault.place.source.clone().unwrap();
    assert_eq!(file, "bugs.cu");
    (line, fault.thread[0])
}

#[test]
fn one_element_too_many() {
    let mut bench = Bench::new(BUGS);
    let (x, out) = (bench.put(&[1f32]), bench.room::<f32>(100));
    bench.room::<f32>(100); // a neighbour that must not be hit
    let found = fault(bench.try_run("out_of_bounds", Grid::linear(4, 32), &[x.into(), out.into(), 100i32.into()]));
    assert_eq!((place(&found), found.block), ((6, 4), [3, 0, 0]));
    let Cause::OutOfBounds { space, bytes, offset, size, .. } = &found.cause else { panic!("{found}") };
    assert_eq!((*space, *bytes, *offset, *size), (Space::Global, 4, 400, 400));
    let text = found.to_string();
    for part in ["out_of_bounds at bugs.cu:6", "st.global.f32", "block (3, 0, 0), thread (4, 0, 0)", "allocation 1"] {
        assert!(text.contains(part), "{text}");
    }
}

/// Kernels whose threads do something wrong: the kernel, its threads, whether it takes `x` before `out`, the line and
/// the thread, and the cause. Both are of 128 words, and `x` is the allocation with number 1.
#[test]
fn each_planted_bug_is_found_at_its_line_and_thread() {
    type Row = (&'static str, u32, bool, (u32, u32), fn(&Cause) -> bool);
    let is_before: fn(&Cause) -> bool =
        |cause| matches!(cause, Cause::OutOfBounds { offset: -4, name, .. } if name == "allocation 1");
    let is_outside: fn(&Cause) -> bool =
        |cause| matches!(cause, Cause::OutOfBounds { space: Space::Shared, offset: 256, size: 256, .. });
    let is_unwritten: fn(&Cause) -> bool = |cause| matches!(cause, Cause::Uninitialised { space: Space::Shared, .. });
    let rows: [Row; 8] = [
        ("before_the_start", 32, true, (11, 0), is_before),
        ("shared_out_of_bounds", 64, false, (17, 32), is_outside),
        ("misaligned", 32, true, (23, 1), |cause| matches!(cause, Cause::Misaligned { bytes: 16, .. })),
        ("uninitialised_shared", 64, false, (31, 0), |cause| {
            matches!(cause, Cause::Uninitialised { space: Space::Shared, offset: 252, .. })
        }),
        ("missing_wait", 32, true, (45, 0), is_unwritten),
        ("one_group_too_few", 32, true, (58, 0), is_unwritten),
        ("shuffle_with_strangers", 32, false, (86, 16), |cause| {
            *cause == Cause::NotMember { lane: 16, members: 0xffff }
        }),
        ("trap", 32, false, (101, 5), |cause| *cause == Cause::Trap),
    ];
    for (kernel, threads, takes_x, at, is_cause) in rows {
        let mut bench = Bench::new(BUGS);
        bench.put(&[0f32; 32]);
        let args: [Arg; 2] = [bench.put(&[1f32; 128]).into(), bench.room::<f32>(128).into()];
        let args = if takes_x { &args[..] } else { &args[1..] };
        let found = fault(bench.try_run(kernel, Grid::linear(1, threads), args));
        assert_eq!(place(&found), at, "{kernel}");
        assert!(is_cause(&found.cause), "{found}");
    }
}

#[test]
fn uninitialised_bytes() {
    let mut bench = Bench::new(BUGS);
    let out = bench.room::<f32>(64);
    let x = bench.gpu.allocate_named("the input", 256).unwrap();
    bench.gpu.write(x, &[0; 255]).unwrap();
    let args: [Arg; 2] = [x.into(), out.into()];
    let found = fault(bench.try_run("uninitialised_global", Grid::linear(1, 64), &args));
    assert_eq!(place(&found), (35, 63));
    assert!(found.to_string().contains("the input"), "{found}");
    // Nobody looks without the check.
    let grid = Grid::linear(1, 64);
    bench.gpu.launch(&bench.module, "uninitialised_global", grid, &args, Options::unchecked()).unwrap();
    // The host is told as well.
    assert!(matches!(bench.gpu.read(x), Err(Error::Memory(Cause::Uninitialised { offset: 255, .. }))));
}

#[test]
fn a_barrier_in_both_branches() {
    let mut bench = Bench::new(BUGS);
    let out = bench.room::<f32>(32);
    let found = stuck(bench.try_run("divergent_barrier", Grid::linear(1, 32), &[out.into()]));
    assert_eq!(found.jam, Jam::Divergence);
    let mut places: Vec<(u32, u32)> =
        found.waiting.iter().map(|wait| (wait.place.source.clone().unwrap().1, wait.lanes)).collect();
    places.sort_unstable();
    assert_eq!(places, [(66, 0xffff), (69, 0xffff_0000)]);
}

#[test]
fn warps_that_wait_for_each_other() {
    let mut bench = Bench::new(BUGS);
    let out = bench.room::<f32>(64);
    let found = stuck(bench.try_run("deadlock", Grid::linear(1, 64), &[out.into()]));
    assert_eq!((found.jam, found.waiting.len()), (Jam::Deadlock, 2));
    let text = found.to_string();
    for part in ["deadlock at bugs.cu:77", "deadlock at bugs.cu:79", "barrier 1", "barrier 2", "warp 1"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_shuffle_in_a_branch() {
    let mut bench = Bench::new(BUGS);
    let out = bench.room::<u32>(32);
    let found = stuck(bench.try_run("shuffle_in_a_branch", Grid::linear(1, 32), &[out.into()]));
    assert_eq!(found.jam, Jam::Divergence);
    assert!(found.to_string().contains("bugs.cu:91"), "{found}");
}

#[test]
fn loops_that_never_end() {
    let mut bench = Bench::new(BUGS);
    let flag = bench.put(&[0u32]);
    let options = Options { limit: 100_000, ..Options::default() };
    let result = bench.gpu.launch(&bench.module, "endless", Grid::linear(1, 32), &[flag.into()], options);
    // It waits for a flag that nobody sets.
    let found = stuck(result.map(|_| ()));
    assert_eq!((found.jam, found.waiting.len()), (Jam::Grid { blocks: 1, not_begun: 0 }, 1));
    assert_eq!(found.waiting[0].place.source, Some(("bugs.cu".to_string(), 97)));
    assert!(found.to_string().starts_with("the grid hangs: 1 block waits for a change that nobody makes:"), "{found}");
    // Without a look at memory, it is only the limit that ends it.
    let mut bench = Bench::new(&module(0, "AGAIN: bra AGAIN;"));
    let found = fault(bench.gpu.launch(&bench.module, "kernel", Grid::linear(1, 32), &[], options));
    assert_eq!(found.cause, Cause::Endless { steps: 100_000 });
}

#[test]
fn a_lock_within_a_warp_is_no_deadlock() {
    let mut bench = Bench::new(BUGS);
    let words = bench.put(&[0u32, 0]);
    bench.run("lock", Grid::linear(2, 64), &[words.into()]);
    assert_eq!(bench.get::<u32>(words), [0, 2 * (0..64).sum::<u32>()]);
}

#[test]
fn the_first_block_that_fails_is_reported_whatever_the_threads() {
    for threads in [1, 2, 4] {
        let mut bench = Bench::new(BUGS);
        let (x, out) = (bench.put(&[1f32]), bench.room::<f32>(70));
        let options = Options { threads, ..Options::default() };
        let args: [Arg; 3] = [x.into(), out.into(), 10_000i32.into()];
        let result = bench.gpu.launch(&bench.module, "out_of_bounds", Grid::linear(64, 32), &args, options);
        let found = fault(result);
        assert_eq!((found.block, found.thread), ([2, 0, 0], [6, 0, 0]));
    }
}

#[test]
fn wrong_arguments() {
    let mut bench = Bench::new(BUGS);
    let out = bench.room::<f32>(8);
    let mut refuse = |args: &[Arg], grid: Grid, part: &str| {
        let error = bench.try_run("before_the_start", grid, args).unwrap_err();
        assert!(matches!(error, Error::Launch { .. }) && error.to_string().contains(part), "{error}");
    };
    let grid = Grid::linear(1, 8);
    refuse(&[out.into()], grid, "1 arguments where the kernel has 2 parameters");
    refuse(&[out.into(), 3u32.into()], grid, "argument 1 has 4 bytes, the parameter 8");
    let both: [Arg; 2] = [out.into(), out.into()];
    refuse(&both, Grid::linear(1, 1025), "block");
    refuse(&both, Grid::linear(0, 32), "grid");
    refuse(&both, grid.with_shared(200_000), "shared memory");
    let error = bench.try_run("no_such_kernel", grid, &both).unwrap_err();
    assert!(error.to_string().contains("out_of_bounds, before_the_start"), "{error}");
}

#[test]
fn pointers_that_are_none() {
    let mut bench = Bench::new(BUGS);
    let (x, out) = (bench.put(&[1f32; 32]), bench.room::<f32>(32));
    for wrong in [0u64, 1 << 40, u64::MAX - 7, 3 << 60] {
        let wrong = wrong & !15;
        let found = fault(bench.try_run("uninitialised_global", Grid::linear(1, 32), &[wrong.into(), out.into()]));
        assert!(matches!(found.cause, Cause::NoAllocation { .. }), "{found}");
    }
    bench.gpu.free(x).unwrap();
    let found = fault(bench.try_run("uninitialised_global", Grid::linear(1, 32), &[x.into(), out.into()]));
    assert!(matches!(found.cause, Cause::NoAllocation { .. }), "{found}");
    assert!(bench.gpu.free(x).is_err() && bench.gpu.read(x).is_err() && bench.gpu.free(out.offset(4)).is_err());
    assert!(bench.gpu.write(out.offset(124), &[0; 5]).is_err());
    assert!(matches!(bench.gpu.allocate(5 << 30), Err(Error::Memory(Cause::NoRoom { .. }))));
}

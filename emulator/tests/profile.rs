//! The profile of small kernels, with exact numbers.

use crate::common::{BASICS, Bench, GEMM, module};
use ptx_emulator::profile::{Class, Counts, Line, Profile, Traffic};
use ptx_emulator::{Arg, Grid, Options, Report, Space};

const TRANSPOSE: &str = include_str!("ptx/profile_transpose.ptx");

fn watch(bench: &mut Bench, kernel: &str, grid: Grid, args: &[Arg], profile: &mut Profile) -> Report {
    bench
        .gpu
        .launch_watched(&bench.module, kernel, grid, args, Options::default(), profile)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// One block of `threads` threads with a pointer to 16 KiB of zeros; `%r1` is `%tid.x`, `%rd1` the pointer, `%r2` the
/// address of 16 KiB of shared memory.
fn block(threads: u32, body: &str) -> Profile {
    let head = ".reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .pred %p<3>;
        .shared .align 16 .b8 s[16384];
        mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [p0]; mov.u32 %r2, s;";
    let mut bench = Bench::new(&module(1, &format!("{head}\n{body}\nret;")));
    let data = bench.put(&vec![0u32; 4096]);
    let mut profile = Profile::new();
    watch(&mut bench, "kernel", Grid::linear(1, threads), &[data.into()], &mut profile);
    profile
}

fn of<'a>(profile: &'a Profile, opcode: &str) -> &'a Line {
    let found: Vec<&Line> = profile.lines.iter().filter(|line| line.opcode == opcode).collect();
    assert_eq!(found.len(), 1, "{opcode}");
    found[0]
}

/// 32 lanes read floats `stride` floats apart, from byte `offset` on.
fn global(stride: u32, offset: u32) -> Counts {
    let profile = block(
        32,
        &format!(
            "mul.wide.u32 %rd2, %r1, {};
             add.s64 %rd3, %rd1, %rd2;
             ld.global.f32 %f1, [%rd3+{offset}];",
            4 * stride
        ),
    );
    of(&profile, "ld.global.f32").counts
}

#[test]
fn coalescing() {
    let counts = global(1, 0);
    assert_eq!(counts.global, Traffic { requests: 1, read: 128, written: 0, atomic: 0 });
    assert_eq!((counts.sectors, counts.ideal_sectors, counts.cache_lines), (4, 4, 1));
    assert_eq!(counts.coalescing(), Some(1.0));
    for (stride, offset, sectors, lines) in [(2, 0, 8, 2), (3, 0, 12, 3), (32, 0, 32, 32), (1, 4, 5, 2), (1, 32, 4, 2)]
    {
        let counts = global(stride, offset);
        assert_eq!((counts.sectors, counts.cache_lines), (sectors, lines), "stride {stride}, offset {offset}");
        assert_eq!((counts.ideal_sectors, counts.excess_sectors()), (4, sectors - 4));
    }
    // All lanes read one word: 128 bytes are requested, 4 of them different.
    let counts = global(0, 0);
    assert_eq!((counts.global.read, counts.sectors, counts.ideal_sectors), (128, 1, 1));
}

/// 32 lanes write words `stride` words apart to shared memory.
fn shared(stride: u32) -> Counts {
    let profile = block(32, &format!("mad.lo.u32 %r3, %r1, {}, %r2;\nst.shared.u32 [%r3], %r1;", 4 * stride));
    of(&profile, "st.shared.u32").counts
}

#[test]
fn bank_conflicts() {
    for (stride, wavefronts) in [(1, 1), (2, 2), (3, 1), (8, 8), (32, 32), (33, 1)] {
        let counts = shared(stride);
        assert_eq!(counts.shared, Traffic { requests: 1, read: 0, written: 128, atomic: 0 });
        assert_eq!((counts.wavefronts, counts.ideal_wavefronts), (wavefronts, 1), "stride {stride}");
        assert_eq!(counts.bank_conflicts(), wavefronts - 1);
        assert_eq!(counts.sectors, 0);
    }
    let broadcast = block(
        32,
        "shl.b32 %r3, %r1, 4; add.u32 %r3, %r3, %r2; st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1};
         bar.sync 0;
         ld.shared.u32 %r4, [%r2+64];",
    );
    assert_eq!(of(&broadcast, "ld.shared.u32").counts.wavefronts, 1);
    let wide = of(&broadcast, "st.shared.v4.u32").counts;
    assert_eq!((wide.shared.written, wide.wavefronts, wide.ideal_wavefronts), (512, 4, 4));
    assert!(broadcast.conflicts().is_empty());
}

#[test]
fn a_transpose_three_times() {
    let mut bench = Bench::new(TRANSPOSE);
    let n = 64;
    let input: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
    let transposed: Vec<f32> = (0..n * n).map(|i| (i % n * n + i / n) as f32).collect();
    let (from, to) = (bench.put(&input), bench.room::<f32>(n * n));
    let grid = Grid { blocks: [2, 2, 1], threads: [32, 8, 1], shared: 0 };
    let mut run = |kernel: &str| {
        let mut profile = Profile::new();
        let report = watch(&mut bench, kernel, grid, &[from.into(), to.into(), (n as i32).into()], &mut profile);
        assert_eq!(bench.get::<f32>(to), transposed);
        let total = profile.total();
        assert_eq!(report.warp_instructions, total.warp_instructions);
        assert_eq!(report.thread_instructions, total.thread_instructions);
        assert_eq!((profile.blocks, profile.warps, profile.threads), (4, 32, 1024));
        // 64 rows of two warps' width, read once and written once.
        assert_eq!(total.global, Traffic { requests: 256, read: 16384, written: 16384, atomic: 0 });
        assert_eq!(total.ideal_sectors, 1024);
        assert_eq!(total.active_lanes(), Some(32.0));
        profile
    };
    let straight = run("straight");
    assert_eq!(straight.total().sectors, 128 * 4 + 128 * 32);
    let worst: Vec<(u64, u64)> =
        straight.uncoalesced().iter().map(|line| (line.counts.sectors, line.counts.ideal_sectors)).collect();
    assert_eq!(worst, [(1024, 128); 4]);
    assert!(straight.uncoalesced().iter().all(|line| line.opcode == "st.global.f32"));

    let conflicting = run("conflicting");
    let total = conflicting.total();
    assert_eq!((total.sectors, total.wavefronts, total.ideal_wavefronts), (1024, 128 + 128 * 32, 256));
    let lines = conflicting.conflicts();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert_eq!((line.counts.wavefronts, line.counts.ideal_wavefronts), (1024, 32));
        assert_eq!((line.opcode.as_str(), line.class), ("ld.shared.f32", Class::Memory(Space::Shared)));
        assert_eq!(line.source, Some(("profile_transpose.cu".to_string(), 18)));
    }
    // In the source, reading the tile and storing what was read is one line.
    let sources = conflicting.by_source();
    let (_, counts) = sources.iter().find(|((_, line), _)| *line == 18).unwrap();
    assert_eq!((counts.bank_conflicts(), counts.global.written), (128 * 31, 16384));

    let padded = run("padded").total();
    assert_eq!((padded.sectors, padded.wavefronts, padded.ideal_wavefronts), (1024, 256, 256));
}

#[test]
fn divergence() {
    let profile = block(
        32,
        "setp.lt.u32 %p1, %r1, 8;
         @%p1 bra SMALL;
         add.u32 %r3, %r1, 1;
         bra JOIN;
         SMALL:
         add.s32 %r3, %r1, 2;
         xor.b32 %r3, %r3, 3;
         JOIN:
         @!%p1 bra END;
         @!%p1 not.b32 %r3, %r3;
         END:",
    );
    let lanes = |opcode: &str| {
        let counts = of(&profile, opcode).counts;
        (counts.warp_instructions, counts.thread_instructions)
    };
    assert_eq!(lanes("setp.lt.u32"), (1, 32));
    assert_eq!(lanes("add.u32"), (1, 24));
    assert_eq!(lanes("add.s32"), (1, 8));
    assert_eq!(lanes("xor.b32"), (1, 8));
    // A predicate that holds nowhere still costs an instruction.
    assert_eq!(lanes("not.b32"), (1, 0));
    // The lanes are together again at the end.
    assert_eq!(lanes("ret"), (1, 32));
    let total = profile.total();
    assert_eq!(total.warp_instructions, 12);
    assert_eq!(total.thread_instructions, 3 * 32 + 32 + 8 + 24 + 24 + 8 + 8 + 24 + 32);
    assert_eq!(total.active_lanes(), Some(256.0 / 12.0));
    let classes = profile.by_class();
    let warps = |class: Class| classes.iter().find(|(other, _)| *other == class).unwrap().1.warp_instructions;
    assert_eq!([Class::Control, Class::Integer, Class::Move, Class::Predicate].map(warps), [4, 4, 2, 1]);
}

#[test]
fn matrices() {
    let mut bench = Bench::new(GEMM);
    let (a, b, c) = (bench.put(&[0u16; 16 * 32]), bench.put(&[0u16; 32 * 8]), bench.room::<f32>(128));
    let mut profile = Profile::new();
    watch(&mut bench, "tile_bf16", Grid::linear(1, 32), &[a.into(), b.into(), c.into(), 32i32.into()], &mut profile);
    let mma = of(&profile, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
    assert_eq!((mma.class, mma.counts.warp_instructions, mma.counts.flops), (Class::Matrix, 2, 8192));
    assert_eq!(profile.total().flops, 8192);
    // The rows of A are 32 bytes apart, so that rows 0 and 4 of each matrix share their banks; those of B are 16 apart.
    let a = of(&profile, "ldmatrix.sync.aligned.m8n8.x4.shared.b16").counts;
    assert_eq!((a.shared.read, a.wavefronts, a.ideal_wavefronts), (2 * 512, 2 * 8, 2 * 4));
    let b = of(&profile, "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16").counts;
    assert_eq!((b.shared.read, b.wavefronts, b.ideal_wavefronts), (2 * 256, 2 * 2, 2 * 2));
}

#[test]
fn floating_point_and_intensity() {
    let profile = block(
        64,
        "mul.wide.u32 %rd2, %r1, 8;
         add.s64 %rd3, %rd1, %rd2;
         ld.global.f32 %f1, [%rd3];
         fma.rn.f32 %f2, %f1, %f1, %f1;
         mov.b32 %r3, %f2;
         fma.rn.bf16x2 %r4, %r3, %r3, %r3;
         sqrt.rn.f32 %f3, %f2;
         max.f32 %f3, %f3, %f2;
         red.global.add.f32 [%rd1+8192], %f3;",
    );
    let total = profile.total();
    assert_eq!(of(&profile, "fma.rn.f32").counts.flops, 2 * 64);
    assert_eq!(of(&profile, "fma.rn.bf16x2").counts.flops, 4 * 64);
    assert_eq!(total.flops, (2 + 4 + 1 + 1) * 64);
    let add = of(&profile, "red.global.add.f32").counts;
    assert_eq!(add.global, Traffic { requests: 2, read: 0, written: 0, atomic: 256 });
    assert_eq!((add.sectors, add.ideal_sectors), (2, 2));
    // 512 operations for 256 bytes that are read and 256 of atomics; 2 x 8 sectors with gaps, and 2 of the atomics.
    assert_eq!(total.intensity_of_requests(), Some(1.0));
    assert_eq!(total.intensity_of_sectors(), Some(512.0 / (18.0 * 32.0)));
    assert_eq!(block(32, "").total().intensity_of_requests(), None);
}

#[test]
fn asynchronous_copies_generic_addresses_and_atomics() {
    let profile = block(
        32,
        "mul.wide.u32 %rd2, %r1, 16;
         add.s64 %rd3, %rd1, %rd2;
         mad.lo.u32 %r3, %r1, 16, %r2;
         cp.async.cg.shared.global [%r3], [%rd3], 16;
         cp.async.commit_group;
         cp.async.wait_group 0;
         setp.lt.u32 %p1, %r1, 8;
         cvt.u64.u32 %rd4, %r3;
         cvta.shared.u64 %rd4, %rd4;
         selp.b64 %rd5, %rd4, %rd3, %p1;
         ld.u32 %r4, [%rd5];
         atom.shared.add.u32 %r5, [%r2], %r1;",
    );
    // Bytes are written to shared memory once, though they arrive later than they are sent.
    let copy = of(&profile, "cp.async.cg.shared.global");
    assert_eq!((copy.class, copy.counts.sectors, copy.counts.wavefronts), (Class::Copy, 16, 4));
    assert_eq!(copy.counts.global, Traffic { requests: 1, read: 512, written: 0, atomic: 0 });
    assert_eq!(copy.counts.shared, Traffic { requests: 1, read: 0, written: 512, atomic: 0 });
    // Eight lanes point to shared memory, 16 bytes apart, the others to global memory.
    let load = of(&profile, "ld.u32");
    assert_eq!(load.class, Class::Memory(Space::Generic));
    assert_eq!(load.counts.shared, Traffic { requests: 1, read: 32, written: 0, atomic: 0 });
    assert_eq!(load.counts.global, Traffic { requests: 1, read: 96, written: 0, atomic: 0 });
    assert_eq!((load.counts.wavefronts, load.counts.sectors, load.counts.ideal_sectors), (1, 12, 3));
    // The model serves atomic operations on one word one after the other.
    let atomic = of(&profile, "atom.shared.add.u32").counts;
    assert_eq!((atomic.shared.atomic, atomic.wavefronts, atomic.ideal_wavefronts), (128, 32, 1));
}

#[test]
fn several_launches_add_up() {
    let mut bench = Bench::new(BASICS);
    let data = bench.put(&vec![1.0f32; 1000]);
    let out = bench.room::<f32>(4);
    let args = [data.into(), out.into(), 1000i32.into()];
    let (mut profile, mut instructions) = (Profile::new(), 0);
    for _ in 0..2 {
        instructions += watch(&mut bench, "block_sum", Grid::linear(4, 256), &args, &mut profile).warp_instructions;
    }
    let warp_sum = watch(&mut bench, "warp_sum", Grid::linear(4, 256).with_shared(32), &args, &mut profile);
    assert_eq!(profile.total().warp_instructions, instructions + warp_sum.warp_instructions);
    assert_eq!((profile.blocks, profile.threads), (12, 3072));
    let of_one: Vec<&Line> = profile.hottest().into_iter().filter(|line| line.kernel == "warp_sum").collect();
    assert_eq!(of_one.iter().map(|line| line.counts.thread_instructions).sum::<u64>(), warp_sum.thread_instructions);
    assert_eq!(of_one.iter().map(|line| line.counts.global.read).sum::<u64>(), 4000);
}

#[test]
fn printed() {
    let profile = block(
        32,
        "mul.wide.u32 %rd2, %r1, 8;
         add.s64 %rd3, %rd1, %rd2;
         ld.global.f32 %f1, [%rd3];
         add.f32 %f2, %f1, %f1;
         mad.lo.u32 %r3, %r1, 8, %r2;
         st.shared.f32 [%r3], %f2;",
    );
    assert_eq!(profile.to_string(), include_str!("ptx/profile_text.txt"));
    assert!(Profile::new().to_string().starts_with("launched: blocks 0"));
}

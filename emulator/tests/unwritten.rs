//! Unwritten bytes that are followed: silent where they are thrown away, told where they decide something.

use crate::common::{Bench, module};
use ptx_emulator::{Cause, Error, Grid, Options, Report, Source, Space, Unwritten, UnwrittenUse, Use};

const FOLLOW: Options = Options {
    checked: true,
    unwritten: Unwritten::Follow,
    threads: 1,
    limit: 1 << 20,
    summation: ptx_emulator::numeric::mma::Summation::Wide,
    cooperative: false,
};

const REGISTERS: &str = ".reg .b32 %r<20>; .reg .b64 %rd<9>; .reg .b16 %h<9>; .reg .f32 %f<9>; .reg .pred %p<5>;
    .shared .align 16 .b32 s[256]; ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 4, %r2;\n";

/// Runs `code` in a warp; `%rd3` is the word of each thread in global memory, `%r3` that in shared memory, which nobody
/// wrote.
fn launch(code: &str) -> (Bench, Result<Report, Error>) {
    let mut bench = Bench::new(&module(1, &format!("{REGISTERS}{code}\nret;")));
    let out = bench.put(&[0u32; 128]);
    let report = bench.gpu.launch(&bench.module, "kernel", Grid::linear(1, 32), &[out.into()], FOLLOW);
    (bench, report)
}

fn uses(code: &str) -> Vec<UnwrittenUse> {
    launch(code).1.unwrap_or_else(|error| panic!("{code}: {error}")).unwritten
}

#[test]
fn what_is_thrown_away_is_silent() {
    for code in [
        "ld.shared.u32 %r4, [%r3];",
        // Chosen away, with the choice known.
        "ld.shared.u32 %r4, [%r3]; setp.ge.u32 %p1, %r1, 0; selp.u32 %r5, %r1, %r4, %p1; st.global.u32 [%rd3], %r5;",
        // Only the half that was written is used, after packing, shifting, masking and converting.
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; mov.b32 {%h1, %h2}, %r4; cvt.u32.u16 %r5, %h1;
         st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; shl.b32 %r5, %r4, 16; st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; and.b32 %r5, %r4, 0xffff; st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; prmt.b32 %r5, %r4, 0, 0x4410; st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; bfe.u32 %r5, %r4, 3, 9; st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; lop3.b32 %r5, %r4, 255, 9, 0xEA; st.global.u32 [%rd3], %r5;",
        // One half of two numbers that are converted at once.
        "ld.shared.f32 %f1, [%r3]; cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, 0f3F800000; st.global.u8 [%rd3], %h1;",
        "ld.shared.f32 %f1, [%r3]; cvt.rn.bf16x2.f32 %r4, 0f3F800000, %f1; shr.u32 %r5, %r4, 16; st.global.u32 [%rd3], %r5;",
        "st.shared.u16 [%r3], 7; ld.shared.u32 %r4, [%r3]; cvt.rn.satfinite.e5m2x2.f16x2 %h1, %r4; st.global.u8 [%rd3], %h1;",
        // Overwritten before it is used, in the register and in memory.
        "ld.shared.u32 %r4, [%r3]; mov.u32 %r4, 5; st.global.u32 [%rd3], %r4;",
        "ld.shared.u32 %r4, [%r3]; st.shared.u32 [%r3], %r4; st.shared.u32 [%r3], 5; ld.shared.u32 %r5, [%r3];
         st.global.u32 [%rd3], %r5;",
        // Copied around in shared memory.
        "ld.shared.u32 %r4, [%r3]; st.shared.u32 [%r3+512], %r4;",
        // A condition that the other side decides; a vote that another lane decides.
        "ld.shared.u32 %r4, [%r3]; setp.ne.u32 %p1, %r1, %r1; setp.lt.and.u32 %p2, %r4, 9, %p1; @%p2 st.global.u32 [%rd3], 1;",
        "ld.shared.u32 %r4, [%r3]; setp.lt.u32 %p1, %r4, 9; setp.ne.u32 %p2, %r1, %r1; and.pred %p3, %p1, %p2;
         @%p3 bra END; END:",
        "mov.u32 %r4, 1; setp.lt.u32 %p1, %r1, 8; @%p1 ld.shared.u32 %r4, [%r3]; setp.lt.u32 %p2, %r4, 9;
         vote.sync.any.pred %p3, %p2, -1; @%p3 bra END; END:",
        // A shuffle of the lanes that were written.
        "setp.lt.u32 %p1, %r1, 16; @%p1 st.shared.u32 [%r3], %r1; bar.warp.sync -1; ld.shared.u32 %r4, [%r3];
         and.b32 %r6, %r1, 15; shfl.sync.idx.b32 %r5, %r4, %r6, 31, -1; st.global.u32 [%rd3], %r5;",
    ] {
        let found = uses(code);
        assert!(found.is_empty(), "{code}: {}", found[0]);
    }
}

#[test]
fn what_decides_something_is_told_with_both_places() {
    let read = "ld.shared.u32 %r4, [%r3];";
    for (code, how, used) in [
        ("add.u32 %r5, %r4, 1; st.global.u32 [%rd3], %r5;", Use::Output, "st.global.u32"),
        ("setp.lt.u32 %p1, %r4, 9; @%p1 bra END; END:", Use::Branch, "bra"),
        ("setp.lt.u32 %p1, %r4, 9; @%p1 st.global.u32 [%rd3], 1;", Use::Branch, "st.global.u32"),
        (
            "setp.lt.u32 %p1, %r4, 9; mov.u32 %r5, 0; @%p1 mov.u32 %r5, 1; st.global.u32 [%rd3], %r5;",
            Use::Output,
            "st.global.u32",
        ),
        (
            "mov.b32 %f1, %r4; cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, 0f3F800000; shr.u16 %h2, %h1, 15; st.global.u8 [%rd3], %h2;",
            Use::Output,
            "st.global.u8",
        ),
        (
            "mov.b32 %f1, %r4; cvt.rn.f16x2.f32 %r5, 0f3F800000, %f1; cvt.rn.satfinite.e4m3x2.f16x2 %h1, %r5; st.global.u8 [%rd3], %h1;",
            Use::Output,
            "st.global.u8",
        ),
        ("and.b32 %r5, %r4, 31; shr.u32 %r6, 12, %r5; st.global.u32 [%rd3], %r6;", Use::Output, "st.global.u32"),
        ("and.b32 %r5, %r4, 4; add.u32 %r5, %r5, %r2; ld.shared.u32 %r6, [%r5];", Use::Address, "ld.shared.u32"),
        (
            "and.b32 %r5, %r4, 4; cvt.u64.u32 %rd4, %r5; add.s64 %rd4, %rd4, %rd1; st.global.u32 [%rd4], 1;",
            Use::Address,
            "st.global.u32",
        ),
        ("mul.lo.u32 %r5, %r4, 0; add.u32 %r5, %r5, 32; barrier.sync 1, %r5;", Use::Barrier, "barrier.sync"),
        ("shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1; st.global.u32 [%rd3], %r5;", Use::Output, "st.global.u32"),
        ("redux.sync.add.u32 %r5, %r4, -1; st.global.u32 [%rd3], %r5;", Use::Output, "st.global.u32"),
        ("red.global.add.u32 [%rd3], %r4;", Use::Output, "red.global.add.u32"),
        (
            "st.shared.u32 [%r3+512], %r4; ld.shared.u32 %r5, [%r3+512]; st.global.u32 [%rd3], %r5;",
            Use::Output,
            "st.global.u32",
        ),
        (
            "st.shared.u32 [%r3+512], %r4; atom.shared.add.u32 %r5, [%r3+512], 1; st.global.u32 [%rd3], %r5;",
            Use::Output,
            "st.global.u32",
        ),
    ] {
        let found = uses(&format!("{read}\n{code}"));
        assert_eq!(found.len(), 1, "{code}: {found:#?}");
        let UnwrittenUse { read, space, used: place, how: told, count, thread, .. } = &found[0];
        assert_eq!((*told, place.opcode.as_str()), (how, used), "{code}");
        assert_eq!(
            (read.opcode.as_str(), *space, *count, *thread),
            ("ld.shared.u32", Space::Shared, 32, [0; 3]),
            "{code}"
        );
    }
    let found = uses(&format!("{read}\nst.global.u32 [%rd3], %r4;"));
    assert_eq!(
        found[0].to_string(),
        "kernel (PTX line 10, st.global.u32), block (0, 0, 0), thread (0, 0, 0): what is stored in global memory depends \
         on bytes that nobody wrote, of shared memory at 0x0, read by kernel (PTX line 9, ld.shared.u32); 32 times"
    );
}

/// A register has no value either before something is written to it.
#[test]
fn registers_that_nobody_wrote() {
    let some = "setp.lt.u32 %p1, %r1, 8;";
    for code in [
        // Written wherever it is read, and by the same condition.
        "@%p1 mov.u32 %r4, 1; @%p1 st.global.u32 [%rd3], %r4;",
        "@!%p1 bra NEXT; mov.u32 %r4, 1; NEXT: selp.u32 %r5, %r4, 7, %p1; st.global.u32 [%rd3], %r5;",
        "mov.u32 %r5, 0; LOOP: add.u32 %r5, %r5, %r4; mov.u32 %r5, 1; mov.u32 %r4, 2; @%p1 st.global.u32 [%rd3], %r4;",
        // All ways write it.
        "@%p1 bra ONE; mov.u32 %r4, 1; bra BOTH; ONE: mov.u32 %r4, 2; BOTH: st.global.u32 [%rd3], %r4;",
    ] {
        let found = uses(&format!("{some}\n{code}"));
        assert!(found.is_empty(), "{code}: {}", found[0]);
    }
    for (code, how, read) in [
        ("add.u32 %r5, %r4, 1;\nst.global.u32 [%rd3], %r5;", Use::Output, "add.u32"),
        ("@%p1 mov.u32 %r4, 1;\nst.global.u32 [%rd3], %r4;", Use::Output, "st.global.u32"),
        ("@%p4 st.global.u32 [%rd3], 1;", Use::Branch, "st.global.u32"),
        ("@%p1 ld.global.u32 %r4, [%rd8];", Use::Address, "ld.global.u32"),
        ("@%p1 bra NEXT;\nmov.u32 %r4, 1;\nNEXT: st.global.u32 [%rd3], %r4;", Use::Output, "st.global.u32"),
    ] {
        // An address that nobody wrote leads nowhere, which is an error of its own.
        let (_, report) = launch(&format!("{some}\n{code}"));
        let Ok(report) = report else {
            assert_eq!(how, Use::Address);
            continue;
        };
        let [found] = &report.unwritten[..] else { panic!("{code}: {:#?}", report.unwritten) };
        assert_eq!((found.source, found.how, found.read.opcode.as_str()), (Source::Register, how, read), "{code}");
        assert!(found.to_string().contains("a register that nobody wrote, read by kernel (PTX line"), "{found}");
    }
}

/// What a shuffle gives of a lane that does not take part, the manual leaves open.
#[test]
fn shuffles_from_lanes_that_do_not_take_part() {
    let half = "setp.lt.u32 %p1, %r1, 16;\n@!%p1 bra END;";
    let shuffle = |distance: u32| format!("shfl.sync.bfly.b32 %r5, %r1, {distance}, 31, 0xffff;");
    let code = |distance: u32, rest: &str| format!("{half}\n{}\n{rest}\nEND:", shuffle(distance));
    let used = "st.global.u32 [%rd3], %r5;";
    assert_eq!(uses(&code(8, used)), []);
    assert_eq!(uses(&code(16, "add.u32 %r5, %r5, 1;")), []);
    let [found] = &uses(&code(16, used))[..] else { panic!("one use") };
    assert_eq!((found.source, found.how, found.count), (Source::Lane, Use::Output, 16));
    assert!(found.to_string().contains("depends on the register of a lane that does not take part"), "{found}");
    // The same of a lane that has exited.
    let exited = "setp.ge.u32 %p1, %r1, 16;\n@%p1 exit;\nshfl.sync.down.b32 %r5, %r1, 15, 31, -1;";
    assert_eq!(uses(&format!("{exited}\n{used}"))[0].count, 15);
    // Where unwritten values stop a launch, this one does.
    let mut bench = Bench::new(&module(1, &format!("{REGISTERS}{}\nret;", code(16, ""))));
    let out = bench.put(&[0u32; 32]);
    let error = bench.try_run("kernel", Grid::linear(1, 32), &[out.into()]).unwrap_err();
    assert!(error.to_string().contains("it takes the value of lane 16, which does not take part"), "{error}");
}

/// What a kernel leaves of unwritten bytes is unwritten for whoever reads it next, the host as well.
#[test]
fn outputs_stay_unwritten() {
    let body = format!("{REGISTERS} ld.shared.u32 %r4, [%r3]; st.global.u32 [%rd3], %r4; ret;");
    let mut bench = Bench::new(&module(1, &body));
    let out = bench.put(&[0u32; 40]);
    bench.gpu.launch(&bench.module, "kernel", Grid::linear(1, 32), &[out.into()], FOLLOW).unwrap();
    assert!(matches!(bench.gpu.read(out), Err(Error::Memory(Cause::Uninitialised { offset: 0, .. }))));
    assert_eq!(bench.gpu.read(out.offset(128)).unwrap(), [0; 32]);
}

/// The default still stops at the read.
#[test]
fn by_default_the_launch_stops() {
    let mut bench = Bench::new(&module(1, &format!("{REGISTERS} ld.shared.u32 %r4, [%r3]; ret;")));
    let out = bench.put(&[0u32; 32]);
    let error = bench.try_run("kernel", Grid::linear(1, 32), &[out.into()]).unwrap_err();
    assert!(error.to_string().contains("are read but not initialised"), "{error}");
}

/// Of a product only the rows and columns of unwritten elements are unknown; matrices bring them from memory.
#[test]
fn a_matrix_product_keeps_its_other_rows() {
    let product = |written: &str, used: &str| {
        let code = format!(
            "mov.u32 %r4, 0; {written} bar.warp.sync -1; shl.b32 %r5, %r1, 4; add.u32 %r5, %r5, %r2;
            ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r5];
            mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%f1, %f2, %f3, %f4}}, {{%r6, %r7, %r8, %r9}}, {{%r4, %r4}},
              {{0., 0., 0., 0.}};
            st.global.f32 [%rd3], {used};"
        );
        uses(&code).len()
    };
    // Rows of 16 bytes: the matrices of rows 0 to 7 are written, those of rows 8 to 15 are not.
    let upper = "mad.lo.u32 %r10, %r1, 16, %r2; and.b32 %r11, %r1, 8; setp.eq.u32 %p1, %r11, 0;
        @%p1 st.shared.v4.b32 [%r10], {%r4, %r4, %r4, %r4};";
    assert_eq!((product(upper, "%f1"), product(upper, "%f2"), product(upper, "%f3")), (0, 0, 1));
    let all = "mad.lo.u32 %r10, %r1, 16, %r2; st.shared.v4.b32 [%r10], {%r4, %r4, %r4, %r4};";
    assert_eq!((product(all, "%f1"), product(all, "%f3")), (0, 0));
}

/// A copy brings what it finds.
#[test]
fn asynchronous_copies_bring_unwritten_bytes() {
    let code = |source: u64, used: &str| {
        let body = format!(
            "{REGISTERS} mul.wide.u32 %rd4, %r1, 16; add.s64 %rd4, %rd4, %rd1; shl.b32 %r4, %r1, 4; add.u32 %r4, %r4, %r2;
            cp.async.cg.shared.global [%r4], [%rd4], 16; cp.async.wait_all; ld.shared.u32 %r5, [%r4+{used}];
            add.s64 %rd5, %rd3, 1024; st.global.u32 [%rd5], %r5; ret;"
        );
        let mut bench = Bench::new(&module(1, &body));
        let data = bench.gpu.allocate(2048).unwrap();
        (0..32).for_each(|i| bench.gpu.write(data.offset(16 * i), &vec![1; source as usize]).unwrap());
        bench.gpu.launch(&bench.module, "kernel", Grid::linear(1, 32), &[data.into()], FOLLOW).unwrap().unwritten
    };
    assert_eq!(code(16, "12"), []);
    assert_eq!(code(8, "4"), []);
    let found = code(8, "8");
    assert_eq!(
        (found.len(), found[0].read.opcode.as_str(), found[0].space),
        (1, "cp.async.cg.shared.global", Space::Global)
    );
}

/// The same is told for any number of host threads.
#[test]
fn threads_of_the_host_do_not_matter() {
    let body = format!(
        "{REGISTERS} mov.u32 %r6, %ctaid.x; and.b32 %r7, %r6, 3; setp.ne.u32 %p1, %r7, 3; @%p1 bra END;
        ld.shared.u32 %r4, [%r3]; setp.lt.u32 %p2, %r4, 9; @%p2 bra END; END: ret;"
    );
    let run = |threads| {
        let mut bench = Bench::new(&module(1, &body));
        let out = bench.put(&[0u32; 32]);
        let options = Options { threads, ..FOLLOW };
        bench.gpu.launch(&bench.module, "kernel", Grid::linear(64, 32), &[out.into()], options).unwrap()
    };
    let one = run(1);
    assert_eq!((one.unwritten.len(), one.unwritten[0].block, one.unwritten[0].count), (1, [3, 0, 0], 16 * 32));
    assert_eq!(one, run(4));
}

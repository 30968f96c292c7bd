//! Warp-wide instructions, divergence and observers.

use crate::common::{BASICS, Bench, fault, module};
use ptx_emulator::observe::{Access, Kind, Observer, Site, Sync};
use ptx_emulator::{Cause, Error, Grid, Options, Space};

#[test]
fn shuffles_votes_matches_and_reductions() {
    let mut bench = Bench::new(BASICS);
    let x: Vec<u32> = (0..32u32).map(|t| t * t + 5).collect();
    let (px, out) = (bench.put(&x), bench.room::<u32>(32 * 12));
    bench.run("warp_tour", Grid::linear(1, 32), &[px.into(), out.into()]);
    let ballot = x.iter().enumerate().fold(0, |set, (t, v)| set | (v & 1) << t);
    let xor = x.iter().fold(0, |all, v| all ^ v);
    for (t, o) in bench.get::<u32>(out).chunks(12).enumerate() {
        assert_eq!(o[0], x[(t * 7 + 3) & 31]);
        assert_eq!(o[1], if t < 3 { x[t] } else { x[t - 3] });
        assert_eq!(o[2], if t % 8 + 5 < 8 { x[t + 5] } else { x[t] });
        assert_eq!(o[3], x[t ^ 9]);
        assert_eq!(o[4], ballot);
        assert_eq!(o[5], 2);
        let same = (0..32).filter(|other| x[*other] & 3 == x[t] & 3).fold(0u32, |set, other| set | 1 << other);
        assert_eq!(o[6], same);
        assert_eq!(o[7], u32::MAX.wrapping_add(1));
        assert_eq!(o[8], x.iter().sum::<u32>());
        assert_eq!(o[9], x[31] ^ xor);
        assert_eq!(o[10..], [5, u32::MAX]);
    }
}

#[test]
fn halves_of_a_warp_talk_among_themselves() {
    let mut bench = Bench::new(BASICS);
    let out = bench.room::<u32>(32);
    bench.run("split_warp", Grid::linear(1, 32), &[out.into()]);
    let v: Vec<u32> =
        (0..32).map(|t| if t < 10 { (t + 1) % 10 * 3 } else { (if t == 31 { 10 } else { t + 1 }) * 5 }).collect();
    let wanted: Vec<u32> = (0..32).map(|t| v[t] + v[t ^ 1]).collect();
    assert_eq!(bench.get::<u32>(out), wanted);
}

/// What is in memory that a kernel does not write.
const UNTOUCHED: u32 = 0xdead_beef;

/// What a block leaves in `p0`, a word for each of its threads.
fn block(body: &str, threads: u32) -> Result<Vec<u32>, Error> {
    let mut bench = Bench::new(&module(1, body));
    let out = bench.put(&vec![UNTOUCHED; threads as usize]);
    bench.try_run("kernel", Grid::linear(1, threads), &[out.into()]).map(|()| bench.get(out))
}

/// Each group of lanes with a common value shuffles at the same instruction with a mask of its own.
#[test]
fn one_shuffle_with_several_masks() {
    let body = ".reg .b32 %r<9>; .reg .b64 %rd<4>;
        ld.param.u64 %rd1, [p0]; mov.u32 %r1, %laneid; and.b32 %r2, %r1, 3;
        match.any.sync.b32 %r3, %r2, 0xffffffff;
        shl.b32 %r4, %r1, 1;
        redux.sync.add.u32 %r5, %r4, %r3;
        bar.warp.sync %r3;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r5; ret;";
    let wanted: Vec<u32> =
        (0..32).map(|t| (0..32).filter(|other| other % 4 == t % 4).map(|other| other * 2).sum()).collect();
    assert_eq!(block(body, 32), Ok(wanted));
}

/// Lanes that have exited are not waited for, neither in a warp nor in a block.
#[test]
fn exited_lanes_are_not_waited_for() {
    let body = ".reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %p;
        ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; setp.lt.u32 %p, %r1, 20;
        @%p exit;
        bar.sync 0;
        vote.sync.ballot.b32 %r2, %p, -1;
        activemask.b32 %r3;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r3; ret;";
    let result = block(body, 50).unwrap();
    assert_eq!(
        (result[19], result[20], result[31], result[32], result[49]),
        (UNTOUCHED, 0xfff0_0000, 0xfff0_0000, 0x3_ffff, 0x3_ffff)
    );
}

/// Without `.aligned` each thread waits for itself, so both branches may hold the barrier.
#[test]
fn barriers_for_single_threads() {
    let body = |barrier: &str| {
        format!(
            ".reg .b32 %r<9>; .reg .pred %p<3>; .reg .b64 %rd<4>; .shared .align 4 .b32 s[64];
            ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, s; add.u32 %r3, %r3, %r2;
            xor.b32 %r4, %r3, 4; st.shared.u32 [%r3], %r1; and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 1;
            @%p1 bra ODD;
            {barrier} bra DONE;
            ODD: {barrier}
            DONE: ld.shared.u32 %r6, [%r4]; cvt.u64.u32 %rd2, %r2; add.u64 %rd1, %rd1, %rd2;
            st.global.u32 [%rd1], %r6; ret;"
        )
    };
    for barrier in ["barrier.sync 3;", "barrier.cta.sync 3, 64;", "barrier.red.or.pred %p2, 3, %p1;"] {
        assert_eq!(block(&body(barrier), 64), Ok((0..64).map(|t| t ^ 1).collect()));
    }
    for barrier in ["bar.sync 3;", "barrier.sync.aligned 3;", "bar.sync 3, 64;"] {
        let error = block(&body(barrier), 64).unwrap_err();
        assert!(error.to_string().starts_with("divergent barrier"), "{error}");
    }
    let refused = |barrier: &str, threads: u32| block(barrier, threads).unwrap_err().to_string();
    assert!(refused("bar.sync 3, 33;", 64).contains("a thread count of 33"));
    assert!(refused("barrier.sync 3, 32;", 48).starts_with("deadlock"));
    assert!(refused("barrier.arrive 3, 32; barrier.arrive 3, 64;", 16).contains("different thread counts"));
}

/// `ldmatrix` in a warp of 16 threads.
#[test]
fn matrix_instructions_need_a_whole_warp() {
    let body = ".reg .b32 %r<9>; .shared .align 16 .b8 s[512]; mov.u32 %r1, s;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1]; ret;";
    assert_eq!(fault(block(body, 16)).cause, Cause::PartialWarp { lanes: 0xffff });
}

/// Registers of an inner block hide those outside, and labels belong to their block.
#[test]
fn scopes() {
    let body = ".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p;
        mov.u32 %r1, 1; ld.param.u64 %rd1, [p0];
        { .reg .b32 %r1; mov.u32 %r1, 50; mov.u32 %r2, 0;
          AGAIN: add.u32 %r2, %r2, %r1; setp.lt.u32 %p, %r2, 150; @%p bra AGAIN; }
        { AGAIN: add.u32 %r2, %r2, %r1; setp.lt.u32 %p, %r2, 160; @%p bra AGAIN; }
        st.global.u32 [%rd1], %r2;";
    assert_eq!(block(body, 32).unwrap()[0], 160);
}

#[derive(Default)]
struct Counter {
    blocks: u32,
    issued: u64,
    reads: u32,
    writes: u32,
    barriers: u32,
    warp_syncs: u32,
    copies: [u32; 3],
    generic: u32,
    lines: Vec<u32>,
}

impl Observer for Counter {
    fn begin(&mut self, _block: [u32; 3], threads: u32) {
        self.blocks += 1;
        assert!(threads > 0);
    }

    fn issue(&mut self, site: &Site<'_>) {
        self.issued += u64::from(site.lanes.count_ones());
        self.lines.push(site.line);
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        let count = site.lanes.count_ones();
        match access.kind {
            Kind::Read => {
                self.reads += count * access.bytes;
                let home = access.place(site.lanes.trailing_zeros() as usize).map(|(space, _)| space);
                self.generic += u32::from(access.space == Space::Generic && home == Some(Space::Shared));
            }
            Kind::Write => self.writes += count * access.bytes,
            Kind::Atomic => {}
            Kind::CopyRead => self.copies[0] += count,
            Kind::CopyWrite => self.copies[1] += count,
            Kind::CopyLand => self.copies[2] += count,
        }
    }

    fn sync(&mut self, _site: &Site<'_>, event: Sync) {
        match event {
            Sync::Complete(0) => self.barriers += 1,
            Sync::Warp => self.warp_syncs += 1,
            _ => {}
        }
    }
}

#[test]
fn an_observer_sees_everything() {
    let mut bench = Bench::new(BASICS);
    let x = vec![1f32; 512];
    let (px, out) = (bench.put(&x), bench.room::<f32>(2));
    let mut counter = Counter::default();
    let args = [px.into(), out.into(), 512i32.into()];
    let grid = Grid::linear(2, 256);
    let report =
        bench.gpu.launch_watched(&bench.module, "block_sum", grid, &args, Options::default(), &mut counter).unwrap();
    assert_eq!((counter.blocks, counter.issued), (2, report.thread_instructions));
    assert_eq!(report.warp_instructions, counter.lines.len() as u64);
    assert_eq!(counter.barriers, 2 * 9);
    // Parameters, the input, and two reads for each of the 255 sums, plus the last.
    assert_eq!(counter.writes, 2 * (256 * 4 + 255 * 4 + 4));
    assert_eq!(counter.reads, 2 * (256 * (8 + 8 + 4) + 256 * 4 + 255 * 8 + 4));
    assert_eq!(bench.get::<f32>(out), [256.0, 256.0]);

    let mut counter = Counter::default();
    let padded = bench.room::<f32>(384);
    let args = [px.into(), padded.into(), 300i32.into()];
    let grid = Grid::linear(1, 32);
    bench.gpu.launch_watched(&bench.module, "async_copy", grid, &args, Options::default(), &mut counter).unwrap();
    // 300 floats are 75 copies; the last 21 lanes of the third tile copy zeros only.
    assert_eq!(counter.copies, [75, 96, 96]);
    assert_eq!(counter.warp_syncs, 0);

    let mut counter = Counter::default();
    let odd = bench.put(&[1u32; 32]);
    let args = [odd.into(), bench.room::<u32>(32).into()];
    let grid = Grid::linear(1, 32);
    bench.gpu.launch_watched(&bench.module, "generic", grid, &args, Options::default(), &mut counter).unwrap();
    assert_eq!((counter.generic, counter.warp_syncs), (1, 2));
}

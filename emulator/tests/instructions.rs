//! Instructions and modifiers that compilers emit rarely, each against a formula: that lowering finds the right one.

use crate::common::{Bench, Number, Random, module};
use ptx_emulator::Grid;
use std::fmt::{Debug, LowerHex};

const REGISTERS: &str = ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %h<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;
    .reg .pred %p<5>; .reg .b64 %in, %out, %at; .reg .b32 %t;
    ld.param.u64 %in, [p0]; ld.param.u64 %out, [p1]; mov.u32 %t, %tid.x;\n";

/// Runs `code` for 64 triples of inputs in registers 1 to 3; the result is register 0.
fn run<T: Number>(code: &str, inputs: &[[T; 3]]) -> Vec<T> {
    let (file, kind) = if T::BYTES == 8 { ("%rd", "b64") } else { ("%r", "b32") };
    let (step, size) = (3 * T::BYTES, T::BYTES);
    let body = format!(
        "{REGISTERS} mul.wide.u32 %at, %t, {step}; add.s64 %at, %at, %in;
        ld.global.{kind} {file}1, [%at]; ld.global.{kind} {file}2, [%at+{size}]; ld.global.{kind} {file}3, [%at+{}];
        {code}
        mul.wide.u32 %at, %t, {size}; add.s64 %at, %at, %out; st.global.{kind} [%at], {file}0; ret;",
        2 * size
    );
    let mut bench = Bench::new(&module(2, &body));
    let flat: Vec<T> = inputs.iter().flatten().copied().collect();
    let (input, out) = (bench.put(&flat), bench.room::<T>(inputs.len()));
    bench.run("kernel", Grid::linear(1, inputs.len() as u32), &[input.into(), out.into()]);
    bench.get::<T>(out)
}

type Formula<T> = fn(T, T, T) -> T;

fn check<T: Number + PartialEq + LowerHex + Debug>(inputs: &[[T; 3]], cases: &[(&str, Formula<T>)]) {
    for (code, formula) in cases {
        for ([a, b, c], got) in inputs.iter().zip(run(code, inputs)) {
            assert_eq!(got, formula(*a, *b, *c), "{code} with {a:#x} {b:#x} {c:#x}");
        }
    }
}

fn float(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn in_mask(bit: u32, first: u32, count: u32) -> bool {
    bit >= first && u64::from(bit) < u64::from(first) + u64::from(count)
}

fn half_at(word: u32, shift: u32) -> half::f16 {
    half::f16::from_bits((word >> shift) as u16)
}

fn brain_at(word: u32, shift: u32) -> half::bf16 {
    half::bf16::from_bits((word >> shift) as u16)
}

#[test]
fn of_32_bits() {
    let cases: &[(&str, Formula<u32>)] = &[
        ("not.b32 %r0, %r1;", |a, _, _| !a),
        ("mov.pred %p1, -1; mov.pred %p2, 0; selp.u32 %r1, 1, 2, %p1; selp.u32 %r0, %r1, 3, %p2;", |_, _, _| 3),
        ("mov.pred %p1, 1; selp.b32 %r0, %r1, %r2, %p1;", |a, _, _| a),
        ("cnot.b32 %r0, %r1;", |a, _, _| u32::from(a == 0)),
        ("neg.s32 %r0, %r1;", |a, _, _| a.wrapping_neg()),
        ("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", |a, b, c| a ^ b ^ c),
        ("lop3.b32 %r0, %r1, %r2, %r3, 0xE8;", |a, b, c| a & b | a & c | b & c),
        ("add.sat.s32 %r0, %r1, %r2;", |a, b, _| (a as i32).saturating_add(b as i32) as u32),
        ("sub.sat.s32 %r0, %r1, %r2;", |a, b, _| (a as i32).saturating_sub(b as i32) as u32),
        ("mad.hi.u32 %r0, %r1, %r2, %r3;", |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
        ("mad.hi.s32 %r0, %r1, %r2, %r3;", |a, b, c| {
            (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c)
        }),
        ("mad.lo.s32 %r0, %r1, -3, %r3;", |a, _, c| a.wrapping_mul(3).wrapping_neg().wrapping_add(c)),
        ("mul24.hi.u32 %r0, %r1, %r2;", |a, b, _| ((u64::from(a << 8) * u64::from(b << 8)) >> 32) as u32),
        ("mad24.lo.s32 %r0, %r1, %r2, %r3;", |a, b, c| {
            let low = |x: u32| i64::from((x << 8) as i32 >> 8);
            (low(a) * low(b) + i64::from(c)) as u32
        }),
        ("bfind.u32 %r0, %r1;", |a, _, _| if a == 0 { u32::MAX } else { a.ilog2() }),
        ("bfind.shiftamt.s32 %r0, %r1;", |a, _, _| {
            let magnitude = if a >> 31 == 1 { !a } else { a };
            if magnitude == 0 { u32::MAX } else { magnitude.leading_zeros() }
        }),
        ("prmt.b32.rc8 %r0, %r1, %r2, %r3;", |a, _, c| (a >> (8 * (c & 3)) & 0xff) * 0x0101_0101),
        ("shl.b32 %r0, %r1, 40;", |_, _, _| 0),
        ("shr.s32 %r0, %r1, -1;", |a, _, _| (a as i32 >> 31) as u32),
        ("shf.r.wrap.b32 %r0, %r1, %r2, %r3;", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32),
        ("setp.lo.u32 %p1, %r1, %r2; selp.u32 %r0, %r1, %r2, !%p1;", |a, b, _| a.max(b)),
        ("setp.gt.and.s32 %p1|%p2, %r1, %r2, !%p0; selp.u32 %r0, 1, 0, %p1; @%p2 add.u32 %r0, %r0, 2;", |a, b, _| {
            if a as i32 > b as i32 { 1 } else { 2 }
        }),
        (
            "setp.ne.xor.b32 %p1, %r1, %r2, %p0; not.pred %p2, %p1; @%p2 mov.u32 %r0, 7; @!%p2 mov.u32 %r0, 9;",
            |a, b, _| {
                if a != b { 9 } else { 7 }
            },
        ),
        ("set.ge.or.f32.u32 %f1, %r1, %r2, %p0; mov.b32 %r0, %f1;", |a, b, _| if a >= b { 1f32.to_bits() } else { 0 }),
        ("mov.b32 %f1, %r3; slct.b32.f32 %r0, %r1, %r2, %f1;", |a, b, c| if float(c) >= 0.0 { a } else { b }),
        ("mov.b32 %f1, %r1; testp.subnormal.f32 %p1, %f1; selp.u32 %r0, 1, 0, %p1;", |a, _, _| {
            u32::from(float(a).is_subnormal())
        }),
        ("mov.b32 %f1, %r1; testp.notanumber.f32 %p1, %f1; selp.u32 %r0, 1, 0, %p1;", |a, _, _| {
            u32::from(float(a).is_nan())
        }),
        ("mov.b32 %f1, %r1; mov.b32 %f2, %r2; setp.gtu.f32 %p1, %f1, %f2; selp.u32 %r0, 1, 0, %p1;", |a, b, _| {
            u32::from(float(a).partial_cmp(&float(b)).is_none_or(|order| order.is_gt()))
        }),
        ("mov.b32 %f1, %r1; mov.b32 %f2, %r2; max.NaN.f32 %f3, %f1, %f2; mov.b32 %r0, %f3;", |a, b, _| {
            let (x, y) = (float(a), float(b));
            if x.is_nan() || y.is_nan() {
                0x7fff_ffff
            } else if x.total_cmp(&y).is_gt() {
                a
            } else {
                b
            }
        }),
        ("mov.b32 %f1, %r1; cvt.rzi.s32.f32 %r0, %f1;", |a, _, _| float(a) as i32 as u32),
        ("mov.b32 %f1, %r1; cvt.rmi.sat.u8.f32 %r0, %f1;", |a, _, _| u32::from(float(a).floor() as u8)),
        ("mov.b32 %f1, %r1; cvt.rn.f16.f32 %h1, %f1; cvt.u32.u16 %r0, %h1;", |a, _, _| {
            if float(a).is_nan() { 0x7fff } else { u32::from(half::f16::from_f32(float(a)).to_bits()) }
        }),
        ("cvt.rn.f32.s16 %f1, %h1; cvt.s32.s8 %r0, %r1;", |a, _, _| a as i8 as i32 as u32),
        ("cvt.sat.u16.s32 %h1, %r1; cvt.u32.u16 %r0, %h1;", |a, _, _| (a as i32).clamp(0, 0xffff) as u32),
        ("cvt.u16.u32 %h1, %r1; shr.s16 %h2, %h1, 3; cvt.s32.s16 %r0, %h2;", |a, _, _| i32::from(a as i16 >> 3) as u32),
        ("cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2; mul.wide.s16 %r0, %h1, %h2;", |a, b, _| {
            (i32::from(a as i16) * i32::from(b as i16)) as u32
        }),
        (
            "mov.b32 {%h1, %h2}, %r1; setp.lt.s16 %p1, %h1, %h2; min.s16 %h3, %h1, %h2; mov.b32 %r0, {%h3, %h3};",
            |a, _, _| {
                let low = (a as i16).min((a >> 16) as i16) as u16;
                u32::from(low) * 0x1_0001
            },
        ),
        ("mov.b32 {%h1, _}, %r1; mov.b32 %r0, {%h1, 5};", |a, _, _| a & 0xffff | 5 << 16),
        ("add.cc.u32 %r4, %r1, %r2; addc.cc.u32 %r4, %r1, -1; addc.u32 %r0, %r3, 0;", |a, b, c| {
            let first = a.checked_add(b).is_none();
            let second = u64::from(a) + u64::from(u32::MAX) + u64::from(first) > u64::from(u32::MAX);
            c.wrapping_add(u32::from(second))
        }),
        ("sub.cc.u32 %r4, %r1, %r2; subc.u32 %r0, %r3, 0;", |a, b, c| c.wrapping_sub(u32::from(a < b))),
        ("mad.lo.cc.u32 %r4, %r1, %r2, %r3; madc.hi.u32 %r0, %r1, %r2, 0;", |a, b, c| {
            ((u64::from(a) * u64::from(b) + u64::from(c)) >> 32) as u32
        }),
        ("vote.sync.uni.pred %p1, %p0, -1; selp.u32 %r0, 1, 0, %p1;", |_, _, _| 1),
        ("shfl.sync.idx.b32 %r4|%p1, %r1, 31, 0x1c03, -1; selp.u32 %r0, 1, 0, %p1;", |_, _, _| 1),
        ("bra.uni OVER; mov.u32 %r1, 0; OVER: mov.u32 %r0, %r1;", |a, _, _| a),
        ("mov.u32 %r4, %lanemask_lt; mov.u32 %r5, %laneid; popc.b32 %r4, %r4; sub.u32 %r0, %r4, %r5;", |_, _, _| 0),
        ("mov.u32 %r4, %clock; mov.u32 %r5, %clock; setp.gt.u32 %p1, %r5, %r4; selp.u32 %r0, 1, 0, %p1;", |_, _, _| 1),
        (
            ".local .align 4 .b8 l[8]; st.local.u8 [l+1], %r1; st.local.b16 [l+2], %r2; ld.local.s8 %r0, [l+1];",
            |a, _, _| a as i8 as i32 as u32,
        ),
        (
            ".local .align 4 .b32 l; mov.u64 %rd1, l; cvta.local.u64 %rd1, %rd1; st.u32 [%rd1], %r2;
          isspacep.local %p1, %rd1; isspacep.global %p2, %rd1; @%p1 ld.u32 %r0, [%rd1]; @%p2 mov.u32 %r0, 0;",
            |_, b, _| b,
        ),
        (
            ".shared .align 8 .b32 s[64]; mov.u32 %r4, s; mad.lo.u32 %r4, %t, 4, %r4; st.shared.u32 [%r4], %r1;
          atom.shared.cas.b32 %r0, [%r4], %r1, %r2; atom.shared.max.s32 %r0, [%r4], %r3; ld.shared.u32 %r0, [%r4];",
            |_, b, c| (b as i32).max(c as i32) as u32,
        ),
        (
            ".shared .align 4 .b32 s[64]; mov.u32 %r4, s; mad.lo.u32 %r4, %t, 4, %r4; st.shared.u32 [%r4], %r1;
          atom.shared.inc.u32 %r0, [%r4], %r2; ld.shared.u32 %r0, [%r4];",
            |a, b, _| if a >= b { 0 } else { a + 1 },
        ),
        (
            ".shared .align 4 .b32 s[64]; mov.u32 %r4, s; mad.lo.u32 %r4, %t, 4, %r4; st.shared.u32 [%r4], 0x3c003c00;
          red.shared.add.noftz.f16x2 [%r4], 0x3c004000; ld.shared.u32 %r0, [%r4];",
            |_, _, _| 0x4000_4200,
        ),
        ("bmsk.clamp.b32 %r0, %r1, %r2;", |a, b, _| (0..32).filter(|i| in_mask(*i, a, b)).fold(0, |m, i| m | 1 << i)),
        ("bmsk.wrap.b32 %r0, %r1, %r2;", |a, b, _| {
            (0..32).filter(|i| in_mask(*i, a % 32, b % 32)).fold(0, |m, i| m | 1 << i)
        }),
        ("szext.clamp.s32 %r0, %r1, %r2;", |a, b, _| {
            if b == 0 { 0 } else { ((i64::from(a) << 32) << (32 - b.min(32)) >> (64 - b.min(32))) as u32 }
        }),
        ("szext.wrap.u32 %r0, %r1, %r2;", |a, b, _| (u64::from(a) & ((1u64 << (b % 32)) - 1)) as u32),
        ("cvt.pack.sat.s16.s32 %r0, %r1, %r2;", |a, b, _| {
            let narrow = |x: u32| u32::from((x as i32).clamp(-32768, 32767) as u16);
            narrow(a) << 16 | narrow(b)
        }),
        ("cvt.pack.sat.u8.s32.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
            let narrow = |x: u32| (x as i32).clamp(0, 255) as u32;
            c << 16 | narrow(a) << 8 | narrow(b)
        }),
        ("max.s16x2 %r0, %r1, %r2;", |a, b, _| {
            let one = |s: u32| u32::from(((a >> s) as i16).max((b >> s) as i16) as u16) << s;
            one(0) | one(16)
        }),
        ("min.relu.s16x2 %r0, %r1, %r2;", |a, b, _| {
            let one = |s: u32| u32::from(((a >> s) as i16).min((b >> s) as i16).max(0) as u16) << s;
            one(0) | one(16)
        }),
        ("add.u16x2 %r0, %r1, %r2;", |a, b, _| {
            u32::from((a as u16).wrapping_add(b as u16)) | (a >> 16).wrapping_add(b >> 16) << 16
        }),
        ("max.relu.s32 %r0, %r1, %r2;", |a, b, _| (a as i32).max(b as i32).max(0) as u32),
        ("vsub2.s32.s32.u32.sat %r0, %r1, %r2, 0;", |a, b, _| {
            let one = |s: u32| {
                let x = i32::from((a >> s) as i16) - (b >> s & 0xffff) as i32;
                u32::from(x.clamp(-32768, 32767) as u16) << s
            };
            one(0) | one(16)
        }),
        ("vavrg4.u32.u32.u32 %r0, %r1, %r2, 0;", |a, b, _| {
            let one = |s: u32| ((a >> s & 0xff) + (b >> s & 0xff)).div_ceil(2) << s;
            one(0) | one(8) | one(16) | one(24)
        }),
        ("vabsdiff4.u32.s32.s32.add %r0, %r1, %r2, %r3;", |a, b, c| {
            let one = |s: u32| u32::from(((a >> s) as i8).abs_diff((b >> s) as i8));
            [0, 8, 16, 24].into_iter().fold(c, |sum, s| sum.wrapping_add(one(s)))
        }),
        ("mov.b32 %f1, %r1; cvt.rn.tf32.f32 %r0, %f1;", |a, _, _| {
            let (x, step) = (float(a), 1 << 13);
            let (low, high) = (a / step * step, (a / step + 1).wrapping_mul(step));
            let far = |bits: u32| (f64::from(x) - f64::from(float(bits))).abs();
            if x.is_nan() {
                0x7fff_ffff
            } else if x.is_infinite() || far(low) < far(high) || far(low) == far(high) && low / step % 2 == 0 {
                low
            } else {
                high
            }
        }),
        ("mov.b32 %f1, %r1; cvt.rz.relu.tf32.f32 %r0, %f1;", |a, _, _| {
            let x = float(a);
            if x.is_nan() { 0x7fff_ffff } else if a >> 31 == 1 { 0 } else { a & !0x1fff }
        }),
        ("set.ge.f16x2.f16x2 %r0, %r1, %r2;", |a, b, _| {
            let one = |s: u32| if half_at(a, s) >= half_at(b, s) { 0x3c00 << s } else { 0 };
            one(0) | one(16)
        }),
        ("set.neu.u32.bf16x2 %r0, %r1, %r2;", |a, b, _| {
            let one = |s: u32| if brain_at(a, s) != brain_at(b, s) { 0xffff << s } else { 0 };
            one(0) | one(16)
        }),
        ("setp.lt.f16x2 %p1|%p2, %r1, %r2; selp.u32 %r0, 1, 0, %p1; @%p2 add.u32 %r0, %r0, 2;", |a, b, _| {
            u32::from(half_at(a, 0) < half_at(b, 0)) + 2 * u32::from(half_at(a, 16) < half_at(b, 16))
        }),
        (
            "LIST: .branchtargets ONE, TWO, THREE; and.b32 %r4, %r1, 3; min.u32 %r4, %r4, 2; brx.idx %r4, LIST;
             ONE: mov.u32 %r0, 10; bra END; TWO: mov.u32 %r0, 20; bra END; THREE: mov.u32 %r0, 30; END:",
            |a, _, _| 10 * (1 + (a & 3).min(2)),
        ),
        ("elect.sync %r4|%p1, -1; selp.u32 %r0, 1, 0, %p1; add.u32 %r0, %r0, %r4; vote.sync.ballot.b32 %r5, %p1, -1;
          popc.b32 %r5, %r5; mul.lo.u32 %r5, %r5, 10; mov.u32 %r6, %laneid; setp.ne.u32 %p2, %r6, 0;
          @%p2 add.u32 %r0, %r0, 1; add.u32 %r0, %r0, %r5;", |_, _, _| 11),
        ("createpolicy.fractional.L2::evict_first.b64 %rd1, 1.0; mul.wide.u32 %rd2, %t, 12; add.s64 %rd2, %rd2, %in;
          prefetch.global.L2::evict_last [%rd2]; ld.global.L1::evict_first.L2::cache_hint.L2::128B.u32 %r0, [%rd2], %rd1;
          griddepcontrol.wait; griddepcontrol.launch_dependents;", |a, _, _| a),
        (".shared .align 4 .b32 s[64]; mov.u32 %r4, 3; mov.u32 %r5, s; mad.lo.u32 %r5, %t, 4, %r5; st.shared.u32 [%r5], %r1;
          bar.sync %r4, 64; mov.u64 %rd1, p0; cvta.param.u64 %rd1, %rd1; ld.u64 %rd2, [%rd1];
          setp.eq.u64 %p1, %rd2, %in; ld.shared.u32 %r0, [%r5]; @!%p1 mov.u32 %r0, 0;", |a, _, _| a),
    ];
    let mut random = Random(77);
    let mut inputs: Vec<[u32; 3]> = vec![
        [0, 0, 0],
        [u32::MAX, 1, 0x7fc0_0000],
        [0x8000_0000, u32::MAX, 0x8000_0000],
        [0x7fc0_1234, 1f32.to_bits(), 5],
        [(-2.5f32).to_bits(), 2.5f32.to_bits(), (-0.0f32).to_bits()],
        [1e-40f32.to_bits(), 300.7f32.to_bits(), 1],
        [65504f32.to_bits(), 0, 40],
    ];
    inputs.resize_with(64, || {
        let mut next = || (random.bits() as u32) >> (random.bits() % 32);
        [next(), next(), next()]
    });
    check(&inputs, cases);
}

#[test]
fn of_64_bits() {
    let cases: &[(&str, Formula<u64>)] = &[
        ("mad.lo.u64 %rd0, %rd1, %rd2, %rd3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi.s64 %rd0, %rd1, %rd2, %rd3;", |a, b, c| {
            (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).wrapping_add(c)
        }),
        ("add.cc.u64 %rd4, %rd1, %rd2; addc.u64 %rd0, %rd3, 0;", |a, b, c| {
            c.wrapping_add(u64::from(a.checked_add(b).is_none()))
        }),
        ("bfi.b64 %rd0, %rd1, %rd2, 33, 17;", |a, b, _| b & !(0x1_ffff << 33) | (a & 0x1_ffff) << 33),
        ("bfe.s64 %rd0, %rd1, 33, 17;", |a, _, _| ((a as i64) << 14 >> 47) as u64),
        ("clz.b64 %r1, %rd1; bfind.u64 %r2, %rd1; mov.b64 %rd0, {%r1, %r2};", |a, _, _| {
            let high = if a == 0 { u32::MAX } else { a.ilog2() };
            u64::from(high) << 32 | u64::from(a.leading_zeros())
        }),
        ("mov.b64 {%r1, %r2}, %rd1; mov.b64 %rd0, {%r2, %r1};", |a, _, _| a.rotate_left(32)),
        ("mov.b64 {%h1, %h2, %h3, %h4}, %rd1; mov.b64 %rd0, {%h4, %h3, %h2, %h1};", |a, _, _| {
            (0..4).fold(0, |out, part| out << 16 | a >> (16 * part) & 0xffff)
        }),
        ("setp.lt.s64 %p1, %rd1, %rd2; selp.b64 %rd0, %rd1, %rd2, %p1;", |a, b, _| (a as i64).min(b as i64) as u64),
        (
            "mov.b64 %fd1, %rd1; mov.b64 %fd2, %rd2; setp.ge.f64 %p1, %fd1, %fd2; selp.u64 %rd0, 1, 0, %p1;",
            |a, b, _| u64::from(f64::from_bits(a) >= f64::from_bits(b)),
        ),
        ("mov.b64 %fd1, %rd1; mov.b64 %fd2, %rd2; copysign.f64 %fd3, %fd1, %fd2; mov.b64 %rd0, %fd3;", |a, b, _| {
            f64::from_bits(b).copysign(f64::from_bits(a)).to_bits()
        }),
        ("cvt.rn.f64.u64 %fd1, %rd1; mov.b64 %rd0, %fd1;", |a, _, _| (a as f64).to_bits()),
        ("cvt.u32.u64 %r1, %rd1; cvt.s64.s32 %rd0, %r1;", |a, _, _| i64::from(a as i32) as u64),
        ("cvt.s64.s8 %rd0, %rd1;", |a, _, _| i64::from(a as i8) as u64),
        ("cvt.rn.f32.u64 %f1, %rd1; mov.b32 %r1, %f1; cvt.u64.u32 %rd0, %r1;", |a, _, _| {
            u64::from((a as f32).to_bits())
        }),
        (
            "match.any.sync.b64 %r1, %rd1, -1; mov.u32 %r2, %laneid; shr.u32 %r1, %r1, %r2; and.b32 %r1, %r1, 1;
          cvt.u64.u32 %rd0, %r1;",
            |_, _, _| 1,
        ),
        (
            ".shared .align 16 .b64 s[128]; mov.u64 %rd4, s; mul.wide.u32 %rd5, %t, 16; add.u64 %rd4, %rd4, %rd5;
          st.shared.v2.u64 [%rd4], {%rd1, %rd2}; ld.shared.v4.u32 {_, %r1, %r2, _}, [%rd4];
          mov.b64 %rd0, {%r1, %r2};",
            |a, b, _| b << 32 | a >> 32,
        ),
        (
            ".shared .align 8 .b64 s[64]; mov.u64 %rd4, s; mul.wide.u32 %rd5, %t, 8; add.u64 %rd4, %rd4, %rd5;
          cvta.shared.u64 %rd4, %rd4; st.u64 [%rd4], %rd1; atom.exch.b64 %rd5, [%rd4], %rd2;
          atom.min.s64 %rd5, [%rd4], %rd3; ld.u64 %rd0, [%rd4];",
            |_, b, c| (b as i64).min(c as i64) as u64,
        ),
        (
            "mov.u64 %rd0, %clock64; mov.u64 %rd4, %globaltimer; setp.gt.u64 %p1, %rd4, %rd0; selp.b64 %rd0, 1, 0, %p1;",
            |_, _, _| 1,
        ),
    ];
    let mut random = Random(78);
    let mut inputs: Vec<[u64; 3]> =
        vec![[0, 0, 0], [u64::MAX, 1, 1 << 63], [1 << 63, u64::MAX, 7], [1.5f64.to_bits(), (-1.5f64).to_bits(), 0]];
    inputs.resize_with(64, || [random.bits(), random.bits() >> (random.bits() % 64), random.bits()]);
    check(&inputs, cases);
}

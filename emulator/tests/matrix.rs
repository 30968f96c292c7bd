//! `mma.sync` in all its shapes and types, and `stmatrix` and `movmatrix`, as instructions: fragments by the formulas of
//! the PTX manual's figures, products by a loop.

use crate::common::{Bench, Random, module};
use half::{bf16, f16};
use ptx_emulator::{Error, Grid};

/// Row and column of element `i` of a lane, in the manual's words: `group` is lane / 4, `thread` is lane % 4.
type Place = fn(group: usize, thread: usize, i: usize) -> (usize, usize);

/// A factor's type: its name, its width, and the value of its bits.
#[derive(Clone, Copy)]
struct Kind(&'static str, usize, fn(u64) -> f64);

const F16: Kind = Kind("f16", 16, |x| f16::from_bits(x as u16).to_f64());
const BF16: Kind = Kind("bf16", 16, |x| bf16::from_bits(x as u16).to_f64());
const TF32: Kind = Kind("tf32", 32, |x| f64::from(f32::from_bits(x as u32 & 0xffff_e000)));
const E4M3: Kind = Kind("e4m3", 8, |x| fp8(x as u8, 3, 7));
const E5M2: Kind = Kind("e5m2", 8, |x| fp8(x as u8, 2, 15));
const S8: Kind = Kind("s8", 8, |x| f64::from(x as i8));
const U8: Kind = Kind("u8", 8, |x| x as f64);
const S4: Kind = Kind("s4", 4, |x| f64::from((x << 4) as u8 as i8 >> 4));
const U4: Kind = Kind("u4", 4, |x| x as f64);
const F64: Kind = Kind("f64", 64, f64::from_bits);

fn fp8(bits: u8, fraction: i32, bias: i32) -> f64 {
    let (field, rest) = (i32::from(bits & 0x7f) >> fraction, i32::from(bits) & ((1 << fraction) - 1));
    let (significand, power) = if field == 0 { (rest, 1) } else { (rest + (1 << fraction), field) };
    f64::from(significand) * 2f64.powi(power - bias - fraction) * if bits >> 7 == 1 { -1.0 } else { 1.0 }
}

struct Case {
    /// What follows `mma.sync.aligned.` up to the types.
    shape: &'static str,
    m: usize,
    k: usize,
    a: (Kind, Place),
    b: (Kind, Place),
    sums: &'static str,
    tail: &'static str,
}

fn sum_width(kind: &str) -> usize {
    match kind {
        "f16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

/// The elements of a matrix in the registers of 32 lanes, as little-endian bytes lane by lane.
fn pack(matrix: &[Vec<u64>], width: usize, per_lane: usize, place: Place) -> Vec<u8> {
    let mut bytes = vec![];
    for lane in 0..32 {
        let mut bits = vec![0u8; (width * per_lane).div_ceil(8)];
        for i in 0..per_lane {
            let (row, column) = place(lane / 4, lane % 4, i);
            for bit in 0..width {
                let at = i * width + bit;
                bits[at / 8] |= ((matrix[row][column] >> bit & 1) as u8) << (at % 8);
            }
        }
        bytes.extend(bits);
    }
    bytes
}

fn run(case: &Case, [a, b, c]: [&[u8]; 3]) -> Result<Vec<u8>, Error> {
    let wide = case.sums == "f64";
    let (size, file, kind) = if wide { (8, "%rd", "b64") } else { (4, "%r", "b32") };
    let counts = [a, b, c, c].map(|bytes| bytes.len() / 32 / size);
    let firsts = [0, counts[0], counts[0] + counts[1], counts[0] + counts[1] + counts[2]];
    let list = |which: usize| {
        let names: Vec<String> = (firsts[which]..firsts[which] + counts[which]).map(|i| format!("{file}{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let mut body =
        ".reg .b32 %r<64>; .reg .b64 %rd<64>; .reg .b64 %at, %p; .reg .b32 %t; mov.u32 %t, %tid.x;\n".to_string();
    let mut access = |which: usize, text: &dyn Fn(usize, usize) -> String| {
        body += &format!(
            "ld.param.u64 %p, [p{which}]; mul.wide.u32 %at, %t, {}; add.s64 %at, %at, %p;\n",
            counts[which] * size
        );
        (0..counts[which]).for_each(|i| body += &text(firsts[which] + i, i * size));
    };
    for which in 0..3 {
        access(which, &|register, at| format!("ld.global.{kind} {file}{register}, [%at+{at}];\n"));
    }
    let Case { shape, a: (left, _), b: (right, _), sums, tail, .. } = case;
    let types = format!("{sums}.{}.{}.{sums}", left.0, right.0);
    let (d, a_list, b_list, c_list) = (list(3), list(0), list(1), list(2));
    let mma = format!("mma.sync.aligned.{shape}.{types}{tail} {d}, {a_list}, {b_list}, {c_list};\n");
    body += &mma;
    body += &format!("ld.param.u64 %p, [p3]; mul.wide.u32 %at, %t, {}; add.s64 %at, %at, %p;\n", counts[3] * size);
    for i in 0..counts[3] {
        body += &format!("st.global.{kind} [%at+{}], {file}{};\n", i * size, firsts[3] + i);
    }
    let mut bench = Bench::new(&module(4, &body));
    let args = [a, b, c].map(|bytes| bench.gpu.upload(bytes).unwrap());
    let out = bench.gpu.allocate(c.len() as u64)?;
    bench.try_run("kernel", Grid::linear(1, 32), &[args[0].into(), args[1].into(), args[2].into(), out.into()])?;
    bench.gpu.read(out)
}

fn sums_place(group: usize, thread: usize, i: usize) -> (usize, usize) {
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

/// Products of integers small enough for every format, so that each element of the result is exact in all of them.
fn check(case: &Case) {
    let mut random = Random(case.k as u64);
    let mut matrix = |rows: usize, columns: usize, kind: Kind| -> Vec<Vec<u64>> {
        let encode = |value: f64| (0..1u64 << kind.1.min(16)).find(|bits| kind.2(*bits) == value).unwrap_or(0);
        let numbers: Vec<u64> = match kind.0 {
            "f64" => (-3..=3).map(|x| f64::from(x).to_bits()).collect(),
            "tf32" => (-3..=3).map(|x| u64::from((x as f32).to_bits())).collect(),
            _ => [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0].map(encode).to_vec(),
        };
        let pick = |random: &mut Random| numbers[(random.bits() % numbers.len() as u64) as usize];
        (0..rows).map(|_| (0..columns).map(|_| pick(&mut random)).collect()).collect()
    };
    let (a, b) = (matrix(case.m, case.k, case.a.0), matrix(case.k, 8, case.b.0));
    let width = sum_width(case.sums);
    let bits_of = |value: f64| match case.sums {
        "f16" => u64::from(f16::from_f64(value).to_bits()),
        "f32" => u64::from((value as f32).to_bits()),
        "s32" => u64::from(value as i64 as u32),
        _ => value.to_bits(),
    };
    let start: Vec<Vec<f64>> = (0..case.m).map(|r| (0..8).map(|c| (r * 8 + c) as f64 - 20.0).collect()).collect();
    let c: Vec<Vec<u64>> = start.iter().map(|row| row.iter().map(|x| bits_of(*x)).collect()).collect();
    let wanted: Vec<Vec<u64>> = (0..case.m)
        .map(|row| {
            (0..8)
                .map(|column| {
                    let products = (0..case.k).map(|k| case.a.0.2(a[row][k]) * case.b.0.2(b[k][column]));
                    bits_of(products.sum::<f64>() + start[row][column])
                })
                .collect()
        })
        .collect();
    let per = |count: usize| count / 32;
    let packed_a = pack(&a, case.a.0.1, per(case.m * case.k), case.a.1);
    let packed_b = pack(&b, case.b.0.1, per(case.k * 8), case.b.1);
    let sums = |matrix: &[Vec<u64>]| pack(matrix, width, per(case.m * 8), sums_place);
    let got = run(case, [&packed_a, &packed_b, &sums(&c)]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(got, sums(&wanted), "{} of {} and {} in {}", case.shape, case.a.0.0, case.b.0.0, case.sums);
}

// The formulas of the manual, "Matrix Fragments for mma.m...".
const A16_K8: Place = |g, t, i| (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1));
const B16_K8: Place = |g, t, i| (t * 2 + (i & 1), g);
const A16_K16: Place =
    |g, t, i| (if i < 2 || (4..6).contains(&i) { g } else { g + 8 }, t * 2 + (i & 1) + if i < 4 { 0 } else { 8 });
const B16_K16: Place = |g, t, i| (t * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, g);
const A32_K4: Place = |g, t, i| (if i == 0 { g } else { g + 8 }, t);
const B32_K4: Place = |g, t, _| (t, g);
const A32_K8: Place = |g, t, i| (if i % 2 == 0 { g } else { g + 8 }, if i < 2 { t } else { t + 4 });
const B32_K8: Place = |g, t, i| (if i == 0 { t } else { t + 4 }, g);
const A8_K16: Place = |g, t, i| (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3));
const B8_K16: Place = |g, t, i| (t * 4 + (i & 3), g);
const A8_K32: Place =
    |g, t, i| (if i < 4 || (8..12).contains(&i) { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 });
const B8_K32: Place = |g, t, i| (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g);
const A4_K32: Place = |g, t, i| (if i < 8 { g } else { g + 8 }, t * 8 + (i & 7));
const B4_K32: Place = |g, t, i| (t * 8 + (i & 7), g);
const A4_K64: Place =
    |g, t, i| (if i < 8 || (16..24).contains(&i) { g } else { g + 8 }, t * 8 + (i & 7) + if i < 16 { 0 } else { 32 });
const B4_K64: Place = |g, t, i| (t * 8 + (i & 7) + if i < 8 { 0 } else { 32 }, g);
const A64_K16: Place = |g, t, i| (if i % 2 == 0 { g } else { g + 8 }, i / 2 * 4 + t);
const B64_K16: Place = |g, t, i| (i * 4 + t, g);
const M8_A8: Place = |g, t, i| (g, t * 4 + i);
const M8_A4: Place = |g, t, i| (g, t * 8 + i);
const M8_A64: Place = |g, t, _| (g, t);

#[test]
fn every_shape_and_type() {
    let case = |shape, (m, k), a, b, sums, tail| check(&Case { shape, m, k, a, b, sums, tail });
    for kind in [F16, BF16] {
        case("m16n8k8.row.col", (16, 8), (kind, A16_K8), (kind, B16_K8), "f32", "");
        case("m16n8k16.row.col", (16, 16), (kind, A16_K16), (kind, B16_K16), "f32", "");
    }
    case("m16n8k8.row.col", (16, 8), (F16, A16_K8), (F16, B16_K8), "f16", "");
    case("m16n8k16.row.col", (16, 16), (F16, A16_K16), (F16, B16_K16), "f16", "");
    case("m16n8k4.row.col", (16, 4), (TF32, A32_K4), (TF32, B32_K4), "f32", "");
    case("m16n8k8.row.col", (16, 8), (TF32, A32_K8), (TF32, B32_K8), "f32", "");
    for (a, b) in [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)] {
        for sums in ["f32", "f16"] {
            case("m16n8k16.row.col", (16, 16), (a, A8_K16), (b, B8_K16), sums, "");
            case("m16n8k32.row.col", (16, 32), (a, A8_K32), (b, B8_K32), sums, "");
        }
    }
    for (a, b) in [(S8, S8), (S8, U8), (U8, S8), (U8, U8)] {
        case("m8n8k16.row.col", (8, 16), (a, M8_A8), (b, B8_K16), "s32", "");
        case("m16n8k16.row.col", (16, 16), (a, A8_K16), (b, B8_K16), "s32", "");
        case("m16n8k32.row.col.satfinite", (16, 32), (a, A8_K32), (b, B8_K32), "s32", "");
    }
    for (a, b) in [(S4, S4), (S4, U4), (U4, S4), (U4, U4)] {
        case("m8n8k32.row.col", (8, 32), (a, M8_A4), (b, B4_K32), "s32", "");
        case("m16n8k32.row.col", (16, 32), (a, A4_K32), (b, B4_K32), "s32", "");
        case("m16n8k64.row.col", (16, 64), (a, A4_K64), (b, B4_K64), "s32", "");
    }
    case("m8n8k4.row.col", (8, 4), (F64, M8_A64), (F64, B32_K4), "f64", "");
    case("m16n8k4.row.col", (16, 4), (F64, A64_K16), (F64, B64_K16), "f64", "");
    case("m16n8k8.row.col", (16, 8), (F64, A64_K16), (F64, B64_K16), "f64", ".rn");
    case("m16n8k16.row.col", (16, 16), (F64, A64_K16), (F64, B64_K16), "f64", "");
}

/// Words of 32 bits along k: the layout of single bits is that of tf32, with words for elements.
#[test]
fn single_bits() {
    let mut random = Random(3);
    for (shape, m, words, a_place, b_place) in [
        ("m8n8k128.row.col", 8, 4, M8_A64, B32_K4),
        ("m16n8k128.row.col", 16, 4, A32_K4, B32_K4),
        ("m16n8k256.row.col", 16, 8, A32_K8, B32_K8),
    ] {
        let mut matrix = |rows: usize, columns: usize| -> Vec<Vec<u64>> {
            (0..rows).map(|_| (0..columns).map(|_| random.bits() >> 32).collect()).collect()
        };
        let (a, b, c) = (matrix(m, words), matrix(words, 8), matrix(m, 8));
        for (tail, operation) in [(".xor.popc", (|x, y| x ^ y) as fn(u64, u64) -> u64), (".and.popc", |x, y| x & y)] {
            let bits = Kind("b1", 32, |x| x as f64);
            let case = Case { shape, m, k: words, a: (bits, a_place), b: (bits, b_place), sums: "s32", tail };
            let wanted: Vec<Vec<u64>> = (0..m)
                .map(|row| {
                    let count = |column: usize| -> u64 {
                        (0..words).map(|k| u64::from(operation(a[row][k], b[k][column]).count_ones())).sum()
                    };
                    (0..8).map(|column| (c[row][column] + count(column)) & 0xffff_ffff).collect()
                })
                .collect();
            let packed = [pack(&a, 32, m * words / 32, a_place), pack(&b, 32, words * 8 / 32, b_place)];
            let sums = |matrix: &[Vec<u64>]| pack(matrix, 32, m / 4, sums_place);
            assert_eq!(run(&case, [&packed[0], &packed[1], &sums(&c)]).unwrap(), sums(&wanted), "{shape}{tail}");
        }
    }
}

/// A sum beyond the largest number wraps, or stays there with `.satfinite`; f64 rounds as it is told.
#[test]
fn ends_of_the_range() {
    let full = |bits: u64, rows: usize, columns: usize| vec![vec![bits; columns]; rows];
    for (shape, wanted) in
        [("m16n8k16.row.col", i32::MAX.wrapping_add(16 * 127 * 127)), ("m16n8k16.row.col.satfinite", i32::MAX)]
    {
        let case = Case { shape, m: 16, k: 16, a: (S8, A8_K16), b: (S8, B8_K16), sums: "s32", tail: "" };
        let (a, b) = (pack(&full(127, 16, 16), 8, 8, A8_K16), pack(&full(127, 16, 8), 8, 4, B8_K16));
        let c = pack(&full(i32::MAX as u64, 16, 8), 32, 4, sums_place);
        assert_eq!(run(&case, [&a, &b, &c]).unwrap(), pack(&full(u64::from(wanted as u32), 16, 8), 32, 4, sums_place));
    }
    for (tail, wanted) in [(".rn", 1.0f64), (".rp", 1.0f64.next_up())] {
        let case = Case { shape: "m8n8k4.row.col", m: 8, k: 4, a: (F64, M8_A64), b: (F64, B32_K4), sums: "f64", tail };
        let mut a = full(0, 8, 4);
        (0..8).for_each(|row| a[row][0] = 1e-30f64.to_bits());
        let one = full(1f64.to_bits(), 8, 8);
        let packed =
            [pack(&a, 64, 1, M8_A64), pack(&full(1f64.to_bits(), 4, 8), 64, 1, B32_K4), pack(&one, 64, 2, sums_place)];
        let got = run(&case, [&packed[0], &packed[1], &packed[2]]).unwrap();
        assert_eq!(got, pack(&full(wanted.to_bits(), 8, 8), 64, 2, sums_place), "{tail}");
    }
}

/// What `stmatrix` stores, `ldmatrix` loads; with `.trans` on one side, the matrices come back transposed.
#[test]
fn stored_matrices() {
    let body = |store: &str, load: &str| {
        format!(
            ".reg .b32 %r<12>; .reg .b64 %rd<4>; .shared .align 16 .b8 s[512]; ld.param.u64 %rd1, [p0];
            mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; mov.u32 %r2, s; add.u32 %r2, %r2, %r1;
            mad.lo.u32 %r3, %r0, 65537, 7; add.u32 %r4, %r3, 100; add.u32 %r5, %r3, 200; add.u32 %r6, %r3, 300;
            stmatrix.sync.aligned.m8n8.x4{store}.shared.b16 [%r2], {{%r3, %r4, %r5, %r6}}; bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{load}.shared::cta.b16 {{%r7, %r8, %r9, %r10}}, [%r2];
            mul.wide.u32 %rd2, %r0, 16; add.s64 %rd1, %rd1, %rd2; st.global.v4.b32 [%rd1], {{%r7, %r8, %r9, %r10}}; ret;"
        )
    };
    let run = |store: &str, load: &str| {
        let mut bench = Bench::new(&module(1, &body(store, load)));
        let out = bench.room::<u32>(128);
        bench.run("kernel", Grid::linear(1, 32), &[out.into()]);
        bench.get::<u32>(out)
    };
    let plain: Vec<u32> = (0..128).map(|i| i / 4 * 65537 + 7 + i % 4 * 100).collect();
    assert_eq!(run("", ""), plain);
    assert_eq!(run(".trans", ".trans"), plain);
    // Element (row, column) of matrix m lies in lane 4 row + column / 2, in the half column % 2.
    let element = |words: &[u32], m: usize, row: usize, column: usize| {
        words[(4 * row + column / 2) * 4 + m] >> (16 * (column % 2)) & 0xffff
    };
    for (store, load) in [("", ".trans"), (".trans", "")] {
        let turned = run(store, load);
        for (m, row, column) in (0..256).map(|i| (i / 64, i / 8 % 8, i % 8)) {
            assert_eq!(element(&turned, m, row, column), element(&plain, m, column, row));
        }
    }
    let body = ".reg .b32 %r<4>; .reg .b64 %rd<4>; ld.param.u64 %rd1, [p0]; mov.u32 %r0, %tid.x;
        mad.lo.u32 %r1, %r0, 131072, 65536; mad.lo.u32 %r1, %r0, 2, %r1;
        movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;
        mul.wide.u32 %rd2, %r0, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r2; ret;";
    let mut bench = Bench::new(&module(1, body));
    let out = bench.room::<u32>(32);
    bench.run("kernel", Grid::linear(1, 32), &[out.into()]);
    // The element at (row, column) was 8 row + column.
    let wanted: Vec<u32> = (0..32)
        .map(|lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            (8 * column + row) | ((8 * (column + 1) + row) << 16)
        })
        .collect();
    assert_eq!(bench.get::<u32>(out), wanted);
}

#[test]
fn what_is_no_product_is_refused() {
    for (mma, reason) in [
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1}", "not a shape"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16 {%r1, %r2}, {%r1}, {%r1}, {%r1}", "bf16"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%r1}, {%r1}, {%r1}, {%r1}", "f16 and bf16"),
        ("mma.sync.aligned.m16n8k16.row.col.s32.s8.s4.s32 {%r1}, {%r1}, {%r1}, {%r1}", "s8 and s4"),
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1}, %r1, 0", "sparse"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1}", "number of registers"),
    ] {
        let text = module(0, &format!(".reg .b32 %r<9>; {mma}; ret;"));
        let error = ptx_emulator::Module::parse(&text).unwrap().check().unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

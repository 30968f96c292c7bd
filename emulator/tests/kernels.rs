//! Whole kernels, as NVRTC compiles them, against plain Rust.

use crate::common::{ARITHMETIC, BASICS, Bench, GEMM, Random};
use ptx_emulator::{Arg, Grid, Module, Options};

#[test]
fn every_kernel_is_supported() {
    for text in [BASICS, ARITHMETIC, GEMM] {
        let module = Module::parse(text).unwrap();
        module.check().unwrap();
        assert_eq!((module.version(), module.target()), ((8, 4), "sm_80"));
    }
}

#[test]
fn vector_add() {
    let mut bench = Bench::new(BASICS);
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32 * 0.5).collect();
    let b: Vec<f32> = (0..n).map(|i| 1000.0 - i as f32).collect();
    let (pa, pb, pc) = (bench.put(&a), bench.put(&b), bench.room::<f32>(n));
    bench.run("vector_add", Grid::linear(8, 128), &[pa.into(), pb.into(), pc.into(), (n as i32).into()]);
    let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(bench.get::<f32>(pc), sums);
}

#[test]
fn sums_through_shared_memory_and_through_shuffles() {
    let mut bench = Bench::new(BASICS);
    let n = 1000;
    let x: Vec<f32> = (0..n).map(|i| (i % 17) as f32).collect();
    let px = bench.put(&x);
    let sums: Vec<f32> = x.chunks(256).map(|block| block.iter().sum()).collect();
    let out = bench.room::<f32>(4);
    bench.run("block_sum", Grid::linear(4, 256), &[px.into(), out.into(), n.into()]);
    assert_eq!(bench.get::<f32>(out), sums);
    let out = bench.room::<f32>(4);
    bench.run("warp_sum", Grid::linear(4, 256).with_shared(32), &[px.into(), out.into(), n.into()]);
    assert_eq!(bench.get::<f32>(out), sums);
}

/// The kernel `divergence`, one thread at a time.
fn diverge(i: u32, mut h: u32) -> u32 {
    for a in 0..i % 7 + 1 {
        // The bound of the inner loop is evaluated anew in every round.
        let mut b = 0u32;
        while b < h % 5 {
            if (h ^ b) % 11 == 3 {
                break;
            }
            match h.wrapping_add(a) & 7 {
                0 => h = h.wrapping_mul(1664525).wrapping_add(1013904223),
                1 => h ^= h >> 7,
                2 => h = h.wrapping_add(0x9e37_79b9),
                3 => h = h.rotate_left(5),
                4 => h = h.wrapping_sub(b),
                5 => h = !h,
                _ => h = h.wrapping_add(a.wrapping_mul(b).wrapping_add(1)),
            }
            b += 1;
        }
        h = h.wrapping_mul(31).wrapping_add(a);
    }
    h
}

#[test]
fn divergent_loops() {
    let mut bench = Bench::new(BASICS);
    let mut random = Random(7);
    let seeds: Vec<u32> = (0..512).map(|_| random.bits() as u32).collect();
    let (px, out) = (bench.put(&seeds), bench.room::<u32>(512));
    bench.run("divergence", Grid::linear(4, 128), &[px.into(), out.into()]);
    let wanted: Vec<u32> = seeds.iter().enumerate().map(|(i, h)| diverge(i as u32, *h)).collect();
    assert_eq!(bench.get::<u32>(out), wanted);
}

#[test]
fn atomics() {
    let mut bench = Bench::new(BASICS);
    let mut c = [0u32; 10];
    c[2] = u32::MAX;
    c[4] = u32::MAX;
    let (pc, pf, big, s) = (bench.put(&c), bench.put(&[0f32]), bench.put(&[0u64]), bench.put(&[0i32]));
    bench.run("atomics", Grid::linear(3, 64), &[pc.into(), pf.into(), big.into(), s.into()]);
    let n = 192u32;
    let sum: u32 = (0..n).sum();
    let xor = (0..n).fold(0, |all, i| all ^ i);
    let c = bench.get::<u32>(pc);
    assert_eq!(c[..7], [n, n - 1, 0, u32::MAX, 0xffff_0000, xor, 2 * n]);
    assert_eq!(c[7], 2 * n - 2, "the last exchange is that of the last thread");
    assert_eq!(c[8..], [3 * n, sum]);
    assert_eq!(bench.get::<f32>(pf), [96.0]);
    assert_eq!(bench.get::<u64>(big), [u64::from(sum) << 20]);
    assert_eq!(bench.get::<i32>(s), [-191]);
}

#[test]
fn local_memory() {
    let mut bench = Bench::new(BASICS);
    let x: Vec<u32> = (0..16).map(|i| i * 7 + 3).collect();
    let (px, out) = (bench.put(&x), bench.room::<u32>(64));
    bench.run("local_array", Grid::linear(1, 64), &[px.into(), out.into()]);
    let wanted: Vec<u32> = (0..64u32)
        .map(|t| {
            let mut a: Vec<u32> = x.iter().map(|x| x + t).collect();
            for (i, x) in x.iter().enumerate() {
                a.swap(i, (x.wrapping_add(t) & 15) as usize);
            }
            a.iter().fold(0u32, |h, a| h.wrapping_mul(31).wrapping_add(*a))
        })
        .collect();
    assert_eq!(bench.get::<u32>(out), wanted);
}

#[test]
fn generic_addresses() {
    let mut bench = Bench::new(BASICS);
    let x: Vec<u32> = (0..32).map(|i| i * 3).collect();
    let (px, out) = (bench.put(&x), bench.room::<u32>(32));
    bench.run("generic", Grid::linear(1, 32), &[px.into(), out.into()]);
    for (t, (x, (after, s))) in x.iter().zip(bench.get::<u32>(px).iter().zip(bench.get::<u32>(out))).enumerate() {
        let to_shared = x & 1 == 1;
        assert_eq!(*after, x + if to_shared { 0 } else { 100 });
        assert_eq!(s, t as u32 * 2 + if to_shared { 100 } else { 0 });
    }
}

#[test]
fn structs_constants_and_module_variables() {
    let mut bench = Bench::new(BASICS);
    let (out, keys) = (bench.room::<f32>(8), bench.room::<u64>(8));
    let mut pair = Vec::from(0.5f32.to_le_bytes());
    pair.extend(3i32.to_le_bytes());
    pair.extend(1_000_000_000_000u64.to_le_bytes());
    for round in 1..3u32 {
        bench.run("with_struct", Grid::linear(1, 8), &[Arg::bytes(&pair), out.into(), keys.into()]);
        assert_eq!(bench.get::<f32>(out), [41.0 + round as f32, 2.5, -3.0, 3.5, -4.0, 0.5, -1.0, 1.5]);
    }
    assert_eq!(bench.get::<u64>(keys), (0..8).map(|t| 1_000_000_000_000 + t).collect::<Vec<u64>>());
    let counter = bench.gpu.variable(&bench.module, "counter").unwrap().unwrap();
    assert_eq!(bench.get::<u32>(counter), [43]);
}

#[test]
fn calls_of_functions() {
    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let mut bench = Bench::new(BASICS);
    let x: Vec<u32> = (0..128).map(|i| i * i + 6).collect();
    let (px, scales, keys) = (bench.put(&x), bench.room::<f32>(64), bench.room::<u64>(64));
    bench.run("calls", Grid::linear(1, 64), &[px.into(), scales.into(), keys.into()]);
    for (t, (scale, key)) in bench.get::<f32>(scales).iter().zip(bench.get::<u64>(keys)).enumerate() {
        let called = t % 3 != 0;
        let wanted = if called && t >= 4 { gcd(t as u32, 12) as f32 } else { 0.5 };
        let sum = 100 + if called { u64::from(gcd(x[2 * t], x[2 * t + 1])) } else { 0 };
        assert_eq!((*scale, key), (wanted, sum), "{t}");
    }
}

#[test]
fn vector_accesses_and_long_division() {
    let mut bench = Bench::new(BASICS);
    let mut random = Random(3);
    let n = 100usize;
    let a: Vec<f32> = (0..4 * n).map(|_| random.unit().abs() as f32).collect();
    let b: Vec<u32> = (0..2 * n).map(|_| random.bits() as u32).collect();
    let (pa, pb, pc, pd) = (bench.put(&a), bench.put(&b), bench.room::<f32>(4 * n), bench.room::<u64>(n));
    let args = [pa.into(), pb.into(), pc.into(), pd.into(), (n as i32).into()];
    bench.run("vectors", Grid::linear(1, 128), &args);
    let wanted: Vec<f32> = a.chunks(4).flat_map(|v| [v[3], v[2] * 2.0, v[1], v[0].sqrt()]).collect();
    assert_eq!(bench.get::<f32>(pc), wanted);
    let wanted: Vec<u64> = (0..n)
        .map(|i| {
            let q = u64::from(b[2 * i]) << 32 | u64::from(b[2 * i + 1]);
            let high = ((u128::from(q) * 0x0123_4567_89ab_cdef) >> 64) as u64;
            let parts = [q % 1000003, high, (q as i64 / -7) as u64];
            parts.iter().fold(q / (i as u64 + 3), |sum, part| sum.wrapping_add(*part))
        })
        .collect();
    assert_eq!(bench.get::<u64>(pd), wanted);
}

#[test]
fn named_barriers_pass_data_between_warps() {
    let mut bench = Bench::new(BASICS);
    let out = bench.room::<u32>(130);
    bench.run("named_barriers", Grid::linear(1, 64), &[out.into()]);
    let result = bench.get::<u32>(out);
    for (index, value) in result[..128].iter().enumerate() {
        assert_eq!(*value, (index as u32 / 32) * 100 + 31 - index as u32 % 32);
    }
    assert_eq!(result[128..], [32, 2]);
}

#[test]
fn asynchronous_copies_with_a_ragged_end() {
    let mut bench = Bench::new(BASICS);
    for n in [128usize, 300, 1, 511] {
        let x: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
        let padded = n.div_ceil(128) * 128;
        let (px, out) = (bench.put(&x), bench.room::<f32>(padded));
        bench.run("async_copy", Grid::linear(1, 32), &[px.into(), out.into(), (n as i32).into()]);
        let wanted: Vec<f32> = (0..padded).map(|i| x.get(i).map_or(0.0, |x| x * 2.0)).collect();
        assert_eq!(bench.get::<f32>(out), wanted, "{n}");
    }
}

#[test]
fn matrix_products_against_f64() {
    let k = 64usize;
    let mut random = Random(11);
    let mut bench = Bench::new(GEMM);
    let to_bf16 = |x: f64| half::bf16::from_f64(x).to_bits();
    let to_f16 = |x: f64| half::f16::from_f64(x).to_bits();
    let from_bf16 = |bits: u16| half::bf16::from_bits(bits).to_f64();
    let from_f16 = |bits: u16| half::f16::from_bits(bits).to_f64();
    type Pack = fn(f64) -> u16;
    type Unpack = fn(u16) -> f64;
    let kernels: [(&str, Pack, Unpack); 2] = [("tile_bf16", to_bf16, from_bf16), ("tile_f16", to_f16, from_f16)];
    for (kernel, pack, unpack) in kernels {
        let a: Vec<u16> = (0..16 * k).map(|_| pack(random.unit())).collect();
        let b: Vec<u16> = (0..k * 8).map(|_| pack(random.unit())).collect();
        let (pa, pb, pc) = (bench.put(&a), bench.put(&b), bench.room::<f32>(128));
        bench.run(kernel, Grid::linear(1, 32), &[pa.into(), pb.into(), pc.into(), (k as i32).into()]);
        for (index, c) in bench.get::<f32>(pc).iter().enumerate() {
            let (row, column) = (index / 8, index % 8);
            let exact: f64 = (0..k).map(|i| unpack(a[row * k + i]) * unpack(b[i * 8 + column])).sum();
            assert!((f64::from(*c) - exact).abs() < 1e-5, "{kernel} ({row}, {column}): {c} {exact}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut results = vec![];
    for threads in [1, 2, 5] {
        let mut bench = Bench::new(BASICS);
        let seeds: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(2654435761)).collect();
        let (px, out) = (bench.put(&seeds), bench.room::<u32>(4096));
        let options = Options { threads, ..Options::default() };
        let args = [px.into(), out.into()];
        let report = bench.gpu.launch(&bench.module, "divergence", Grid::linear(64, 64), &args, options).unwrap();
        results.push((report, bench.get::<u32>(out)));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

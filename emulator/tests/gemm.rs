//! A tiled bf16 matrix product with `cp.async` double buffering, `ldmatrix` and `mma.sync`: right as it is, and wrong in
//! every way in which an edit of its PTX breaks it.

use crate::common::{Bench, GEMM, Random, fault};
use ptx_emulator::{Cause, Error, Grid};

const M: usize = 128;
const N: usize = 64;
const K: usize = 96;

/// Runs the kernel of a module; the largest error against f64.
fn error_of(text: &str) -> Result<f64, Error> {
    let mut bench = Bench::new(text);
    let mut random = Random(21);
    let mut matrix =
        |count: usize| -> Vec<u16> { (0..count).map(|_| half::bf16::from_f64(random.unit()).to_bits()).collect() };
    let (a, b) = (matrix(M * K), matrix(N * K));
    let (pa, pb, pc) = (bench.put(&a), bench.put(&b), bench.room::<f32>(M * N));
    let grid = Grid { blocks: [N as u32 / 64, M as u32 / 64, 1], threads: [128, 1, 1], shared: 0 };
    let args = [pa.into(), pb.into(), pc.into(), (N as i32).into(), (K as i32).into()];
    bench.try_run("gemm_bf16", grid, &args)?;
    let value = |bits: u16| half::bf16::from_bits(bits).to_f64();
    let c = bench.get::<f32>(pc);
    Ok((0..M * N).fold(0f64, |worst, index| {
        let (row, column) = (index / N, index % N);
        let exact: f64 = (0..K).map(|k| value(a[row * K + k]) * value(b[column * K + k])).sum();
        worst.max((f64::from(c[index]) - exact).abs())
    }))
}

/// The module with one part of the kernel replaced.
fn edited(from: &str, to: &str) -> String {
    let start = GEMM.find(".entry gemm_bf16").unwrap();
    assert!(GEMM[start..].contains(from), "{from}");
    format!("{}{}", &GEMM[..start], GEMM[start..].replace(from, to))
}

#[test]
fn it_is_right() {
    assert!(error_of(GEMM).unwrap() < 1e-5);
}

#[test]
fn a_missing_or_weak_wait_is_found() {
    for edit in ["", "cp.async.wait_group 2;"] {
        let fault = fault(error_of(&edited("cp.async.wait_group 1;", edit)));
        assert!(matches!(fault.cause, Cause::Uninitialised { .. }), "{edit:?}: {fault}");
        assert!(fault.place.opcode.starts_with("ldmatrix"), "{edit:?}: {fault}");
    }
}

#[test]
fn a_missing_barrier_is_found() {
    // Without the barrier a warp reads rows that another warp's copies have not brought yet.
    let fault = fault(error_of(&edited("bar.sync 	0;", "")));
    assert!(matches!(fault.cause, Cause::Uninitialised { .. }), "{fault}");
}

#[test]
fn wrong_operands_give_wrong_numbers() {
    let edits = [
        ("ldmatrix.sync.aligned.m8n8.x2.shared", "ldmatrix.sync.aligned.m8n8.x2.trans.shared"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared", "ldmatrix.sync.aligned.m8n8.x4.trans.shared"),
        ("row.col.f32.bf16.bf16.f32", "row.col.f32.f16.f16.f32"),
        ("st.global.v2.f32", "st.global.v2.f32"),
    ];
    for (from, to) in edits {
        let error = error_of(&edited(from, to)).unwrap();
        assert_eq!(error < 1e-5, from == to, "{to}: {error}");
    }
}

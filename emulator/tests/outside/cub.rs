//! CUB's primitives, against loops.

use super::Outside;
use crate::common::Random;
use ptx_emulator::Grid;

pub const PTX: &str = include_str!("cub.ptx");
const BLOCK: Grid = Grid { blocks: [1, 1, 1], threads: [128, 1, 1], shared: 0 };
const WARP: Grid = Grid { blocks: [1, 1, 1], threads: [32, 1, 1], shared: 0 };
const ALL: usize = 512;

fn numbers() -> Vec<i32> {
    let mut random = Random(11);
    (0..ALL).map(|_| random.bits() as i32 % 1000).collect()
}

/// Runs a kernel of one block; what it leaves in so many words.
fn run(kernel: &str, grid: Grid, words: usize) -> Vec<i32> {
    Outside::new(PTX).run(kernel, grid, &numbers(), &vec![-7; words], None)
}

#[test]
fn reductions() {
    let x = numbers();
    for kernel in ["reduce_raking", "reduce_warps", "reduce_commutative"] {
        assert_eq!(run(kernel, BLOCK, 1), [x.iter().sum::<i32>()], "{kernel}");
    }
    assert_eq!(run("reduce_largest_of_some", BLOCK, 1), [*x[..77].iter().max().unwrap()]);
    let sums: Vec<i32> = x[..32].chunks(16).map(|part| part.iter().sum()).collect();
    assert_eq!(run("warp_reduce", WARP, 2), sums);
    let segments: Vec<i32> = x[..32].chunks(5).map(|part| part.iter().sum()).collect();
    let got = run("warp_segmented", WARP, 32);
    assert_eq!(got.iter().step_by(5).copied().collect::<Vec<_>>(), segments);
}

#[test]
fn scans() {
    let x = numbers();
    let mut sums = vec![0];
    x.iter().for_each(|x| sums.push(sums[sums.len() - 1] + x));
    for kernel in ["scan_raking", "scan_raking_memoize", "scan_warps"] {
        assert_eq!(run(kernel, BLOCK, ALL + 1), sums, "{kernel}");
    }
    let mut largest = x.clone();
    (1..ALL).for_each(|i| largest[i] = largest[i].max(largest[i - 1]));
    assert_eq!(run("scan_largest", BLOCK, ALL), largest);
    let doubles: Vec<f64> = (0..32).map(|i| f64::from(i) * 0.25 - 3.0).collect();
    let got: Vec<f64> = Outside::new(PTX).run("warp_scan", WARP, &doubles, &[0f64; 32], None);
    let wanted: Vec<f64> = (1..=32).map(|n| doubles[..n].iter().sum()).collect();
    assert_eq!(got, wanted);
}

#[test]
fn sorting() {
    let mut x = numbers();
    let some: Vec<i32> = {
        let mut some = x[..301].to_vec();
        some.sort_unstable();
        some
    };
    assert_eq!(run("merge_sort_some", BLOCK, ALL)[..301], some);
    let mut warp = x[..128].to_vec();
    warp.sort_unstable();
    assert_eq!(run("warp_merge_sort", WARP, 128), warp);
    let mut unsigned: Vec<u32> = x.iter().map(|x| *x as u32).collect();
    unsigned.sort_unstable();
    let got: Vec<u32> = Outside::new(PTX).run("radix_sort", BLOCK, &x, &[0u32; ALL], None);
    assert_eq!(got, unsigned);
    let mut floats: Vec<f32> = x.iter().map(|x| *x as f32 / 7.0).collect();
    let got: Vec<f32> = Outside::new(PTX).run("radix_sort_floats_down", BLOCK, &floats, &[0f32; ALL], None);
    floats.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(got, floats);
    x.sort_unstable();
    assert_eq!(run("merge_sort", BLOCK, ALL), x);
}

#[test]
fn histograms() {
    let x = numbers();
    let mut bins = vec![0; 32];
    x.iter().for_each(|x| bins[(*x as u32 % 32) as usize] += 1);
    for kernel in ["histogram_atomic", "histogram_sort"] {
        assert_eq!(run(kernel, BLOCK, 32), bins, "{kernel}");
    }
}

#[test]
fn neighbours_and_exchanges() {
    let x = numbers();
    let striped: Vec<i32> = (0..ALL).map(|i| x[i % 4 * 128 + i / 4]).collect();
    assert_eq!(run("exchange", BLOCK, ALL), striped);
    let scaled: Vec<i32> = (0..ALL).map(|i| 3 * if i < 333 { x[i] } else { -1 } + (i / 4) as i32).collect();
    assert_eq!(run("load_and_store", BLOCK, ALL), scaled);
    let heads: Vec<i32> = (0..ALL).map(|i| i32::from(i == 0 || x[i] & 1 != x[i - 1] & 1)).collect();
    assert_eq!(run("heads", BLOCK, ALL), heads);
    let differences: Vec<i32> = (0..ALL).map(|i| if i == 0 { x[0] } else { x[i] - x[i - 1] }).collect();
    assert_eq!(run("differences", BLOCK, ALL), differences);
    let moved: Vec<i32> = (0..ALL).map(|i| if i == 0 { -1 } else { x[i - 1] }).collect();
    assert_eq!(run("shuffle_up", BLOCK, ALL), moved);
}

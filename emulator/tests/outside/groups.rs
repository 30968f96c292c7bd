//! Cooperative groups, atomics of the C++ library, and blocks that wait for one another.

use super::Outside;
use crate::common::{Bench, Random};
use half::{bf16, f16};
use ptx_emulator::observe::Kind;
use ptx_emulator::race::{Race, RaceDetector};
use ptx_emulator::{Grid, Options, Space, Unwritten};

pub const PTX: &str = include_str!("groups.ptx");

fn numbers(count: usize) -> Vec<i32> {
    let mut random = Random(12);
    (0..count).map(|_| random.bits() as i32 % 500).collect()
}

fn run(kernel: &str, grid: Grid, output: &[i32], space: Option<&[u32]>) -> Vec<i32> {
    let threads = grid.blocks[0] * grid.threads[0];
    Outside::new(PTX).run(kernel, grid, &numbers(threads as usize), output, space)
}

#[test]
fn tiles_of_a_warp() {
    let (x, grid) = (numbers(64), Grid::linear(1, 64));
    let wanted: Vec<i32> = (0..64).map(|i| x[i / 8 * 8..i / 8 * 8 + 8].iter().sum()).collect();
    assert_eq!(run("tile_reduce", grid, &[0; 64], None), wanted);
    let wanted: Vec<i32> = (0..64).map(|i| x[i / 32 * 32..i].iter().sum()).collect();
    assert_eq!(run("tile_scan", grid, &[0; 64], None), wanted);
    let odd = |range: std::ops::Range<usize>| range.filter(|i| x[*i] & 1 == 1).count() as i32;
    let wanted: Vec<i32> = (0..64)
        .map(|i| {
            let warp = i / 32 * 32;
            if x[i] & 1 == 1 { odd(warp..i) + 100 * odd(warp..warp + 32) } else { -1 }
        })
        .collect();
    assert_eq!(run("coalesced", grid, &[0; 64], None), wanted);
    let wanted: Vec<i32> = (0..64)
        .map(|i| {
            let warp = &x[i / 32 * 32..i / 32 * 32 + 32];
            *warp.iter().filter(|other| **other & 3 == x[i] & 3).max().unwrap()
        })
        .collect();
    assert_eq!(run("labels", grid, &[0; 64], None), wanted);
}

#[test]
fn a_barrier_of_the_grid() {
    let (blocks, threads) = (5, 64);
    let n = blocks * threads;
    let x = numbers(n);
    let next = |i: usize| x[(i + threads) % n];
    let wanted: Vec<i32> = (0..n).map(|i| 3 * next((i + threads) % n) + 1 - next(i)).collect();
    let space = vec![0; n];
    assert_eq!(run("grid_ring", Grid::linear(blocks as u32, threads as u32), &vec![0; n], Some(&space)), wanted);
}

#[test]
fn atomics() {
    let x = numbers(192);
    let sums = [x.iter().sum::<i32>(), *x.iter().max().unwrap()];
    assert_eq!(run("atomic_sum", Grid::linear(3, 64), &[0, i32::MIN], None), sums);
    // Small integers, so that every order of summation gives the same in every format.
    let x: Vec<f32> = numbers(64).iter().map(|x| (x % 3) as f32).collect();
    let sum: f32 = x.iter().sum();
    let out: Vec<u32> = Outside::new(PTX).run("atomic_floats", Grid::linear(1, 64), &x, &[0u32; 5], None);
    assert_eq!(out[0], sum.to_bits());
    assert_eq!(u64::from(out[3]) << 32 | u64::from(out[2]), f64::from(sum).to_bits());
    assert_eq!(out[4], u32::from(f16::from_f32(sum).to_bits()) * 0x1_0001);
    let mut module = Outside::new(PTX);
    let (out, races) = module.run_watched("atomic_brain_floats", Grid::linear(1, 64), &x, &[0u32; 1], None);
    assert_eq!(out, [u32::from(bf16::from_f32(sum).to_bits()) * 0x1_0001]);
    let kinds: Vec<_> = races.iter().map(|race| (race.first.opcode.as_str(), race.second.opcode.as_str())).collect();
    assert_eq!(kinds, [("ld.global.u32", "atom.global.cas.b32")]);
}

#[test]
fn a_barrier_in_shared_memory() {
    let (x, grid) = (numbers(128), Grid::linear(1, 128));
    let wanted: Vec<i32> = (0..128).map(|i| (1..=3).map(|r| x[(i + 33 * r) % 128] * r as i32).sum()).collect();
    assert_eq!(run("block_barrier", grid, &[0; 128], None), wanted);
}

#[test]
fn what_threads_print_and_insist_on() {
    let mut bench = Bench::new(PTX);
    let mut x = vec![-5i32; 32];
    x[19] = 12345;
    let (input, out) = (bench.put(&x), bench.put(&[0i32; 32]));
    let launch = |bench: &mut Bench, kernel: &str| {
        let args = [input.into(), out.into()];
        bench.gpu.launch(&bench.module, kernel, Grid::linear(1, 32), &args, Options::default())
    };
    // By C's printf, of the host.
    let wanted = "-5|    3|fffffffb|-000.625|-5.000000e+05|-5e-07|ctext%|-1099511627776\n\
                  12345|   19|3039|1543.125|1.234500e+09|0.0012345|ctext%|-1099511627776\n";
    assert_eq!(launch(&mut bench, "says").unwrap().printed, wanted);
    assert_eq!(bench.get::<i32>(out)[0], 9);
    let error = launch(&mut bench, "insists").unwrap_err().to_string();
    assert!(
        error.ends_with("thread (19, 0, 0): groups.cu:42: insists: the assertion `in[i] <= 1000` failed"),
        "{error}"
    );
}

#[test]
fn blocks_that_wait_for_one_another() {
    let x = numbers(40 * 32);
    let wanted: Vec<i32> = (0..40).map(|i| x[i..40].iter().sum()).collect();
    assert_eq!(run("backwards", Grid::linear(40, 32), &[0; 40], Some(&[0; 41])), wanted);
    assert_eq!(run("lock", Grid::linear(40, 32), &[0], Some(&[0])), [x[..40].iter().sum::<i32>()]);
    let mut wanted: Vec<i32> = x[..4 * 32].iter().map(|x| 2 * x).collect();
    wanted.insert(0, wanted.iter().sum());
    assert_eq!(run("last_block", Grid::linear(4, 32), &[0; 129], Some(&[0])), wanted);
}

#[test]
fn calls_through_pointers_and_tables_of_branches() {
    let (x, grid) = (numbers(64), Grid::linear(1, 64));
    let wanted: Vec<i32> = x
        .iter()
        .map(|x| {
            let low = x & 0xff;
            [2 * low, low * low, -low][(*x as u32 % 3) as usize]
        })
        .collect();
    assert_eq!(run("pointers", grid, &[0; 64], None), wanted);
    let wanted: Vec<i32> = (0..64).map(|i| if x[i as usize] & 1 == 0 { i * i } else { 3 * i }).collect();
    assert_eq!(run("virtual_calls", grid, &[0; 64], None), wanted);
    let wanted: Vec<i32> = x
        .iter()
        .map(|x| match x & 7 {
            0 => x.count_ones() as i32,
            1 => x.leading_zeros() as i32,
            2 => x * 7,
            3 => x ^ 0x55,
            4 => x.reverse_bits(),
            5 => x / 3,
            6 => x % 11,
            _ => !x,
        })
        .collect();
    assert_eq!(run("table_of_branches", grid, &[0; 64], None), wanted);
}

/// Copies that arrive at barriers of the C++ library, and its pipelines, which are made of them.
#[test]
fn copies_that_arrive_at_a_barrier() {
    let run = |kernel: &str, threads: u32| {
        let mut bench = Bench::new(PTX);
        let (data, to) = (bench.put(&numbers(320)), bench.put(&vec![0i32; threads as usize]));
        let args = [data.into(), to.into()];
        let mut races = RaceDetector::new();
        let options = Options { unwritten: Unwritten::Follow, ..Options::default() };
        let grid = Grid::linear(1, threads);
        let report = bench.gpu.launch_watched(&bench.module, kernel, grid, &args, options, &mut races).unwrap();
        let lines = |race: &Race| (race.space, race.first.kind, race.second.kind);
        let found: Vec<_> = races.races().iter().map(lines).collect();
        let out = if report.unwritten.is_empty() { Some(bench.get::<i32>(to)) } else { None };
        (out, found)
    };
    let x = numbers(320);
    let wanted: Vec<i32> = (0..64).map(|i| x[255 - i] + x[i]).collect();
    assert_eq!(run("barrier_waits", 64), (Some(wanted), vec![]));
    let wanted: Vec<i32> =
        (0..64).map(|i| (0..5).map(|round| (round as i32 + 1) * x[64 * round + 63 - i]).sum()).collect();
    assert_eq!(run("pipeline_releases", 64), (Some(wanted), vec![]));
    // What was not waited for is unwritten, and a race.
    let (out, found) = run("barrier_does_not_wait", 64);
    assert!(out.is_none() && found.contains(&(Space::Shared, Kind::CopyWrite, Kind::Read)), "{found:?}");
    let (_, found) = run("pipeline_does_not_release", 64);
    assert!(found.contains(&(Space::Shared, Kind::Read, Kind::CopyWrite)), "{found:?}");
}

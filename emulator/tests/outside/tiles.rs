//! Matrices of `nvcuda::wmma`: products of small integers, which are exact in every type.

use crate::common::{Bench, Random};
use half::{bf16, f16};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, DevicePointer, Grid, Options, Report, Unwritten, Use};

pub const PTX: &str = include_str!("tiles.ptx");

/// The elements of a type: their width, and how a small integer is written and read.
struct Type {
    bits: usize,
    write: fn(i32) -> u64,
    read: fn(u64) -> f64,
}

const HALF: Type = Type {
    bits: 16,
    write: |x| u64::from(f16::from_f32(x as f32).to_bits()),
    read: |bits| f16::from_bits(bits as u16).to_f64(),
};
const BF16: Type = Type { bits: 16, write: |x| u64::from(bf16::from_f32(x as f32).to_bits()), read: |_| f64::NAN };
const SINGLE: Type =
    Type { bits: 32, write: |x| u64::from((x as f32).to_bits()), read: |bits| f64::from(f32::from_bits(bits as u32)) };
const DOUBLE: Type = Type { bits: 64, write: |x| f64::from(x).to_bits(), read: f64::from_bits };
const INTEGER: Type = Type { bits: 32, write: |x| x as u64, read: |bits| f64::from(bits as i32) };
const BYTE: Type = Type { bits: 8, write: |x| x as u64, read: |_| f64::NAN };
const UNSIGNED: Type = Type { bits: 8, write: |x| x.unsigned_abs().into(), read: |_| f64::NAN };
const NIBBLE: Type = Type { bits: 4, write: |x| x as u64, read: |_| f64::NAN };
const BIT: Type = Type { bits: 1, write: |x| u64::from(x & 1 == 1), read: |_| f64::NAN };

impl Type {
    fn bytes(&self, numbers: impl Iterator<Item = i32>) -> Vec<u8> {
        let mut bits = vec![];
        for number in numbers {
            let value = (self.write)(number);
            bits.extend((0..self.bits).map(|at| value >> at & 1 == 1));
        }
        bits.chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |all, (at, bit)| all | u8::from(*bit) << at))
            .collect()
    }
}

/// A kernel, its shape, the types of factors and sums, and whether X and Y lie by rows.
struct Case(&'static str, [usize; 3], Type, Type, [bool; 2]);

impl Case {
    /// The integers of a matrix, as the type knows them.
    fn matrix(&self, seed: u64, kind: &Type, rows: usize, columns: usize) -> Vec<Vec<i32>> {
        let mut random = Random(seed);
        let known = |x: i32| match kind.bits {
            1 => x & 1,
            8 if (kind.write)(-1) == 1 => x.abs(),
            _ => x,
        };
        (0..rows).map(|_| (0..columns).map(|_| known((random.bits() % 7) as i32 - 3)).collect()).collect()
    }

    fn run(&self, text: &str, written: impl Fn(usize) -> usize) -> (Bench, DevicePointer, Report, RaceDetector) {
        let Self(kernel, [m, n, k], factor, sum, by_rows) = self;
        let in_order = |matrix: Vec<Vec<i32>>, by_rows: bool| -> Vec<i32> {
            let columns = matrix[0].len();
            match by_rows {
                true => matrix.concat(),
                false => (0..columns).flat_map(|column| matrix.iter().map(move |row| row[column])).collect(),
            }
        };
        let x = factor.bytes(in_order(self.matrix(1, factor, *m, *k), by_rows[0]).into_iter());
        let y = factor.bytes(in_order(self.matrix(2, factor, *k, *n), by_rows[1]).into_iter());
        let z = sum.bytes(in_order(self.matrix(3, sum, *m, *n), true).into_iter());
        let mut bench = Bench::new(text);
        let mut put = |data: &[u8], count: usize| {
            let place = bench.gpu.allocate(data.len() as u64).unwrap();
            bench.gpu.write(place, &data[..count]).unwrap();
            place
        };
        let out = put(&vec![0; m * n * sum.bits / 8], m * n * sum.bits / 8);
        let args: Vec<Arg> =
            vec![put(&x, written(x.len())).into(), put(&y, y.len()).into(), put(&z, z.len()).into(), out.into()];
        let options = Options { unwritten: Unwritten::Follow, ..Options::default() };
        let mut races = RaceDetector::new();
        let warp = Grid::linear(1, 32);
        let launched = bench.gpu.launch_watched(&bench.module, kernel, warp, &args, options, &mut races);
        let report = launched.unwrap_or_else(|error| panic!("{error}"));
        (bench, out, report, races)
    }
}

const ROWS: [bool; 2] = [true, true];
const MIXED: [bool; 2] = [true, false];
const OTHER: [bool; 2] = [false, true];

fn cases() -> Vec<Case> {
    vec![
        Case("half_float", [16, 16, 16], HALF, SINGLE, MIXED),
        Case("half_half", [16, 16, 16], HALF, HALF, OTHER),
        Case("wide_half", [8, 32, 16], HALF, SINGLE, ROWS),
        Case("tall_half", [32, 8, 16], HALF, SINGLE, [false, false]),
        Case("bf16_float", [16, 16, 16], BF16, SINGLE, ROWS),
        Case("wide_bf16", [8, 32, 16], BF16, SINGLE, OTHER),
        Case("tall_bf16", [32, 8, 16], BF16, SINGLE, MIXED),
        Case("bytes", [16, 16, 16], BYTE, INTEGER, MIXED),
        Case("wide_bytes", [8, 32, 16], UNSIGNED, INTEGER, OTHER),
        Case("tall_bytes", [32, 8, 16], BYTE, INTEGER, ROWS),
        Case("doubles", [8, 8, 4], DOUBLE, DOUBLE, MIXED),
        Case("tf32", [16, 16, 8], SINGLE, SINGLE, MIXED),
        Case("nibbles", [8, 8, 32], NIBBLE, INTEGER, MIXED),
        Case("single_bits", [8, 8, 128], BIT, INTEGER, MIXED),
    ]
}

#[test]
fn products_are_exact() {
    for case in cases() {
        let (bench, out, report, races) = case.run(PTX, |bytes| bytes);
        let Case(kernel, [m, n, k], factor, sum, _) = &case;
        assert!(report.unwritten.is_empty() && races.races().is_empty(), "{kernel}");
        let (x, y) = (case.matrix(1, factor, *m, *k), case.matrix(2, factor, *k, *n));
        let z = case.matrix(3, sum, *m, *n);
        let size = sum.bits / 8;
        let got = bench.gpu.read(out).unwrap();
        for (at, bytes) in got.chunks_exact(size).enumerate() {
            let (row, column) = (at / n, at % n);
            let wanted = 2 * ((0..*k).map(|k| x[row][k] * y[k][column]).sum::<i32>() + z[row][column]);
            let mut bits = [0; 8];
            bits[..size].copy_from_slice(bytes);
            assert_eq!((sum.read)(u64::from_le_bytes(bits)), f64::from(wanted), "{kernel}, row {row}, column {column}");
        }
    }
}

/// The tile is stored by some lanes and read by others.
#[test]
fn a_tile_that_is_read_too_early_is_a_race() {
    let text = PTX.replace("bar.warp.sync", "//");
    for case in cases().iter().take(11) {
        assert!(!case.run(&text, |bytes| bytes).3.races().is_empty(), "{}", case.0);
    }
}

/// Of unwritten bytes only what depends on them is unknown: a row, where X lies by rows.
#[test]
fn unwritten_elements_spoil_their_row() {
    for case in cases() {
        let Case(kernel, [m, n, k], factor, sum, by_rows) = &case;
        let row = k * factor.bits / 8;
        let (bench, out, report, _) = case.run(PTX, |bytes| bytes - row);
        assert!(report.unwritten.iter().any(|found| found.how == Use::Output), "{kernel}");
        if by_rows[0] {
            let size = sum.bits / 8;
            assert!(bench.gpu.read_bytes(out, ((m - 1) * n * size) as u64).is_ok(), "{kernel}");
            for column in 0..*n {
                let place = out.offset((((m - 1) * n + column) * size) as i64);
                assert!(bench.gpu.read_bytes(place, size as u64).is_err(), "{kernel}, column {column}");
            }
        }
    }
}

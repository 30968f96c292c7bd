//! Fragment layouts are bijections and match the manual's figures; `mma.sync` is the matrix product.

use crate::common::Random;
use ptx_emulator::numeric::NAN_F32;
use ptx_emulator::numeric::format::Half;
use ptx_emulator::numeric::fragment::*;
use ptx_emulator::numeric::mma::*;
use std::collections::HashSet;

/// All `(row, column)` of a layout.
fn positions(elements: usize, position: impl Fn(usize, usize) -> (usize, usize)) -> Vec<(usize, usize)> {
    (0..LANES).flat_map(|lane| (0..elements).map(move |element| (lane, element))).map(|(l, e)| position(l, e)).collect()
}

#[test]
fn layouts_are_bijections() {
    let covers = |list: Vec<(usize, usize)>, rows: usize, columns: usize| {
        let set: HashSet<_> = list.iter().copied().collect();
        assert_eq!((list.len(), set.len()), (rows * columns, rows * columns));
        assert!(set.iter().all(|(row, column)| *row < rows && *column < columns));
    };
    covers(positions(8, a_position), 16, 16);
    covers(positions(4, a_position), 16, 8);
    covers(positions(4, b_position), 16, 8);
    covers(positions(2, b_position), 8, 8);
    covers(positions(4, c_position), 16, 8);
    for transposed in [false, true] {
        covers(positions(2, |lane, element| ldmatrix_position(lane, element, transposed)), 8, 8);
    }
    let addresses: HashSet<usize> =
        (0..4).flat_map(|matrix| (0..8).map(move |row| ldmatrix_address_lane(matrix, row))).collect();
    assert_eq!(addresses, (0..LANES).collect());
}

#[test]
fn layouts_match_the_manuals_formulas() {
    for lane in 0..LANES {
        let (group, thread) = (lane >> 2, lane % 4);
        for i in 0..8 {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            let column = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
            assert_eq!(a_position(lane, i), (row, column), "a{i} of lane {lane}");
        }
        for i in 0..4 {
            let row = if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
            assert_eq!(b_position(lane, i), (row, group), "b{i} of lane {lane}");
            let row = if i < 2 { group } else { group + 8 };
            assert_eq!(c_position(lane, i), (row, thread * 2 + (i & 1)), "c{i} of lane {lane}");
        }
    }
}

/// Matrices as plain arrays, and their fragments built element by element.
struct Problem {
    half: Half,
    k: usize,
    a: Vec<Vec<u16>>,
    b: Vec<Vec<u16>>,
    c: Vec<Vec<f32>>,
}

impl Problem {
    /// Elements from a function of `(matrix, row, column)`.
    fn new(half: Half, k: usize, mut element: impl FnMut(char, usize, usize) -> f32) -> Problem {
        let mut matrix = |name, rows: usize, columns: usize| -> Vec<Vec<f32>> {
            (0..rows).map(|row| (0..columns).map(|column| element(name, row, column)).collect()).collect()
        };
        let (a, b, c) = (matrix('a', M, k), matrix('b', k, N), matrix('c', M, N));
        let narrow = |rows: Vec<Vec<f32>>| -> Vec<Vec<u16>> {
            rows.iter().map(|row| row.iter().map(|x| half.nearest(x.to_bits())).collect()).collect()
        };
        Problem { half, k, a: narrow(a), b: narrow(b), c }
    }

    fn random(half: Half, k: usize, random: &mut Random) -> Problem {
        Problem::new(half, k, |_, _, _| {
            let bits = random.bits();
            ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * 2f32.powi((bits % 5) as i32 - 2)
        })
    }

    /// The result as a matrix.
    fn multiply(&self, how: Summation) -> Vec<Vec<f32>> {
        let register =
            |matrix: &[Vec<u16>], position: fn(usize, usize) -> (usize, usize), register: usize| -> Register {
                std::array::from_fn(|lane| {
                    let element = |half: usize| {
                        let (row, column) = position(lane, 2 * register + half);
                        u32::from(matrix[row][column])
                    };
                    element(0) | element(1) << 16
                })
            };
        let a = |index| register(&self.a, a_position, index);
        let b = |index| register(&self.b, b_position, index);
        let c: [Register; 4] = std::array::from_fn(|index| {
            std::array::from_fn(|lane| {
                let (row, column) = c_position(lane, index);
                self.c[row][column].to_bits()
            })
        });
        let d = match self.k {
            16 => m16n8k16(self.half, &[a(0), a(1), a(2), a(3)], &[b(0), b(1)], &c, how),
            _ => m16n8k8(self.half, &[a(0), a(1)], &[b(0)], &c, how),
        };
        let mut result = vec![vec![0.0; N]; M];
        for lane in 0..LANES {
            for (index, register) in d.iter().enumerate() {
                let (row, column) = c_position(lane, index);
                result[row][column] = f32::from_bits(register[lane]);
            }
        }
        result
    }

    /// The products of one element of the result.
    fn products(&self, row: usize, column: usize) -> Vec<f64> {
        let value = |bits| f64::from(self.half.value(bits));
        (0..self.k).map(|k| value(self.a[row][k]) * value(self.b[k][column])).collect()
    }
}

const MODELS: [Summation; 4] = [
    Summation::Wide,
    Summation::Sequential,
    Summation::Aligned { terms: 8, extra_bits: 2 },
    Summation::Aligned { terms: 4, extra_bits: 0 },
];

#[test]
fn random_products_agree_with_the_naive_one() {
    let mut random = Random(14);
    for half in [Half::F16, Half::Bf16] {
        for k in [8, 16] {
            for _ in 0..10 {
                let problem = Problem::random(half, k, &mut random);
                for how in MODELS {
                    let result = problem.multiply(how);
                    for (row, column) in (0..M).flat_map(|row| (0..N).map(move |column| (row, column))) {
                        let products = problem.products(row, column);
                        let c = f64::from(problem.c[row][column]);
                        let exact = products.iter().sum::<f64>() + c;
                        let scale = products.iter().map(|x| x.abs()).sum::<f64>() + c.abs();
                        let actual = result[row][column];
                        match how {
                            Summation::Wide => assert_eq!(actual, exact as f32),
                            Summation::Sequential => {
                                let chain = products.iter().fold(c as f32, |sum, x| (*x as f32) + sum);
                                assert_eq!(actual, chain);
                            }
                            _ => assert!((f64::from(actual) - exact).abs() <= scale * 2f64.powi(-20), "{how:?}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn identities_reproduce_the_other_factor() {
    for half in [Half::F16, Half::Bf16] {
        for how in MODELS {
            // A is the identity: D = B + C, here with C = 0. Every element has its own value.
            let unit = |row, column| if row == column { 1.0 } else { 0.0 };
            let problem = Problem::new(half, 16, |name, row, column| match name {
                'a' => unit(row, column),
                'b' => (row * N + column) as f32,
                _ => 0.0,
            });
            let result = problem.multiply(how);
            assert!((0..M).all(|row| (0..N).all(|column| result[row][column] == (row * N + column) as f32)));
            // B is the identity (its upper half): D = A's left half.
            let problem = Problem::new(half, 16, |name, row, column| match name {
                'a' => (row * 16 + column) as f32,
                'b' => unit(row, column),
                _ => 0.0,
            });
            let result = problem.multiply(how);
            assert!((0..M).all(|row| (0..N).all(|column| result[row][column] == (row * 16 + column) as f32)));
            // No factors: D = C, every bit of it.
            let problem = Problem::new(half, 8, |name, row, column| match name {
                'c' => 0.1 * (row * N + column + 1) as f32,
                _ => 0.0,
            });
            assert_eq!(problem.multiply(how), problem.c);
        }
    }
}

#[test]
fn models_differ_where_they_should() {
    // 1 + 16 * 2^-25: every single addition is lost in f32, the wide sum is not.
    let problem = Problem::new(Half::Bf16, 16, |name, _, _| match name {
        'a' => 2f32.powi(-13),
        'b' => 2f32.powi(-12),
        _ => 1.0,
    });
    let first = |how| problem.multiply(how)[0][0];
    assert_eq!(first(Summation::Wide), 1.0 + 2f32.powi(-21));
    assert_eq!(first(Summation::Sequential), 1.0);
    // Two bits below the last place keep 2^-25 apart; a block of four then adds up to one unit, 2^-23.
    assert_eq!(first(Summation::Aligned { terms: 4, extra_bits: 2 }), 1.0 + 4.0 * 2f32.powi(-23));
    assert_eq!(first(Summation::Aligned { terms: 16, extra_bits: 2 }), 1.0 + 2f32.powi(-21));
    // A block of three is three quarters of a unit, and cut off, not rounded.
    assert_eq!(first(Summation::Aligned { terms: 3, extra_bits: 2 }), 1.0);
    // One bit below it loses them all; so do single terms, since the sum is cut off after each.
    assert_eq!(first(Summation::Aligned { terms: 16, extra_bits: 1 }), 1.0);
    assert_eq!(first(Summation::Aligned { terms: 1, extra_bits: 2 }), 1.0);
    assert_eq!(first(Summation::Aligned { terms: 0, extra_bits: 99 }), 1.0);
}

#[test]
fn infinities_and_nan_come_through_canonically() {
    for how in MODELS {
        let with = |a0: f32, b0: f32, c: f32| {
            let problem = Problem::new(Half::F16, 16, |name, row, column| match (name, row, column) {
                ('a', 0, 0) => a0,
                ('b', 0, 0) => b0,
                ('c', 0, 0) => c,
                _ => 0.0,
            });
            problem.multiply(how)[0][0].to_bits()
        };
        let inf = f32::INFINITY;
        assert_eq!(with(inf, 1.0, 0.0), inf.to_bits());
        assert_eq!(with(-1.0, 1.0, inf), inf.to_bits());
        assert_eq!(with(inf, 0.0, 0.0), NAN_F32);
        assert_eq!(with(inf, 1.0, -inf), NAN_F32);
        assert_eq!(with(1.0, 1.0, f32::from_bits(0xffc0_0001)), NAN_F32);
    }
}

#[test]
fn ldmatrix_feeds_the_fragments_of_mma() {
    // A 16x16 matrix by rows as four 8x8 matrices: upper left, lower left, upper right, lower right.
    let element = |row: usize, column: usize| (row * 16 + column) as u16;
    let block = |top: usize, left: usize| -> [[u16; 8]; 8] {
        std::array::from_fn(|row| std::array::from_fn(|column| element(top + row, left + column)))
    };
    let fits = |blocks: &[[[u16; 8]; 8]], transposed, position: fn(usize, usize) -> (usize, usize)| {
        for (register, rows) in blocks.iter().enumerate() {
            for (lane, bits) in ldmatrix(rows, transposed).into_iter().enumerate() {
                for half in 0..2 {
                    let (row, column) = position(lane, 2 * register + half);
                    assert_eq!((bits >> (16 * half)) as u16, element(row, column));
                }
            }
        }
    };
    fits(&[block(0, 0), block(8, 0), block(0, 8), block(8, 8)], false, a_position);
    // A 16x8 matrix B by rows needs .trans: upper and lower 8x8 matrix.
    fits(&[block(0, 0), block(8, 0)], true, b_position);
}

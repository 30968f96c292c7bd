//! The products against their definition, number by number.

use ndarray::{Array2, s};

use super::panels::pack;
use super::tiles::{dot_panels, dot_strip};
use super::*;
use crate::Real;
use crate::arithmetic::stored::Same;

/// Numbers of both signs over many binades, so that every change of the order shows.
fn noise<T: Real>(rows: usize, columns: usize, seed: u64) -> Array2<T> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0;
        T::from_f64(unit * f64::powi(2.0, (state >> 20) as i32 % 8))
    })
}

fn bits<T: Real>(y: &Array2<T>) -> Vec<u64> {
    y.iter().map(|&y| Real::to_f64(y).to_bits()).collect()
}

/// The definition of the order, word for word, and without any vector instruction.
fn in_lanes<T: Real>(a: &Array2<T>, b: &Array2<T>, lanes: usize) -> Array2<T> {
    Array2::from_shape_fn((a.nrows(), b.nrows()), |(m, n)| {
        let mut s = vec![T::zero(); lanes];
        for k in 0..a.ncols() {
            s[k % lanes] = a[[m, k]].mul_add(b[[n, k]], s[k % lanes]);
        }
        while s.len() > 1 {
            let upper = s.split_off(s.len() / 2);
            s.iter_mut().zip(upper).for_each(|(s, upper)| *s += upper);
        }
        s[0] + T::zero()
    })
}

fn in_sequence<T: Real>(a: &Array2<T>, b: &Array2<T>) -> Array2<T> {
    Array2::from_shape_fn((a.nrows(), b.ncols()), |(m, n)| {
        let sum = (0..a.ncols()).fold(T::zero(), |s, k| a[[m, k]].mul_add(b[[k, n]], s));
        sum + T::zero()
    })
}

const SHAPES: [[usize; 3]; 13] = [
    [1, 1, 1],
    [1, 16, 4],
    [1, 100, 7],
    [2, 33, 3],
    [3, 64, 5],
    [4, 520, 4],
    [8, 77, 5],
    [5, 17, 70],
    [6, 1100, 9],
    [13, 7, 66],
    [19, 48, 2],
    [17, 130, 600],
    [130, 1030, 50],
];

fn follows_the_definition<T: Real>(lanes: usize) {
    for [m, k, n] in SHAPES {
        let (a, b) = (noise::<T>(m, k, 1), noise::<T>(n, k, 2));
        assert_eq!(bits(&matmul_t(a.view(), b.view())), bits(&in_lanes(&a, &b, lanes)), "matmul_t {m} {k} {n}");
        let b = noise::<T>(k, n, 3);
        assert_eq!(bits(&matmul(a.view(), b.view())), bits(&in_sequence(&a, &b)), "matmul {m} {k} {n}");
    }
}

#[test]
fn both_products_follow_the_definition_bit_for_bit() {
    follows_the_definition::<f32>(16);
    follows_the_definition::<f64>(8);
}

/// The product through panels of R and of C rows.
fn through_panels<const R: usize, const C: usize>(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f32> {
    let (mut left, mut right, mut y) = (Vec::new(), Vec::new(), Array2::zeros((a.nrows(), b.nrows())));
    pack::<f32, Same, 16, R>(a.as_slice().unwrap(), a.ncols(), &mut left);
    pack::<f32, Same, 16, C>(b.as_slice().unwrap(), b.ncols(), &mut right);
    dot_panels::<f32, 16, R, C>(&left, &right, y.view_mut());
    y
}

#[test]
fn every_tile_without_vector_instructions_gives_the_dispatched_bits() {
    let (m, k, n) = (7, 1555, 11); // more than one chunk of K
    let (a, b) = (noise::<f32>(m, k, 4), noise::<f32>(n, k, 5));
    let dispatched = bits(&matmul_t(a.view(), b.view()));
    assert_eq!(bits(&through_panels::<2, 2>(&a, &b)), dispatched);
    assert_eq!(bits(&through_panels::<4, 6>(&a, &b)), dispatched);
    let mut y = Array2::zeros((m, n));
    for (rows, mut y) in a.as_slice().unwrap().chunks(3 * k).zip(y.axis_chunks_iter_mut(Axis(0), 3)) {
        dot_strip::<f32, Same, 16, 4, 1>(rows, b.as_slice().unwrap(), k, &mut y);
    }
    assert_eq!(bits(&y), dispatched);
}

#[test]
fn a_scratch_buffer_of_another_block_changes_nothing() {
    let (a, b) = (noise::<f32>(9, 70, 14), noise::<f32>(17, 70, 15));
    let rows = Rows::new(a.as_slice().unwrap(), 70);
    let (mut tile, mut y) = (Vec::new(), Array2::zeros((9, 1)));
    f32::dot_block(&rows, b.as_slice().unwrap(), &mut tile, Array2::zeros((9, 17)).view_mut());
    f32::dot_block(&rows, &b.as_slice().unwrap()[..70], &mut tile, y.view_mut());
    assert_eq!(bits(&y), bits(&matmul_t(a.view(), b.slice(s![..1, ..]))));
}

#[test]
fn products_are_close_to_the_sum_in_f64() {
    let (a, b) = (noise::<f32>(9, 700, 6), noise::<f32>(10, 700, 7));
    let y = matmul_t(a.view(), b.view());
    let z = matmul(a.view(), b.t());
    for ((m, n), &y) in y.indexed_iter() {
        let terms = a.row(m).iter().zip(b.row(n)).map(|(&a, &b)| f64::from(a) * f64::from(b)).collect::<Vec<_>>();
        let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
        assert!((f64::from(y) - sum).abs() <= 50.0 * size * f64::from(f32::EPSILON) / 2.0, "{y} {sum}");
        assert!((f64::from(z[[m, n]]) - sum).abs() <= 700.0 * size * f64::from(f32::EPSILON) / 2.0, "{y} {sum}");
    }
}

#[test]
fn rows_and_columns_do_not_depend_on_the_others() {
    let (a, b) = (noise::<f32>(23, 300, 8), noise::<f32>(150, 300, 9));
    let y = matmul_t(a.view(), b.view());
    let z = matmul(a.view(), b.t());
    for split in [1, 2, 3, 4, 5, 7, 16] {
        for start in (0..23).step_by(split) {
            let rows = s![start..23.min(start + split), ..];
            assert_eq!(matmul_t(a.slice(rows), b.view()), y.slice(rows));
            assert_eq!(matmul(a.slice(rows), b.t()), z.slice(rows));
        }
    }
    let columns = s![37..150;3, ..];
    assert_eq!(matmul_t(a.view(), b.slice(columns)), y.slice(s![.., 37..150;3]));
    assert_eq!(matmul(a.view(), b.slice(columns).t()), z.slice(s![.., 37..150;3]));
}

fn zeros_change_nothing<T: Real>(tiny: f64) {
    for k in [1, 15, 16, 40, 511, 512, 513, 1024] {
        let (mut a, mut b) = (noise::<T>(5, k, 10), noise::<T>(6, k, 11));
        a.row_mut(0).fill(T::from_f64(-tiny)); // all products underflow to -0
        b.row_mut(0).fill(T::from_f64(tiny));
        let padded = |x: &Array2<T>, zeros| {
            let mut y = Array2::zeros((x.nrows(), x.ncols() + zeros));
            y.slice_mut(s![.., ..x.ncols()]).assign(x);
            y
        };
        let (y, z) = (matmul_t(a.view(), b.view()), matmul(a.view(), b.t()));
        for zeros in [1, 7, 16, 100, 600] {
            let (a, b) = (padded(&a, zeros), padded(&b, zeros));
            assert_eq!(bits(&matmul_t(a.view(), b.view())), bits(&y));
            assert_eq!(bits(&matmul(a.view(), b.t())), bits(&z));
        }
    }
}

#[test]
fn zeros_appended_to_the_sum_change_nothing() {
    zeros_change_nothing::<f32>(1e-30);
    zeros_change_nothing::<f64>(1e-200);
}

#[test]
fn multiplication_and_addition_are_rounded_once() {
    let x = 1.0 + f32::EPSILON; // x² = 1 + 2ε + ε², and -x² rounds to -1 - 2ε
    let (mut a, mut b) = (Array2::zeros((1, 33)), Array2::zeros((1, 33)));
    (a[[0, 0]], b[[0, 0]]) = (x, -x);
    (a[[0, 16]], b[[0, 16]]) = (x, x);
    assert_eq!(matmul_t(a.view(), b.view())[[0, 0]], f32::EPSILON * f32::EPSILON);
    assert_eq!(matmul(a.view(), b.t())[[0, 0]], f32::EPSILON * f32::EPSILON);
}

#[test]
fn integers_are_exact_for_any_strides() {
    let whole = |rows, columns, step: usize| {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * step + j * 7) % 19) as f64 - 9.0)
    };
    let (a, b) = (whole(40, 50, 3), whole(30, 100, 5));
    let (a, b) = (a.slice(s![1..;3, ..;-1]), b.slice(s![..;-2, 3..;2]));
    let b = b.slice(s![.., ..48]);
    let a = a.slice(s![.., 2..]);
    let expected = Array2::from_shape_fn((a.nrows(), b.nrows()), |(m, n)| {
        a.row(m).iter().zip(b.row(n)).map(|(a, b)| a * b).sum::<f64>()
    });
    assert_eq!(matmul_t(a, b), expected);
    assert_eq!(matmul(a, b.t()), expected);
    assert_eq!(matmul(a, b.t().as_standard_layout().view()), expected);
    assert_eq!(matmul_t(b, a), expected.t());
}

#[test]
fn empty_products_are_empty_or_zero() {
    for [m, k, n] in [[0, 3, 4], [2, 0, 4], [2, 3, 0], [0, 0, 0]] {
        let (a, b) = (noise::<f32>(m, k, 12), noise::<f32>(n, k, 13));
        assert_eq!(matmul_t(a.view(), b.view()), Array2::<f32>::zeros((m, n)));
        assert_eq!(matmul(a.view(), b.t()), Array2::<f32>::zeros((m, n)));
    }
}

//! Laws of the rotary embedding.

use dsv2_reference::model::rope::{RotaryTables, softmax_scale};
use dsv2_reference::weights::generator::splitmix64;
use dsv2_reference::{Dialect, ModelInput, Tokens};
use dsv2_testing::for_all;
use ndarray::{Array2, Array3, Array4, s};
use proptest::prelude::*;

use crate::models::{Played, Program, Step, Tiny, fed, feed_input, reference, rotates_no_key, tiny};

/// Which of the two vectors of a score is turned.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    Query,
    Key,
}

/// Turns the pairs of a vector: pair i by `position * theta[i]`.
type Rotate = dyn Fn(Role, &[f64], &[f64], f64) -> Vec<f64>;

/// The reference's rotation, by angles in f64. (Its own angles are fp32, as everybody's; see [`rope`](dsv2_reference::model::rope).)
fn rotate(_: Role, x: &[f64], theta: &[f64], position: f64) -> Vec<f64> {
    let angles = Array3::from_shape_fn((1, 1, theta.len()), |(_, _, i)| position * theta[i]);
    let tables = RotaryTables { cos: angles.mapv(f64::cos), sin: angles.mapv(f64::sin) };
    let mut x = Array4::from_shape_vec((1, 1, 1, x.len()), x.to_vec()).expect("one vector");
    tables.rotate(&mut x);
    x.into_raw_vec_and_offset().0
}

/// Llama's layout: pair i is (i, i + r/2).
fn rotate_halves(role: Role, x: &[f64], theta: &[f64], position: f64) -> Vec<f64> {
    let half = theta.len();
    let pairs: Vec<f64> = (0..half).flat_map(|i| [x[i], x[i + half]]).collect();
    let turned = rotate(role, &pairs, theta, position);
    (0..2 * half).map(|i| turned[2 * (i % half) + i / half]).collect()
}

fn vector(seed: u64, half: usize) -> Vec<f64> {
    (0..2 * half as u64).map(|i| splitmix64(100 * seed + i) as f64 / 1e19 - 0.9).collect()
}

/// theta_i = base^(-i / half).
fn thetas(base: u32, half: usize) -> Vec<f64> {
    (0..half).map(|i| f64::from(base).powf(-(i as f64) / half as f64)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn bases() -> impl Strategy<Value = u32> {
    prop_oneof![Just(10_u32), Just(10_000)]
}

#[test]
fn scores_depend_on_the_difference_of_positions() {
    // The angle is rounded in f64, so the error grows with the position: 0.3 times the bound at worst of 1500 cases.
    let law = |rotate: &Rotate, (half, base, seed, i, j, shift): (usize, u32, u64, u32, u32, u32)| {
        let (theta, q, k) = (thetas(base, half), vector(seed, half), vector(seed + 1, half));
        let score = |i: u32, j: u32| {
            dot(&rotate(Role::Query, &q, &theta, f64::from(i)), &rotate(Role::Key, &k, &theta, f64::from(j)))
        };
        let difference = (score(i + shift, j + shift) - score(i, j)).abs();
        let bound = 1e-16 * f64::from(10 + i + j + shift) * (dot(&q, &q) * dot(&k, &k)).sqrt();
        prop_assert!(difference <= bound, "{difference:e} > {bound:e}");
        Ok(())
    };
    let shifts = prop_oneof![1..10_u32, 1000..100_000_u32];
    for_all((1..=4_usize, bases(), 0..1000_u64, 0..50_u32, 0..50_u32, shifts), law)
        .holds_for(&rotate)
        .holds_for(&rotate_halves) // whatever the pairs are, if both have the same
        .fails_for("queries have neighbours as pairs, keys have halves", &|role, x, theta, position| {
            // a checkpoint of the one layout in a program of the other (vllm#26995)
            if role == Role::Key { rotate_halves(role, x, theta, position) } else { rotate(role, x, theta, position) }
        })
        .fails_for("keys are turned backwards", &|role, x, theta, position| {
            rotate(role, x, theta, if role == Role::Key { -position } else { position })
        })
        .fails_for("only queries are turned", &|role, x, theta, position| {
            rotate(role, x, theta, if role == Role::Key { 0.0 } else { position })
        })
        .fails_for("the embedding of a position is added", &|_, x, theta, position| {
            x.iter().enumerate().map(|(i, x)| x + (position * theta[i / 2]).sin()).collect()
        });
}

#[test]
fn a_rotation_keeps_the_length_of_each_pair() {
    // Worst case of 1500: 4.3e-16.
    let law = |rotate: &Rotate, (half, base, seed, position): (usize, u32, u64, u32)| {
        let x = vector(seed, half);
        let turned = rotate(Role::Query, &x, &thetas(base, half), f64::from(position));
        for (x, turned) in x.as_chunks::<2>().0.iter().zip(turned.as_chunks::<2>().0) {
            let (before, after) = (x[0].hypot(x[1]), turned[0].hypot(turned[1]));
            prop_assert!((before - after).abs() <= 2e-15 * before, "{before} {after}");
        }
        Ok(())
    };
    for_all((1..=4_usize, bases(), 0..1000_u64, 0..100_000_u32), law)
        .holds_for(&rotate)
        .fails_for("the length factor is on cosine and sine as well", &|role, x, theta, position| {
            // kekzl/imp#880: 1.261 twice
            rotate(role, x, theta, position).iter().map(|x| 1.2608 * x).collect()
        })
        .fails_for("pairs are halves", &rotate_halves)
        .fails_for("the second of a pair is computed from the new first", &|_, x, theta, position| {
            let mut x = x.to_vec();
            for (pair, theta) in x.as_chunks_mut::<2>().0.iter_mut().zip(theta) {
                let (sin, cos) = (position * theta).sin_cos();
                pair[0] = pair[0] * cos - pair[1] * sin;
                pair[1] = pair[0] * sin + pair[1] * cos;
            }
            x
        });
}

#[test]
fn rotations_add_up() {
    // Worst case of 1500: 0.13 times the bound.
    let law = |rotate: &Rotate, (half, seed, a, b): (usize, u64, u32, u32)| {
        let (theta, x) = (thetas(10_000, half), vector(seed, half));
        let turn = |x: &[f64], position: u32| rotate(Role::Query, x, &theta, f64::from(position));
        prop_assert_eq!(turn(&x, 0), x.clone());
        for (twice, once) in turn(&turn(&x, a), b).iter().zip(turn(&x, a + b)) {
            let bound = 1e-16 * f64::from(10 + a + b) * dot(&x, &x).sqrt();
            prop_assert!((twice - once).abs() <= bound, "{twice} {once}");
        }
        Ok(())
    };
    for_all((1..=4_usize, 0..1000_u64, 0..1000_u32, 0..1000_u32), law)
        .tried(64)
        .holds_for(&rotate)
        .fails_for("positions begin at 1", &|role, x, theta, position| rotate(role, x, theta, position + 1.0))
        .fails_for("cosine and sine are exchanged", &|role, x, theta, position| {
            let quarter: Vec<f64> = x.as_chunks::<2>().0.iter().flat_map(|&[a, b]| [-b, a]).collect();
            rotate(role, &quarter, theta, -position)
        });
}

/// Feeds a prompt whose first token has this position.
fn from_position(tiny: &Tiny, start: i64, length: usize) -> [Step; 1] {
    [feed_input(ModelInput {
        tokens: Tokens::InputIds(tiny.ids(1, length)),
        attention_mask: None,
        position_ids: Some(Array2::from_shape_fn((1, length), |(_, s)| start + s as i64)),
    })]
}

#[test]
fn a_models_scores_depend_on_differences_up_to_the_rounding_of_angles_to_fp32() {
    // A position p turns by an angle of at most p, exactly for theta_0 = 1, and for the others, which are 0.1 or less,
    // with an error of 2^-24 p theta. Worst case of 1500: 0.13 times the bound.
    let law = |program: &Program, (tiny, length, shift): (Tiny, usize, u32)| {
        let attention =
            |played: &Played, name: &str| -> Array4<f64> { played.stage(&format!("model.layers.0.self_attn.{name}")) };
        let near = program(&tiny, &from_position(&tiny, 0, length));
        let far = program(&tiny, &from_position(&tiny, i64::from(shift), length));
        let (q, k) = (attention(&near, "q_pe"), attention(&near, "k_pe"));
        let scale = softmax_scale(&tiny.config(), Dialect::Hf).unwrap();
        for ((at, a), b) in attention(&near, "attn_scores").indexed_iter().zip(&attention(&far, "attn_scores")) {
            let (_, h, i, j) = at;
            let (q, k) = (q.slice(s![0, h, i, ..]).to_vec(), k.slice(s![0, 0, j, ..]).to_vec());
            let angle = 0.4 * f64::from(shift + 8) / f64::from(1 << 24);
            let bound = scale * (dot(&q, &q) * dot(&k, &k)).sqrt() * angle + 1e-13;
            prop_assert!(a == b || (a - b).abs() <= bound, "{at:?}: {a} {b}, bound {bound:e}");
        }
        Ok(())
    };
    let wraps = |_: usize, input: &mut ModelInput<f64>| {
        input.position_ids = input.position_ids.as_ref().map(|positions| positions.mapv(|p| p % 64));
    };
    for_all((tiny(), 2..=4_usize, 1..100_000_u32), law)
        .tried(96)
        .holds_for(&reference)
        .fails_for("positions wrap around", &fed(wraps))
        .fails_for("keys are not turned", &rotates_no_key);
}

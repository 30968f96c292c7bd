//! The merge of two partial attentions: of all sizes, one or both of them empty, into new memory and over the first.

use std::sync::Arc;

use dsv2_optimized::operators::merge::merge;
use dsv2_optimized::{Device, Element, Result, Variant};
use dsv2_reference::Real;
use ndarray::{Array1, Array2};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (rows, width) in [(9, 1), (10, 10), (6, 27), (7, 128), (5, 520)] {
        for (element, variant) in KINDS {
            for in_place in [false, true] {
                let place = if in_place { "/in_place" } else { "" };
                cases.push(Case {
                    name: format!("merge/{variant}/{element}/rows={rows},width={width}{place}"),
                    module: "merge",
                    watched: true,
                    run: Box::new(move |device| judge(device, variant, element, [rows, width], in_place)),
                });
            }
        }
    }
    cases
}

/// A partial attention; some rows are empty.
fn partial(name: &str, [rows, width]: [usize; 2], empty: impl Fn(usize) -> bool) -> (Array2<f32>, Array1<f32>) {
    let mut out = random(name, [rows, width], 1.0);
    let mut lse = random(&format!("{name} lse"), [rows], 2.0) + 7.0;
    for row in (0..rows).filter(|row| empty(*row)) {
        out.row_mut(row).fill(0.0);
        lse[row] = f32::NEG_INFINITY;
    }
    (out, lse)
}

fn judge(
    device: &Arc<dyn Device>,
    variant: Variant,
    element: Element,
    shape: [usize; 2],
    in_place: bool,
) -> Result<Vec<Output>> {
    // Row 0 is empty in both, rows 1 and 3 in one of them.
    let a = partial("a", shape, |row| row == 0 || row == 1);
    let b = partial("b", shape, |row| row == 0 || row == 3);
    let (out_a, lse_a) = (upload(device, element, &a.0)?, upload(device, Element::F32, &a.1)?);
    let (out_b, lse_b) = (upload(device, element, &b.0)?, upload(device, Element::F32, &b.1)?);
    let (out, lse) = if in_place {
        (out_a.clone(), lse_a.clone())
    } else {
        (output(device, element, &shape)?, output(device, Element::F32, &shape[..1])?)
    };
    merge(variant, &out_a, &lse_a, &out_b, &lse_b, &out, &lse)?;
    let (true_out, true_lse) = formula::<f64>(&a, &b);
    let (plain_out, plain_lse) = formula::<f32>(&a, &b);
    Ok(vec![
        Output::near("out", &out, true_out, plain_out.mapv(|x| round(x.into(), element)))?,
        Output::near("lse", &lse, true_lse, plain_lse.mapv(f64::from))?,
    ])
}

fn formula<T: Real>(a: &(Array2<f32>, Array1<f32>), b: &(Array2<f32>, Array1<f32>)) -> (Array2<T>, Array1<T>) {
    let widen = |x: f32| T::from_f32(x);
    let none = T::neg_infinity();
    let lse = Array1::from_shape_fn(a.1.len(), |row| {
        let (a, b) = (widen(a.1[row]), widen(b.1[row]));
        let max = a.max(b);
        if max == none { none } else { max + ((a - max).exp() + (b - max).exp()).ln() }
    });
    let share = |part: f32, row: usize| if lse[row] == none { T::zero() } else { (widen(part) - lse[row]).exp() };
    let out = Array2::from_shape_fn(a.0.dim(), |(row, column)| {
        let at = [row, column];
        share(a.1[row], row) * widen(a.0[at]) + share(b.1[row], row) * widen(b.0[at])
    });
    (out, lse)
}

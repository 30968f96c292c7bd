//! The sum over a token's experts: with and without shared experts, with experts that dropped the token, odd widths.

use std::sync::Arc;

use dsv2_optimized::operators::combine::{combine, combine_add_rms_norm};
use dsv2_optimized::operators::rms_norm::add_rms_norm;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use ndarray::Array2;

use crate::dispatch::{How, indices, sorted};
use crate::harness::{Case, KINDS, Output, output, random, round, upload};
use crate::router::refused;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, experts, k, how, width, shared) in [
        (3, 5, 2, How::Mixed, 16, true),
        (1, 1, 1, How::Mixed, 1, false),
        (5, 4, 3, How::WithDropped, 37, true),
        (4, 7, 6, How::Mixed, 24, false),
        (2, 64, 40, How::Mixed, 10, true),
        (0, 4, 2, How::Mixed, 8, true),
        (257, 9, 3, How::OneExpert, 20, true),
        (3, 64, 6, How::Mixed, 2048, true),
        (2, 160, 6, How::WithDropped, 5120, false),
    ] {
        for (element, variant) in KINDS {
            let input = Input { tokens, experts, k, how, width, shared, element, variant };
            let shape = format!("tokens={tokens},k={k},{how:?},width={width},shared={shared}");
            cases.push(Case {
                name: format!("combine/{variant}/{element}/{shape}"),
                module: "combine",
                watched: tokens * width * k <= 600,
                run: Box::new(move |device| input.run(device)),
            });
        }
    }
    cases.push(Case { name: "combine/misfits".into(), module: "combine", watched: false, run: Box::new(misfits) });
    cases
}

/// Large, so that a missing epsilon shows.
const EPS: f32 = 1e-2;

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    experts: usize,
    k: usize,
    how: How,
    width: usize,
    shared: bool,
    element: Element,
    variant: Variant,
}

impl Input {
    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let Input { tokens, k, width, element, .. } = *self;
        let [offsets, _, places] = sorted(&indices(self.how, tokens, self.experts, k), self.experts);
        let rows = random("rows", [tokens * k, width], 1.0);
        let weights = random("weights", [tokens, k], 1.0);
        let shared = self.shared.then(|| random("shared", [tokens, width], 1.0));

        // Rows that no expert wrote are not read.
        let written = *offsets.last().expect("an offset") as usize;
        let uploaded = Tensor::empty(device, element, &[tokens * k, width])?;
        let bytes = upload(device, element, &rows)?;
        device.copy(bytes.address(), uploaded.address(), written * width * element.bytes())?;
        let table = Tensor::from_i32(device, &[places.len()], &places)?;
        let of_shared = shared.as_ref().map(|shared| upload(device, element, shared)).transpose()?;
        let of_weights = upload(device, Element::F32, &weights)?;
        let run = || -> Result<Tensor> {
            let out = output(device, element, &[tokens, width])?;
            combine(self.variant, &uploaded, &table, &of_weights, of_shared.as_ref(), &out)?;
            Ok(out)
        };

        // Each token's terms by rising expert.
        let terms = |token: usize, column: usize| -> Vec<[f32; 2]> {
            let mut terms: Vec<usize> = (0..k).filter(|j| places[token * k + j] >= 0).collect();
            terms.sort_by_key(|j| places[token * k + j]);
            let of_expert = |j| [weights[[token, j]], rows[[places[token * k + j] as usize, column]]];
            terms.into_iter().map(of_expert).collect()
        };
        let shared_at = |at: (usize, usize)| shared.as_ref().map_or(0.0, |shared| shared[at]);
        // Rounded, the shared row added, rounded.
        let stored = |sum: f32, at: (usize, usize)| match &shared {
            Some(_) => round(f64::from(round(sum.into(), element) as f32 + shared_at(at)), element),
            None => round(sum.into(), element),
        };
        let truth = Array2::from_shape_fn((tokens, width), |(token, column)| -> f64 {
            let sum: f64 = terms(token, column).iter().map(|[a, b]| f64::from(*a) * f64::from(*b)).sum();
            sum + f64::from(shared_at((token, column)))
        });
        let plain = Array2::from_shape_fn((tokens, width), |(token, column)| {
            stored(terms(token, column).iter().fold(0.0, |sum: f32, [a, b]| sum + a * b), (token, column))
        });
        // In just this order, each product added without a rounding of its own.
        let expected = Array2::from_shape_fn((tokens, width), |(token, column)| {
            stored(terms(token, column).iter().fold(0.0, |sum: f32, [a, b]| a.mul_add(*b, sum)), (token, column))
        });
        let found = run()?;
        let mut outputs =
            vec![Output::near("out", &found, truth, plain)?, Output::exactly("order of the sum", &run()?, expected)?];

        // With the addition and the norm behind it: what the operators make one after the other.
        let stream = upload(device, element, &random("residual", [tokens, width], 1.0))?;
        let gain = upload(device, element, &random("gain", [width], 0.3))?;
        let room = || output(device, element, &[tokens, width]);
        let [h, y, both_h, both_y] = [room()?, room()?, room()?, room()?];
        add_rms_norm(self.variant, &found, &stream, &gain, EPS, &h, &y)?;
        combine_add_rms_norm(
            self.variant,
            &uploaded,
            &table,
            &of_weights,
            of_shared.as_ref(),
            &stream,
            &gain,
            EPS,
            &both_h,
            &both_y,
        )?;
        outputs.push(Output::same("h", &both_h, &h)?);
        outputs.push(Output::same("y", &both_y, &y)?);
        Ok(outputs)
    }
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let (rows, weights, out) = (real(&[6, 8])?, real(&[2, 3])?, real(&[2, 8])?);
    let places = Tensor::empty(device, Element::I32, &[6])?;
    for variant in Variant::ALL {
        let run = |rows: &Tensor, weights: &Tensor, shared: &Tensor, out: &Tensor| {
            combine(variant, rows, &places, weights, Some(shared), out)
        };
        refused(run(&real(&[5, 8])?, &weights, &out, &out), "combine: rows: expected the shape [6, 8], found [5, 8]")?;
        refused(run(&rows, &weights, &rows, &out), "combine: shared: expected the shape [2, 8], found [6, 8]")?;
        refused(run(&rows, &weights, &out, &rows), "combine: out: expected the shape [2, 8], found [6, 8]")?;
        refused(run(&rows, &real(&[1, 1025])?, &out, &out), "combine: weights: expected at most 1024 for each token")?;
        refused(
            run(&real(&[8, 8])?, &real(&[2, 4])?, &out, &out),
            "combine: places: expected the shape [8], found [6]",
        )?;
    }
    Ok(vec![])
}

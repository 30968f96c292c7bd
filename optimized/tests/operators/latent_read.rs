//! Reading the paged cache back: permuted pages, sequences of different lengths, garbage behind the end of the block table,
//! NaN in unused places. And the scores of the absorbed form, for traces.

use std::sync::Arc;

use dsv2_optimized::operators::latent_read::{
    Pages, absorbed_scores, latent_cache_read, score_weights, weighted_values,
};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use ndarray::{Array3, Array4, s};

use crate::attention::{attend, bias};
use crate::harness::{Case, Output, output, random, round, upload};

/// What stands in the block table where there is no page.
const GARBAGE: i32 = 2_147_480_000;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // (page size, lengths, c, r)
    let shapes: [(usize, &[usize], usize, usize); 5] = [
        (1, &[3, 0, 2], 12, 4),
        (4, &[9, 4, 1], 10, 2),
        (16, &[17], 512, 64),
        (64, &[70, 0, 64], 24, 8),
        (128, &[130], 33, 6),
    ];
    for element in [Element::F32, Element::Bf16] {
        for (page_size, lengths, latent, rope) in shapes {
            let input = Input { page_size, lengths, latent, rope, element };
            let shape = format!("page={page_size},lengths={lengths:?},c={latent},r={rope}");
            let watched = lengths.iter().sum::<usize>() < 20;
            for variant in Variant::ALL {
                cases.push(Case {
                    name: format!("latent_cache_read/{variant}/{element}/{shape}"),
                    module: "latent_read",
                    watched,
                    run: Box::new(move |device| input.read(device, variant)),
                });
            }
            for masked in [false, true] {
                cases.push(Case {
                    name: format!("absorbed_scores/naive/{element}/{shape},masked={masked}"),
                    module: "latent_read",
                    watched,
                    run: Box::new(move |device| input.scores(device, masked)),
                });
            }
        }
        for shared in [false, true] {
            cases.push(Case {
                name: format!("weighted_values/naive/{element}/shared={shared}"),
                module: "latent_read",
                watched: true,
                run: Box::new(move |device| weigh(device, element, shared)),
            });
        }
    }
    // A context beyond 64 K: numbers of keys, places and bytes that 16 bits do not hold.
    for element in [Element::F32, Element::Bf16] {
        let input = Input { page_size: 16, lengths: &[65_700], latent: 12, rope: 4, element };
        for variant in Variant::ALL {
            cases.push(Case {
                name: format!("latent_cache_read/{variant}/{element}/page=16,lengths=[65700],c=12,r=4"),
                module: "latent_read",
                watched: false,
                run: Box::new(move |device| input.read(device, variant)),
            });
        }
    }
    cases
}

/// Values that are a slice of a larger tensor, of each head or of all.
fn weigh(device: &Arc<dyn Device>, element: Element, shared: bool) -> Result<Vec<Output>> {
    let (batch, heads, new, keys, width) = (2, 3, 2, 70, 5);
    let weights = random("weights", [batch, heads, new, keys], 0.3);
    let whole = random("values", [batch, keys, heads, width + 2], 1.0);
    let values = upload(device, element, &whole)?.narrow(3, 2..width + 2)?;
    let values = if shared { values.permute(&[2, 0, 1, 3])?.narrow(0, 1..2)? } else { values };
    let values = if shared { values.index(0, 0)? } else { values };
    let out = output(device, element, &[batch, new, heads, width])?;
    weighted_values(&upload(device, element, &weights)?, &values, &out)?;
    let sum = |[b, s, h, i]: [usize; 4]| -> f64 {
        let of = if shared { 1 } else { h };
        (0..keys).map(|t| f64::from(weights[[b, h, s, t]]) * f64::from(whole[[b, t, of, i + 2]])).sum()
    };
    let truth = Array4::from_shape_fn([batch, new, heads, width], |(b, s, h, i)| sum([b, s, h, i]));
    let plain = truth.mapv(|x| round(x, element));
    Ok(vec![Output::near("out", &out, truth, plain)?])
}

#[derive(Clone, Copy)]
struct Input {
    page_size: usize,
    lengths: &'static [usize],
    latent: usize,
    rope: usize,
    element: Element,
}

impl Input {
    fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// What each sequence has cached, \[B,T,c+r\].
    fn cached(&self) -> Array3<f32> {
        let shape = [self.lengths.len(), self.longest(), self.latent + self.rope];
        random("cached", shape, 0.5)
    }

    /// Pages in falling order, with one between them that nobody uses.
    fn upload(&self, device: &Arc<dyn Device>) -> Result<[Tensor; 3]> {
        let (cached, columns) = (self.cached(), self.longest().div_ceil(self.page_size) + 1);
        let pages = 2 * columns * self.lengths.len();
        let mut cache = Array3::from_elem((pages, self.page_size, self.latent + self.rope), f32::NAN);
        let mut table = vec![GARBAGE; columns * self.lengths.len()];
        let mut next = pages;
        for (b, length) in self.lengths.iter().enumerate() {
            for t in 0..*length {
                let entry = &mut table[b * columns + t / self.page_size];
                if t % self.page_size == 0 {
                    next -= 2;
                    *entry = next as i32;
                }
                cache.slice_mut(s![*entry as usize, t % self.page_size, ..]).assign(&cached.slice(s![b, t, ..]));
            }
        }
        let lengths: Vec<i32> = self.lengths.iter().map(|length| *length as i32).collect();
        Ok([
            upload(device, self.element, &cache)?,
            Tensor::from_i32(device, &[self.lengths.len(), columns], &table)?,
            Tensor::from_i32(device, &[lengths.len()], &lengths)?,
        ])
    }

    fn read(&self, device: &Arc<dyn Device>, variant: Variant) -> Result<Vec<Output>> {
        let [cache, block_table, lengths] = self.upload(device)?;
        let part = |width| output(device, self.element, &[self.lengths.len(), self.longest(), width]);
        let (latents, keys) = (part(self.latent)?, part(self.rope)?);
        let pages = Pages { cache: &cache, block_table: &block_table, lengths: &lengths };
        latent_cache_read(variant, &pages, &latents, &keys)?;
        let mut want = self.cached();
        for (b, length) in self.lengths.iter().enumerate() {
            want.slice_mut(s![b, *length.., ..]).fill(0.0);
        }
        let columns = |range| want.slice(s![.., .., range]).iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        Ok(vec![
            Output::exactly("latents", &latents, columns(0..self.latent))?,
            Output::exactly("keys", &keys, columns(self.latent..self.latent + self.rope))?,
        ])
    }

    /// Of two new tokens and three heads.
    fn scores(&self, device: &Arc<dyn Device>, masked: bool) -> Result<Vec<Output>> {
        let (batch, new, heads, keys) = (self.lengths.len(), 2, 3, self.longest());
        let [cache, block_table, lengths] = self.upload(device)?;
        let pages = Pages { cache: &cache, block_table: &block_table, lengths: &lengths };
        let shape = [batch, new, heads, self.latent + self.rope];
        let q = random("q", shape, 0.5);
        let both = upload(device, self.element, &q)?;
        let (q_latent, q_pe) = (both.narrow(3, 0..self.latent)?, both.narrow(3, self.latent..self.latent + self.rope)?);
        let hidden = bias(new, keys, masked);
        let added: Vec<f32> = (0..batch).flat_map(|_| hidden.iter().copied()).collect();
        let mask = Tensor::from_f32(device, Element::F32, &[batch, new, keys], &added)?;
        let scores = output(device, Element::F32, &[batch, heads, new, keys])?;
        let weights = output(device, self.element, &[batch, heads, new, keys])?;
        absorbed_scores(&q_latent, &q_pe, &pages, masked.then_some(&mask), 0.25, &scores)?;
        score_weights(&scores, &weights)?;

        let (mut truth, mut plain) = (Results::none(scores.shape()), Results::none(scores.shape()));
        let cached = self.cached();
        for (b, length) in self.lengths.iter().copied().enumerate().filter(|(_, length)| *length > 0) {
            let seen = if masked { hidden.slice(s![.., ..length]).to_owned() } else { bias(new, length, false) };
            let keys = cached.slice(s![b, ..length, ..]);
            for h in 0..heads {
                let query = q.slice(s![b, .., h, ..]);
                let exact = attend::<f64>(query, keys, keys, &seen, 0.25, |x| x);
                truth.put(b, h, exact.scores, exact.weights);
                let narrow = attend::<f32>(query, keys, keys, &seen, 0.25, |x| round(x.into(), self.element) as f32);
                plain.put(b, h, narrow.scores.mapv(f64::from), narrow.weights.mapv(f64::from));
            }
        }
        Ok(vec![
            Output::near("scores", &scores, truth.scores, plain.scores)?,
            Output::near("weights", &weights, truth.weights, plain.weights)?,
        ])
    }
}

/// Scores and weights \[B,H,S,T\].
struct Results {
    scores: Array4<f64>,
    weights: Array4<f64>,
}

impl Results {
    /// Of sequences without keys.
    fn none(shape: &[usize]) -> Self {
        let shape = [shape[0], shape[1], shape[2], shape[3]];
        Results { scores: Array4::from_elem(shape, f64::NEG_INFINITY), weights: Array4::zeros(shape) }
    }

    fn put(&mut self, b: usize, h: usize, scores: ndarray::Array2<f64>, weights: ndarray::Array2<f64>) {
        let keys = scores.ncols();
        self.scores.slice_mut(s![b, h, .., ..keys]).assign(&scores);
        // A row that sees nothing has no weights at all; softmax says NaN or all alike.
        let seen = |row: usize| scores.row(row).iter().any(|x| x.is_finite());
        for row in (0..scores.nrows()).filter(|row| seen(*row)) {
            self.weights.slice_mut(s![b, h, row, ..keys]).assign(&weights.row(row));
        }
    }
}

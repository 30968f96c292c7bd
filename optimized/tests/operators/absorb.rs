//! The write to the latent cache beside query absorption in one launch: to the bit what the operators make one after the other;
//! what is no token's place keeps its bytes.

use std::sync::Arc;

use dsv2_optimized::operators::gemm::batched;
use dsv2_optimized::operators::latent::{latent_cache_write, latent_cache_write_beside};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};

use crate::harness::{Case, Output, output, random, upload};
use crate::rope::{positions, upload_tables};
use crate::router::refused;

/// Large, so that a missing epsilon shows.
const EPS: f32 = 1e-2;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for element in [Element::F32, Element::Bf16] {
        // (tokens, heads, columns of a head that do not turn, columns that do, rank)
        for (tokens, heads, nope, rope, rank) in [
            (1, 1, 1, 2, 1),
            (3, 2, 6, 4, 12),
            (0, 2, 6, 4, 12),
            (7, 3, 8, 10, 136),
            (5, 2, 9, 66, 23),
            // More rows than the small tiles are for, or more than one of them.
            (33, 2, 16, 8, 40),
            (2, 4, 128, 64, 512),
        ] {
            let input = Input { element, tokens, heads, nope, rope, rank };
            cases.push(Case {
                name: format!(
                    "latent_cache_write_beside/tuned/{element}/tokens={tokens},heads={heads},nope={nope},rope={rope},rank={rank}"
                ),
                module: "absorb",
                watched: tokens * heads * nope * rank <= 30_000,
                run: Box::new(move |device| input.run(device)),
            });
        }
    }
    let name = "latent_cache_write_beside/misfits".into();
    cases.push(Case { name, module: "absorb", watched: false, run: Box::new(misfits) });
    cases
}

#[derive(Clone, Copy)]
struct Input {
    element: Element,
    tokens: usize,
    heads: usize,
    nope: usize,
    rope: usize,
    rank: usize,
}

/// What is written: the cache, the queries, and those in the latent space.
type Written = [Tensor; 3];

impl Input {
    const PAGE_SIZE: usize = 3;

    fn pages(&self) -> usize {
        self.tokens + 1
    }

    /// In no order; the second row pads the batch, and the third has a slot just past the cache.
    fn slots(&self) -> Vec<i32> {
        let places = self.pages() * Self::PAGE_SIZE;
        (0..self.tokens)
            .map(|n| match n {
                1 => -1,
                2 => places as i32,
                _ => (places - 1 - n) as i32,
            })
            .collect()
    }

    fn room(&self, device: &Arc<dyn Device>) -> Result<Written> {
        let &Input { element, tokens, heads, nope, rope, rank } = self;
        let shape = [self.pages(), Self::PAGE_SIZE, rank + rope];
        let poison = vec![f32::NAN; shape.iter().product()];
        Ok([
            Tensor::from_f32(device, element, &shape, &poison)?,
            upload(device, element, &random("q", [tokens, heads, nope + rope], 1.0))?,
            output(device, element, &[tokens, heads, rank])?,
        ])
    }

    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let &Input { element, tokens, heads, nope, rope, rank } = self;
        // The last columns of a wider matrix, and the first rows of each head of a larger one.
        let kv_a = upload(device, element, &random("kv_a", [tokens, 8 + rank + rope], 0.9))?;
        let kv_a = kv_a.narrow(1, 8..8 + rank + rope)?;
        let w_uk = upload(device, element, &random("w_uk", [heads, nope + 2, rank], 0.3))?;
        let w_uk = w_uk.narrow(1, 0..nope)?.permute(&[0, 2, 1])?;
        let gain = upload(device, element, &(random("gain", [rank], 0.3) + 1.0))?;
        let [cos, sin] = upload_tables(device, &positions(tokens), rope)?;
        let slots = Tensor::from_i32(device, &[tokens], &self.slots())?;
        let parts = |[_, q, q_latent]: &Written| -> Result<[Tensor; 3]> {
            let q_nope = q.narrow(2, 0..nope)?.permute(&[1, 0, 2])?;
            Ok([q.narrow(2, nope..nope + rope)?, q_nope, q_latent.permute(&[1, 0, 2])?])
        };

        let (apart, at_once) = (self.room(device)?, self.room(device)?);
        let [q_pe, q_nope, q_latent] = parts(&apart)?;
        let cache = &apart[0];
        latent_cache_write(Variant::Tuned, &kv_a, &gain, EPS, &cos, &sin, &slots, cache, None, None, Some(&q_pe))?;
        batched(Variant::Tuned, &q_nope, &w_uk, &q_latent)?;
        let [q_pe, q_nope, q_latent] = parts(&at_once)?;
        let absorbed = [&q_nope, &w_uk, &q_latent];
        latent_cache_write_beside(&kv_a, &gain, EPS, &cos, &sin, &slots, &at_once[0], &q_pe, absorbed)?;
        let names = ["cache", "queries", "queries in the latent space"];
        names
            .into_iter()
            .zip(at_once.iter().zip(&apart))
            .map(|(name, (got, want))| Output::same(name, got, want))
            .collect()
    }
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let (kv_a, gain, table) = (real(&[2, 10])?, real(&[6])?, real(&[2, 2])?);
    let slots = Tensor::empty(device, Element::I32, &[2])?;
    let (cache, q_pe) = (real(&[3, 4, 10])?, real(&[2, 5, 4])?);
    let run = |cache: &Tensor, q_pe: &Tensor, product: [&Tensor; 3]| {
        latent_cache_write_beside(&kv_a, &gain, EPS, &table, &table, &slots, cache, q_pe, product)
    };
    let (a, b, out) = (real(&[5, 2, 3])?, real(&[5, 6, 3])?, real(&[5, 2, 6])?);
    let words =
        "latent_cache_write_beside: cache: expected [pages, page_size, 10] with a page_size of at least 1, found";
    refused(run(&real(&[3, 4, 9])?, &q_pe, [&a, &b, &out]), words)?;
    let words = "latent_cache_write_beside: q_pe: expected the shape [2, 5, 4], found [2, 5, 3]";
    refused(run(&cache, &real(&[2, 5, 3])?, [&a, &b, &out]), words)?;
    let words = "latent_cache_write_beside: out: expected the shape [5, 2, 6], found [5, 2, 3]";
    refused(run(&cache, &q_pe, [&a, &b, &a]), words)?;
    let of_bf16 = |shape: &[usize]| Tensor::empty(device, Element::Bf16, shape);
    let (a, b) = (of_bf16(&[5, 2, 3])?, of_bf16(&[5, 6, 3])?);
    refused(run(&cache, &q_pe, [&a, &b, &out]), "latent_cache_write_beside: a: expected f32, found bf16")?;
    Ok(vec![])
}

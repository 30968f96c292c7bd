//! The write to the latent cache: published and odd widths, page sizes, permuted pages, padded rows; what is no token's
//! place keeps its bytes.

use std::sync::Arc;

use dsv2_optimized::operators::latent::latent_cache_write;
use dsv2_optimized::operators::rope::rope;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::model::norm::RmsNorm;
use ndarray::{Array1, Array2, Axis, s};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};
use crate::rope::{positions, turned, upload_tables};

/// Large, so that a missing epsilon shows.
const EPS: f32 = 1e-2;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        // (tokens, rank, width of the key, columns of the matrix that the rows are a slice of, page size)
        for (tokens, rank, rope, columns, page_size) in [
            (1, 1, 2, 3, 1),
            (3, 12, 4, 16, 1),
            (5, 12, 4, 17, 16),
            (4, 37, 6, 43, 16),
            (5, 16, 66, 90, 3),
            (6, 512, 64, 576, 64),
            (4, 512, 64, 579, 16),
            (2, 512, 64, 2112, 128),
            (2, 1100, 8, 1112, 16),
        ] {
            let shape = format!("tokens={tokens},rank={rank},rope={rope},columns={columns},page_size={page_size}");
            let case = |what: &str, run| Case {
                name: format!("latent_cache_write/{variant}/{element}/{shape}{what}"),
                module: "latent",
                watched: tokens * rank <= 600,
                run,
            };
            let input = Input { tokens, rank, rope, columns, page_size, element, variant };
            cases.push(case("", Box::new(move |device| input.compared(device))));
            cases.push(case(",only the cache", Box::new(move |device| input.only_the_cache(device))));
            cases.push(case(",alone", Box::new(move |device| input.alone(device))));
            cases.push(case(",with queries", Box::new(move |device| input.with_queries(device))));
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    rank: usize,
    rope: usize,
    columns: usize,
    page_size: usize,
    element: Element,
    variant: Variant,
}

/// What is on the device.
struct Operands {
    kv_a: Tensor,
    weight: Tensor,
    tables: [Tensor; 2],
    slots: Tensor,
}

impl Input {
    fn pages(&self) -> usize {
        2 * self.tokens + 1
    }

    /// Neighbouring tokens go to different pages, in no order; the second row pads the batch, and the third has a slot
    /// just past the cache.
    fn slots(&self) -> Vec<i32> {
        (0..self.tokens)
            .map(|n| match n {
                1 => -1,
                2 => (self.pages() * self.page_size) as i32,
                _ => {
                    let (page, place) = ((5 * n + 3) % self.pages(), (7 * n + self.page_size - 1) % self.page_size);
                    (page * self.page_size + place) as i32
                }
            })
            .collect()
    }

    /// The last columns of a wider matrix.
    fn kv_a(&self) -> Array2<f32> {
        let first = self.columns - self.rank - self.rope;
        self.whole().slice(s![.., first..]).to_owned()
    }

    /// Thirds, since fp32 adds squares of numbers with the few bits of bf16 without an error, and in any order.
    fn whole(&self) -> Array2<f32> {
        let whole = random("kv_a", [self.tokens, self.columns], 0.9);
        whole.mapv(|x| round(f64::from(x) / 3.0, self.element) as f32)
    }

    fn weight(&self) -> Array1<f32> {
        (random("weight", [self.rank], 0.3) + 1.0).mapv(|x| round(x.into(), Element::Bf16) as f32)
    }

    fn operands(&self, device: &Arc<dyn Device>) -> Result<Operands> {
        let first = self.columns - self.rank - self.rope;
        Ok(Operands {
            kv_a: upload(device, self.element, &self.whole())?.narrow(1, first..self.columns)?,
            weight: upload(device, self.element, &self.weight())?,
            tables: upload_tables(device, &positions(self.tokens), self.rope)?,
            slots: Tensor::from_i32(device, &[self.tokens], &self.slots())?,
        })
    }

    /// A layer's cache in one of two layers, so that its pages are apart: all NaN.
    fn cache(&self, device: &Arc<dyn Device>) -> Result<[Tensor; 2]> {
        let (pages, width) = (self.pages(), self.rank + self.rope);
        let poison = vec![f32::NAN; pages * 2 * self.page_size * width];
        let both = Tensor::from_f32(device, self.element, &[pages, 2 * self.page_size, width], &poison)?;
        let layer = both.narrow(1, self.page_size..2 * self.page_size)?;
        Ok([both, layer])
    }

    fn write(&self, on: &Operands, cache: &Tensor, others: Option<[&Tensor; 2]>) -> Result<()> {
        let (compressed_kv, k_pe) = others.map_or((None, None), |[latent, key]| (Some(latent), Some(key)));
        let [cos, sin] = &on.tables;
        latent_cache_write(
            self.variant,
            &on.kv_a,
            &on.weight,
            EPS,
            cos,
            sin,
            &on.slots,
            cache,
            compressed_kv,
            k_pe,
            None,
        )
    }

    /// What both layers of the cache must hold: the other outputs' rows in their slots, NaN elsewhere.
    fn expected(&self, compressed_kv: &Tensor, k_pe: &Tensor) -> Result<Vec<f64>> {
        let width = self.rank + self.rope;
        let (compressed_kv, k_pe) = (compressed_kv.to_f32()?, k_pe.to_f32()?);
        let mut cache = vec![f64::NAN; self.pages() * 2 * self.page_size * width];
        for (n, slot) in self.slots().into_iter().enumerate() {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let (page, place) = (slot / self.page_size, slot % self.page_size);
            if page < self.pages() {
                let row = ((2 * page + 1) * self.page_size + place) * width;
                let latent = compressed_kv[n * self.rank..][..self.rank].iter();
                let values = latent.chain(&k_pe[n * self.rope..][..self.rope]);
                cache[row..][..width].iter_mut().zip(values).for_each(|(to, value)| *to = f64::from(*value));
            }
        }
        Ok(cache)
    }

    fn outputs(&self, device: &Arc<dyn Device>) -> Result<[Tensor; 2]> {
        Ok([
            output(device, self.element, &[self.tokens, self.rank])?,
            output(device, self.element, &[self.tokens, self.rope])?,
        ])
    }

    /// Queries turned in the same launch: as rope turns them, and the cache as without them.
    fn with_queries(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let on = self.operands(device)?;
        let ([alone, layer_alone], [both, layer]) = (self.cache(device)?, self.cache(device)?);
        self.write(&on, &layer_alone, None)?;
        // The last columns of each head.
        let (heads, beside) = (5, 3);
        let whole = random("q", [self.tokens, heads, beside + self.rope], 1.0);
        let [cos, sin] = &on.tables;
        let queries = [upload(device, self.element, &whole)?, upload(device, self.element, &whole)?];
        let [q_pe, expected] = [&queries[0], &queries[1]].map(|q| q.narrow(2, beside..beside + self.rope));
        let (q_pe, expected) = (q_pe?, expected?);
        rope(self.variant, &expected, cos, sin, &expected)?;
        let Operands { kv_a, weight, slots, .. } = &on;
        latent_cache_write(self.variant, kv_a, weight, EPS, cos, sin, slots, &layer, None, None, Some(&q_pe))?;
        Ok(vec![Output::same("cache", &both, &alone)?, Output::same("queries", &queries[0], &queries[1])?])
    }

    fn compared(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let [both, layer] = self.cache(device)?;
        let [compressed_kv, k_pe] = self.outputs(device)?;
        self.write(&self.operands(device)?, &layer, Some([&compressed_kv, &k_pe]))?;

        let (kv_a, rounded) = (self.kv_a(), |x: f32| round(x.into(), self.element));
        let (latent, key) = kv_a.view().split_at(Axis(1), self.rank);
        let weight = self.weight().mapv(f64::from);
        let truth = RmsNorm::new(weight.clone(), EPS.into()).forward(latent.mapv(f64::from).view());
        let normalised = RmsNorm::new(Array1::ones(self.rank), EPS.into()).forward(latent);
        let plain = (normalised.mapv(rounded) * weight).mapv(|x| round(x, self.element));

        let (key, positions) = (key.to_owned().insert_axis(Axis(1)), positions(self.tokens));
        let true_key = turned::<f64>(&key, &positions).index_axis_move(Axis(1), 0);
        let plain_key = turned::<f32>(&key, &positions).mapv(rounded).index_axis_move(Axis(1), 0);
        Ok(vec![
            Output::near("compressed_kv", &compressed_kv, truth, plain)?,
            Output::near("k_pe", &k_pe, true_key, plain_key)?,
            Output::exactly("cache", &both, self.expected(&compressed_kv, &k_pe)?)?,
        ])
    }

    /// The same cache without the other outputs.
    fn only_the_cache(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let on = self.operands(device)?;
        let ([with, layer_with], [without, layer_without]) = (self.cache(device)?, self.cache(device)?);
        let [compressed_kv, k_pe] = self.outputs(device)?;
        self.write(&on, &layer_with, Some([&compressed_kv, &k_pe]))?;
        self.write(&on, &layer_without, None)?;
        Ok(vec![Output::exactly("cache", &without, with.to_f32()?)?])
    }

    /// A token is the same to the bit in a batch and alone, in another place of the memory.
    fn alone(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let on = self.operands(device)?;
        let ([together, layer], [singly, single_layer]) = (self.cache(device)?, self.cache(device)?);
        let [compressed_kv, k_pe] = self.outputs(device)?;
        self.write(&on, &layer, None)?;
        for n in (0..self.tokens).rev() {
            let one = |of: &Tensor| of.narrow(0, n..n + 1);
            let [cos, sin] = &on.tables;
            let only = Operands {
                kv_a: upload(device, self.element, &self.kv_a().slice(s![n..n + 1, ..]).to_owned())?,
                weight: on.weight.clone(),
                tables: [one(cos)?, one(sin)?],
                slots: one(&on.slots)?,
            };
            Input { tokens: 1, ..*self }.write(&only, &single_layer, Some([&one(&compressed_kv)?, &one(&k_pe)?]))?;
        }
        Ok(vec![Output::exactly("cache", &singly, together.to_f32()?)?])
    }
}

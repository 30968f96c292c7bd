//! Attention on a paged cache of latents: lengths around tiles and splits, odd sizes, pages in any order, masks; what
//! is not a sequence's own is NaN (cache) or nonsense (block table). A sequence alone, in a batch and in another order.

use std::sync::Arc;

use dsv2_optimized::operators::mla_decode::{mla_decode, workspace};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Real;
use ndarray::{Array2, Array3, Array4, Axis, s};

use crate::attention::{attend, bias, same_sequence};
use crate::harness::{Case, KINDS, Output, output, random, round, upload};

/// [tokens, heads, latent, rope, page size], lengths, whether there is a mask, whether it is watched for races.
type Row = ([usize; 5], &'static [usize], bool, bool);

const ROWS: &[Row] = &[
    ([1, 3, 12, 4, 1], &[5, 0, 1], false, true),
    ([2, 3, 10, 2, 16], &[7, 300, 1], false, true),
    ([4, 1, 32, 8, 32], &[70, 3, 0, 257], true, true),
    ([3, 5, 16, 8, 64], &[2, 40, 65], true, true),
    ([3, 12, 16, 8, 16], &[37], false, true),
    ([4, 16, 24, 8, 128], &[2, 4, 513, 256], false, false),
    ([1, 63, 64, 16, 16], &[40, 290], false, false),
    ([1, 16, 512, 64, 64], &[33], false, true),
    ([1, 16, 512, 64, 64], &[0, 1, 63, 64, 65], false, false),
    ([1, 128, 512, 64, 32], &[35], false, false),
    ([1, 16, 512, 64, 128], &[257, 700], false, false),
    // Wider than any published model.
    ([1, 2, 520, 72, 16], &[20], false, false),
];

/// Contexts beyond 64 K: numbers of keys, pages and bytes that 16 bits do not hold.
const LONG: &[Row] =
    &[([1, 1, 12, 4, 16], &[65_700], false, false), ([1, 1, 16, 4, 128], &[65_537, 3, 66_000], false, false)];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // The cheap ones first, for all kernels.
    for &([tokens, heads, latent, rope, page_size], lengths, masked, watched) in ROWS.iter().chain(LONG) {
        for (element, variant) in KINDS {
            let input = Input { tokens, heads, latent, rope, page_size, masked, element, variant };
            let mask = if masked { ",mask" } else { "" };
            let shape = format!("S={tokens},H={heads},c={latent},r={rope},page={page_size},T={lengths:?}{mask}");
            cases.push(Case {
                name: format!("mla_decode/{variant}/{element}/{shape}"),
                module: "mla_decode",
                watched,
                run: Box::new(move |device| input.judge(device, lengths)),
            });
        }
    }
    // Few rows and many: the kernels have tiles of 16 and of 64.
    for (tokens, heads, latent, rope) in [(2, 3, 12, 4), (4, 12, 64, 16)] {
        for (element, variant) in KINDS {
            let input = Input { tokens, heads, latent, rope, page_size: 16, masked: false, element, variant };
            cases.push(Case {
                name: format!("mla_decode/{variant}/{element}/alone_in_a_batch_permuted/S={tokens},H={heads}"),
                module: "mla_decode",
                watched: false,
                run: Box::new(move |device| input.same_in_any_company(device)),
            });
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    heads: usize,
    latent: usize,
    rope: usize,
    page_size: usize,
    masked: bool,
    element: Element,
    variant: Variant,
}

/// A sequence. The same length has the same numbers, in any batch.
struct Sequence {
    /// \[S,H,c+r\]
    query: Array3<f32>,
    /// \[T,c+r\]
    keys: Array2<f32>,
    /// \[S,T\]
    bias: Array2<f32>,
}

impl Input {
    fn sequence(&self, length: usize) -> Sequence {
        let width = self.latent + self.rope;
        let query = random(&format!("query {length}"), [self.tokens, self.heads, width], 1.0);
        Sequence {
            query,
            keys: random(&format!("keys {length}"), [length, width], 1.0),
            bias: bias(self.tokens, length, self.masked),
        }
    }

    /// So that scores spread: some keys count a hundred times as much as others.
    fn scale(&self) -> f32 {
        2.0 / ((self.latent + self.rope) as f32).sqrt()
    }

    /// The operator's results out \[B,S,H,c\] and lse \[B,S,H\] for the tokens from `first` on.
    fn attend(&self, device: &Arc<dyn Device>, lengths: &[usize], first: usize) -> Result<(Tensor, Tensor)> {
        let Input { tokens, heads, latent, rope, page_size, element, variant, .. } = *self;
        let (batch, width) = (lengths.len(), latent + rope);
        let sequences: Vec<Sequence> = lengths.iter().map(|length| self.sequence(*length)).collect();

        // Pages in a scattered order; what belongs to nobody is NaN, and a page number of nobody is nonsense.
        let taken: usize = lengths.iter().map(|length| length.div_ceil(page_size)).sum();
        let pages = (taken + 2) | 1;
        let max_pages = lengths.iter().max().map_or(0, |longest| longest.div_ceil(page_size)) + 2;
        let mut cache = Array2::from_elem((pages * page_size, width), f32::NAN);
        let mut table = vec![2_147_480_000; batch * max_pages];
        let mut next = 0;
        for (b, sequence) in sequences.iter().enumerate() {
            for (i, rows) in sequence.keys.axis_chunks_iter(Axis(0), page_size).enumerate() {
                next += 1;
                let page = next * 2 % pages;
                table[b * max_pages + i] = page as i32;
                cache.slice_mut(s![page * page_size..page * page_size + rows.nrows(), ..]).assign(&rows);
            }
        }
        let cache = upload(device, element, &cache)?.reshape(&[pages, page_size, width])?;
        let table = Tensor::from_i32(device, &[batch, max_pages], &table)?;
        let counts: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let counts = Tensor::from_i32(device, &[batch], &counts)?;

        // The latent part comes head by head, the other from the middle of wider rows.
        let gap = if rope % 8 == 0 { 8 } else { 3 };
        let mut by_head = Array4::zeros((heads, batch, tokens, latent));
        let mut wide = Array4::from_elem((batch, tokens, heads, gap + rope), f32::NAN);
        for (b, sequence) in sequences.iter().enumerate() {
            let of_head = sequence.query.slice(s![.., .., ..latent]).permuted_axes([1, 0, 2]);
            by_head.slice_mut(s![.., b, .., ..]).assign(&of_head);
            wide.slice_mut(s![b, .., .., gap..]).assign(&sequence.query.slice(s![.., .., latent..]));
        }
        let q_latent = upload(device, element, &by_head)?.permute(&[1, 2, 0, 3])?.narrow(1, first..tokens)?;
        let q_pe = upload(device, element, &wide)?.narrow(3, gap..gap + rope)?.narrow(1, first..tokens)?;

        let longest = lengths.iter().max().copied().unwrap_or(0);
        let mut mask = Array3::from_elem((batch, tokens, longest), f32::NAN);
        for (b, sequence) in sequences.iter().enumerate() {
            mask.slice_mut(s![b, .., ..lengths[b]]).assign(&sequence.bias);
        }
        let mask = upload(device, Element::F32, &mask)?.narrow(1, first..tokens)?;
        let tokens = tokens - first;

        let needed = workspace(variant, [batch, tokens, heads, latent], rope, max_pages * page_size);
        let scratch = Tensor::empty(device, Element::F32, &[needed])?;
        let out = output(device, element, &[batch, tokens, heads, latent])?;
        let lse = output(device, Element::F32, &[batch, tokens, heads])?;
        let mask = self.masked.then_some(&mask);
        let scale = self.scale();
        mla_decode(variant, &q_latent, &q_pe, &cache, &table, &counts, mask, scale, &scratch, &out, &lse)?;
        Ok((out, lse))
    }

    fn judge(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Vec<Output>> {
        let (out, lse) = self.attend(device, lengths, 0)?;
        let (true_out, true_lse) = self.formula::<f64>(lengths, |x| x);
        let (plain_out, plain_lse) = self.formula(lengths, |x: f32| round(x.into(), self.element) as f32);
        Ok(vec![
            Output::near("out", &out, true_out, plain_out.mapv(f64::from))?,
            Output::near("lse", &lse, true_lse, plain_lse.mapv(f64::from))?,
        ])
    }

    /// out \[B,S,H,c\] and lse \[B,S,H\], head by head.
    fn formula<T: Real>(&self, lengths: &[usize], round: impl Fn(T) -> T) -> (Array4<T>, Array3<T>) {
        let mut out = Array4::zeros((lengths.len(), self.tokens, self.heads, self.latent));
        let mut lse = Array3::zeros((lengths.len(), self.tokens, self.heads));
        for (b, length) in lengths.iter().enumerate() {
            let Sequence { query, keys, bias } = self.sequence(*length);
            for h in 0..self.heads {
                let (query, values) = (query.index_axis(Axis(1), h), keys.slice(s![.., ..self.latent]));
                let head = attend(query, keys.view(), values, &bias, self.scale(), &round);
                out.slice_mut(s![b, .., h, ..]).assign(&head.out);
                lse.slice_mut(s![b, .., h]).assign(&head.lse);
            }
        }
        (out, lse)
    }

    /// What a sequence gets is the same to the bit alone, again, in a batch, and in another order; and so is what its
    /// last token gets without the others.
    fn same_in_any_company(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let lengths = [300, 2, 257, 64];
        let mut outputs = vec![];
        let batch = self.attend(device, &lengths, 0)?;
        let permuted = self.attend(device, &[64, 300, 2, 257], 0)?;
        for (b, length) in lengths.iter().enumerate() {
            let alone = self.attend(device, &[*length], 0)?;
            outputs.extend(same_sequence("again", &self.attend(device, &[*length], 0)?, 0, &alone)?);
            outputs.extend(same_sequence("in a batch", &batch, b, &alone)?);
            outputs.extend(same_sequence("permuted", &permuted, (b + 1) % 4, &alone)?);
            let last = self.tokens - 1..self.tokens;
            let one = self.attend(device, &[*length], last.start)?;
            outputs.extend(same_sequence(
                "last token",
                &one,
                0,
                &(alone.0.narrow(1, last.clone())?, alone.1.narrow(1, last)?),
            )?);
        }
        Ok(outputs)
    }
}

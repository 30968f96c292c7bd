//! Attention with expanded keys and values: tokens and keys around tiles, odd sizes, padding that is NaN, masks; a
//! chunk and the tokens before it, merged; the weights. A sequence alone, in a batch and in another order; a query
//! alone.

use std::sync::Arc;

use dsv2_optimized::operators::merge::merge;
use dsv2_optimized::operators::mla_prefill::{attention_weights, mla_prefill};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Real;
use ndarray::{Array2, Array3, Array4, Axis, concatenate, s};

use crate::attention::{attend, bias, same_sequence};
use crate::harness::{Case, KINDS, Output, Run, cut_off, output, random, round, upload};

/// [tokens, heads, nope, rope, value], keys of each sequence, whether there is a mask, whether it is watched for races.
type Row = ([usize; 5], &'static [usize], bool, bool);

const ROWS: &[Row] = &[
    ([5, 3, 6, 4, 10], &[5], false, true),
    ([3, 3, 6, 3, 9], &[7, 2, 0], false, true),
    ([2, 1, 8, 4, 8], &[0], false, false),
    ([4, 2, 24, 8, 16], &[130, 6, 2], true, true),
    ([70, 2, 16, 8, 16], &[70, 65], false, true),
    ([17, 1, 128, 64, 128], &[17], false, true),
    ([1, 16, 128, 64, 128], &[66, 1], false, false),
    ([33, 1, 128, 64, 128], &[97], false, false),
    ([130, 2, 16, 8, 32], &[200], false, false),
    // Wider than any published model.
    ([3, 2, 130, 70, 140], &[9], false, false),
];

/// Contexts beyond 64 K: numbers of keys and of bytes that 16 bits do not hold.
const LONG: &[Row] = &[([2, 1, 6, 4, 10], &[65_700], false, false), ([1, 1, 8, 4, 8], &[65_537, 5], false, false)];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let mut case = |name: String, watched, run: Run| {
        cases.push(Case { name, module: "mla_prefill", watched, run });
    };
    for &([tokens, heads, nope, rope, value], lengths, masked, watched) in ROWS.iter().chain(LONG) {
        let mask = if masked { ",mask" } else { "" };
        let shape = format!("S={tokens},H={heads},n={nope},r={rope},v={value},T={lengths:?}{mask}");
        for (element, variant) in KINDS {
            let input = Input { tokens, heads, nope, rope, value, masked, element, variant };
            let name = format!("mla_prefill/{variant}/{element}/{shape}");
            case(name, watched, Box::new(move |device| input.judge(device, lengths)));
            if variant == Variant::Naive && tokens < 50 {
                let name = format!("attention_weights/{element}/{shape}");
                case(name, watched, Box::new(move |device| input.judge_weights(device, lengths)));
            }
        }
    }
    for (element, variant) in KINDS {
        let input = Input { tokens: 20, heads: 2, nope: 16, rope: 8, value: 16, masked: false, element, variant };
        let name = |what: &str| format!("mla_prefill/{variant}/{element}/{what}");
        case(name("chunk_and_cache_merged"), false, Box::new(move |device| input.merged(device, 45)));
        case(name("alone_in_a_batch_permuted"), false, Box::new(move |device| input.same_in_any_company(device)));
    }
    cases
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    masked: bool,
    element: Element,
    variant: Variant,
}

/// A sequence. The same length has the same numbers, in any batch.
struct Sequence {
    /// \[S,H,n+r\]
    query: Array3<f32>,
    /// \[T,H,n+v\]
    keys_and_values: Array3<f32>,
    /// \[T,r\]
    k_pe: Array2<f32>,
}

/// On the device, as views of something larger.
struct Uploaded {
    q: Tensor,
    kv: Tensor,
    k_pe: Tensor,
    /// None, if all sequences are equally long.
    lengths: Option<Tensor>,
    mask: Option<Tensor>,
}

impl Input {
    fn sequence(&self, length: usize) -> Sequence {
        let named = |name: &str| format!("{name} {length}");
        Sequence {
            query: random(&named("query"), [self.tokens, self.heads, self.nope + self.rope], 1.0),
            keys_and_values: random(&named("kv"), [length, self.heads, self.nope + self.value], 1.0),
            k_pe: random(&named("k_pe"), [length, self.rope], 1.0),
        }
    }

    /// So that scores spread: some keys count a hundred times as much as others.
    fn scale(&self) -> f32 {
        2.0 / ((self.nope + self.rope) as f32).sqrt()
    }

    /// What is nobody's is NaN.
    fn upload(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Uploaded> {
        let Input { tokens, heads, nope, rope, value, element, .. } = *self;
        let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        // Queries come head by head; keys and values with something behind, positions with a latent before.
        let mut q = Array4::zeros((batch, heads, tokens, nope + rope));
        let mut kv = Array4::from_elem((batch, longest, heads, nope + value + 8), f32::NAN);
        let mut k_pe = Array3::from_elem((batch, longest, 16 + rope), f32::NAN);
        let mut mask = Array3::from_elem((batch, tokens, longest), f32::NAN);
        for (b, length) in lengths.iter().enumerate() {
            let sequence = self.sequence(*length);
            q.slice_mut(s![b, .., .., ..]).assign(&sequence.query.permuted_axes([1, 0, 2]));
            kv.slice_mut(s![b, ..*length, .., ..nope + value]).assign(&sequence.keys_and_values);
            k_pe.slice_mut(s![b, ..*length, 16..]).assign(&sequence.k_pe);
            mask.slice_mut(s![b, .., ..*length]).assign(&bias(tokens, *length, self.masked));
        }
        let counts: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let unequal = lengths.iter().any(|length| *length != longest);
        Ok(Uploaded {
            q: upload(device, element, &q)?.permute(&[0, 2, 1, 3])?,
            kv: upload(device, element, &kv)?.narrow(3, 0..nope + value)?,
            k_pe: upload(device, element, &k_pe)?.narrow(2, 16..16 + rope)?,
            lengths: if unequal { Some(Tensor::from_i32(device, &[batch], &counts)?) } else { None },
            mask: if self.masked { Some(upload(device, Element::F32, &mask)?) } else { None },
        })
    }

    /// The operator's results out \[B,S,H,v\] and lse \[B,S,H\], of queries that may be a part of the tokens.
    fn attend(&self, device: &Arc<dyn Device>, on: &Uploaded) -> Result<(Tensor, Tensor)> {
        let [batch, tokens] = [on.q.shape()[0], on.q.shape()[1]];
        let out = output(device, self.element, &[batch, tokens, self.heads, self.value])?;
        let lse = output(device, Element::F32, &[batch, tokens, self.heads])?;
        let (lengths, mask) = (on.lengths.as_ref(), on.mask.as_ref());
        mla_prefill(self.variant, &on.q, &on.kv, &on.k_pe, lengths, mask, self.scale(), &out, &lse)?;
        Ok((out, lse))
    }

    fn judge(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Vec<Output>> {
        let (out, lse) = self.attend(device, &self.upload(device, lengths)?)?;
        self.near(lengths, &out, &lse)
    }

    fn near(&self, lengths: &[usize], out: &Tensor, lse: &Tensor) -> Result<Vec<Output>> {
        let (truth, plain) = (self.formula::<f64>(lengths, |x| x), self.plain(lengths));
        let mut plain_lse = plain.lse.mapv(f64::from);
        if (self.element, self.variant) == (Element::Bf16, Variant::Tuned) {
            // A tensor core cuts each score off to fp32 where other arithmetic rounds it, all to the same side, and the
            // logarithm is fp32: nothing hides it. Each score counts as much as it weighs.
            for ((b, s, h), lse) in plain_lse.indexed_iter_mut() {
                let total = truth.lse[[b, s, h]];
                let scores = truth.scores.slice(s![b, h, s, ..]);
                let seen = scores.iter().filter(|score| score.is_finite());
                *lse += seen.map(|score| (score - total).exp() * (cut_off(*score) - score)).sum::<f64>();
            }
        }
        Ok(vec![
            Output::near("out", out, truth.out, plain.out.mapv(f64::from))?,
            Output::near("lse", lse, truth.lse, plain_lse)?,
        ])
    }

    fn judge_weights(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Vec<Output>> {
        let on = self.upload(device, lengths)?;
        let shape = [lengths.len(), self.heads, self.tokens, on.kv.shape()[1]];
        let scores = output(device, Element::F32, &shape)?;
        let weights = output(device, self.element, &shape)?;
        let (given, mask) = (on.lengths.as_ref(), on.mask.as_ref());
        attention_weights(&on.q, &on.kv, &on.k_pe, given, mask, self.scale(), &scores, &weights)?;
        let (truth, plain) = (self.formula::<f64>(lengths, |x| x), self.plain(lengths));
        Ok(vec![
            Output::near("scores", &scores, truth.scores, plain.scores.mapv(f64::from))?,
            Output::near("weights", &weights, truth.weights, plain.weights.mapv(f64::from))?,
        ])
    }

    fn plain(&self, lengths: &[usize]) -> Formula<f32> {
        self.formula(lengths, |x: f32| round(x.into(), self.element) as f32)
    }

    fn formula<T: Real>(&self, lengths: &[usize], round: impl Fn(T) -> T) -> Formula<T> {
        let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        let matrix = (batch, self.heads, self.tokens, longest);
        let mut all = Formula {
            scores: Array4::from_elem(matrix, T::neg_infinity()),
            weights: Array4::zeros(matrix),
            out: Array4::zeros((batch, self.tokens, self.heads, self.value)),
            lse: Array3::zeros((batch, self.tokens, self.heads)),
        };
        for (b, length) in lengths.iter().enumerate() {
            let Sequence { query, keys_and_values, k_pe } = self.sequence(*length);
            let bias = bias(self.tokens, *length, self.masked);
            for h in 0..self.heads {
                let k_nope = keys_and_values.slice(s![.., h, ..self.nope]);
                let keys = concatenate(Axis(1), &[k_nope, k_pe.view()]).expect("as many keys");
                let values = keys_and_values.slice(s![.., h, self.nope..]);
                let head = attend(query.index_axis(Axis(1), h), keys.view(), values, &bias, self.scale(), &round);
                all.scores.slice_mut(s![b, h, .., ..*length]).assign(&head.scores);
                all.weights.slice_mut(s![b, h, .., ..*length]).assign(&head.weights);
                all.out.slice_mut(s![b, .., h, ..]).assign(&head.out);
                all.lse.slice_mut(s![b, .., h]).assign(&head.lse);
            }
        }
        all
    }

    /// The tokens' attention to themselves and to those before them, apart and then merged, is the whole.
    fn merged(&self, device: &Arc<dyn Device>, length: usize) -> Result<Vec<Output>> {
        let on = self.upload(device, &[length])?;
        let before = length - self.tokens;
        // No causal rule for what is before: a mask that hides nothing, the same for all.
        let all = upload(device, Element::F32, &Array3::zeros((1, 1, before)))?;
        let part = |keys: std::ops::Range<usize>, mask| -> Result<(Tensor, Tensor)> {
            let (kv, k_pe) = (on.kv.narrow(1, keys.clone())?, on.k_pe.narrow(1, keys)?);
            self.attend(device, &Uploaded { q: on.q.clone(), kv, k_pe, lengths: None, mask })
        };
        let (out_a, lse_a) = part(0..before, Some(all))?;
        let (out_b, lse_b) = part(before..length, None)?;
        merge(self.variant, &out_a, &lse_a, &out_b, &lse_b, &out_a, &lse_a)?;
        self.near(&[length], &out_a, &lse_a)
    }

    /// What a sequence gets is the same to the bit alone, again, in a batch, and in another order; and so is what its
    /// last query gets without the others.
    fn same_in_any_company(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let lengths = [90, 20, 33];
        let mut outputs = vec![];
        let batch = self.attend(device, &self.upload(device, &lengths)?)?;
        let permuted = self.attend(device, &self.upload(device, &[33, 90, 20])?)?;
        for (b, length) in lengths.iter().enumerate() {
            let on = self.upload(device, &[*length])?;
            let alone = self.attend(device, &on)?;
            outputs.extend(same_sequence("again", &self.attend(device, &on)?, 0, &alone)?);
            outputs.extend(same_sequence("in a batch", &batch, b, &alone)?);
            outputs.extend(same_sequence("permuted", &permuted, (b + 1) % 3, &alone)?);
            let last = self.tokens - 1..self.tokens;
            let one = self.attend(device, &Uploaded { q: on.q.narrow(1, last.clone())?, ..on })?;
            outputs.extend(same_sequence(
                "one query",
                &one,
                0,
                &(alone.0.narrow(1, last.clone())?, alone.1.narrow(1, last)?),
            )?);
        }
        Ok(outputs)
    }
}

/// All results of a batch: scores and weights \[B,H,S,T\], out \[B,S,H,v\], lse \[B,S,H\].
struct Formula<T> {
    scores: Array4<T>,
    weights: Array4<T>,
    out: Array4<T>,
    lse: Array3<T>,
}

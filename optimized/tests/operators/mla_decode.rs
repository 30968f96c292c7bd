//! Attention on a paged cache of latents: lengths around tiles and splits, odd sizes, pages in any order, masks; what
//! is not a sequence's own is NaN (cache) or nonsense (block table). A sequence alone, in a batch, in another order, and
//! with room for more keys, all with the same scratch; tokens of a chunk without those behind them.

use std::ops::Range;
use std::sync::Arc;

use dsv2_optimized::operators::mla_decode::{mla_decode, shared};
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::Real;
use libtest_mimic::{Failed, Trial};
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

/// With so many columns in the block table that blocks have many rows: few rows each would be more blocks than a GPU has room
/// for.
const CROWDED: &[Row] = &[
    ([3, 12, 16, 8, 16], &[70], false, true),
    ([3, 12, 16, 8, 16], &[2, 300], true, false),
    ([1, 63, 64, 16, 16], &[40, 290], false, false),
    ([1, 65, 16, 8, 16], &[513, 512, 600], false, false),
    ([1, 65, 512, 64, 32], &[75], false, true),
];
const CROWD: usize = 200_000;

/// Contexts around the longest one that is split every 256 keys, and beyond 64 K: sums of splits in two steps and in three;
/// numbers of keys, pages and bytes that 16 bits do not hold.
const LONG: &[Row] = &[
    ([1, 2, 12, 4, 16], &[4097, 4096], false, false),
    ([1, 1, 12, 4, 16], &[140_000], false, false),
    ([1, 1, 16, 4, 128], &[65_537, 3, 66_000], false, false),
];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // The cheap ones first, for all kernels.
    let with_room = |rows: &'static [Row], room: usize| rows.iter().map(move |row| (row, room));
    for (row, room) in with_room(ROWS, 0).chain(with_room(CROWDED, CROWD)).chain(with_room(LONG, 0)) {
        let &([tokens, heads, latent, rope, page_size], lengths, masked, watched) = row;
        for (element, variant) in KINDS {
            if room > 0 && variant == Variant::Naive {
                continue;
            }
            let input = Input { tokens, heads, latent, rope, page_size, room, masked, element, variant };
            let mask = if masked { ",mask" } else { "" };
            let room = if room > 0 { ",room" } else { "" };
            let shape = format!("S={tokens},H={heads},c={latent},r={rope},page={page_size},T={lengths:?}{mask}{room}");
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
            let input = Input { tokens, heads, latent, rope, page_size: 16, room: 0, masked: false, element, variant };
            cases.push(Case {
                name: format!("mla_decode/{variant}/{element}/alone_in_a_batch_permuted/S={tokens},H={heads}"),
                module: "mla_decode",
                watched: false,
                run: Box::new(move |device| input.same_in_any_company(device)),
            });
        }
    }
    for (element, variant) in KINDS {
        let input =
            Input { tokens: 4, heads: 2, latent: 12, rope: 4, page_size: 64, room: 0, masked: false, element, variant };
        cases.push(Case {
            name: format!("mla_decode/{variant}/{element}/a_token_of_a_chunk_as_at_the_end_of_its_cache"),
            module: "mla_decode",
            watched: false,
            run: Box::new(move |device| input.same_at_the_end_of_its_cache(device)),
        });
    }
    cases
}

/// What is counted, not compared.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("counts/mla_decode/instructions_and_bytes_for_each_key", instructions_and_bytes_for_each_key)]
}

/// Of the widths of the published models, with few heads in a block and many. The bytes are those of the cache.
fn instructions_and_bytes_for_each_key() -> std::result::Result<(), Failed> {
    const KEYS: usize = 1024;
    // (heads, room, instructions of warps for each key, bytes read for each byte of the cache)
    for (heads, room, instructions, times) in [(16, 0, 100.0, 1.2), (128, 0, 700.0, 8.9), (128, 9000, 620.0, 2.95)] {
        let emulated = Emulated::profiling(Library::embedded());
        let (element, variant) = (Element::Bf16, Variant::Tuned);
        let input =
            Input { tokens: 1, heads, latent: 512, rope: 64, page_size: 64, room, masked: false, element, variant };
        input.attend(&input.scratch(&(emulated.clone() as _), &[KEYS])?, &[KEYS])?;
        let (mut found, mut read, mut conflicts) = (0, 0, 0);
        for line in emulated.profiles().iter().flat_map(|(_, profile)| &profile.lines) {
            found += line.counts.warp_instructions;
            read += line.counts.global.read;
            conflicts += line.counts.bank_conflicts();
        }
        let (found, read) = (found as f64 / KEYS as f64, read as f64 / (KEYS * 576 * 2) as f64);
        if found > instructions || !(1.0..=times).contains(&read) || conflicts > 0 {
            let expected = format!("at most {instructions} instructions and {times} times the cache");
            return Err(format!(
                "{heads} heads: {found:.1} instructions for each key, {read:.3} times the cache, {conflicts} bank \
                 conflicts, expected {expected}"
            )
            .into());
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    heads: usize,
    latent: usize,
    rope: usize,
    page_size: usize,
    /// For how many more keys than the longest sequence has the block table has columns, at least.
    room: usize,
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

    /// Columns of a block table for sequences of these lengths.
    fn columns(&self, lengths: &[usize]) -> usize {
        let longest = lengths.iter().max().copied().unwrap_or(0);
        longest.div_ceil(self.page_size) + 2 + self.room.div_ceil(self.page_size)
    }

    /// Room for attention of all tokens of these sequences.
    fn scratch(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Scratch> {
        let Input { tokens, heads, latent, rope, page_size, variant, .. } = *self;
        let shape = [lengths.len(), tokens, heads, latent];
        let (numbers, counters) = shared(variant, shape, rope, self.columns(lengths) * page_size);
        Scratch::with_counters(device, numbers, counters)
    }

    /// The operator's results out \[B,S,H,c\] and lse \[B,S,H\] of all tokens.
    fn attend(&self, scratch: &Scratch, lengths: &[usize]) -> Result<(Tensor, Tensor)> {
        self.attend_of(0..self.tokens, scratch, lengths)
    }

    /// Of these alone: as if nobody knew of the tokens behind them yet.
    fn attend_of(&self, which: Range<usize>, scratch: &Scratch, lengths: &[usize]) -> Result<(Tensor, Tensor)> {
        let device = scratch.device();
        let Input { tokens, heads, latent, rope, page_size, element, variant, .. } = *self;
        let (batch, width) = (lengths.len(), latent + rope);
        let sequences: Vec<Sequence> = lengths.iter().map(|length| self.sequence(*length)).collect();

        // Pages in a scattered order; what belongs to nobody is NaN, and a page number of nobody is nonsense.
        let taken: usize = lengths.iter().map(|length| length.div_ceil(page_size)).sum();
        let pages = (taken + 2) | 1;
        let max_pages = self.columns(lengths);
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
        let behind = tokens - which.end;
        let counts: Vec<i32> = lengths.iter().map(|length| length.saturating_sub(behind) as i32).collect();
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
        let q_latent = upload(device, element, &by_head)?.permute(&[1, 2, 0, 3])?.narrow(1, which.clone())?;
        let q_pe = upload(device, element, &wide)?.narrow(3, gap..gap + rope)?.narrow(1, which.clone())?;

        let longest = lengths.iter().max().copied().unwrap_or(0);
        let mut mask = Array3::from_elem((batch, tokens, longest), f32::NAN);
        for (b, sequence) in sequences.iter().enumerate() {
            mask.slice_mut(s![b, .., ..lengths[b]]).assign(&sequence.bias);
        }
        let mask = upload(device, Element::F32, &mask)?.narrow(1, which.clone())?;
        let tokens = which.len();

        let out = output(device, element, &[batch, tokens, heads, latent])?;
        let lse = output(device, Element::F32, &[batch, tokens, heads])?;
        let mask = self.masked.then_some(&mask);
        let scale = self.scale();
        mla_decode(variant, &q_latent, &q_pe, &cache, &table, &counts, mask, scale, scratch, &out, &lse)?;
        Ok((out, lse))
    }

    fn judge(&self, device: &Arc<dyn Device>, lengths: &[usize]) -> Result<Vec<Output>> {
        let (out, lse) = self.attend(&self.scratch(device, lengths)?, lengths)?;
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

    /// What some tokens get, with the others and without them.
    fn same_without_others(&self, which: Range<usize>, scratch: &Scratch, length: usize) -> Result<Vec<Output>> {
        let (out, lse) = self.attend(scratch, &[length])?;
        let among_others = (out.narrow(1, which.clone())?, lse.narrow(1, which.clone())?);
        let alone = self.attend_of(which, scratch, &[length])?;
        Ok(same_sequence("without others", &alone, 0, &among_others)?.into())
    }

    /// A token in a chunk gets the same to the bit as if its cache ended with it, also where the chunk's last token has
    /// longer splits than its first one.
    fn same_at_the_end_of_its_cache(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        const LENGTH: usize = 4098;
        let scratch = self.scratch(device, &[LENGTH])?;
        self.same_without_others(0..1, &scratch, LENGTH)
    }

    /// What a sequence gets is the same to the bit alone, again, in a batch, in another order, and with so much room that
    /// blocks have many rows; and so is what its first and its last token get without the others. One scratch serves all.
    fn same_in_any_company(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let lengths = [300, 2, 257, 64];
        let roomy = Input { room: if self.variant == Variant::Tuned { CROWD } else { 100 }, ..*self };
        let scratch = roomy.scratch(device, &lengths)?;
        let mut outputs = vec![];
        let batch = self.attend(&scratch, &lengths)?;
        let permuted = self.attend(&scratch, &[64, 300, 2, 257])?;
        let crowded = roomy.attend(&scratch, &lengths)?;
        for (b, length) in lengths.iter().enumerate() {
            let alone = self.attend(&scratch, &[*length])?;
            outputs.extend(same_sequence("again", &self.attend(&scratch, &[*length])?, 0, &alone)?);
            outputs.extend(same_sequence("in a batch", &batch, b, &alone)?);
            outputs.extend(same_sequence("permuted", &permuted, (b + 1) % 4, &alone)?);
            outputs.extend(same_sequence("with more room", &crowded, b, &alone)?);
            for which in [0..1, self.tokens - 1..self.tokens] {
                outputs.extend(self.same_without_others(which, &scratch, *length)?);
            }
        }
        Ok(outputs)
    }
}

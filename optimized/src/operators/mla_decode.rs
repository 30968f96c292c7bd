//! Multi-head latent attention of new tokens on a paged cache of latents: the absorbed form, for decoding.

use ptx_emulator::Grid;

use super::mla_prefill::check_mask;
use super::scratch::Scratch;
use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

const OPERATOR: &str = "mla_decode";

/// What the tuned kernels have room for: numbers of a latent, and of a latent with its key. The published models have
/// exactly these. Above, the naive kernels run.
const WIDEST: (usize, usize) = (512, 576);

/// The keys of the first splits, and twice that with more than so many heads; those of N keys end at N * (N / SHARE), and
/// twice as long ones follow. As in the kernels.
const SPLIT: usize = 256;
const MANY_HEADS: usize = 64;
const SHARE: usize = 16;

/// So many blocks of few rows a GPU works on at the same time: one on each multiprocessor of the largest, whose shared memory
/// has room for no more.
const BLOCKS: usize = 132;

/// How many splits a sequence of so many keys has: of 256 keys, or 512 with more than 64 heads, and twice as long ones from
/// where those of N keys end, key N N / 16.
///
/// Where they begin and end depends neither on the batch nor on the tokens behind: so neither does what a token gets.
fn splits_of(length: usize, heads: usize) -> usize {
    let mut keys = if heads > MANY_HEADS { 2 * SPLIT } else { SPLIT };
    let (mut splits, mut first) = (0, 0);
    loop {
        let behind = keys.saturating_mul(keys / SHARE);
        if length <= behind {
            return splits + (length - first).div_ceil(keys);
        }
        splits += (behind - first) / keys;
        (first, keys) = (behind, 2 * keys);
    }
}

/// How many f32 numbers and how many counters of its [`Scratch`] [`mla_decode`] needs.
///
/// `[batch, tokens, heads, latent]` is the shape of `q_latent`, `rope` the width of `q_pe`, `capacity` the number of
/// keys for which a row of the block table has room.
pub fn shared(
    variant: Variant,
    [batch, tokens, heads, latent]: [usize; 4],
    rope: usize,
    capacity: usize,
) -> (usize, usize) {
    let rows = batch.saturating_mul(tokens).saturating_mul(heads);
    match possible(variant, latent, rope) {
        // All scores. Counters are not needed, but no tensor is of nothing.
        Variant::Naive => (rows.saturating_mul(capacity), 1),
        // Of each split, the sums of the latents, the largest score, and the sum of the weights. Counters are for as many
        // tiles as there are when each has the fewest rows.
        Variant::Tuned => {
            let splits = splits_of(capacity, heads).max(1);
            let tiles = tokens.saturating_mul(heads).div_ceil(FEW.rows).saturating_mul(batch);
            let numbers = rows.saturating_mul(splits).saturating_mul(latent.next_multiple_of(4) + 2);
            (numbers, tiles.saturating_mul(splits))
        }
    }
}

/// Attention of S new tokens of each of B sequences on all of the sequence's latents, the new ones included:
///
/// ```text
/// x_t = (q_latent . latent_t + q_pe . k_pe_t) * scale + mask_t
/// out = sum_t softmax(x)_t latent_t,    lse = ln sum_t exp(x_t)
/// ```
///
/// q_latent \[B,S,H,c\] and q_pe \[B,S,H,r\] (rows anywhere), cache \[pages,page_size,c+r\], block_table
/// \[B,max_pages\] (page of each run of `page_size` keys), lengths \[B\] (keys of each sequence; 0 is allowed; one
/// that is more than the block table has room for counts as that room), mask f32 \[B or 1,S or 1,T\] (rows anywhere; T no less than any length) -> out \[B,S,H,c\],
/// lse f32 \[B,S,H\].
///
/// Query s sees the keys t < length - S + s + 1. With a mask it sees all t < length but those whose entry is at or
/// below half the lowest finite number. A query that sees nothing has out = 0 and lse = -inf.
///
/// # Errors
/// If shapes or types do not fit, there is less room than [`shared`] says, or the launch fails. What the block table and
/// the lengths hold is the caller's business.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn mla_decode(
    variant: Variant,
    q_latent: &Tensor,
    q_pe: &Tensor,
    cache: &Tensor,
    block_table: &Tensor,
    lengths: &Tensor,
    mask: Option<&Tensor>,
    scale: f32,
    scratch: &Scratch,
    out: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let operand = |name, tensor| Operand::new(OPERATOR, name, tensor);
    let element = q_latent.element();
    let [batch, tokens, heads, latent] = operand("q_latent", q_latent).real()?.contiguous_rows()?.axes()?;
    let [_, _, _, rope] = operand("q_pe", q_pe).element(element)?.contiguous_rows()?.axes()?;
    operand("q_pe", q_pe).shape(&[batch, tokens, heads, rope])?;
    let [pages, page_size, _] = operand("cache", cache).element(element)?.contiguous()?.axes()?;
    operand("cache", cache).shape(&[pages, page_size, latent + rope])?;
    let [_, max_pages] = operand("block_table", block_table).element(Element::I32)?.contiguous()?.axes()?;
    operand("block_table", block_table).shape(&[batch, max_pages])?;
    operand("lengths", lengths).element(Element::I32)?.shape(&[batch])?.contiguous()?;
    if let Some(mask) = mask {
        check_mask(OPERATOR, mask, [batch, tokens], None)?;
    }
    operand("out", out).element(element)?.shape(&[batch, tokens, heads, latent])?.contiguous()?;
    operand("lse", lse).element(Element::F32)?.shape(&[batch, tokens, heads])?.contiguous()?;
    let capacity = max_pages * page_size;
    let (numbers, counters) = shared(variant, [batch, tokens, heads, latent], rope, capacity);
    let Some([parts, arrivals]) = scratch.room(numbers, counters) else {
        let expected = format!("room for {numbers} numbers and {counters} counters");
        return Err(Error::operand(OPERATOR, "scratch", expected, "less"));
    };

    let rows = batch * tokens * heads;
    if rows == 0 {
        return Ok(());
    }
    let args = Arguments::default().strided(q_latent, 3).strided(q_pe, 3).tensors([cache, block_table, lengths]);
    let splits = splits_of(capacity, heads).max(1);
    let args = args.mask(mask).and(scale).sizes([batch, tokens, heads, latent, rope, max_pages, page_size, splits]);
    let args = args.and(parts).and(arrivals).tensors([out, lse]);
    let (kernel, grid) = match possible(variant, latent, rope) {
        Variant::Naive => ("naive", Grid::linear(rows.div_ceil(4) as u32, 128)),
        Variant::Tuned => {
            let tile = Tile::of(element, [batch, tokens * heads], splits);
            (tile.name, tile.grid(element, [batch, tokens * heads, latent + rope], splits))
        }
    };
    scratch.after(args.launch(q_latent, OPERATOR, format!("{OPERATOR}_{kernel}_{element}"), grid))
}

/// The variant that can run these dimensions.
fn possible(variant: Variant, latent: usize, rope: usize) -> Variant {
    if latent > WIDEST.0 || latent + rope > WIDEST.1 { Variant::Naive } else { variant }
}

/// The rows that a block has, and how; as in the kernels.
struct Tile {
    rows: usize,
    threads: usize,
    /// Keys at a time, and how many times that are in shared memory.
    keys: usize,
    stages: usize,
    name: &'static str,
}

const F32: Tile = Tile { rows: 16, threads: 128, keys: 16, stages: 2, name: "tuned" };
const MANY: Tile = Tile { rows: 64, threads: 256, keys: 32, stages: 3, name: "tuned" };
const FEW: Tile = Tile { rows: 16, threads: 128, keys: 32, stages: 4, name: "few_tuned" };

impl Tile {
    /// Many rows share what is read of the cache; but a block has few where even those do not keep a GPU busy. A row's bits
    /// are the same in both.
    fn of(element: Element, [batch, rows]: [usize; 2], splits: usize) -> Self {
        match element {
            Element::F32 => F32,
            _ if rows <= 2 * FEW.rows || batch * rows.div_ceil(FEW.rows) * splits <= BLOCKS => FEW,
            _ => MANY,
        }
    }

    /// A block for each tile of rows, split and sequence. Blocks that read the same keys are neighbours.
    fn grid(&self, element: Element, [batch, rows, width]: [usize; 3], splits: usize) -> Grid {
        // Bytes of a row, with its padding; and what is behind the tiles of keys: of f32 the queries, of bf16 the products of
        // a tile of keys, and of many rows an eighth of the queries of which registers hold the rest.
        let (row, behind) = match element {
            Element::F32 => (16 * (width.div_ceil(4) | 1), self.rows * 16 * (width.div_ceil(4) | 1)),
            _ => {
                (2 * (width.next_multiple_of(192) + 8), self.rows * 512 + if self.rows == MANY.rows { 8192 } else { 0 })
            }
        };
        // In the end the sums of all rows lie there.
        let shared = (self.stages * self.keys * row + behind).max(self.rows * (WIDEST.0 + 8) * 4);
        Grid {
            blocks: [rows.div_ceil(self.rows) as u32, splits as u32, batch as u32],
            threads: [self.threads as u32, 1, 1],
            shared: shared as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Emulated, Library};

    /// The error of a call in which one tensor has another shape than it should.
    fn error(change: impl Fn(&mut [Vec<usize>; 8])) -> Result<String> {
        let device: std::sync::Arc<dyn Device> = Emulated::new(Library::embedded());
        let (needed, counters) = shared(Variant::Tuned, [2, 1, 3, 8], 4, 32);
        // q_latent, q_pe, cache, block_table, lengths, scratch, out, lse
        let mut shapes = [
            vec![2, 1, 3, 8],
            vec![2, 1, 3, 4],
            vec![5, 16, 12],
            vec![2, 2],
            vec![2],
            vec![needed],
            vec![2, 1, 3, 8],
            vec![2, 1, 3],
        ];
        change(&mut shapes);
        let real = |i: usize| Tensor::empty(&device, Element::F32, &shapes[i]);
        let integer = |i: usize| Tensor::empty(&device, Element::I32, &shapes[i]);
        let (q_latent, q_pe, cache) = (real(0)?, real(1)?, real(2)?);
        let (table, lengths) = (integer(3)?, integer(4)?);
        let (out, lse) = (real(6)?, real(7)?);
        let scratch = Scratch::with_counters(&device, shapes[5][0], counters)?;
        let variant = Variant::Tuned;
        mla_decode(variant, &q_latent, &q_pe, &cache, &table, &lengths, None, 1.0, &scratch, &out, &lse)
            .map_or_else(|error| Ok(error.to_string()), |()| Ok("none".into()))
    }

    #[test]
    fn what_does_not_fit_is_named() -> Result<()> {
        assert_eq!(
            error(|shapes| shapes[1] = vec![2, 1, 2, 4])?,
            "mla_decode: q_pe: expected the shape [2, 1, 3, 4], found [2, 1, 2, 4]"
        );
        assert_eq!(
            error(|shapes| shapes[2] = vec![5, 16, 11])?,
            "mla_decode: cache: expected the shape [5, 16, 12], found [5, 16, 11]"
        );
        assert_eq!(error(|shapes| shapes[4] = vec![3])?, "mla_decode: lengths: expected the shape [2], found [3]");
        assert_eq!(
            error(|shapes| shapes[5] = vec![59])?,
            "mla_decode: scratch: expected room for 60 numbers and 2 counters, found less"
        );
        Ok(())
    }

    #[test]
    fn a_longer_sequence_has_the_splits_of_a_shorter_one_and_longer_ones() {
        let splits = |heads| [0, 1, 4096, 4097, 16_384, 16_385, 131_072].map(|keys| splits_of(keys, heads));
        assert_eq!([splits(16), splits(128)], [[0, 1, 16, 17, 40, 41, 120], [0, 1, 8, 9, 32, 33, 112]]);
        for heads in [16, 128] {
            assert!((0..300_000).all(|keys| (0..2).contains(&(splits_of(keys + 1, heads) - splits_of(keys, heads)))));
        }
    }
}

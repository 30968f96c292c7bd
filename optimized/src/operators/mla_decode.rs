//! Multi-head latent attention of new tokens on a paged cache of latents: the absorbed form, for decoding.

use ptx_emulator::Grid;

use super::mla_prefill::check_mask;
use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

const OPERATOR: &str = "mla_decode";

/// The tuned kernels cut every context after so many keys, counted from its start.
pub const SPLIT: usize = 256;

/// What the tuned kernels have room for: numbers of a latent, and of a latent with its key. The published models have
/// exactly these. Above, the naive kernels run.
const WIDEST: (usize, usize) = (512, 576);

/// How many f32 numbers [`mla_decode`] needs as its workspace.
///
/// `[batch, tokens, heads, latent]` is the shape of `q_latent`, `rope` the width of `q_pe`, `capacity` the number of
/// keys for which a row of the block table has room. What is in the workspace need not be kept between calls.
pub fn workspace(variant: Variant, [batch, tokens, heads, latent]: [usize; 4], rope: usize, capacity: usize) -> usize {
    let rows = batch * tokens * heads;
    match possible(variant, latent, rope) {
        // All scores.
        Variant::Naive => rows * capacity,
        // Of each split, the sums of the latents, the largest score, and the sum of the weights.
        Variant::Tuned => rows * capacity.div_ceil(SPLIT) * (latent.next_multiple_of(4) + 2),
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
/// \[B,max_pages\] (page of each run of `page_size` keys), lengths \[B\] (keys of each sequence; 0 is allowed; no more
/// than there is room for), mask f32 \[B or 1,S or 1,T\] (rows anywhere; T no less than any length) -> out \[B,S,H,c\],
/// lse f32 \[B,S,H\].
///
/// Query s sees the keys t < length - S + s + 1. With a mask it sees all t < length but those whose entry is at or
/// below half the lowest finite number. A query that sees nothing has out = 0 and lse = -inf.
///
/// # Errors
/// If shapes or types do not fit, the workspace is smaller than [`workspace`] says, or the launch fails. What the block
/// table and the lengths hold is the caller's business.
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
    scratch: &Tensor,
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
    let needed = workspace(variant, [batch, tokens, heads, latent], rope, capacity);
    operand("workspace", scratch).element(Element::F32)?.contiguous()?;
    if scratch.len() < needed || !scratch.address().is_multiple_of(16) {
        let found = format!("{} at {:#x}", scratch.len(), scratch.address());
        return Err(Error::operand(OPERATOR, "workspace", format!("{needed} numbers on 16 bytes"), found));
    }

    let rows = batch * tokens * heads;
    if rows == 0 {
        return Ok(());
    }
    let args = Arguments::default().strided(q_latent, 3).strided(q_pe, 3).tensors([cache, block_table, lengths]);
    let args = args.mask(mask).and(scale).sizes([batch, tokens, heads, latent, rope, max_pages, page_size]);
    let args = args.tensors([scratch, out, lse]);
    let launch = |kernel: &str, grid| args.launch(q_latent, OPERATOR, format!("{OPERATOR}_{kernel}_{element}"), grid);
    match possible(variant, latent, rope) {
        Variant::Naive => launch("naive", Grid::linear(rows.div_ceil(4) as u32, 128)),
        Variant::Tuned => {
            if capacity > 0 {
                launch("tuned", split_grid(element, [batch, tokens * heads, latent + rope], capacity))?;
            }
            let grid = Grid { blocks: [(tokens * heads) as u32, batch as u32, 1], threads: [128, 1, 1], shared: 0 };
            launch("combine", grid)
        }
    }
}

/// The variant that can run these dimensions.
fn possible(variant: Variant, latent: usize, rope: usize) -> Variant {
    if latent > WIDEST.0 || latent + rope > WIDEST.1 { Variant::Naive } else { variant }
}

/// A block for each tile of rows, split and sequence. Blocks that read the same keys are neighbours.
fn split_grid(element: Element, [batch, rows, width]: [usize; 3], capacity: usize) -> Grid {
    // Rows of a block; bytes of a row of shared memory, with its padding; keys of a tile; scores. As in the kernels.
    let (tile, row, keys, scores) = match element {
        Element::F32 => (16, 16 * (width.div_ceil(4) | 1), 16, 0),
        _ => {
            let tile = if rows > 32 { 64 } else { 16 };
            (tile, 2 * (width.next_multiple_of(64) + 8), 32, tile * 40 * 4)
        }
    };
    Grid {
        blocks: [rows.div_ceil(tile) as u32, capacity.div_ceil(SPLIT) as u32, batch as u32],
        threads: [tile as u32 * 8, 1, 1],
        shared: ((2 * keys + tile) * row + scores) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Emulated, Library};

    /// The error of a call in which one tensor has another shape than it should.
    fn error(change: impl Fn(&mut [Vec<usize>; 8])) -> Result<String> {
        let device: std::sync::Arc<dyn Device> = Emulated::new(Library::embedded());
        let needed = workspace(Variant::Tuned, [2, 1, 3, 8], 4, 32);
        // q_latent, q_pe, cache, block_table, lengths, workspace, out, lse
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
        let (scratch, out, lse) = (real(5)?, real(6)?, real(7)?);
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
        let small = error(|shapes| shapes[5] = vec![59])?;
        assert!(small.starts_with("mla_decode: workspace: expected 60 numbers on 16 bytes, found 59 at"), "{small}");
        Ok(())
    }
}

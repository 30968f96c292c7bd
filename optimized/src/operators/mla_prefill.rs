//! Multi-head latent attention with expanded keys and values, for many new tokens; and its weights, for traces.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Result, Tensor};

/// What the tuned kernels have room for: numbers of a query (n + r) and of a value (v). The published models have
/// exactly these. Above, the naive kernels run.
const WIDEST: (usize, usize) = (192, 128);

/// Attention of S new tokens of each of B sequences on all of the sequence's keys, the new ones included:
///
/// ```text
/// x_st = (q^C_s . k^C_t + q^R_s . k^R_t) * scale + mask_st
/// out_s = sum_t softmax(x_s)_t v_t,    lse_s = ln sum_t exp(x_st)
/// ```
///
/// q \[B,S,H,n+r\], kv \[B,T,H,n+v\] (of each head the key's part without position, then the value), k_pe \[B,T,r\],
/// lengths \[B\] (keys of each sequence; T, if there are none), mask f32 \[B or 1,S or 1,T\]; rows of all but `lengths`
/// may be anywhere -> out \[B,S,H,v\], lse f32 \[B,S,H\].
///
/// Query s sees the keys t < length - S + s + 1. With a mask it sees all t < length but those whose entry is at or
/// below half the lowest finite number: a mask of zeros, \[1,1,T\], shows all of a chunk that lies before the new
/// tokens. A query that sees nothing has out = 0 and lse = -inf.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails. What the lengths are is the caller's business.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn mla_prefill(
    variant: Variant,
    q: &Tensor,
    kv: &Tensor,
    k_pe: &Tensor,
    lengths: Option<&Tensor>,
    mask: Option<&Tensor>,
    scale: f32,
    out: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let operands = Operands { operator: "mla_prefill", q, kv, k_pe, lengths, mask, scale };
    let sizes = operands.check()?;
    let Sizes { batch, tokens, heads, nope, rope, value, .. } = sizes;
    let element = q.element();
    let operand = |name, tensor| Operand::new("mla_prefill", name, tensor);
    operand("out", out).element(element)?.shape(&[batch, tokens, heads, value])?.contiguous()?;
    operand("lse", lse).element(Element::F32)?.shape(&[batch, tokens, heads])?.contiguous()?;
    let rows = batch * tokens * heads;
    if rows == 0 {
        return Ok(());
    }
    let fits = nope + rope <= WIDEST.0 && value <= WIDEST.1;
    // Tensor cores' results are stored in pairs.
    let pairs = element == Element::F32 || (value.is_multiple_of(2) && out.address().is_multiple_of(4));
    let (variant, grid) = match variant {
        Variant::Tuned if fits && pairs => (Variant::Tuned, tile_grid(element, &sizes)),
        _ => (Variant::Naive, Grid::linear(rows.div_ceil(4) as u32, 128)),
    };
    operands.args(&sizes, out, lse).launch(q, "mla_prefill", format!("mla_prefill_{variant}_{element}"), grid)
}

/// The scores and weights of the same attention, all at once, for traces: scores f32 \[B,H,S,T\] (scaled and masked;
/// -inf where a query does not see a key) and weights \[B,H,S,T\] (their softmax; 0 in a row that sees nothing). There
/// is a naive kernel only.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn attention_weights(
    q: &Tensor,
    kv: &Tensor,
    k_pe: &Tensor,
    lengths: Option<&Tensor>,
    mask: Option<&Tensor>,
    scale: f32,
    scores: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    let operands = Operands { operator: "attention_weights", q, kv, k_pe, lengths, mask, scale };
    let sizes = operands.check()?;
    let Sizes { batch, tokens, keys, heads, .. } = sizes;
    let operand = |name, tensor| Operand::new("attention_weights", name, tensor);
    operand("scores", scores).element(Element::F32)?.shape(&[batch, heads, tokens, keys])?.contiguous()?;
    operand("weights", weights).element(q.element())?.shape(&[batch, heads, tokens, keys])?.contiguous()?;
    let rows = batch * tokens * heads;
    if rows == 0 {
        return Ok(());
    }
    let entry = format!("attention_weights_naive_{}", q.element());
    let grid = Grid::linear(rows.div_ceil(4) as u32, 128);
    operands.args(&sizes, weights, scores).launch(q, "mla_prefill", entry, grid)
}

/// A block for each tile of queries, head and sequence. As many warps as the queries need, and no more than 8.
fn tile_grid(element: Element, sizes: &Sizes) -> Grid {
    let Sizes { batch, tokens, heads, nope, rope, value, .. } = *sizes;
    let width = nope + rope;
    // Queries of a block, threads; bytes of shared memory: queries, two tiles of keys and values, weights. As in the
    // kernels.
    let (tile, threads, shared) = match element {
        Element::F32 => {
            let tile = tokens.next_multiple_of(8).min(64);
            let row = (width.div_ceil(4) | 1) * 4;
            (tile, tile * 4, 4 * ((tile + 64) * row + 64 * value.next_multiple_of(4) + tile * 48))
        }
        _ => {
            let tile = tokens.next_multiple_of(16).min(128);
            let (row, value_row) = (width.next_multiple_of(16) + 8, value.next_multiple_of(16) + 8);
            (tile, tile * 2, 2 * ((tile + 128) * row + 128 * value_row))
        }
    };
    Grid {
        blocks: [tokens.div_ceil(tile) as u32, heads as u32, batch as u32],
        threads: [threads as u32, 1, 1],
        shared: shared as u32,
    }
}

/// What attention is computed from.
struct Operands<'a> {
    operator: &'static str,
    q: &'a Tensor,
    kv: &'a Tensor,
    k_pe: &'a Tensor,
    lengths: Option<&'a Tensor>,
    mask: Option<&'a Tensor>,
    scale: f32,
}

struct Sizes {
    batch: usize,
    tokens: usize,
    keys: usize,
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
}

impl Operands<'_> {
    fn check(&self) -> Result<Sizes> {
        let element = self.q.element();
        let operand = |name, tensor| Operand::new(self.operator, name, tensor);
        let [batch, tokens, heads, width] = operand("q", self.q).real()?.contiguous_rows()?.axes()?;
        let [_, keys, rope] = operand("k_pe", self.k_pe).element(element)?.contiguous_rows()?.axes()?;
        operand("k_pe", self.k_pe).shape(&[batch, keys, rope.min(width)])?;
        let nope = width - rope;
        let [_, _, _, both] = operand("kv", self.kv).element(element)?.contiguous_rows()?.axes()?;
        operand("kv", self.kv).shape(&[batch, keys, heads, both.max(nope)])?;
        if let Some(lengths) = self.lengths {
            operand("lengths", lengths).element(Element::I32)?.shape(&[batch])?.contiguous()?;
        }
        if let Some(mask) = self.mask {
            check_mask(self.operator, mask, [batch, tokens], Some(keys))?;
        }
        Ok(Sizes { batch, tokens, keys, heads, nope, rope, value: both - nope })
    }

    /// As the kernels take them, with the two results.
    fn args(&self, sizes: &Sizes, out: &Tensor, lse: &Tensor) -> Arguments {
        let Sizes { batch, tokens, keys, heads, nope, rope, value } = *sizes;
        let args = Arguments::default().strided(self.q, 3).strided(self.kv, 3).strided(self.k_pe, 2);
        let args = args.optional(self.lengths).mask(self.mask).and(self.scale);
        args.sizes([batch, tokens, keys, heads, nope, rope, value]).tensors([out, lse])
    }
}

/// A mask is f32 \[B or 1,S or 1,T\]; any T, if `keys` does not say.
pub(super) fn check_mask(
    operator: &'static str,
    mask: &Tensor,
    [batch, tokens]: [usize; 2],
    keys: Option<usize>,
) -> Result<()> {
    let operand = || Operand::new(operator, "mask", mask);
    let [of_batch, of_tokens, of_keys] = operand().element(Element::F32)?.contiguous_rows()?.axes()?;
    let one_or = |found, all| if found == 1 { 1 } else { all };
    operand().shape(&[one_or(of_batch, batch), one_or(of_tokens, tokens), keys.unwrap_or(of_keys)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Emulated, Library};

    /// The error of a call with such shapes of q, kv, k_pe, mask and out.
    fn error(shapes: [&[usize]; 5]) -> Result<String> {
        let device: std::sync::Arc<dyn Device> = Emulated::new(Library::embedded());
        let [q, kv, k_pe, mask, out] = shapes.map(|shape| Tensor::empty(&device, Element::F32, shape));
        let (q, kv, k_pe, mask, out) = (q?, kv?, k_pe?, mask?, out?);
        let lse = Tensor::empty(&device, Element::F32, &q.shape()[..3])?;
        mla_prefill(Variant::Tuned, &q, &kv, &k_pe, None, Some(&mask), 1.0, &out, &lse)
            .map_or_else(|error| Ok(error.to_string()), |()| Ok("none".into()))
    }

    #[test]
    fn what_does_not_fit_is_named() -> Result<()> {
        let fitting: [&[usize]; 5] = [&[2, 3, 4, 12], &[2, 5, 4, 16], &[2, 5, 4], &[2, 3, 5], &[2, 3, 4, 8]];
        let [q, kv, k_pe, mask, out] = fitting;
        assert_eq!(
            error([q, kv, &[2, 5, 13], mask, out])?,
            "mla_prefill: k_pe: expected the shape [2, 5, 12], found [2, 5, 13]"
        );
        assert_eq!(
            error([q, &[2, 6, 4, 16], k_pe, mask, out])?,
            "mla_prefill: kv: expected the shape [2, 5, 4, 16], found [2, 6, 4, 16]"
        );
        assert_eq!(
            error([q, kv, k_pe, &[1, 3, 6], out])?,
            "mla_prefill: mask: expected the shape [1, 3, 5], found [1, 3, 6]"
        );
        assert_eq!(
            error([q, kv, k_pe, mask, &[2, 3, 4, 9]])?,
            "mla_prefill: out: expected the shape [2, 3, 4, 8], found [2, 3, 4, 9]"
        );
        Ok(())
    }
}

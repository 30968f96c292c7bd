//! Reading the paged latent cache back.

use ptx_emulator::{Arg, Grid};

use super::{Arguments, Operand, Variant};
use crate::{Element, Result, Tensor};

/// A layer of a paged cache, and where the sequences are in it.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// \[pages, page_size, c+r\]
    pub cache: &'a Tensor,
    /// \[B, columns\]: the pages of each sequence. Entries beyond its length are never followed.
    pub block_table: &'a Tensor,
    /// \[B\]: tokens of each sequence.
    pub lengths: &'a Tensor,
}

impl Pages<'_> {
    /// B, columns, page size; all of the right type and shape for rows of `width`.
    fn check(&self, operator: &'static str, width: usize) -> Result<[usize; 3]> {
        let [sequences, columns] =
            Operand::new(operator, "block_table", self.block_table).element(Element::I32)?.contiguous()?.axes()?;
        Operand::new(operator, "lengths", self.lengths).element(Element::I32)?.contiguous()?.shape(&[sequences])?;
        let [pages, page_size, _] = Operand::new(operator, "cache", self.cache).real()?.contiguous()?.axes()?;
        Operand::new(operator, "cache", self.cache).shape(&[pages, page_size, width])?;
        Ok([sequences, columns, page_size])
    }

    fn tensors(&self) -> [&Tensor; 3] {
        [self.cache, self.block_table, self.lengths]
    }
}

/// Copies the cached latents and keys out of their pages: -> latents \[B,T,c\], keys \[B,T,r\]; zeros beyond a sequence's
/// end.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn latent_cache_read(variant: Variant, pages: &Pages, latents: &Tensor, keys: &Tensor) -> Result<()> {
    let operator = "latent_cache_read";
    let [sequences, tokens, latent] = Operand::new(operator, "latents", latents).contiguous()?.axes()?;
    let [_, _, rope] = Operand::new(operator, "keys", keys).contiguous()?.axes()?;
    let [_, columns, page_size] = pages.check(operator, latent + rope)?;
    let element = pages.cache.element();
    Operand::new(operator, "latents", latents).element(element)?.shape(&[pages.lengths.len(), tokens, latent])?;
    Operand::new(operator, "keys", keys).element(element)?.shape(&[sequences, tokens, rope])?;
    let rows = sequences * tokens;
    if rows == 0 {
        return Ok(());
    }
    let args = Arguments::default().tensors(pages.tensors()).tensors([latents, keys]);
    let args = args.sizes([sequences, tokens, columns, page_size, latent, rope]);
    let blocks = if variant == Variant::Naive { rows.div_ceil(128) } else { rows };
    let entry = format!("{operator}_{variant}_{element}");
    args.launch(pages.cache, "latent_read", entry, Grid::linear(blocks as u32, 128))
}

/// The scores that the absorbed form takes the softmax of: q_latent \[B,S,H,c\], q_pe \[B,S,H,r\] -> scores \[B,H,S,T\] fp32,
/// minus infinity where a key is not seen. For replays; the attention kernels never write them.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn absorbed_scores(
    q_latent: &Tensor,
    q_pe: &Tensor,
    pages: &Pages,
    mask: Option<&Tensor>,
    scale: f32,
    scores: &Tensor,
) -> Result<()> {
    let operator = "absorbed_scores";
    let element = pages.cache.element();
    let [sequences, new, heads, latent] =
        Operand::new(operator, "q_latent", q_latent).element(element)?.contiguous_rows()?.axes()?;
    let [_, _, _, rope] = Operand::new(operator, "q_pe", q_pe).element(element)?.contiguous_rows()?.axes()?;
    Operand::new(operator, "q_pe", q_pe).shape(&[sequences, new, heads, rope])?;
    let [_, columns, page_size] = pages.check(operator, latent + rope)?;
    let [_, _, _, tokens] = Operand::new(operator, "scores", scores).element(Element::F32)?.contiguous()?.axes()?;
    Operand::new(operator, "scores", scores).shape(&[pages.lengths.len(), heads, new, tokens])?;
    if let Some(mask) = mask {
        Operand::new(operator, "mask", mask).element(Element::F32)?.contiguous()?.shape(&[sequences, new, tokens])?;
    }
    if scores.is_empty() {
        return Ok(());
    }
    let steps = |q: &Tensor| Arg::bytes(&[0, 1, 2].map(|axis| (q.strides()[axis] as i64).to_le_bytes()).concat());
    let args = Arguments::default()
        .tensors([q_latent])
        .and(steps(q_latent))
        .tensors([q_pe])
        .and(steps(q_pe))
        .tensors(pages.tensors())
        .optional(mask)
        .and(scale)
        .tensors([scores])
        .sizes([sequences, new, heads, tokens, columns, page_size, latent, rope]);
    let grid = Grid::linear(scores.len().div_ceil(128) as u32, 128);
    args.launch(scores, "latent_read", format!("{operator}_{element}"), grid)
}

/// The softmax of scores \[.., T\] fp32, row by row -> weights \[.., T\]; a row of minus infinities has zeros.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn score_weights(scores: &Tensor, weights: &Tensor) -> Result<()> {
    let operator = "score_weights";
    Operand::new(operator, "scores", scores).element(Element::F32)?.contiguous()?;
    Operand::new(operator, "weights", weights).real()?.contiguous()?.shape(scores.shape())?;
    if scores.is_empty() {
        return Ok(());
    }
    let tokens = scores.shape().last().copied().unwrap_or(1);
    let rows = scores.len() / tokens;
    let args = Arguments::default().tensors([scores, weights]).sizes([rows, tokens]);
    let entry = format!("{operator}_{}", weights.element());
    args.launch(scores, "latent_read", entry, Grid::linear(rows.div_ceil(4) as u32, 128))
}

/// Attention from given weights: weights \[B,H,S,T\], values \[B,T,H,w\], or \[B,T,w\] for all heads alike -> out
/// \[B,S,H,w\]. For replaying somebody's weights; the attention kernels never read any.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn weighted_values(weights: &Tensor, values: &Tensor, out: &Tensor) -> Result<()> {
    let operator = "weighted_values";
    let element = weights.element();
    let [sequences, heads, new, tokens] = Operand::new(operator, "weights", weights).real()?.contiguous()?.axes()?;
    Operand::new(operator, "values", values).element(element)?.contiguous_rows()?;
    let width = values.shape().last().copied().unwrap_or(0);
    let head = match values.shape().len() {
        3 => {
            Operand::new(operator, "values", values).shape(&[sequences, tokens, width])?;
            0
        }
        _ => {
            Operand::new(operator, "values", values).shape(&[sequences, tokens, heads, width])?;
            values.strides()[2]
        }
    };
    Operand::new(operator, "out", out).element(element)?.contiguous()?.shape(&[sequences, new, heads, width])?;
    if out.is_empty() {
        return Ok(());
    }
    let steps = [values.strides()[0], values.strides()[1], head].map(|step| (step as i64).to_le_bytes()).concat();
    let args = Arguments::default().tensors([weights, values]).and(Arg::bytes(&steps)).tensors([out]);
    let args = args.sizes([sequences, new, heads, tokens, width]);
    let grid = Grid::linear(out.len().div_ceil(128) as u32, 128);
    args.launch(out, "latent_read", format!("{operator}_{element}"), grid)
}

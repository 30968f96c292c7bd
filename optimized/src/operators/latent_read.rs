//! Reading the paged latent cache back.

use ptx_emulator::{Arg, Grid};

use super::{Operand, Variant};
use crate::{Element, Kernel, Result, Tensor};

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

    fn args(&self) -> [Arg; 3] {
        [self.cache.arg(), self.block_table.arg(), self.lengths.arg()]
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
    let sizes = [sequences, tokens, columns, page_size, latent, rope].map(|size| Arg::from(size as i32));
    let args: Vec<Arg> = pages.args().into_iter().chain([latents.arg(), keys.arg()]).chain(sizes).collect();
    let blocks = if variant == Variant::Naive { rows.div_ceil(128) } else { rows };
    let kernel = Kernel::new("latent_read", format!("{operator}_{variant}_{element}"));
    pages.cache.device().launch(&kernel, Grid::linear(blocks as u32, 128), &args)
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
    let sizes = [sequences, new, heads, tokens, columns, page_size, latent, rope].map(|size| Arg::from(size as i32));
    let mut args = vec![q_latent.arg(), steps(q_latent), q_pe.arg(), steps(q_pe)];
    args.extend(pages.args());
    args.extend([mask.map_or(Arg::from(0u64), Tensor::arg), scale.into(), scores.arg()]);
    args.extend(sizes);
    let kernel = Kernel::new("latent_read", format!("{operator}_{element}"));
    scores.device().launch(&kernel, Grid::linear(scores.len().div_ceil(128) as u32, 128), &args)
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
    let args = [scores.arg(), weights.arg(), (rows as i32).into(), (tokens as i32).into()];
    let kernel = Kernel::new("latent_read", format!("{operator}_{}", weights.element()));
    scores.device().launch(&kernel, Grid::linear(rows.div_ceil(4) as u32, 128), &args)
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
    let mut args = vec![weights.arg(), values.arg(), Arg::bytes(&steps), out.arg()];
    args.extend([sequences, new, heads, tokens, width].map(|size| Arg::from(size as i32)));
    let kernel = Kernel::new("latent_read", format!("{operator}_{element}"));
    out.device().launch(&kernel, Grid::linear(out.len().div_ceil(128) as u32, 128), &args)
}

//! Latent norm, rotation of the key and write to the paged cache, in one kernel.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// Normalises the latent, turns the key, and writes both into the cache (paper eq. 9 and 15):
/// kv_a \[N,c+r\] (rows may be apart), weight \[c\], cos and sin \[N,r/2\] f32, slots \[N\] i32
/// -> cache \[pages,page_size,c+r\], and if wanted compressed_kv \[N,c\] and k_pe \[N,r\].
///
/// Token n goes to the place `slots[n] % page_size` of the page `slots[n] / page_size`; pages and places may be at any
/// stride. A token whose slot the cache does not have (-1 is usual, for a row that only pads a batch) is not written
/// there, and its other outputs are. The host does not see the slots: whoever makes them must check them, since a wrong
/// one past the cache is skipped without a word. No two tokens may have the same slot.
///
/// `q_pe` \[N,H,r\] (tokens and heads at any stride) is turned in its place by the same launch, as
/// [`rope`](super::rope::rope) does it.
///
/// # Errors
/// If shapes or types do not fit, `r` is odd, a page has no places, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn latent_cache_write(
    variant: Variant,
    kv_a: &Tensor,
    weight: &Tensor,
    eps: f32,
    cos: &Tensor,
    sin: &Tensor,
    slots: &Tensor,
    cache: &Tensor,
    compressed_kv: Option<&Tensor>,
    k_pe: Option<&Tensor>,
    q_pe: Option<&Tensor>,
) -> Result<()> {
    const OPERATOR: &str = "latent_cache_write";
    let element = kv_a.element();
    let [tokens, width] = Operand::new(OPERATOR, "kv_a", kv_a).real()?.contiguous_rows()?.axes()?;
    let [rank] = Operand::new(OPERATOR, "weight", weight).element(element)?.contiguous()?.axes()?;
    let rope = width.checked_sub(rank).filter(|rope| rope % 2 == 0).ok_or_else(|| {
        let expected = format!("{rank} columns for the latent and an even number for the key");
        Error::operand(OPERATOR, "kv_a", expected, format!("{:?}", kv_a.shape()))
    })?;
    for (name, table) in [("cos", cos), ("sin", sin)] {
        Operand::new(OPERATOR, name, table).element(Element::F32)?.shape(&[tokens, rope / 2])?.contiguous()?;
    }
    Operand::new(OPERATOR, "slots", slots).element(Element::I32)?.shape(&[tokens])?.contiguous()?;
    let [pages, page_size, _] = Operand::new(OPERATOR, "cache", cache).element(element)?.contiguous_rows()?.axes()?;
    if page_size == 0 || cache.shape()[2] != width {
        let expected = format!("[pages, page_size, {width}] with a page_size of at least 1");
        return Err(Error::operand(OPERATOR, "cache", expected, format!("{:?}", cache.shape())));
    }
    for (name, output, columns) in [("compressed_kv", compressed_kv, rank), ("k_pe", k_pe, rope)] {
        if let Some(output) = output {
            Operand::new(OPERATOR, name, output).element(element)?.shape(&[tokens, columns])?.contiguous()?;
        }
    }
    let heads = match q_pe {
        None => 0,
        Some(q_pe) => {
            let [_, heads, _] = Operand::new(OPERATOR, "q_pe", q_pe).element(element)?.contiguous_rows()?.axes()?;
            Operand::new(OPERATOR, "q_pe", q_pe).shape(&[tokens, heads, rope])?;
            heads
        }
    };
    if tokens == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((tokens + tokens * heads * rope / 2).div_ceil(128) as u32, 128),
        // A warp for each token, and a thread for each pair of the queries.
        Variant::Tuned => Grid::linear((tokens.div_ceil(4) + (tokens * heads * rope / 2).div_ceil(128)) as u32, 128),
    };
    let steps = |axis: usize| q_pe.map_or(0, |q_pe| q_pe.strides()[axis] as i64);
    let args = Arguments::default()
        .strided(kv_a, 1)
        .tensors([weight])
        .and(eps)
        .tensors([cos, sin, slots, cache])
        .sizes([pages, page_size])
        .and(cache.strides()[0] as i64)
        .and(cache.strides()[1] as i64)
        .optional(compressed_kv)
        .optional(k_pe)
        .sizes([tokens, rank, rope])
        .optional(q_pe)
        .and(steps(0))
        .and(steps(1))
        .sizes([heads]);
    args.launch(kv_a, "latent", format!("{OPERATOR}_{variant}_{element}"), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn widths_that_do_not_add_up_are_refused() {
        let write = |width: usize, cache: &[usize]| {
            let (kv_a, weight) = (tensor(Element::F32, &[2, width]), tensor(Element::F32, &[6]));
            let (table, slots) = (tensor(Element::F32, &[2, 2]), tensor(Element::I32, &[2]));
            let cache = tensor(Element::F32, cache);
            let result = latent_cache_write(
                Variant::Tuned,
                &kv_a,
                &weight,
                1e-6,
                &table,
                &table,
                &slots,
                &cache,
                None,
                None,
                None,
            );
            result.unwrap_err().to_string()
        };
        let odd = "latent_cache_write: kv_a: expected 6 columns for the latent and an even number for the key, found ";
        assert_eq!(write(9, &[1, 1, 9]), format!("{odd}[2, 9]"));
        assert_eq!(write(5, &[1, 1, 5]), format!("{odd}[2, 5]"));
        let cache = "latent_cache_write: cache: expected [pages, page_size, 10] with a page_size of at least 1, found ";
        assert_eq!(write(10, &[3, 16, 9]), format!("{cache}[3, 16, 9]"));
        assert_eq!(write(10, &[3, 0, 10]), format!("{cache}[3, 0, 10]"));
    }
}

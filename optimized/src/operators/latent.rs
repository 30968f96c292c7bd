//! Latent norm, rotation of the key and write to the paged cache, in one kernel.

use ptx_emulator::Grid;

use super::gemm::product::{Product, Tuned};
use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

const OPERATOR: &str = "latent_cache_write";

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
    check(OPERATOR, kv_a, weight, eps, cos, sin, slots, cache, [compressed_kv, k_pe], q_pe)?.launch(variant, kv_a)
}

/// [`latent_cache_write`] to the cache, turning the queries, and [`batched`](super::gemm::batched), to the bit; in one launch for
/// few rows, whose parts must not meet: nothing that one of the two writes may be what the other reads.
///
/// # Errors
/// As those.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn latent_cache_write_beside(
    kv_a: &Tensor,
    weight: &Tensor,
    eps: f32,
    cos: &Tensor,
    sin: &Tensor,
    slots: &Tensor,
    cache: &Tensor,
    q_pe: &Tensor,
    [a, b, out]: [&Tensor; 3],
) -> Result<()> {
    let operator = "latent_cache_write_beside";
    let write = check(operator, kv_a, weight, eps, cos, sin, slots, cache, [None; 2], Some(q_pe))?;
    let product = Product::batched(operator, a, b, out)?;
    Operand::new(operator, "a", a).element(kv_a.element())?;
    let together = match out.is_empty() || write.tokens == 0 {
        true => None,
        // There are kernels of small tiles, and for the layout that absorption has.
        false => Some(product.tuned(None)?).filter(|tuned| BESIDE.contains(&&*tuned.name)),
    };
    let Some(Tuned { name, mut grid, product: argument }) = together else {
        write.launch(Variant::Tuned, kv_a)?;
        return product.launch(Variant::Tuned, None);
    };
    let Write { args, tokens, pairs } = write;
    let [x, y, z] = grid.blocks;
    let layers = blocks(tokens, pairs, grid.threads[0] as usize).div_ceil(x as usize * y as usize);
    grid.blocks = [x, y, z.saturating_add(layers as u32)];
    let args = Arguments::default().and(argument).sizes([layers]).followed_by(args);
    args.launch(kv_a, "absorb", format!("absorb_{name}"), grid)
}

/// The products that a write can be beside, by the endings of their names.
const BESIDE: [&str; 2] = ["columns_tuned_f32", "columns_few_tuned_bf16"];

/// Operands that fit, as the arguments of a kernel; and the pairs of the queries.
struct Write {
    args: Arguments,
    tokens: usize,
    pairs: usize,
}

impl Write {
    fn launch(self, variant: Variant, kv_a: &Tensor) -> Result<()> {
        let Write { args, tokens, pairs } = self;
        if tokens == 0 {
            return Ok(());
        }
        let grid = match variant {
            Variant::Naive => Grid::linear((tokens + pairs).div_ceil(128) as u32, 128),
            Variant::Tuned => Grid::linear(blocks(tokens, pairs, 128) as u32, 128),
        };
        args.launch(kv_a, "latent", format!("{OPERATOR}_{variant}_{}", kv_a.element()), grid)
    }
}

/// Blocks of so many threads that write: a warp for each token, and a thread for each pair of the queries.
fn blocks(tokens: usize, pairs: usize, threads: usize) -> usize {
    tokens.div_ceil(threads / 32) + pairs.div_ceil(threads)
}

#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
fn check(
    operator: &'static str,
    kv_a: &Tensor,
    weight: &Tensor,
    eps: f32,
    cos: &Tensor,
    sin: &Tensor,
    slots: &Tensor,
    cache: &Tensor,
    [compressed_kv, k_pe]: [Option<&Tensor>; 2],
    q_pe: Option<&Tensor>,
) -> Result<Write> {
    let element = kv_a.element();
    let [tokens, width] = Operand::new(operator, "kv_a", kv_a).real()?.contiguous_rows()?.axes()?;
    let [rank] = Operand::new(operator, "weight", weight).element(element)?.contiguous()?.axes()?;
    let rope = width.checked_sub(rank).filter(|rope| rope % 2 == 0).ok_or_else(|| {
        let expected = format!("{rank} columns for the latent and an even number for the key");
        Error::operand(operator, "kv_a", expected, format!("{:?}", kv_a.shape()))
    })?;
    for (name, table) in [("cos", cos), ("sin", sin)] {
        Operand::new(operator, name, table).element(Element::F32)?.shape(&[tokens, rope / 2])?.contiguous()?;
    }
    Operand::new(operator, "slots", slots).element(Element::I32)?.shape(&[tokens])?.contiguous()?;
    let [pages, page_size, _] = Operand::new(operator, "cache", cache).element(element)?.contiguous_rows()?.axes()?;
    if page_size == 0 || cache.shape()[2] != width {
        let expected = format!("[pages, page_size, {width}] with a page_size of at least 1");
        return Err(Error::operand(operator, "cache", expected, format!("{:?}", cache.shape())));
    }
    for (name, output, columns) in [("compressed_kv", compressed_kv, rank), ("k_pe", k_pe, rope)] {
        if let Some(output) = output {
            Operand::new(operator, name, output).element(element)?.shape(&[tokens, columns])?.contiguous()?;
        }
    }
    let heads = match q_pe {
        None => 0,
        Some(q_pe) => {
            let [_, heads, _] = Operand::new(operator, "q_pe", q_pe).element(element)?.contiguous_rows()?.axes()?;
            Operand::new(operator, "q_pe", q_pe).shape(&[tokens, heads, rope])?;
            heads
        }
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
    Ok(Write { args, tokens, pairs: tokens * heads * rope / 2 })
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

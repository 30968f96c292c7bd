//! Two matrices element by element: the gate of the MLP, and the addition to the residual stream.

use dsv2_reference::Activation;
use ptx_emulator::{Arg, Grid};

use super::{Operand, Variant, activation};
use crate::{Kernel, Result, Tensor};

/// `out = act(gate) up`: gate, up \[N,I\] (rows may be apart) -> out \[N,I\] (may be one of them).
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn gated(variant: Variant, act: Activation, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
    launch("gated", variant, ("gate", gate), ("up", up), out, Some(activation::number(act)))
}

/// `out = a + b`: a, b \[N,D\] (rows may be apart) -> out \[N,D\] (may be one of them).
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn add(variant: Variant, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    launch("add", variant, ("a", a), ("b", b), out, None)
}

fn launch(
    operator: &'static str,
    variant: Variant,
    (name_a, a): (&'static str, &Tensor),
    (name_b, b): (&'static str, &Tensor),
    out: &Tensor,
    activation: Option<i32>,
) -> Result<()> {
    let [rows, width] = Operand::new(operator, name_a, a).real()?.contiguous_rows()?.axes()?;
    Operand::new(operator, name_b, b).element(a.element())?.shape(&[rows, width])?.contiguous_rows()?;
    Operand::new(operator, "out", out).element(a.element())?.shape(&[rows, width])?.contiguous()?;
    if rows * width == 0 {
        return Ok(());
    }
    let (blocks, threads) = match variant {
        Variant::Naive => ([(rows * width).div_ceil(128), 1], 128),
        Variant::Tuned => ([rows, width.div_ceil(128 * 16 / a.element().bytes())], 128),
    };
    let grid = Grid { blocks: [blocks[0] as u32, blocks[1] as u32, 1], threads: [threads, 1, 1], shared: 0 };
    let mut args = vec![pair(a, b, out, [rows, width])];
    args.extend(activation.map(Arg::from));
    out.device().launch(&Kernel::new("swiglu", format!("{operator}_{variant}_{}", a.element())), grid, &args)
}

/// `struct Pair` of swiglu.cu.
fn pair(a: &Tensor, b: &Tensor, out: &Tensor, sizes: [usize; 2]) -> Arg {
    let words = [a.address(), a.strides()[0] as u64, b.address(), b.strides()[0] as u64, out.address()];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(sizes.iter().flat_map(|size| (*size as i32).to_le_bytes()));
    Arg::bytes(&bytes)
}

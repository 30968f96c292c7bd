//! Matrix products: linear layers, and products head by head.
//!
//! A row of the result has the same bits whatever the other rows are and however many there are, and however many blocks
//! share a sum. So a sequence's result does not depend on its batch.

use ptx_emulator::{Arg, Grid};

use super::scratch::Scratch;
use super::{Operand, Variant};
use crate::device::products::MatrixProduct;
use crate::{Element, Error, Kernel, Result, Tensor};

/// `out = x Wᵀ + b`: x \[M,K\], weight \[N,K\], bias \[N\] -> out \[M,N\]. Rows of x, weight and out may be apart.
///
/// x, weight and bias are of one type. f32 gives f32, without TF32; bf16 gives bf16 or f32. All sums are fp32.
///
/// # Errors
/// If shapes, strides or types do not fit, or the launch fails.
pub fn linear(variant: Variant, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    Product::linear("linear", x, weight, bias, out)?.launch(variant, None)
}

/// The same to the bit as [`linear`] with [`Variant::Tuned`], by more blocks where there are few tiles of results: several
/// share the sums of a tile, in `scratch`, as far as there is room in it.
///
/// # Errors
/// As [`linear`].
pub fn linear_shared(
    scratch: &Scratch,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    out: &Tensor,
) -> Result<()> {
    Product::linear("linear", x, weight, bias, out)?.launch(Variant::Tuned, Some(scratch))
}

/// `out = x Wᵀ`, as [`linear`] without a bias, by the library of the tensors' device
/// ([`Device::products`](crate::Device::products)). The same guarantees but one: the bits of a row may depend on how many
/// other rows there are.
///
/// # Errors
/// As [`linear`]; also if the device has no such library, there is nothing to sum, or the library does not know how.
pub fn linear_by_library(x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
    Product::linear("linear_by_library", x, weight, None, out)?.by_library()
}

/// `out_g = a_g b_gᵀ` for every g: a \[G,M,K\], b \[G,N,K\] -> out \[G,M,N\]. All strides of G and M are free.
///
/// The elements of b are neighbours along K, or along N: then b is a permuted tensor \[G,K,N\], as for the absorbed query,
/// q \[H,N,n\] times W_UK \[H,n,c\]. Types are those of [`linear`].
///
/// # Errors
/// If shapes, strides or types do not fit, or the launch fails.
pub fn batched(variant: Variant, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let operator = "batched";
    let [g, m, k] = Operand::new(operator, "a", a).real()?.contiguous_rows()?.axes()?;
    let [_, n, _] = Operand::new(operator, "b", b).element(a.element())?.axes()?;
    Operand::new(operator, "b", b).shape(&[g, n, k])?;
    Operand::new(operator, "out", out).shape(&[g, m, n])?.contiguous_rows()?;
    let strides = |of: &Tensor| [of.strides()[0], of.strides()[1], of.strides()[2]];
    let right = right_side(operator, "b", [n, k], strides(b))?;
    let product = Product {
        operator,
        sizes: [g, m, n, k],
        a: (a, strides(a)),
        b: (b, right),
        bias: None,
        out: (out, strides(out)),
    };
    product.launch(variant, None)
}

/// The strides of a right side, those of axes of one element set to what the kernels expect: one along K, or one along N.
fn right_side(
    operator: &'static str,
    name: &'static str,
    [n, k]: [usize; 2],
    [of_batch, of_n, of_k]: [usize; 3],
) -> Result<[usize; 3]> {
    if of_k == 1 || k <= 1 {
        Ok([of_batch, of_n, 1])
    } else if of_n == 1 || n <= 1 {
        Ok([of_batch, 1, of_k])
    } else {
        let found = format!("strides {of_n} along N and {of_k} along K");
        Err(Error::operand(operator, name, "neighbouring elements along K or along N", found))
    }
}

/// So many blocks keep a GPU busy: four for each multiprocessor of the largest. If there are fewer tiles, blocks share them.
const BLOCKS: usize = 4 * 132;
/// Runs of 128 bytes of a row in a stretch, which one block sums. As in the kernels.
const STRETCH: usize = 8;

/// A tile of results that a block computes: its rows and columns, the dynamic shared memory, the name of its kernels.
struct Tile {
    rows: usize,
    columns: usize,
    stages: usize,
    name: &'static str,
}

/// Tiles, the blocks that each has, and the numbers that they leave of it.
struct Shares {
    tiles: usize,
    blocks: usize,
    numbers: usize,
}

impl Tile {
    fn of(element: Element, rows: usize) -> Self {
        match element {
            Element::Bf16 if rows <= FEW => BF16_FEW,
            Element::Bf16 => BF16,
            _ => F32,
        }
    }

    /// Of a product of sizes G, M, N and K.
    fn shares(&self, element: Element, [g, m, n, k]: [usize; 4]) -> Shares {
        let tiles = g * m.div_ceil(self.rows) * n.div_ceil(self.columns);
        let stretches = (k * element.bytes()).div_ceil(STRETCH * 128);
        let blocks = stretches.min(BLOCKS.div_ceil(tiles.max(1)));
        Shares { tiles, blocks, numbers: stretches * self.rows * self.columns }
    }
}

/// How many f32 numbers [`linear_shared`] takes of its [`Scratch`] to share the sums of a product of sizes M, N and K.
pub fn shared_numbers(element: Element, [m, n, k]: [usize; 3]) -> usize {
    let Shares { tiles, blocks, numbers } = Tile::of(element, m).shares(element, [1, m, n, k]);
    if blocks > 1 { tiles * numbers } else { 0 }
}

const F32: Tile = Tile { rows: 32, columns: 64, stages: 4, name: "tuned" };
const BF16: Tile = Tile { rows: 128, columns: 64, stages: 3, name: "tuned" };
const BF16_FEW: Tile = Tile { rows: 16, columns: 32, stages: 6, name: "few_tuned" };
/// So many rows are still few: two small tiles below each other cost less than a large one that is a quarter full.
const FEW: usize = 32;

/// Blocks that share a tile, and where they leave their parts and count themselves.
#[derive(Clone, Copy)]
struct Split {
    blocks: usize,
    places: [u64; 2],
}

impl Split {
    const NONE: Split = Split { blocks: 1, places: [0; 2] };
}

/// Operands that fit, with their strides along the batch, the rows and the columns (b: the batch, N and K).
struct Product<'a> {
    operator: &'static str,
    /// G, M, N, K
    sizes: [usize; 4],
    a: (&'a Tensor, [usize; 3]),
    b: (&'a Tensor, [usize; 3]),
    bias: Option<&'a Tensor>,
    out: (&'a Tensor, [usize; 3]),
}

impl<'a> Product<'a> {
    /// Rows of x with rows of the weight.
    fn linear(
        operator: &'static str,
        x: &'a Tensor,
        weight: &'a Tensor,
        bias: Option<&'a Tensor>,
        out: &'a Tensor,
    ) -> Result<Self> {
        let [m, k] = Operand::new(operator, "x", x).real()?.contiguous_rows()?.axes()?;
        let [n, _] = Operand::new(operator, "weight", weight).element(x.element())?.axes()?;
        Operand::new(operator, "weight", weight).shape(&[n, k])?;
        Operand::new(operator, "out", out).shape(&[m, n])?.contiguous_rows()?;
        if let Some(bias) = bias {
            Operand::new(operator, "bias", bias).element(x.element())?.shape(&[n])?.contiguous()?;
        }
        let rows = |of: &Tensor| [0, of.strides()[0], of.strides()[1]];
        let b = right_side(operator, "weight", [n, k], rows(weight))?;
        Ok(Product { operator, sizes: [1, m, n, k], a: (x, rows(x)), b: (weight, b), bias, out: (out, rows(out)) })
    }

    /// The types of the factors and of the result, which fit.
    fn types(&self) -> Result<[Element; 2]> {
        let (element, made) = (self.a.0.element(), self.out.0.element());
        if made != Element::F32 && made != element {
            let expected = if element == Element::F32 { "f32" } else { "f32 or bf16" };
            return Err(Error::operand(self.operator, "out", expected, made));
        }
        Ok([element, made])
    }

    fn by_library(self) -> Result<()> {
        let types = self.types()?;
        let [_, m, n, k] = self.sizes;
        if k == 0 {
            return Err(Error::operand(self.operator, "x", "something to sum", format!("{:?}", self.a.0.shape())));
        }
        let ((x, of_x), (weight, of_weight), (out, of_out)) = (self.a, self.b, self.out);
        let library = out.device().products()?;
        if m * n == 0 {
            return Ok(());
        }
        let product = MatrixProduct::linear([m, n, k], of_x[1], [of_weight[1], of_weight[2]], of_out[1], types);
        library.multiply(&product, weight.address(), x.address(), out.address())
    }

    fn launch(self, variant: Variant, scratch: Option<&Scratch>) -> Result<()> {
        let [element, _] = self.types()?;
        let [g, m, n, _] = self.sizes;
        if g * m * n == 0 {
            return Ok(());
        }
        let (grid, name, split) = match variant {
            Variant::Naive => (self.grid([(m * n).div_ceil(128), g, 1], 128)?, "naive".to_string(), Split::NONE),
            Variant::Tuned => {
                let tile = Tile::of(element, m);
                let split = scratch.map_or(Split::NONE, |scratch| self.split(&tile, scratch));
                let blocks = [m.div_ceil(tile.rows), n.div_ceil(tile.columns), g * split.blocks];
                let grid = self.grid(blocks, 2 * tile.columns as u32)?;
                // A row of a tile is 128 bytes.
                let shared = tile.stages * (tile.rows + tile.columns) * 128;
                let columns = if self.b.1[2] == 1 { "" } else { "columns_" };
                (grid.with_shared(shared as u32), format!("{columns}{}", tile.name), split)
            }
        };
        let kernel = Kernel::new("gemm", format!("gemm_{name}_{element}"));
        let launch = self.out.0.device().launch(&kernel, grid, &[self.argument(split)?]);
        match scratch {
            Some(scratch) => scratch.after(launch),
            None => launch,
        }
    }

    /// How many blocks share a tile. Whatever it is, the bits are the same.
    fn split(&self, tile: &Tile, scratch: &Scratch) -> Split {
        let Shares { tiles, blocks, numbers } = tile.shares(self.a.0.element(), self.sizes);
        match scratch.places(tiles, numbers) {
            Some(places) if blocks > 1 => Split { blocks, places },
            _ => Split::NONE,
        }
    }

    /// A GPU takes 2^31 - 1 blocks in x, and 65535 in y and z.
    fn grid(&self, blocks: [usize; 3], threads: u32) -> Result<Grid> {
        let [x, y, z] = blocks;
        if x > i32::MAX as usize || y > 65535 || z > 65535 {
            let expected = "sizes for which 2^31 - 1, 65535 and 65535 blocks are enough";
            return Err(Error::operand(self.operator, "out", expected, format!("{blocks:?} blocks")));
        }
        Ok(Grid { blocks: [x as u32, y as u32, z as u32], threads: [threads, 1, 1], shared: 0 })
    }

    /// `struct Product` of gemm.cu.
    fn argument(&self, split: Split) -> Result<Arg> {
        let [_, m, n, k] = self.sizes;
        let size = |size: usize| {
            i32::try_from(size).map_err(|_| Error::operand(self.operator, "out", "sizes below 2^31", size))
        };
        let ((a, of_a), (b, of_b), (out, of_out)) = (self.a, self.b, self.out);
        let words = [a.address(), b.address(), self.bias.map_or(0, Tensor::address), out.address()];
        let strides = [of_a[0], of_a[1], of_b[0], of_b[1], of_b[2], of_out[0], of_out[1]].map(|stride| stride as u64);
        let numbers = [i32::from(out.element() == Element::F32), size(m)?, size(n)?, size(k)?, size(split.blocks)?, 0];
        let mut bytes: Vec<u8> = words.iter().chain(&strides).flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(split.places.iter().flat_map(|place| place.to_le_bytes()));
        Ok(Arg::bytes(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Device, Emulated, Library};

    /// A tensor of ones.
    fn ones(device: &Arc<dyn Device>, element: Element, shape: &[usize]) -> Tensor {
        Tensor::from_f32(device, element, shape, &vec![1.0; shape.iter().product()]).expect("a tensor")
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let tensor = |element, shape: &[usize]| ones(&device, element, shape);
        let (f32, bf16) = (Element::F32, Element::Bf16);
        let (x, weight, out) = (tensor(bf16, &[3, 8]), tensor(bf16, &[4, 8]), tensor(bf16, &[3, 4]));
        let message = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out: &Tensor| {
            linear(Variant::Tuned, x, weight, bias, out).expect_err("refused").to_string()
        };
        assert_eq!(
            message(&x, &tensor(bf16, &[4, 7]), None, &out),
            "linear: weight: expected the shape [4, 8], found [4, 7]"
        );
        assert_eq!(message(&x, &tensor(f32, &[4, 8]), None, &out), "linear: weight: expected bf16, found f32");
        let wide = tensor(f32, &[3, 8]);
        assert_eq!(message(&wide, &tensor(f32, &[4, 8]), None, &out), "linear: out: expected f32, found bf16");
        assert_eq!(
            message(&x, &weight, Some(&tensor(bf16, &[3])), &out),
            "linear: bias: expected the shape [4], found [3]"
        );
        let turned = tensor(bf16, &[8, 3]).permute(&[1, 0]).expect("a view");
        assert!(message(&turned, &weight, None, &out).starts_with("linear: x: expected rows of neighbouring elements"));
        let two_axes = batched(Variant::Tuned, &x, &weight, &out).expect_err("refused").to_string();
        assert_eq!(two_axes, "batched: a: expected 3 axes, found [3, 8]");
        assert_eq!(
            right_side("batched", "b", [4, 8], [64, 16, 2]).expect_err("refused").to_string(),
            "batched: b: expected neighbouring elements along K or along N, found strides 16 along N and 2 along K"
        );
    }

    #[test]
    fn the_emulator_has_no_library() {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let [x, weight, out] = [[3, 8], [4, 8], [3, 4]].map(|shape| ones(&device, Element::Bf16, &shape));
        assert_eq!(
            linear_by_library(&x, &weight, &out).expect_err("refused").to_string(),
            "products: library: expected a GPU with cuBLASLt, found emulator"
        );
        assert_eq!(
            linear_by_library(&x, &out, &weight).expect_err("refused").to_string(),
            "linear_by_library: weight: expected the shape [3, 8], found [3, 4]"
        );
        let [nothing, none] = [[3, 0], [4, 0]].map(|shape| ones(&device, Element::Bf16, &shape));
        assert_eq!(
            linear_by_library(&nothing, &none, &out).expect_err("refused").to_string(),
            "linear_by_library: x: expected something to sum, found [3, 0]"
        );
    }

    #[test]
    fn aligned_products_have_no_bank_conflicts_and_waste_no_sectors() {
        for (element, made) in
            [(Element::F32, Element::F32), (Element::Bf16, Element::Bf16), (Element::Bf16, Element::F32)]
        {
            for (m, by_columns) in [(16, false), (16, true), (256, false), (256, true)] {
                let emulated = Emulated::profiling(Library::embedded());
                let device: Arc<dyn Device> = emulated.clone();
                let (n, k) = (128, 256);
                let x = ones(&device, element, &[m, k]);
                let weight = if by_columns {
                    ones(&device, element, &[k, n]).permute(&[1, 0]).expect("a view")
                } else {
                    ones(&device, element, &[n, k])
                };
                let out = Tensor::empty(&device, made, &[m, n]).expect("a tensor");
                linear(Variant::Tuned, &x, &weight, None, &out).expect("a product");
                let (name, profile) = emulated.profiles().remove(0);
                let total = profile.total();
                assert_eq!((total.bank_conflicts(), total.excess_sectors()), (0, 0), "{name} M={m}\n{profile}");
            }
        }
    }
}

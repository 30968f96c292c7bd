//! A matrix product: operands that fit, its tiles, and the blocks that share them.

use ptx_emulator::{Arg, Grid};

use crate::device::products::MatrixProduct;
use crate::operators::scratch::Scratch;
use crate::operators::{Operand, Variant};
use crate::{Element, Error, Kernel, Result, Tensor};

/// The strides of a right side, those of axes of one element set to what the kernels expect: one along K, or one along N.
pub(super) fn right_side(
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

/// A tile of results that a block computes: its rows and columns, for how many steps along K shared memory has room, the threads,
/// and the name of its kernels.
pub(super) struct Tile {
    rows: usize,
    columns: usize,
    stages: usize,
    threads: u32,
    name: &'static str,
}

/// Tiles, the blocks that each has, and the numbers that they leave of it.
pub(super) struct Shares {
    pub(super) tiles: usize,
    pub(super) blocks: usize,
    pub(super) numbers: usize,
}

impl Tile {
    /// For a product of sizes G, M, N and K whose right side is as it is stored, or by columns; and whether blocks may share a
    /// tile. Bits are the same in all.
    pub(super) fn of(element: Element, sizes: [usize; 4], by_columns: bool, may_share: bool) -> Self {
        let [_, rows, ..] = sizes;
        let several = || {
            let Shares { tiles, blocks, .. } = BF16_SEVERAL.shares(element, sizes);
            !by_columns && tiles * if may_share { blocks } else { 1 } >= MANY
        };
        match element {
            Element::Bf16 if rows <= BF16_FEW.rows => BF16_FEW,
            Element::Bf16 if rows <= BF16_SEVERAL.rows && several() => BF16_SEVERAL,
            Element::Bf16 if rows <= BF16_SEVERAL.rows => BF16_FEW,
            Element::Bf16 => BF16,
            _ => F32,
        }
    }

    /// Of a product of sizes G, M, N and K.
    pub(super) fn shares(&self, element: Element, [g, m, n, k]: [usize; 4]) -> Shares {
        // A plan may ask of a batch that no machine has.
        let tiles = g.saturating_mul(m.div_ceil(self.rows)).saturating_mul(n.div_ceil(self.columns));
        let stretches = (k * element.bytes()).div_ceil(STRETCH * 128);
        let blocks = stretches.min(BLOCKS.div_ceil(tiles.max(1)));
        Shares { tiles, blocks, numbers: stretches * self.rows * self.columns }
    }
}

const F32: Tile = Tile { rows: 32, columns: 64, stages: 4, threads: 128, name: "tuned" };
const BF16: Tile = Tile { rows: 128, columns: 64, stages: 3, threads: 128, name: "tuned" };
const BF16_FEW: Tile = Tile { rows: 16, columns: 32, stages: 6, threads: 64, name: "few_tuned" };
/// Asks for each weight once, where two small tiles below each other ask twice. By columns there is none: a head's part of W^UK is
/// little, and in a launch with the cache's write.
const BF16_SEVERAL: Tile = Tile { rows: 32, columns: 64, stages: 5, threads: 64, name: "several_tuned" };
/// So many blocks of several rows, about one for each multiprocessor, are worth it: a block takes twice as long as one of few, so
/// that fewer would be done later, by the predictions, though they ask for less.
const MANY: usize = 128;

/// So many rows of a result are sooner gone on with by the block that was last than by a launch of its own.
const ONE_BLOCK: usize = 4;

/// What a kernel of products is launched with.
pub(in crate::operators) struct Tuned {
    /// The ending of its name.
    pub(in crate::operators) name: String,
    pub(in crate::operators) grid: Grid,
    /// `struct Product`
    pub(in crate::operators) product: Arg,
}

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
pub(in crate::operators) struct Product<'a> {
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
    pub(in crate::operators) fn linear(
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

    /// A batch of products.
    pub(in crate::operators) fn batched(
        operator: &'static str,
        a: &'a Tensor,
        b: &'a Tensor,
        out: &'a Tensor,
    ) -> Result<Self> {
        let [g, m, k] = Operand::new(operator, "a", a).real()?.contiguous_rows()?.axes()?;
        let [_, n, _] = Operand::new(operator, "b", b).element(a.element())?.axes()?;
        Operand::new(operator, "b", b).shape(&[g, n, k])?;
        Operand::new(operator, "out", out).shape(&[g, m, n])?.contiguous_rows()?;
        let strides = |of: &Tensor| [of.strides()[0], of.strides()[1], of.strides()[2]];
        let right = right_side(operator, "b", [n, k], strides(b))?;
        Ok(Product {
            operator,
            sizes: [g, m, n, k],
            a: (a, strides(a)),
            b: (b, right),
            bias: None,
            out: (out, strides(out)),
        })
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

    pub(super) fn by_library(self) -> Result<()> {
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

    pub(in crate::operators) fn launch(self, variant: Variant, scratch: Option<&Scratch>) -> Result<()> {
        let [element, _] = self.types()?;
        let [g, m, n, _] = self.sizes;
        if g * m * n == 0 {
            return Ok(());
        }
        let Tuned { grid, name, product } = match variant {
            Variant::Naive => Tuned {
                grid: grid([(m * n).div_ceil(128), g, 1], 128),
                name: format!("naive_{element}"),
                product: self.argument(Split::NONE)?,
            },
            Variant::Tuned => self.tuned(scratch)?,
        };
        let launch = self.out.0.device().launch(&Kernel::new("gemm", format!("gemm_{name}")), grid, &[product]);
        match scratch {
            Some(scratch) => scratch.after(launch),
            None => launch,
        }
    }

    /// What a tuned kernel is launched with, if there is a result.
    pub(in crate::operators) fn tuned(&self, scratch: Option<&Scratch>) -> Result<Tuned> {
        let [element, _] = self.types()?;
        let [g, m, n, _] = self.sizes;
        let tile = self.tile(element, scratch.is_some());
        let split = scratch.map_or(Split::NONE, |scratch| self.split(&tile, scratch));
        let blocks = [m.div_ceil(tile.rows), n.div_ceil(tile.columns), g * split.blocks];
        // A row of a tile is 128 bytes.
        let shared = tile.stages * (tile.rows + tile.columns) * 128;
        let columns = if self.b.1[2] == 1 { "" } else { "columns_" };
        Ok(Tuned {
            grid: grid(blocks, tile.threads).with_shared(shared as u32),
            name: format!("{columns}{}_{element}", tile.name),
            product: self.argument(split)?,
        })
    }

    /// The same for a kernel whose last block goes on with the rows of the result, and the counter that says which block is the
    /// last. None if that is not what to do: with many rows it is better done by more blocks, in a launch of its own.
    pub(in crate::operators) fn going_on(&self, scratch: &Scratch) -> Result<Option<(Tuned, u64)>> {
        let [element, _] = self.types()?;
        let [_, m, n, _] = self.sizes;
        if m * n == 0 || m > ONE_BLOCK || self.b.1[2] != 1 {
            return Ok(None);
        }
        let Shares { tiles, .. } = self.tile(element, true).shares(element, self.sizes);
        // Behind the counters of the tiles.
        let Some(counter) = scratch.counter(tiles) else { return Ok(None) };
        Ok(Some((self.tuned(Some(scratch))?, counter)))
    }

    fn tile(&self, element: Element, may_share: bool) -> Tile {
        Tile::of(element, self.sizes, self.b.1[2] != 1, may_share)
    }

    /// How many blocks share a tile. Whatever it is, the bits are the same.
    fn split(&self, tile: &Tile, scratch: &Scratch) -> Split {
        let Shares { tiles, blocks, numbers } = tile.shares(self.a.0.element(), self.sizes);
        match scratch.places(tiles, numbers) {
            Some(places) if blocks > 1 => Split { blocks, places },
            _ => Split::NONE,
        }
    }

    /// `struct Product` of gemm.cuh.
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

/// More blocks than a number of them can say are more than a device takes: it refuses the most as well.
fn grid(blocks: [usize; 3], threads: u32) -> Grid {
    let blocks = blocks.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Grid { blocks, threads: [threads, 1, 1], shared: 0 }
}

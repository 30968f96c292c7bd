//! Matrix products: linear layers, and products head by head.
//!
//! A row of the result has the same bits whatever the other rows are and however many there are, and however many blocks
//! share a sum. So a sequence's result does not depend on its batch.

pub(super) mod product;

use super::Variant;
use super::scratch::Scratch;
use crate::{Element, Result, Tensor};
use product::{Product, Shares, Tile};

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
    Product::batched("batched", a, b, out)?.launch(variant, None)
}

/// How many f32 numbers [`linear_shared`] takes of its [`Scratch`] to share the sums of a product of sizes M, N and K.
pub fn shared_numbers(element: Element, [m, n, k]: [usize; 3]) -> usize {
    let Shares { tiles, blocks, numbers } = Tile::of(element, [1, m, n, k], false, true).shares(element, [1, m, n, k]);
    if blocks > 1 { tiles * numbers } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::product::right_side;
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
    fn more_products_than_a_grid_has_blocks_are_refused_by_the_device() {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let one = ones(&device, Element::F32, &[1 << 16, 1, 1]);
        for (variant, found) in [(Variant::Naive, "[1, 65536, 1]"), (Variant::Tuned, "[1, 1, 65536]")] {
            let out = Tensor::empty(&device, Element::F32, one.shape()).expect("a tensor");
            let refused = batched(variant, &one, &one, &out).expect_err("refused").to_string();
            let expected = format!("gemm_{variant}_f32: expected 1 to 2147483647, 65535 and 65535 blocks of ");
            assert!(refused.starts_with(&expected) && refused.contains(&format!("found {found} blocks")), "{refused}");
        }
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
            for (m, n, by_columns) in [
                (16, 128, false),
                (16, 128, true),
                (32, 8192, false),
                (32, 8192, true),
                (256, 128, false),
                (256, 128, true),
            ] {
                let emulated = Emulated::profiling(Library::embedded());
                let device: Arc<dyn Device> = emulated.clone();
                let k = 256;
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

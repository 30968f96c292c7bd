//! Sorting by expert: which rows each expert works on. No atomics whose order matters: one input has one result.

use ptx_emulator::Grid;

use super::gemm::product::{Product, Tuned};
use super::router::{RoutingRule, route};
use super::scratch::Scratch;
use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// As many experts as the block of the tuned kernel has threads, and room to count for.
const MOST_EXPERTS: usize = 1024;

/// Threads of that block.
const THREADS: u32 = 1024;

/// Sorts the pairs `token * k + j` of indices \[N,k\] by expert, then by number.
///
/// * offsets \[E+1\]: expert e has the places `offsets[e]..offsets[e + 1]`
/// * order \[N k\]: the pair at each place
/// * places \[N k\]: the place of each pair
///
/// A pair whose index is no expert comes after those of all experts, and its place is -1.
///
/// # Errors
/// If shapes or types do not fit, there are more than 1024 experts, or the launch fails.
pub fn sort_by_expert(
    variant: Variant,
    indices: &Tensor,
    experts: usize,
    offsets: &Tensor,
    order: &Tensor,
    places: &Tensor,
) -> Result<()> {
    let operator = "sort_by_expert";
    let pairs = check(operator, indices, experts, offsets, order, places)?;
    // Without a pair there are offsets still.
    let grid = match variant {
        Variant::Naive => Grid::linear((experts + 1).div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(1, THREADS).with_shared((experts + 1) as u32 * (THREADS / 32) * 4),
    };
    let args = Arguments::default().tensors([indices, offsets, order, places]).sizes([pairs, experts]);
    args.launch(indices, "dispatch", format!("{operator}_{variant}_i32"), grid)
}

/// Tokens and experts up to which one block routes and sorts.
const FEW: [usize; 2] = [128, 256];

/// [`route`] and then [`sort_by_expert`], to the bit; in one launch for few tokens: logits \[N,E\] -> indices and weights
/// \[N,k\], offsets, order and places.
///
/// # Errors
/// As those.
pub fn route_and_sort(
    logits: &Tensor,
    rule: &RoutingRule,
    indices: &Tensor,
    weights: &Tensor,
    offsets: &Tensor,
    order: &Tensor,
    places: &Tensor,
) -> Result<()> {
    let (operator, experts) = ("route_and_sort", rule.experts());
    let args = rule.operands(operator, logits, indices, weights)?;
    check(operator, indices, experts, offsets, order, places)?;
    let tokens = logits.shape()[0];
    if tokens > FEW[0] || experts > FEW[1] {
        route(Variant::Tuned, logits, rule, indices, weights)?;
        return sort_by_expert(Variant::Tuned, indices, experts, offsets, order, places);
    }
    let shared = (experts + 1 + rule.groups()) as u32 * (THREADS / 32) * 4;
    let args = args.tensors([offsets, order, places]).sizes([tokens]).and(rule.arg());
    args.launch(logits, "route", format!("{operator}_tuned_f32"), Grid::linear(1, THREADS).with_shared(shared))
}

/// [`linear_shared`](super::gemm::linear_shared) and then [`route_and_sort`], to the bit; in one launch for few tokens:
/// x \[N,D\], weight \[E,D\] -> logits \[N,E\] in fp32, and what is made of them.
///
/// # Errors
/// As those.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn linear_route_and_sort(
    scratch: &Scratch,
    x: &Tensor,
    weight: &Tensor,
    rule: &RoutingRule,
    logits: &Tensor,
    indices: &Tensor,
    weights: &Tensor,
    offsets: &Tensor,
    order: &Tensor,
    places: &Tensor,
) -> Result<()> {
    let (operator, experts) = ("linear_route_and_sort", rule.experts());
    let product = Product::linear(operator, x, weight, None, logits)?;
    rule.operands(operator, logits, indices, weights)?;
    check(operator, indices, experts, offsets, order, places)?;
    match product.going_on(scratch)? {
        Some((Tuned { name, grid, product }, counter)) if experts <= FEW[1] => {
            let args = Arguments::default().and(product).and(rule.arg());
            let args = args.tensors([indices, weights, offsets, order, places]).and(counter);
            scratch.after(args.launch(x, "linear_route", format!("linear_route_{name}"), grid))
        }
        _ => {
            product.launch(Variant::Tuned, Some(scratch))?;
            route_and_sort(logits, rule, indices, weights, offsets, order, places)
        }
    }
}

/// How many pairs there are.
fn check(
    operator: &'static str,
    indices: &Tensor,
    experts: usize,
    offsets: &Tensor,
    order: &Tensor,
    places: &Tensor,
) -> Result<usize> {
    if !(1..=MOST_EXPERTS).contains(&experts) {
        return Err(Error::operand(operator, "experts", format!("1 to {MOST_EXPERTS}"), experts));
    }
    let [tokens, k] = Operand::new(operator, "indices", indices).element(Element::I32)?.contiguous()?.axes()?;
    let pairs = tokens * k;
    for (name, tensor, length) in
        [("offsets", offsets, experts + 1), ("order", order, pairs), ("places", places, pairs)]
    {
        Operand::new(operator, name, tensor).element(Element::I32)?.shape(&[length])?.contiguous()?;
    }
    Ok(pairs)
}

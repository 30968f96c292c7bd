//! Heads as an axis, and work that is shared out over sequences and heads, in parallel: what comes out does not depend
//! on the number of threads.

use ndarray::{Array, Array2, Array3, Array4, ArrayView, ArrayView2, Axis, RemoveAxis, Slice, s};
use rayon::prelude::*;

use crate::Real;
use crate::arithmetic::shares;

/// Queries \[B,S,H(n+r)\] -> \[B,H,S,n\] and \[B,H,S,r\]: of each head, the part without position comes first.
pub(super) fn split_heads<T: Real>(q: Array3<T>, heads: usize, n: usize) -> (Array4<T>, Array4<T>) {
    let (batch, length, width) = q.dim();
    let q = q.into_shape_with_order((batch, length, heads, width / heads)).expect("as many numbers for each head");
    let q = q.permuted_axes([0, 2, 1, 3]);
    let part = |columns: Slice| q.slice_axis(Axis(3), columns).as_standard_layout().into_owned();
    (part(Slice::from(..n)), part(Slice::from(n..)))
}

/// The heads' outputs side by side: \[B,H,S,v\] -> \[B,S,H v\].
pub(super) fn merge_heads<T: Real>(x: Array4<T>) -> Array3<T> {
    let (batch, heads, length, width) = x.dim();
    let by_token = x.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
    by_token.into_shape_with_order((batch, length, heads * width)).expect("H v numbers per token")
}

/// [a ; b] along the last axis, in standard layout (which `ndarray::concatenate` does not promise).
pub(super) fn side_by_side<T: Real, D: RemoveAxis>(a: ArrayView<T, D>, b: ArrayView<T, D>) -> Array<T, D> {
    let last = Axis(a.ndim() - 1);
    let (left, right) = (a.len_of(last), b.len_of(last));
    let mut shape = a.raw_dim();
    shape[last.index()] = left + right;
    let mut joined = Array::zeros(shape);
    joined.slice_axis_mut(last, Slice::from(..left)).assign(&a);
    joined.slice_axis_mut(last, Slice::from(left..)).assign(&b);
    joined
}

/// Applies a product `f(b, h, x[b,h])` to every sequence and head, in parallel: \[B,H,S,·\] -> \[B,H,S,columns\].
pub(super) fn for_each_head<T: Real>(
    x: &Array4<T>,
    columns: usize,
    f: impl Fn(usize, usize, ArrayView2<T>) -> Array2<T> + Sync,
) -> Array4<T> {
    in_blocks(x, 1, columns, f)
}

/// The same for products that do not depend on the head: heads share each read of the keys, a block at a time. More
/// heads in a block are fewer reads, more blocks are work for more threads; what comes out is the same.
pub(super) fn for_head_blocks<T: Real>(
    x: &Array4<T>,
    columns: usize,
    f: impl Fn(usize, ArrayView2<T>) -> Array2<T> + Sync,
) -> Array4<T> {
    let (batch, num_heads, ..) = x.dim();
    let busy = |heads: &usize| batch * num_heads / heads >= rayon::current_num_threads();
    let whole = |heads: &usize| num_heads.is_multiple_of(*heads);
    let heads_per_block = [8, 4, 2].into_iter().find(|heads| whole(heads) && busy(heads)).unwrap_or(1);
    in_blocks(x, heads_per_block, columns, |b, _, x| f(b, x))
}

/// Cuts x \[B,H,S,·\] into blocks of `heads` heads, seen as \[heads S,·\]; applies `f(b, first head, block)` to all in
/// parallel; puts the results together again.
fn in_blocks<T: Real>(
    x: &Array4<T>,
    heads: usize,
    columns: usize,
    f: impl Fn(usize, usize, ArrayView2<T>) -> Array2<T> + Sync,
) -> Array4<T> {
    let (batch, num_heads, length, width) = x.dim();
    let blocks: Vec<(usize, usize)> =
        (0..batch).flat_map(|b| (0..num_heads).step_by(heads).map(move |h| (b, h))).collect();
    let results: Vec<Array2<T>> = blocks
        .into_par_iter()
        .with_min_len(shares::least(heads * length * width * columns))
        .map(|(b, h)| {
            let block = x.slice(s![b, h..h + heads, .., ..]);
            let block = block.into_shape_with_order((heads * length, width)).expect("standard layout");
            f(b, h, block)
        })
        .collect();
    let mut stacked = Array4::zeros((batch, num_heads, length, columns));
    let block = heads * length * columns;
    let places = stacked.as_slice_mut().expect("standard layout").par_chunks_mut(block.max(1));
    places
        .zip(results)
        .with_min_len(shares::least(block))
        .for_each(|(place, block)| place.copy_from_slice(block.as_slice().expect("standard layout")));
    stacked
}

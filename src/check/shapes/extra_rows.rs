//! Rows beyond the tokens: a CUDA graph is captured for a round number of them, a batch is padded to one.

use dsv2_reference::stage::Layout;
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use crate::values::Values;

/// The tensor without the rows that belong to no token, in the shape `want`, and what a report says of it; nothing, if it has no
/// such rows.
pub fn without(values: &Values, layout: Layout, want: &[usize], batch: usize) -> Option<(Values, String)> {
    let (rows, tokens) = (rows(layout, values.shape(), want)?, rows(layout, want, want)?);
    let values = match values {
        Values::Real(dtype, a) => Values::Real(*dtype, first(a, layout, want, batch)?),
        Values::Index(a) => Values::Index(first(a, layout, want, batch)?),
        Values::Bool(_) => return None,
    };
    Some((values, says(rows, tokens)?))
}

/// What a report says of so many rows of so many tokens; nothing, if there are no others.
fn says(rows: usize, tokens: usize) -> Option<String> {
    let extra = rows.checked_sub(tokens).filter(|extra| *extra > 0)?;
    let plural = if extra == 1 { "row" } else { "rows" };
    Some(format!("{extra} {plural} beyond the {tokens} tokens are not looked at"))
}

/// What a report says of a tensor of this shape whose first rows are those of the shape `want`, one after another, and whose others
/// belong to no token; nothing, if these lie otherwise.
pub fn behind(layout: Layout, shape: &[usize], want: &[usize]) -> Option<String> {
    let (width, leading) = shape.split_last()?;
    let (want_width, tokens) = want.split_last()?;
    let are_rows = match layout {
        Layout::Tokens | Layout::Keys | Layout::Logits | Layout::Table => tokens.len() == 2,
        Layout::Flat => tokens.len() == 1,
        _ => false,
    };
    match *leading {
        [rows] | [1, rows] | [rows, 1] if are_rows && width == want_width => says(rows, tokens.iter().product()),
        _ => None,
    }
}

/// How many rows a tensor of this shape has, where the model's has the shape `want`; a token's heads are in one.
fn rows(layout: Layout, shape: &[usize], want: &[usize]) -> Option<usize> {
    let row = match layout {
        Layout::Heads => want.get(1)? * want.get(3)?,
        Layout::Scores | Layout::Weights => want.get(1)? * shape.last()?,
        _ => *want.last()?,
    };
    shape.iter().product::<usize>().checked_div(row)
}

/// The first rows, in the shape `want`.
fn first<A: Clone>(got: &ArrayD<A>, layout: Layout, want: &[usize], batch: usize) -> Option<ArrayD<A>> {
    if got.len() <= want.iter().product() {
        return None;
    }
    let (leading, width) = (&got.shape()[..got.ndim().checked_sub(1)?], *got.shape().last()?);
    match (layout, want) {
        (Layout::Tokens | Layout::Keys | Layout::Logits | Layout::Table, &[b, s, w]) if width == w => {
            first_tokens(got, leading, [b, s], &[w])?.into_shape_with_order(IxDyn(want)).ok()
        }
        (Layout::Flat, &[n, w]) if width == w => {
            let tokens = [batch, n.checked_div(batch)?];
            first_tokens(got, leading, tokens, &[w])?.into_shape_with_order(IxDyn(want)).ok()
        }
        (Layout::Heads, &[b, heads, s, w]) if width == w => match *leading {
            [_, h, held] if h == heads && held >= s => Some(corner(got, want)),
            _ => {
                let leading = if heads == 1 && !(leading.len() > 1 && leading.ends_with(&[1])) {
                    leading
                } else {
                    leading.strip_suffix(&[heads])?
                };
                let behind = first_tokens(got, leading, [b, s], &[heads, w])?;
                let behind = behind.into_shape_with_order((b, s, heads, w)).ok()?;
                Some(behind.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned().into_dyn())
            }
        },
        (Layout::Scores | Layout::Weights, &[_, heads, ..]) if matches!(*leading, [_, h, _] if h == heads) => {
            fits(got.shape(), want).then(|| corner(got, want))
        }
        _ => None,
    }
}

/// Of `[.., row]`, whose leading axes are tokens in one axis or sequences and their tokens, the first `[b, s, row]`.
fn first_tokens<A: Clone>(got: &ArrayD<A>, leading: &[usize], [b, s]: [usize; 2], row: &[usize]) -> Option<ArrayD<A>> {
    let with = |tokens: &[usize]| [tokens, row].concat();
    let (shape, kept) = match *leading {
        [rows] | [1, rows] | [rows, 1] if rows > b * s => (with(&[rows]), with(&[b * s])),
        [batch, length] if batch >= b && length >= s => (with(&[batch, length]), with(&[b, s])),
        _ => return None,
    };
    let tokens = got.to_shape(IxDyn(&shape)).ok()?.into_owned();
    Some(corner(&tokens, &kept))
}

fn fits(got: &[usize], want: &[usize]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(got, want)| got >= want)
}

/// The first elements along each axis.
fn corner<A: Clone>(a: &ArrayD<A>, shape: &[usize]) -> ArrayD<A> {
    let mut corner = a.view();
    for (axis, &length) in shape.iter().enumerate() {
        corner.slice_axis_inplace(Axis(axis), Slice::from(..length));
    }
    corner.as_standard_layout().into_owned()
}

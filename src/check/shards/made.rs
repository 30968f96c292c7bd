//! The model's tensor, made of what the ranks have of it.

use dsv2_reference::{Dtype, Tensor};
use ndarray::{ArrayD, Axis, concatenate};

use super::parts::{Joined, are_near};
use crate::values::Values;

/// The tensor that the parts make; nothing if each rank has the whole after all, as the numbers show.
pub fn made(joined: Joined, held: &[&Values]) -> Option<Values> {
    match (joined, held[0]) {
        (Joined::Along { axis, whole }, Values::Real(dtype, _)) => {
            Some(Values::Real(*dtype, cut(&side_by_side(held, Values::real, axis)?, axis, whole)))
        }
        (Joined::Along { axis, whole }, _) => {
            Some(Values::Index(cut(&side_by_side(held, Values::index, axis)?, axis, whole)))
        }
        (Joined::GateAndUp, first) => {
            let halves: Option<Vec<_>> = held.iter().map(|values| values.real().and_then(halved)).collect();
            let (gates, ups): (Vec<_>, Vec<_>) = halves?.into_iter().unzip();
            let views: Vec<_> = gates.iter().chain(&ups).map(|half| half.view()).collect();
            Some(Values::Real(first.dtype()?, concatenate(Axis(views[0].ndim() - 1), &views).ok()?))
        }
        (Joined::Added, first) => {
            sum(first.dtype()?, &held.iter().filter_map(|values| values.real()).collect::<Vec<_>>())
        }
    }
}

/// What is over is the padding of the vocabulary.
fn cut<A: Clone>(a: &ArrayD<A>, axis: usize, whole: usize) -> ArrayD<A> {
    a.view().split_at(Axis(axis), whole.min(a.len_of(Axis(axis)))).0.to_owned()
}

/// The parts of a sum, added and rounded to the type that they are stored in, as an all-reduce does; nothing if each rank has the
/// sum.
fn sum(dtype: Dtype, parts: &[&ArrayD<f64>]) -> Option<Values> {
    let norm = |a: &ArrayD<f64>| a.iter().map(|x| x * x).sum::<f64>();
    let first = parts[0];
    let of = |a: &ArrayD<f64>| Values::Real(dtype, a.clone());
    let near = |part: &ArrayD<f64>| are_near(norm(first), norm(part), norm(&(part - first)));
    if parts[1..].iter().all(|part| of(part).identical(&of(first)) || near(part)) {
        return None;
    }
    let mut sum = first.clone();
    parts[1..].iter().for_each(|part| sum += *part);
    Some(rounded(dtype, &sum))
}

fn side_by_side<'a, A: Clone + 'a>(
    parts: &[&'a Values],
    of: impl Fn(&'a Values) -> Option<&'a ArrayD<A>>,
    axis: usize,
) -> Option<ArrayD<A>> {
    let views: Option<Vec<_>> = parts.iter().map(|values| Some(of(values)?.view())).collect();
    concatenate(Axis(axis), &views?).ok()
}

fn halved(a: &ArrayD<f64>) -> Option<(ArrayD<f64>, ArrayD<f64>)> {
    let last = Axis(a.ndim().checked_sub(1)?);
    let width = a.len_of(last);
    let (left, right) = a.view().split_at(last, width / 2);
    width.is_multiple_of(2).then(|| (left.to_owned(), right.to_owned()))
}

fn rounded(dtype: Dtype, a: &ArrayD<f64>) -> Values {
    Values::Real(dtype, Tensor::from_values(dtype, a.shape(), a.iter().copied()).to_array())
}

//! Drawing tokens: of all, of the k most likely, of those that together have a part of p, of both.
//!
//! What a kernel draws is its generator's affair. What can be said of it is which tokens it may draw ([`filtered`]) and, where
//! many rows have one distribution, how often each.

use dsv2_reference::Real;
use dsv2_reference::arithmetic::softmax::softmax;
use dsv2_reference::weights::generator::splitmix64;
use ndarray::{Array, Array1, Array2, ArrayView1, Axis, Dimension, Ix1, Ix2};

use super::draw::Draw;
use crate::call::{Call, Computed, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// Whether a token may be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// It may.
    Yes,
    /// It may not.
    No,
    /// Ties, and roundings of sums, decide.
    Either,
}

/// The distributions that tokens are drawn from.
#[derive(Clone, Debug)]
pub struct Filtered {
    /// The probability of each token \[N,V\] where every token that may be drawn is: rows add up to 1.
    pub probabilities: Array2<f64>,
    /// Which tokens may be drawn.
    pub allowed: Array2<Allowed>,
}

/// Logits of which softmax in fp32 makes one probability are this close: 2^-20.
const ONE_PROBABILITY: f64 = 1.0 / 1_048_576.0;

/// The filters of a call: the k most likely tokens; then, of what they add up to, those that have less than p before them.
struct Limits {
    top_k: Option<Array1<i64>>,
    top_p: Option<Array1<f64>>,
}

impl Limits {
    fn of(call: &Call) -> Self {
        Limits {
            top_k: call.has("top_k").then(|| call.index::<Ix1>("top_k")),
            top_p: call.has("top_p").then(|| call.real::<f64, Ix1>("top_p")),
        }
    }

    /// How many tokens of a vocabulary a row keeps; 0, and more than there are, keep all.
    fn k(&self, row: usize, vocabulary: usize) -> usize {
        let k = self.top_k.as_ref().and_then(|k| usize::try_from(k[row]).ok()).filter(|&k| k > 0);
        k.map_or(vocabulary, |k| k.min(vocabulary))
    }

    /// What they may add up to, if that is limited.
    fn p(&self, row: usize) -> Option<f64> {
        self.top_p.as_ref().map(|p| p[row]).filter(|&p| p < 1.0)
    }
}

/// The probabilities of a call \[N,V\].
fn probabilities<T: Real>(call: &Call) -> Array2<T> {
    if call.has("probs") {
        return call.real("probs");
    }
    let mut rows = call.real::<T, Ix2>("logits");
    softmax_rows(&mut rows);
    rows
}

/// Logits as probabilities, row by row.
pub(crate) fn softmax_rows<T: Real, D: Dimension>(logits: &mut Array<T, D>) {
    logits.rows_mut().into_iter().for_each(softmax);
}

/// Which tokens may be drawn.
///
/// **Trap**: behind top-k the probabilities are divided by their sum before top-p counts them; and the token with which the
/// sum reaches p still belongs to it.
pub fn filtered(_: &Contract, call: &Call) -> Result<Filtered> {
    let mut probabilities = probabilities::<f64>(call);
    let limits = Limits::of(call);
    let tie = if call.has("probs") { 0.0 } else { ONE_PROBABILITY };
    let mut allowed = Array2::from_elem(probabilities.dim(), Allowed::No);
    for (row, (mut p, mut allowed)) in probabilities.rows_mut().into_iter().zip(allowed.rows_mut()).enumerate() {
        for (token, verdict) in kept(p.view(), limits.k(row, p.len()), limits.p(row), tie) {
            allowed[token] = verdict;
        }
        p.zip_mut_with(&allowed, |p, &allowed| *p = if allowed == Allowed::No { 0.0 } else { *p });
        let sum = p.sum();
        p.mapv_inplace(|p| p / sum);
    }
    Ok(Filtered { probabilities, allowed })
}

/// The tokens of a row that may, or might, be drawn.
fn kept(p: ArrayView1<f64>, k: usize, limit: Option<f64>, tie: f64) -> Vec<(usize, Allowed)> {
    let order = by_falling(p, |p| *p > 0.0);
    let band = error_of_sums(p, &order);
    // tokens that are not told apart: each group with what lies before it
    let mut groups: Vec<(std::ops::Range<usize>, f64)> = Vec::new();
    let mut before = 0.0;
    for at in 0..order.len() {
        let same = at > 0 && p[order[at]] >= p[order[at - 1]] * (1.0 - tie);
        match groups.last_mut() {
            Some((group, _)) if same => group.end = at + 1,
            _ => groups.push((at..at + 1, before)),
        }
        before += p[order[at]];
    }
    // all that top-k leaves, with and without what ties at its edge
    let reached = groups.iter().take_while(|(group, _)| group.start < k);
    let edge = reached.last().cloned().unwrap_or((0..0, 0.0));
    let of_edge: f64 = order[edge.0.clone()].iter().map(|&token| p[token]).sum();
    let fewest = if edge.0.end <= k {
        edge.1 + of_edge
    } else {
        edge.1 + of_edge * (k - edge.0.start) as f64 / edge.0.len() as f64
    };
    let all = edge.1 + of_edge;
    let (least, most) = if k < p.len() { (fewest, all) } else { (all.min(1.0), all.max(1.0)) };
    let mut kept = Vec::new();
    for (group, before) in groups.into_iter().take_while(|(group, _)| group.start < k) {
        let last = before + (group.len() - 1) as f64 * p[order[group.start]];
        let by_p = match limit {
            None => Allowed::Yes,
            Some(_) if group == (0..1) => Allowed::Yes,
            Some(limit) if last / least <= limit - band => Allowed::Yes,
            Some(limit) if before / most > limit + band => Allowed::No,
            Some(_) => Allowed::Either,
        };
        let verdict = if by_p == Allowed::Yes && group.end > k { Allowed::Either } else { by_p };
        kept.extend(order[group].iter().map(|&token| (token, verdict)));
    }
    kept
}

/// The tokens for which `counts` holds, the most likely first, of equal ones the first.
fn by_falling<T: Real>(p: ArrayView1<T>, counts: impl Fn(&T) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = p.iter().enumerate().filter(|(_, p)| counts(p)).map(|(token, _)| token).collect();
    order.sort_by(|&a, &b| p[b].to_f64().total_cmp(&p[a].to_f64()));
    order
}

/// What sums of probabilities may be off in fp32: four times what adding them up one by one is.
fn error_of_sums(p: ArrayView1<f64>, order: &[usize]) -> f64 {
    let (mut exact, mut single, mut error) = (0.0f64, 0.0f32, 0.0f64);
    for &token in order {
        exact += p[token];
        single += p[token] as f32;
        error = error.max((exact - f64::from(single)).abs());
    }
    4.0 * error + 2.0 * f64::from(f32::EPSILON)
}

/// What is left of a row: 0 for tokens that the filters leave out, the others by their part of the sum.
fn left<T: Real>(p: ArrayView1<T>, k: usize, limit: Option<f64>) -> Array1<T> {
    let part = |kept: &[usize]| {
        let mut left = Array1::zeros(p.len());
        let sum = kept.iter().fold(T::zero(), |sum, &token| sum + p[token]);
        kept.iter().for_each(|&token| left[token] = p[token] / sum);
        left
    };
    let mut order = by_falling(p, |_| true);
    order.truncate(k);
    let left = part(&order);
    let Some(limit) = limit else { return left };
    let mut before = T::zero();
    order.retain(|&token| {
        let keep = before.to_f64() <= limit;
        before += if k < p.len() { left[token] } else { p[token] };
        keep
    });
    part(&order)
}

/// One token for each row, by a uniform number of its own.
pub fn draw<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (probabilities, limits) = (probabilities::<T>(call), Limits::of(call));
    let rows = probabilities.rows().into_iter().enumerate();
    let token = |(row, p): (usize, ArrayView1<T>)| {
        let left = left(p, limits.k(row, p.len()), limits.p(row));
        let uniform = (splitmix64(row as u64) >> 40) as f64 / f64::from(1 << 24);
        let mut sum = 0.0;
        let reached = left.iter().position(|&p| {
            sum += p.to_f64();
            sum > uniform
        });
        reached.or_else(|| left.iter().rposition(|p| *p > T::zero())).unwrap_or(0) as i64
    };
    Ok(vec![("samples", Computed::Index(rows.map(token).collect::<Array1<_>>().into_dyn()))])
}

/// The probabilities with 0 for tokens that the filter leaves out, divided by their sum.
pub fn renormalised<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (mut probabilities, limits) = (probabilities::<T>(call), Limits::of(call));
    for (row, mut p) in probabilities.rows_mut().into_iter().enumerate() {
        let left = left(p.view(), limits.k(row, p.len()), limits.p(row));
        p.assign(&left);
    }
    Ok(vec![("renorm_probs", probabilities.into())])
}

/// Distributions, and filters: `top_k` and `top_p` of every row or, with `each its own`, some of each. `one distribution`: all
/// rows have the same. `zeros`: every other token has a probability of 0. `certain`: one token has all. `ties`: probabilities
/// of few values.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [rows, vocabulary] = ["batch_size", "vocab_size"].map(|axis| workload.axis(axis));
    let one = workload.has("one distribution");
    let std = workload.number("std", 2.0);
    let mut logits: Array2<f64> =
        draw.normal("logits", &[if one { 1 } else { rows }, vocabulary], std).into_dimensionality().expect("two axes");
    if workload.has("ties") {
        logits.mapv_inplace(f64::round);
    }
    if workload.has("zeros") {
        logits.axis_iter_mut(Axis(1)).step_by(2).for_each(|mut column| column.fill(f64::NEG_INFINITY));
    }
    if workload.has("certain") {
        for (row, mut logits) in logits.rows_mut().into_iter().enumerate() {
            logits.fill(f64::NEG_INFINITY);
            logits[draw.below("certain", row, vocabulary)] = 0.0;
        }
    }
    let logits = logits.broadcast((rows, vocabulary)).expect("one row, or all").to_owned();
    let mut probs = logits.clone();
    softmax_rows(&mut probs);
    let each = |name: &str, usual: f64, own: [f64; 4]| {
        let value = |row: usize| if workload.has("each its own") { own[row % 4] } else { workload.number(name, usual) };
        Array1::from_shape_fn(rows, value).into_dyn()
    };
    let all = vocabulary as f64;
    let top_k = each("top_k", all, [1.0, 50.0, 7.0, all]).mapv(|k| k as i64);
    let top_p = each("top_p", 1.0, [0.9, 0.5, 0.05, 0.99]);
    Tensors::from_iter([
        ("probs".to_owned(), Tensor::real(ElementType::Float32, probs.into_dyn())),
        ("logits".to_owned(), Tensor::real(workload.dtype, logits.into_dyn())),
        ("top_k".to_owned(), Tensor::index(ElementType::Int32, top_k)),
        ("top_p".to_owned(), Tensor::real(ElementType::Float32, top_p)),
    ])
}

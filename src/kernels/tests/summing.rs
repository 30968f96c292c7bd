//! Kernels of the operators that add up, each with a sum of one's choice.

use dsv2_operators::Tensor;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Ix1, Ix2, Ix3, s};

use super::*;

/// How a kernel adds up: `every` terms in fp32 (a tile, on tensor cores), then on to what it has, which is kept in a type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    pub every: usize,
    pub kept: ElementType,
}

pub(super) const FP32: Sum = Sum { every: 64, kept: ElementType::Float32 };

impl Sum {
    fn of(self, terms: impl IntoIterator<Item = f32>) -> f32 {
        let (mut kept, mut tile) = (0.0, 0.0);
        let mut terms = terms.into_iter().peekable();
        let mut seen = 0;
        while let Some(term) = terms.next() {
            tile += term;
            seen += 1;
            if seen % self.every == 0 || terms.peek().is_none() {
                kept = self.kept.round(f64::from(kept + tile)) as f32;
                tile = 0.0;
            }
        }
        kept
    }

    fn dot(self, a: ArrayView1<f32>, b: ArrayView1<f32>) -> f32 {
        self.of(a.iter().zip(b).map(|(a, b)| a * b))
    }

    /// `a b^T`
    fn product(self, a: ArrayView2<f32>, b: ArrayView2<f32>) -> Array2<f32> {
        Array2::from_shape_fn((a.nrows(), b.nrows()), |(row, column)| self.dot(a.row(row), b.row(column)))
    }
}

/// The inputs of a workload in fp32, and outputs in the types of the contract.
pub(super) struct Called<'a> {
    pub operator: &'a Operator,
    pub inputs: &'a Tensors,
}

impl Called<'_> {
    fn real<D: ndarray::Dimension>(&self, name: &str) -> ndarray::Array<f32, D> {
        let values = self.inputs[name].as_real().unwrap().mapv(|x| x as f32);
        let scale = self.inputs.get(&format!("{name}_scale")).and_then(Tensor::as_real);
        let values = match scale {
            None => values,
            Some(scale) => ndarray::ArrayD::from_shape_fn(values.shape(), |at| {
                let rows = values.len_of(Axis(0)).div_ceil(scale.len_of(Axis(0)));
                let rows = if rows > 1 { 128 } else { 1 };
                values[&at] * scale[[at[0] / rows, at[1] / 128]] as f32
            }),
        };
        values.into_dimensionality().unwrap()
    }

    fn whole(&self, name: &str) -> Vec<usize> {
        self.inputs[name].as_index().unwrap().iter().map(|&i| i as usize).collect()
    }

    fn scalar(&self, name: &str) -> f32 {
        self.inputs[name].as_real().unwrap().sum() as f32
    }

    fn returned<D: ndarray::Dimension>(&self, name: &str, got: ndarray::Array<f32, D>) -> (String, Values) {
        let element = self.operator.contract.outputs[name].dtype.resolve(self.operator.activation(self.inputs));
        (name.to_owned(), values(&Tensor::real(element, got.mapv(f64::from).into_dyn())))
    }
}

pub(super) type Kernel = fn(&Called, Sum) -> Vec<(String, Values)>;

pub(super) fn rmsnorm(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let mut x: Array2<f32> = call.real("hidden_states");
    if call.inputs.contains_key("residual") {
        x += &call.real::<Ix2>("residual");
    }
    let weight: Array1<f32> = call.real("weight");
    let residual = x.clone();
    for mut row in x.rows_mut() {
        let mean = sum.of(row.iter().map(|x| x * x)) / row.len() as f32;
        row *= (mean + 1e-6).sqrt().recip();
        row *= &weight;
    }
    let mut returned = vec![call.returned("output", x)];
    if call.inputs.contains_key("residual") {
        returned.push(call.returned("residual_out", residual));
    }
    returned
}

pub(super) fn gemm(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    vec![call.returned("C", sum.product(call.real::<Ix2>("A").view(), call.real::<Ix2>("B").view()))]
}

pub(super) fn absorb(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let (x, weight) = (call.real::<Ix3>("x"), call.real::<Ix3>("weight"));
    let shape = (x.len_of(Axis(0)), x.len_of(Axis(1)), weight.len_of(Axis(2)));
    let output = ndarray::Array3::from_shape_fn(shape, |(token, head, column)| {
        sum.dot(x.slice(s![token, head, ..]), weight.slice(s![head, .., column]))
    });
    vec![call.returned("output", output)]
}

/// Attention of rows over one list of keys: what is attended to, not yet divided, is what is added up.
fn attend(sum: Sum, scores: &[f32], value: &dyn Fn(usize, usize) -> f32, width: usize) -> (Array1<f32>, f32) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if scores.is_empty() {
        return (Array1::zeros(width), largest);
    }
    let weights: Vec<f32> = scores.iter().map(|z| (z - largest).exp()).collect();
    let total = FP32.of(weights.iter().copied());
    let of = |column: usize| sum.of(weights.iter().enumerate().map(|(key, w)| w * value(key, column))) / total;
    (Array1::from_shape_fn(width, of), (largest + total.ln()) * std::f32::consts::LOG2_E)
}

pub(super) fn paged(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let (q_nope, q_pe) = (call.real::<Ix3>("q_nope"), call.real::<Ix3>("q_pe"));
    let scale = if call.inputs.contains_key("kv_scale") { call.scalar("kv_scale") } else { 1.0 };
    let [ckv, kpe] = ["ckv_cache", "kpe_cache"].map(|name| call.real::<Ix3>(name) * scale);
    let (begins, pages) = (call.whole("kv_indptr"), call.whole("kv_indices"));
    let size = ckv.len_of(Axis(1));
    let queries = match call.inputs.contains_key("qo_indptr") {
        true => call.whole("qo_indptr"),
        false => (0..begins.len()).collect(),
    };
    let mut output = ndarray::Array3::zeros(q_nope.dim());
    let mut lse = Array2::zeros((q_nope.len_of(Axis(0)), q_nope.len_of(Axis(1))));
    for sequence in 0..begins.len() - 1 {
        let own = &pages[begins[sequence]..begins[sequence + 1]];
        let last = if size == 1 || own.is_empty() { size } else { call.whole("kv_last_page_len")[sequence] };
        let slots: Vec<_> = own.iter().flat_map(|&page| (0..size).map(move |slot| (page, slot))).collect();
        let tokens = (slots.len() + last).saturating_sub(size);
        let new = queries[sequence]..queries[sequence + 1];
        for (ahead, token) in new.rev().enumerate() {
            let seen = &slots[..tokens.saturating_sub(ahead)];
            for head in 0..q_nope.len_of(Axis(1)) {
                let score = |&(page, slot): &(usize, usize)| {
                    FP32.dot(q_nope.slice(s![token, head, ..]), ckv.slice(s![page, slot, ..]))
                        + FP32.dot(q_pe.slice(s![token, head, ..]), kpe.slice(s![page, slot, ..]))
                };
                let scores: Vec<f32> = seen.iter().map(|slot| score(slot) * call.scalar("sm_scale")).collect();
                let value = |key: usize, column: usize| ckv[[seen[key].0, seen[key].1, column]];
                let (attended, denominator) = attend(sum, &scores, &value, ckv.len_of(Axis(2)));
                output.slice_mut(s![token, head, ..]).assign(&attended);
                lse[[token, head]] = denominator;
            }
        }
    }
    vec![call.returned("output", output), call.returned("lse", lse)]
}

pub(super) fn ragged(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let [q, k, v] = ["q", "k", "v"].map(|name| call.real::<Ix3>(name));
    let (new, all) = (call.whole("qo_indptr"), call.whole("kv_indptr"));
    let mut output = ndarray::Array3::zeros((q.len_of(Axis(0)), q.len_of(Axis(1)), v.len_of(Axis(2))));
    let mut lse = Array2::zeros((q.len_of(Axis(0)), q.len_of(Axis(1))));
    for (new, all) in new.windows(2).zip(all.windows(2)) {
        for (ahead, token) in (new[0]..new[1]).rev().enumerate() {
            for head in 0..q.len_of(Axis(1)) {
                let score = |key| FP32.dot(q.slice(s![token, head, ..]), k.slice(s![key, head, ..]));
                let scores: Vec<f32> =
                    (all[0]..all[1] - ahead).map(|key| score(key) * call.scalar("sm_scale")).collect();
                let value = |key: usize, column: usize| v[[all[0] + key, head, column]];
                let (attended, denominator) = attend(sum, &scores, &value, v.len_of(Axis(2)));
                output.slice_mut(s![token, head, ..]).assign(&attended);
                lse[[token, head]] = denominator;
            }
        }
    }
    vec![call.returned("output", output), call.returned("lse", lse)]
}

pub(super) fn merge(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let [v_a, v_b] = ["v_a", "v_b"].map(|name| call.real::<Ix3>(name));
    let [s_a, s_b] = ["s_a", "s_b"].map(|name| call.real::<Ix2>(name));
    let (mut v, mut s) = (v_a.clone(), s_a.clone());
    for ((token, head), s) in s.indexed_iter_mut() {
        let (a, b) = (s_a[[token, head]], s_b[[token, head]]);
        let largest = a.max(b);
        let kept = |x: f32| sum.kept.round(f64::from(x)) as f32;
        let weights = if largest == f32::NEG_INFINITY { [0.0; 2] } else { [a, b].map(|x| kept((x - largest).exp2())) };
        let total = kept(weights[0] + weights[1]);
        let part = |v: &ndarray::Array3<f32>, which: usize, at: usize| match weights[which] {
            0.0 => 0.0,
            weight => weight * v[[token, head, at]] / total,
        };
        for at in 0..v.len_of(Axis(2)) {
            v[[token, head, at]] = part(&v_a, 0, at) + part(&v_b, 1, at);
        }
        *s = largest + total.log2();
    }
    vec![call.returned("v_merged", v), call.returned("s_merged", s)]
}

fn gated(gate_up: Array2<f32>, element: ElementType) -> Array2<f32> {
    let half = gate_up.ncols() / 2;
    Array2::from_shape_fn((gate_up.nrows(), half), |(row, at)| {
        let (gate, up) = (gate_up[[row, at]], gate_up[[row, half + at]]);
        element.round(f64::from(gate / (1.0 + (-gate).exp()) * up)) as f32
    })
}

pub(super) fn mlp(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let between = sum.product(call.real::<Ix2>("hidden_states").view(), call.real::<Ix2>("gate_up_proj").view());
    let between = gated(between, call.operator.activation(call.inputs));
    vec![call.returned("output", sum.product(between.view(), call.real::<Ix2>("down_proj").view()))]
}

pub(super) fn experts(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let (x, w13, w2) = (call.real::<Ix2>("hidden_states"), call.real::<Ix3>("w13"), call.real::<Ix3>("w2"));
    let weights = call.real::<Ix2>("topk_weights");
    let mut output = Array2::zeros(x.dim());
    for ((choice, &expert), weight) in call.inputs["topk_indices"].as_index().unwrap().iter().enumerate().zip(&weights)
    {
        let Ok(expert) = usize::try_from(expert) else { continue };
        let token = choice / weights.ncols();
        let between = sum.product(x.slice(s![token..token + 1, ..]), w13.index_axis(Axis(0), expert));
        let between = gated(between, call.operator.activation(call.inputs));
        output.row_mut(token).scaled_add(*weight, &sum.product(between.view(), w2.index_axis(Axis(0), expert)).row(0));
    }
    vec![call.returned("output", output)]
}

pub(super) fn cross_entropy(call: &Called, sum: Sum) -> Vec<(String, Values)> {
    let logits: Array2<f32> = call.real("logits");
    let labels = call.inputs["labels"].as_index().unwrap().view().into_dimensionality::<Ix1>().unwrap();
    let loss = |(row, label): (ArrayView1<f32>, &i64)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = sum.of(row.iter().map(|z| (z - largest).exp()));
        usize::try_from(*label).map_or(0.0, |label| largest + total.ln() - row[label])
    };
    vec![call.returned("losses", logits.rows().into_iter().zip(labels).map(loss).collect::<Array1<f32>>())]
}

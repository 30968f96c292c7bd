//! Laws about the model's matrices, with LAPACK: feature `linalg`.

use dsv2_reference::model::linear::Linear;
use dsv2_reference::paper::linalg::mha_to_mla::LatentKeysAndValues;
use dsv2_reference::paper::linalg::orthonormal::orthonormal;
use dsv2_reference::paper::linalg::{ThinSvd, absorbed, condition};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{Dtype, Tensor};
use dsv2_testing::for_all;
use ndarray::{Array1, Array2, ArrayView2, Axis, array, concatenate, s};
use proptest::strategy::Strategy;
use proptest::{prop_assert, prop_assert_eq};

/// Sizes of one attention layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    seed: u64,
    heads: usize,
    /// n.
    nope: usize,
    /// v.
    value: usize,
    /// D, or c'.
    width: usize,
    /// c.
    rank: usize,
}

/// n, v < c < D.
fn layers() -> impl Strategy<Value = Layer> {
    (1..50_u64, 1..4_usize, 1..5_usize, 1..5_usize, 1..4_usize, 1..6_usize).prop_map(
        |(seed, heads, nope, value, rank, width)| {
            let rank = rank + nope.max(value);
            Layer { seed, heads, nope, value, width: rank + width, rank }
        },
    )
}

fn matrix(seed: u64, name: &str, shape: [usize; 2]) -> Array2<f64> {
    gaussian(seed).tensor(name, &shape).unwrap().to_array()
}

/// Weights that keep norms on average.
fn gaussian(seed: u64) -> GeneratedWeights {
    serde_json::from_value(serde_json::json!({"seed": seed, "rules": [{"suffix": "", "gain": 1.0}]})).unwrap()
}

fn norm<'a>(x: impl IntoIterator<Item = &'a f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    norm(&(a - b))
}

type QueryKey = dyn Fn(&Array2<f64>, &Array2<f64>) -> Array2<f64>;

#[test]
fn between_the_latents_stands_a_matrix_of_the_rank_of_a_head_and_its_factors_are_all_of_it() {
    let law = |query_key: &QueryKey, layer: Layer| {
        let Layer { seed, nope, width, rank, .. } = layer;
        // One more row than the head has: a rotated one.
        let w_uq = matrix(seed, "w_uq", [nope + 1, width]);
        let w_uk = matrix(seed, "w_uk", [nope + 1, rank]);
        let product = query_key(&w_uq, &w_uk);
        let svd = ThinSvd::of(product.view()).unwrap();
        prop_assert_eq!(svd.rank(), nope);
        let (left, right) = svd.truncated(nope).unwrap();
        let restored = left.dot(&right);
        prop_assert!(distance(&restored, &product) <= 1e-14 * norm(&product) * width as f64);
        Ok(())
    };
    for_all(layers(), law)
        .holds_for(&|w_uq, w_uk| {
            let head = s![..w_uq.nrows() - 1, ..];
            absorbed::query_key(w_uq.slice(head), w_uk.slice(head))
        })
        .fails_for("the rotated rows are absorbed too", &|w_uq, w_uk| absorbed::query_key(w_uq.view(), w_uk.view()));
}

#[test]
fn the_absorbed_matrix_gives_the_score_of_the_expanded_key() {
    let law = |query_key: &QueryKey, layer: Layer| {
        let Layer { seed, nope, width, rank, .. } = layer;
        let (w_uq, w_uk) = (matrix(seed, "w_uq", [nope, width]), matrix(seed, "w_uk", [nope, rank]));
        let (c_q, c_kv) = (matrix(seed, "c_q", [3, width]), matrix(seed, "c_kv", [4, rank]));
        let expanded = c_q.dot(&w_uq.t()).dot(&c_kv.dot(&w_uk.t()).t());
        let absorbed = c_q.dot(&query_key(&w_uq, &w_uk)).dot(&c_kv.t());
        prop_assert!(distance(&absorbed, &expanded) <= 1e-13 * norm(&c_q) * norm(&c_kv));
        Ok(())
    };
    for_all(layers(), law)
        .holds_for(&|w_uq, w_uk| absorbed::query_key(w_uq.view(), w_uk.view()))
        .fails_for("rows of W^UK in reverse", &|w_uq, w_uk| {
            absorbed::query_key(w_uq.view(), w_uk.slice(s![..;-1, ..]))
        });
}

#[test]
fn the_absorbed_output_is_the_output_of_the_expanded_value() {
    type OutputValue = dyn Fn(ArrayView2<f64>, ArrayView2<f64>) -> Array2<f64>;
    let law = |output_value: &OutputValue, layer: Layer| {
        let Layer { seed, value, width, rank, .. } = layer;
        let (w_o, w_uv) = (matrix(seed, "w_o", [width, value]), matrix(seed, "w_uv", [value, rank]));
        let c_kv = matrix(seed, "c_kv", [4, rank]);
        let expanded = c_kv.dot(&w_uv.t()).dot(&w_o.t());
        let product = output_value(w_o.view(), w_uv.view());
        prop_assert_eq!(ThinSvd::of(product.view()).unwrap().rank(), value);
        prop_assert!(distance(&c_kv.dot(&product.t()), &expanded) <= 1e-13 * norm(&c_kv));
        Ok(())
    };
    for_all(layers(), law).holds_for(&absorbed::output_value).fails_for("one value is lost", &|w_o, w_uv| {
        absorbed::output_value(w_o.slice(s![.., 1..]), w_uv.slice(s![1.., ..]))
    });
}

/// W^K \[Hn,D\] and W^V \[Hv,D\] and the rank asked for -> the latent form.
type Conversion = dyn Fn(&Array2<f64>, &Array2<f64>, usize) -> LatentKeysAndValues;

fn of_weights(w_k: &Array2<f64>, w_v: &Array2<f64>, rank: usize) -> LatentKeysAndValues {
    LatentKeysAndValues::of_weights(w_k.view(), w_v.view(), rank).unwrap()
}

fn keys_and_values(layer: Layer) -> (Array2<f64>, Array2<f64>) {
    let Layer { seed, heads, nope, value, width, .. } = layer;
    (matrix(seed, "w_k", [heads * nope, width]), matrix(seed, "w_v", [heads * value, width]))
}

#[test]
fn a_conversion_errs_by_the_singular_values_that_it_leaves_out() {
    let law = |convert: &Conversion, layer: Layer| {
        let (w_k, w_v) = keys_and_values(layer);
        let joint = concatenate(Axis(0), &[w_k.view(), w_v.view()]).unwrap();
        let sigma = ThinSvd::of(joint.view()).unwrap().sigma;
        let rank = layer.rank.min(sigma.len());
        let latent = convert(&w_k, &w_v, rank);
        let restored = concatenate(Axis(0), &[latent.w_uk.view(), latent.w_uv.view()]).unwrap().dot(&latent.w_dkv);
        let left_out = norm(sigma.slice(s![rank..]));
        prop_assert!((distance(&restored, &joint) - left_out).abs() <= 1e-13 * norm(&joint));
        prop_assert!((latent.error - left_out).abs() <= 1e-13 * norm(&joint));
        Ok(())
    };
    for_all(layers(), law)
        .holds_for(&of_weights)
        .fails_for("the first singular value is left out, not the last", &|w_k, w_v, rank| {
            let mut latent = of_weights(w_k, w_v, rank);
            latent.w_dkv.row_mut(0).fill(0.0);
            latent
        })
        .fails_for("keys alone decide", &|w_k, w_v, rank| {
            let of_keys = ThinSvd::of(w_k.view()).unwrap();
            let rank = rank.min(of_keys.sigma.len());
            let (w_uk, w_dkv) = of_keys.truncated(rank).unwrap();
            let w_uv = w_v.dot(&w_dkv.t());
            LatentKeysAndValues { w_dkv, w_uk, w_uv, error: of_keys.error_of_rank(rank) }
        });
}

/// Inputs of rank 3 at most, in D dimensions.
fn inputs(layer: Layer) -> Array2<f64> {
    matrix(layer.seed, "a", [12, 3]).dot(&matrix(layer.seed, "b", [3, layer.width]))
}

#[test]
fn a_conversion_for_inputs_errs_by_what_they_do_not_use_and_no_more_than_one_for_the_weights() {
    type ForInputs = dyn Fn(Layer, ArrayView2<f64>, usize) -> LatentKeysAndValues;
    let error = |latent: &LatentKeysAndValues, layer: Layer| {
        let (w_k, w_v) = keys_and_values(layer);
        let inputs = inputs(layer);
        let (_, keys, values) = latent.forward(inputs.view());
        distance(&keys, &inputs.dot(&w_k.t())).hypot(distance(&values, &inputs.dot(&w_v.t())))
    };
    let law = move |convert: &ForInputs, layer: Layer| {
        let (w_k, w_v) = keys_and_values(layer);
        let rank = layer.rank.min(2).min(w_k.nrows() + w_v.nrows());
        let latent = convert(layer, inputs(layer).view(), rank);
        let found = error(&latent, layer);
        let scale = norm(&inputs(layer)) * norm(&w_k).hypot(norm(&w_v));
        prop_assert!((found - latent.error).abs() <= 1e-13 * scale);
        prop_assert!(found <= error(&of_weights(&w_k, &w_v, rank), layer) + 1e-13 * scale);
        // Three directions are all that the inputs have.
        let enough = 3.min(w_k.nrows() + w_v.nrows());
        prop_assert!(error(&convert(layer, inputs(layer).view(), enough), layer) <= 1e-13 * scale);
        Ok(())
    };
    for_all(layers(), law)
        .holds_for(&|layer, inputs, rank| {
            let (w_k, w_v) = keys_and_values(layer);
            LatentKeysAndValues::of_inputs(w_k.view(), w_v.view(), inputs, rank).unwrap()
        })
        .fails_for("made for the weights", &|layer, _, rank| {
            let (w_k, w_v) = keys_and_values(layer);
            of_weights(&w_k, &w_v, rank)
        });
}

/// Causal attention of one layer, head by head: q, k \[N,Hn\], v \[N,Hv\] -> \[N,Hv\].
fn attention(heads: usize, q: &Array2<f64>, k: &Array2<f64>, v: &Array2<f64>) -> Array2<f64> {
    let (n, width) = (q.ncols() / heads, v.ncols() / heads);
    let mut output = Array2::zeros(v.dim());
    for h in 0..heads {
        let of_head = |x: &Array2<f64>, width: usize| x.slice(s![.., h * width..(h + 1) * width]).to_owned();
        let (q, k, v) = (of_head(q, n), of_head(k, n), of_head(v, width));
        for (i, q) in q.rows().into_iter().enumerate() {
            let weights = k.slice(s![..=i, ..]).dot(&q).mapv(|score| (score / (n as f64).sqrt()).exp());
            let mean = weights.dot(&v.slice(s![..=i, ..])) / weights.sum();
            output.slice_mut(s![i, h * width..(h + 1) * width]).assign(&mean);
        }
    }
    output
}

#[test]
fn a_layer_whose_keys_and_values_have_rank_c_is_an_mla_layer() {
    let law = |convert: &Conversion, layer: Layer| {
        let Layer { seed, heads, nope, width, rank, .. } = layer;
        let (w_k, w_v) = keys_and_values(layer);
        // All of W^K and W^V goes through c numbers.
        let through = matrix(seed, "p", [width, rank]).dot(&matrix(seed, "r", [rank, width]));
        let (w_k, w_v) = (w_k.dot(&through), w_v.dot(&through));
        let hidden = matrix(seed, "hidden", [5, width]);
        let q = hidden.dot(&matrix(seed, "w_q", [heads * nope, width]).t());
        let (k, v) = (hidden.dot(&w_k.t()), hidden.dot(&w_v.t()));
        let expected = attention(heads, &q, &k, &v);
        let latent = convert(&w_k, &w_v, rank.min(w_k.nrows() + w_v.nrows()));
        let (compressed_kv, k, v) = latent.forward(hidden.view());
        prop_assert!(compressed_kv.ncols() <= rank);
        let found = attention(heads, &q, &k, &v);
        prop_assert!(distance(&found, &expected) <= 1e-11 * (1.0 + norm(&expected)));
        Ok(())
    };
    for_all(layers(), law)
        .holds_for(&of_weights)
        .fails_for("a latent one number short", &|w_k, w_v, rank| of_weights(w_k, w_v, (rank - 1).max(1)))
        .fails_for("heads of the values in reverse", &|w_k, w_v, rank| {
            of_weights(w_k, &w_v.slice(s![..;-1, ..]).to_owned(), rank)
        });
}

/// Depth, width and a seed: a chain of square maps.
fn chains() -> impl Strategy<Value = (usize, usize, u64)> {
    (1..=60_usize, 2..12_usize, 1..50_u64)
}

fn through(weights: &dyn WeightSource, depth: usize, mut x: Array2<f64>) -> Array2<f64> {
    for layer in 0..depth {
        let width = x.ncols();
        // Every third map goes up to twice the width: a high matrix.
        let rows = if layer % 3 == 2 && width < 40 { 2 * width } else { width };
        let linear = Linear::load(weights, &format!("layers.{layer}"), rows, width, false).unwrap();
        x = linear.forward(x.view());
    }
    x
}

type Weights = dyn Fn(u64) -> Box<dyn WeightSource>;

#[test]
fn orthonormal_weights_keep_norms_and_relative_errors_at_any_depth() {
    let law = |weights: &Weights, (depth, width, seed): (usize, usize, u64)| {
        let x = matrix(seed, "x", [1, width]);
        let off = &x + &(matrix(seed, "dx", [1, width]) * 1e-3);
        let weights = weights(seed);
        let (y, y_off) = (through(&*weights, depth, x.clone()), through(&*weights, depth, off.clone()));
        prop_assert!((norm(&y) / norm(&x) - 1.0).abs() <= 1e-14 * (1.0 + depth as f64));
        let (before, after) = (distance(&off, &x) / norm(&x), distance(&y_off, &y) / norm(&y));
        prop_assert!((after / before - 1.0).abs() <= 1e-11);
        Ok(())
    };
    for_all(chains(), law)
        .tried(64)
        .holds_for(&|seed| Box::new(orthonormal(gaussian(seed))))
        .fails_for("Gaussian weights", &|seed| Box::new(gaussian(seed)));
}

#[test]
fn wide_orthonormal_weights_have_orthonormal_rows() {
    let law = |weights: &Weights, (rows, more, seed): (usize, usize, u64)| {
        let w: Array2<f64> = weights(seed).tensor("w", &[rows, rows + more]).unwrap().to_array();
        prop_assert!(distance(&w.dot(&w.t()), &Array2::eye(rows)) <= 1e-14 * rows as f64);
        prop_assert!((condition::condition_number(w.view()).unwrap() - 1.0).abs() <= 1e-13);
        Ok(())
    };
    for_all((1..10_usize, 0..6_usize, 1..50_u64), law)
        .holds_for(&|seed| Box::new(orthonormal(gaussian(seed))))
        .fails_for("Gaussian weights", &|seed| Box::new(gaussian(seed)));
}

/// A matrix \[out,in\] and an x \[in\] in bf16, exact in every type.
fn products() -> impl Strategy<Value = (Array2<f64>, Array1<f64>)> {
    (1..6_usize, 1..200_usize, 1..50_u64)
        .prop_map(|(rows, k, seed)| (matrix(seed, "w", [rows, k]), matrix(seed, "x", [1, k]).row(0).to_owned()))
}

#[test]
fn no_rounding_error_exceeds_its_bound() {
    type Product = dyn Fn(&Array2<f64>, &Array1<f64>) -> Array1<f64>;
    let law = |product: &Product, (w, x): (Array2<f64>, Array1<f64>)| {
        let (found, exact) = (product(&w, &x), w.dot(&x));
        let bound = condition::rounding_bound(w.view(), x.view(), f64::from(f32::EPSILON) / 2.0);
        for ((found, exact), bound) in found.iter().zip(&exact).zip(&bound) {
            prop_assert!((found - exact).abs() <= *bound, "{found} is not {exact} within {bound}");
        }
        Ok(())
    };
    for_all(products(), law)
        .holds_for(&|w, x| {
            let weight = Tensor::from_values(Dtype::F32, w.shape(), w.iter().copied());
            let y = Linear::<f32>::new(weight, None).forward(x.mapv(|x| x as f32).insert_axis(Axis(0)).view());
            y.row(0).mapv(f64::from)
        })
        .fails_for("sums of 11 bits", &|w, x| {
            let to_bits = |x: f64| f64::from(half::f16::from_f64(x));
            w.rows().into_iter().map(|w| w.iter().zip(x).fold(0.0, |sum, (w, x)| to_bits(sum + w * x))).collect()
        });
}

#[test]
fn a_relative_error_grows_by_its_condition_number_at_most_and_by_that_in_the_worst_direction() {
    type Growth = dyn Fn(ArrayView2<f64>, &Array1<f64>) -> f64;
    let law = |growth: &Growth, (w, x): (Array2<f64>, Array1<f64>)| {
        let bound = growth(w.view(), &x);
        let relative = |dx: &Array1<f64>| (norm(&w.dot(dx)) / norm(&w.dot(&x))) / (norm(dx) / norm(&x));
        let worst = ThinSvd::of(w.view()).unwrap().vt.row(0).to_owned();
        prop_assert!((relative(&worst) / bound - 1.0).abs() <= 1e-10, "{bound} is not attained");
        let some = Array1::from_shape_fn(x.len(), |i| ((7 * i + 3) % 5) as f64 - 2.2);
        prop_assert!(relative(&some) <= bound * (1.0 + 1e-10));
        if w.nrows() >= w.ncols() {
            prop_assert!(bound <= condition::condition_number(w.view()).unwrap() * (1.0 + 1e-10));
        }
        Ok(())
    };
    let frobenius = |w: ArrayView2<f64>, x: &Array1<f64>| norm(w) * norm(x) / norm(&w.dot(x));
    for_all(products().prop_filter("some output", |(w, x)| norm(&w.dot(x)) > 1e-6), law)
        .tried(128)
        .holds_for(&|w, x| condition::propagation(w, x.view()).unwrap())
        .fails_for("Frobenius' norm instead of the largest singular value", &frobenius)
        .fails_for("errors never grow", &|_, _| 1.0);
}

#[test]
fn of_a_matrix_of_rank_one() {
    let svd = ThinSvd::of(array![[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]].view()).unwrap();
    assert_eq!((svd.u.dim(), svd.vt.dim(), svd.rank()), ((3, 2), (2, 2), 1));
    assert!((svd.sigma[0] - 125_f64.sqrt()).abs() < 1e-12 && svd.error_of_rank(1) < 1e-12);
}

#[test]
fn what_has_no_decomposition_is_refused() {
    let refusal = |a: Array2<f64>| ThinSvd::of(a.view()).unwrap_err().to_string();
    assert_eq!(
        refusal(array![[1.0, f64::NAN]]),
        "input `matrix`: expected one or more elements, all finite, found [1, 2] with one that is not"
    );
    assert_eq!(
        refusal(Array2::zeros((0, 3))),
        "input `matrix`: expected one or more elements, all finite, found [0, 3]"
    );
    let svd = ThinSvd::of(Array2::eye(3).view()).unwrap();
    assert_eq!(
        svd.truncated(4).unwrap_err().to_string(),
        "input `rank`: expected 1 to 3, the smaller side of the matrix, found 4"
    );
}

//! Numbers for inputs: a function of the operator, the workload and the input, by the generator of golden weights.

use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, Rule, splitmix64};
use ndarray::{Array, ArrayD, Axis, Dimension, IxDyn, ShapeBuilder};

use crate::tensor::{ElementType, Tensor};

/// Where the numbers of one workload come from.
pub(crate) struct Draw {
    prefix: String,
}

impl Draw {
    /// Of a workload of an operator.
    pub fn new(operator: &str, workload: &str) -> Self {
        Draw { prefix: format!("{operator}/{workload}") }
    }

    /// Nearly normal numbers of this standard deviation.
    pub fn normal(&self, name: &str, shape: &[usize], std: f64) -> ArrayD<f64> {
        self.about(name, shape, 0.0, std)
    }

    /// The same about a mean.
    ///
    /// The generator's numbers are bf16. Products of such are exact in TF32, which a kernel for fp32 may not use: a second
    /// draw, 2^-9 times the first, gives these numbers the digits that fp32 has and bf16 has not.
    pub fn about(&self, name: &str, shape: &[usize], mean: f64, std: f64) -> ArrayD<f64> {
        let draw = |part: &str, mean, std| {
            let rules = vec![Rule { suffix: String::new(), mean, std: Some(std), gain: None }];
            let tensor = GeneratedWeights { seed: 1, rules }.tensor(&format!("{}/{name}{part}", self.prefix), shape);
            tensor.expect("a rule that fits every name").to_array::<f64, IxDyn>()
        };
        draw("", mean, std) + draw("/digits", 0.0, std) / 512.0
    }

    /// Numbers of one sign, which differ by a twentieth about a mean of their own for each index of an axis: half to one and
    /// a half times `mean`. Adding up many of them in too few digits always errs to the same side.
    pub fn one_sign(&self, name: &str, shape: &[usize], axis: usize, mean: f64) -> ArrayD<f64> {
        let mut values = self.about(name, shape, 1.0, 0.05);
        for (index, mut values) in values.axis_iter_mut(Axis(axis)).enumerate() {
            let own = 0.5 + self.below(&format!("{name}/means"), index, 1000) as f64 / 1000.0;
            values.mapv_inplace(|x| x * own * mean);
        }
        values
    }

    /// A number below `bound`: the same for the same name and place.
    pub fn below(&self, name: &str, at: usize, bound: usize) -> usize {
        let hash =
            format!("{}/{name}", self.prefix).bytes().fold(at as u64, |hash, byte| splitmix64(hash ^ u64::from(byte)));
        (hash % bound.max(1) as u64) as usize
    }

    /// The numbers below `count` in an order of their own.
    pub fn permutation(&self, name: &str, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(name, last, last + 1));
        }
        order
    }
}

/// A number without axes, in fp32.
pub(crate) fn scalar(x: f64) -> Tensor {
    Tensor::real(ElementType::Float32, ndarray::arr0(x).into_dyn())
}

/// Whole numbers in 32 bits.
pub(crate) fn int32<S: ShapeBuilder<Dim = D>, D: Dimension>(shape: S, values: Vec<i64>) -> Tensor {
    let values = Array::from_shape_vec(shape, values).expect("as many values as the shape has");
    Tensor::index(ElementType::Int32, values.into_dyn())
}

/// Where each of several sequences begins, and where the last ends.
pub(crate) fn indptr(lengths: &[usize]) -> Tensor {
    let mut ends = vec![0];
    ends.extend(lengths.iter().scan(0, |end, &length| {
        *end += length as i64;
        Some(*end)
    }));
    int32(ends.len(), ends)
}

//! Activation functions: the σ of the gated MLP, down(σ(gate x) ⊙ up x). DeepSeek-V2 uses SiLU; the field `hidden_act`
//! may name any function of Transformers' table `ACT2FN` that has no learned parameters.
//!
//! | `hidden_act` | function |
//! |---|---|
//! | `silu`, `swish` | x / (1 + e^(-x)) |
//! | `gelu`, `gelu_python` | x Φ(x) = x/2 (1 + erf(x/√2)) |
//! | `gelu_10` | `gelu`, clipped to [-10, 10] |
//! | `gelu_new`, `gelu_accurate`, `gelu_pytorch_tanh`, `gelu_python_tanh` | x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) |
//! | `gelu_fast` | the same with 0.7978845608 for √(2/π) |
//! | `quick_gelu` | x / (1 + e^(-1.702 x)) |
//! | `relu` | max(x, 0) |
//! | `relu2` | max(x, 0)² |
//! | `relu6` | min(max(x, 0), 6) |
//! | `leaky_relu` | x for x ≥ 0, else 0.01 x |
//! | `sigmoid` | 1 / (1 + e^(-x)) |
//! | `tanh` | tanh x |
//! | `mish` | x tanh(ln(1 + e^x)) |
//! | `hardswish` | x min(max(x + 3, 0), 6) / 6 |
//! | `laplace` | 1/2 (1 + erf((x - 0.707107) / (0.282095 √2))) |
//! | `sqrtsoftplus` | √ln(1 + e^x) |
//! | `linear` | x |
//!
//! A NaN stays a NaN in each of them, as in PyTorch.

use std::fmt;
use std::str::FromStr;

use crate::Real;

/// An activation function; the [module documentation](self) has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x times the logistic function: `silu`, `swish`.
    Silu,
    /// x times the normal distribution function: `gelu`, `gelu_python`.
    Gelu,
    /// [`Activation::Gelu`] clipped to [-10, 10]: `gelu_10`.
    Gelu10,
    /// The tanh approximation of [`Activation::Gelu`]: `gelu_new`, `gelu_accurate`, `gelu_pytorch_tanh`,
    /// `gelu_python_tanh`.
    GeluTanh,
    /// [`Activation::GeluTanh`] with a rounded constant: `gelu_fast`.
    GeluFast,
    /// The logistic approximation of [`Activation::Gelu`]: `quick_gelu`.
    QuickGelu,
    /// The positive part: `relu`.
    Relu,
    /// The square of the positive part: `relu2`.
    Relu2,
    /// The positive part, at most 6: `relu6`.
    Relu6,
    /// The positive part and a hundredth of the negative one: `leaky_relu`.
    LeakyRelu,
    /// The logistic function: `sigmoid`.
    Sigmoid,
    /// The hyperbolic tangent: `tanh`.
    Tanh,
    /// x times tanh of softplus: `mish`.
    Mish,
    /// A piecewise linear [`Activation::Silu`]: `hardswish`.
    HardSwish,
    /// The normal distribution function of MEGA: `laplace`.
    Laplace,
    /// The square root of softplus: `sqrtsoftplus`.
    SqrtSoftplus,
    /// The identity: `linear`.
    Linear,
}

/// Every name that Transformers knows for a function without parameters. The first name of a function is its
/// [`Activation::name`].
const NAMES: [(&str, Activation); 22] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_10", Activation::Gelu10),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluFast),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("relu6", Activation::Relu6),
    ("leaky_relu", Activation::LeakyRelu),
    ("sigmoid", Activation::Sigmoid),
    ("tanh", Activation::Tanh),
    ("mish", Activation::Mish),
    ("hardswish", Activation::HardSwish),
    ("laplace", Activation::Laplace),
    ("sqrtsoftplus", Activation::SqrtSoftplus),
    ("linear", Activation::Linear),
];

impl Activation {
    /// Every name that [`Activation::from_str`] accepts.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The function's first name in Transformers' table: `silu` for SiLU, though `swish` names it as well.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, activation)| *activation == self).map_or("", |(name, _)| name)
    }

    /// The function's value at `x`.
    pub fn apply<T: Real>(self, x: T) -> T {
        let c = T::from_f64;
        match self {
            Activation::Silu => x / (T::one() + (-x).exp()),
            Activation::Gelu => gelu(x),
            Activation::Gelu10 => clamp(gelu(x), c(-10.0), c(10.0)),
            Activation::GeluTanh => gelu_tanh(x, std::f64::consts::FRAC_2_PI.sqrt()),
            Activation::GeluFast => gelu_tanh(x, 0.7978845608),
            Activation::QuickGelu => x / (T::one() + (c(-1.702) * x).exp()),
            Activation::Relu => relu(x),
            Activation::Relu2 => relu(x) * relu(x),
            Activation::Relu6 => clamp(x, c(0.0), c(6.0)),
            Activation::LeakyRelu if x < T::zero() => c(0.01) * x,
            Activation::LeakyRelu => x,
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Mish => x * softplus(x).tanh(),
            Activation::HardSwish => x * clamp(x + c(3.0), c(0.0), c(6.0)) / c(6.0),
            Activation::Laplace => {
                let (mean, deviation) = (c(LAPLACE.0), c(LAPLACE.1 * std::f64::consts::SQRT_2));
                c(0.5) * (T::one() + erf((x - mean) / deviation))
            }
            Activation::SqrtSoftplus => softplus(x).sqrt(),
            Activation::Linear => x,
        }
    }
}

/// Mean and standard deviation of [`Activation::Laplace`]: near √½ and √(1/4π), but these very decimals.
#[allow(clippy::approx_constant)]
const LAPLACE: (f64, f64) = (0.707107, 0.282095);

/// 1 / (1 + e^(-x)). For large negative x the exponential is infinite and the quotient 0, as it should be.
fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

/// max(x, 0), and NaN for NaN (`T::max` would answer 0).
fn relu<T: Real>(x: T) -> T {
    if x < T::zero() { T::zero() } else { x }
}

/// min(max(x, low), high), and NaN for NaN.
fn clamp<T: Real>(x: T, low: T, high: T) -> T {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + e^(-|x|)), which does not overflow.
fn softplus<T: Real>(x: T) -> T {
    relu(x) + (-x.abs()).exp().ln_1p()
}

/// The error function, rounded once: it is computed in f64 whatever `T` is.
fn erf<T: Real>(x: T) -> T {
    T::from_f64(libm::erf(x.to_f64()))
}

fn gelu<T: Real>(x: T) -> T {
    T::from_f64(0.5) * x * (T::one() + erf(x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)))
}

fn gelu_tanh<T: Real>(x: T, sqrt_2_over_pi: f64) -> T {
    let inner = T::from_f64(sqrt_2_over_pi) * (x + T::from_f64(0.044715) * x * x * x);
    T::from_f64(0.5) * x * (T::one() + inner.tanh())
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no [`Activation`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("activation: expected one of {}, found {name:?}", Activation::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownActivation {
    /// The text.
    pub name: String,
}

impl FromStr for Activation {
    type Err = UnknownActivation;

    fn from_str(text: &str) -> Result<Self, UnknownActivation> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, activation)| *activation).ok_or_else(|| UnknownActivation { name: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f64; 10] = [-30.0, -3.0, -1.5, -0.5, 0.0, 0.25, 1.0, 2.5, 7.0, 30.0];

    /// Transformers 5.23, `ACT2FN[name]` of `X` in float64.
    #[rustfmt::skip]
    const ACT2FN: [(&str, [f64; 10]); 22] = [
        ("gelu", [-0.0, -0.00404969409489031, -0.10021080190328704, -0.15426876936299344, 0.0, 0.14967658142073093, 0.841344746068543, 2.4844758366855597, 6.999999999991041, 30.0]),
        ("gelu_10", [-0.0, -0.00404969409489031, -0.10021080190328704, -0.15426876936299344, 0.0, 0.14967658142073093, 0.841344746068543, 2.4844758366855597, 6.999999999991041, 10.0]),
        ("gelu_fast", [-0.0, -0.003637392081860591, -0.1004284230206536, -0.15428599017516514, 0.0, 0.1496753507015987, 0.841191990607477, 2.4849157339097268, 6.999999999999997, 30.0]),
        ("gelu_new", [-0.0, -0.0036373920817729943, -0.10042842301976707, -0.15428599017485606, 0.0, 0.149675350701685, 0.8411919906082768, 2.484915733910001, 6.999999999999997, 30.0]),
        ("gelu_python", [-0.0, -0.00404969409489031, -0.10021080190328713, -0.15426876936299344, 0.0, 0.14967658142073093, 0.8413447460685429, 2.4844758366855597, 6.999999999991041, 30.0]),
        ("gelu_pytorch_tanh", [-0.0, -0.0036373920817729943, -0.10042842301976707, -0.15428599017485606, 0.0, 0.149675350701685, 0.8411919906082768, 2.484915733910001, 6.999999999999997, 30.0]),
        ("gelu_python_tanh", [-0.0, -0.0036373920817729943, -0.10042842301976707, -0.15428599017485606, 0.0, 0.149675350701685, 0.8411919906082768, 2.484915733910001, 6.999999999999997, 30.0]),
        ("gelu_accurate", [-0.0, -0.0036373920817729943, -0.10042842301976707, -0.15428599017485606, 0.0, 0.149675350701685, 0.8411919906082768, 2.484915733910001, 6.999999999999997, 30.0]),
        ("hardswish", [-0.0, -0.0, -0.375, -0.20833333333333334, 0.0, 0.13541666666666666, 0.6666666666666666, 2.2916666666666665, 7.0, 30.0]),
        ("laplace", [0.0, 0.0, 2.55351295663786e-15, 9.383381167682447e-06, 0.006094459617935588, 0.052573090251858634, 0.8504296492845703, 0.9999999998962167, 1.0, 1.0]),
        ("leaky_relu", [-0.3, -0.03, -0.015, -0.005, 0.0, 0.25, 1.0, 2.5, 7.0, 30.0]),
        ("linear", [-30.0, -3.0, -1.5, -0.5, 0.0, 0.25, 1.0, 2.5, 7.0, 30.0]),
        ("mish", [-2.807286890651921e-12, -0.1456474612756246, -0.29809974216680674, -0.22074377465173, 0.0, 0.1695724096638176, 0.8650983882673103, 2.471392304557881, 6.999988379809741, 30.0]),
        ("quick_gelu", [-2.004679774500938e-21, -0.01807130970778597, -0.10833780155292341, -0.1496115633936199, 0.0, 0.1511996499001942, 0.8457957659328212, 2.46501383495143, 6.999953128303318, 30.0]),
        ("relu", [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 1.0, 2.5, 7.0, 30.0]),
        ("relu2", [0.0, 0.0, 0.0, 0.0, 0.0, 0.0625, 1.0, 6.25, 49.0, 900.0]),
        ("relu6", [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 1.0, 2.5, 6.0, 6.0]),
        ("sigmoid", [9.357622968839299e-14, 0.04742587317756678, 0.18242552380635635, 0.3775406687981454, 0.5, 0.5621765008857981, 0.7310585786300049, 0.9241418199787566, 0.9990889488055994, 0.9999999999999065]),
        ("silu", [-2.8072868906517896e-12, -0.14227761953270035, -0.2736382857095345, -0.1887703343990727, 0.0, 0.14054412522144952, 0.7310585786300049, 2.3103545499468914, 6.993622641639196, 29.999999999997197]),
        ("sqrtsoftplus", [3.0590232050181864e-07, 0.2204253877704246, 0.4487909067514096, 0.6885324859293908, 0.8325546111576977, 0.9088120927226065, 1.145976303209723, 1.6058921926121161, 2.6459235564267107, 5.477225575051661]),
        ("swish", [-2.8072868906517896e-12, -0.14227761953270035, -0.2736382857095345, -0.1887703343990727, 0.0, 0.14054412522144952, 0.7310585786300049, 2.3103545499468914, 6.993622641639196, 29.999999999997197]),
        ("tanh", [-1.0, -0.9950547536867305, -0.9051482536448664, -0.4621171572600098, 0.0, 0.24491866240370913, 0.7615941559557649, 0.9866142981514303, 0.9999983369439447, 1.0]),
    ];

    #[test]
    fn functions_are_those_of_transformers() {
        for (name, expected) in ACT2FN {
            let activation: Activation = name.parse().unwrap();
            for (x, expected) in X.into_iter().zip(expected) {
                let (wide, narrow) = (activation.apply(x), activation.apply(x as f32));
                assert!(
                    (wide - expected).abs() <= 4e-15 * expected.abs().max(1e-2),
                    "{name}({x}) = {wide}, not {expected}"
                );
                assert!(
                    (f64::from(narrow) - expected).abs() <= 4e-7 * expected.abs().max(1.0),
                    "{name}({x}) = {narrow}"
                );
            }
        }
        assert_eq!(Activation::names().count(), ACT2FN.len());
    }

    #[test]
    fn extremes_neither_overflow_nor_lose_a_nan() {
        for name in Activation::names() {
            let activation: Activation = name.parse().unwrap();
            assert!(activation.apply(f64::NAN).is_nan(), "{name}");
            assert!(activation.apply(-1e4_f32).is_finite() && activation.apply(1e4_f32).is_finite(), "{name}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for name in Activation::names() {
            let activation: Activation = name.parse().unwrap();
            assert_eq!(activation.to_string().parse(), Ok(activation));
        }
        let message = "prelu".parse::<Activation>().unwrap_err().to_string();
        assert!(
            message.starts_with("activation: expected one of silu, swish, ") && message.ends_with("found \"prelu\"")
        );
    }
}

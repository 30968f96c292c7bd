//! The numbers by which kernels know activation functions.

use dsv2_reference::Activation;

/// The value of `enum Activation` in `kernels/activation.cuh`.
pub(crate) fn number(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::Gelu10 => 2,
        Activation::GeluTanh => 3,
        Activation::GeluFast => 4,
        Activation::QuickGelu => 5,
        Activation::Relu => 6,
        Activation::Relu2 => 7,
        Activation::Relu6 => 8,
        Activation::LeakyRelu => 9,
        Activation::Sigmoid => 10,
        Activation::Tanh => 11,
        Activation::Mish => 12,
        Activation::HardSwish => 13,
        Activation::Laplace => 14,
        Activation::SqrtSoftplus => 15,
        Activation::Linear => 16,
    }
}

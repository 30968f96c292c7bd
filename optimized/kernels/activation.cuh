// The activation of the gated MLP, down(act(gate x) * (up x)): DeepSeek-V2 has SiLU; `hidden_act` may name any of these.
#pragma once

// The numbers that `operators::activation` gives them.
enum Activation {
    SILU, GELU, GELU_10, GELU_TANH, GELU_FAST, QUICK_GELU, RELU, RELU_2, RELU_6, LEAKY_RELU, SIGMOID, TANH, MISH, HARD_SWISH,
    LAPLACE, SQRT_SOFTPLUS, LINEAR
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// x / (1 + exp(-x)). For very negative x the exponential is infinite and the quotient 0, as it should be.
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
// NaN stays NaN, which fmaxf and fminf would hide.
__device__ __forceinline__ float at_least(float x, float low) { return x < low ? low : x; }
__device__ __forceinline__ float at_most(float x, float high) { return x > high ? high : x; }
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106781f)); }
__device__ __forceinline__ float gelu_tanh(float x, float root) {
    return 0.5f * x * (1.0f + tanhf(root * (x + 0.044715f * x * x * x)));
}
// ln(1 + e^x) without overflow.
__device__ __forceinline__ float softplus(float x) { return at_least(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// Not inlined: only models with another activation than SiLU pay for the choice.
__device__ __noinline__ float activate_other(int activation, float x) {
    switch (activation) {
        case GELU: return gelu(x);
        case GELU_10: return at_most(at_least(gelu(x), -10.0f), 10.0f);
        case GELU_TANH: return gelu_tanh(x, 0.797884561f);
        case GELU_FAST: return gelu_tanh(x, 0.7978845608f);
        case QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
        case RELU: return at_least(x, 0.0f);
        case RELU_2: return at_least(x, 0.0f) * at_least(x, 0.0f);
        case RELU_6: return at_most(at_least(x, 0.0f), 6.0f);
        case LEAKY_RELU: return x < 0.0f ? 0.01f * x : x;
        case SIGMOID: return sigmoid(x);
        case TANH: return tanhf(x);
        case MISH: return x * tanhf(softplus(x));
        case HARD_SWISH: return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) / 6.0f;
        case LAPLACE: return 0.5f * (1.0f + erff((x - 0.707107f) / (0.282095f * 1.41421356f)));
        case SQRT_SOFTPLUS: return sqrtf(softplus(x));
        default: return x;
    }
}

__device__ __forceinline__ float activate(int activation, float x) {
    return activation == SILU ? silu(x) : activate_other(activation, x);
}

// What the attention kernels share: how a key is hidden, and softmax on the way.
#pragma once
#include "dev.cuh"

#define NEVER __uint_as_float(0xff800000u)  // -inf
// A mask's entry at or below half the lowest finite number means the same as -inf.
const float FORBIDDEN = -0x1.fffffep126f;
const float LOG2_E = 1.44269504f;

// x with a mask's entry.
__device__ __forceinline__ float masked(float x, float bias) { return bias <= FORBIDDEN ? NEVER : x + bias; }

// e^x for the x <= 0 of a softmax; 0 for -inf. Weights that are rounded to bf16 anyway take the short way, whose error
// grows with -x: 3e-7 at -10, for which an fp32 budget has no room.
template <typename T> __device__ __forceinline__ float power(float x);
template <> __device__ __forceinline__ float power<float>(float x) { return expf(x); }
template <> __device__ __forceinline__ float power<bf16>(float x) {
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x * LOG2_E));
    return y;
}

// What exp(x - max) is taken with: before a row sees its first key everything is 0, and not NaN.
__device__ __forceinline__ float base_of(float max) { return max == NEVER ? 0.0f : max; }

// Softmax of a row whose x come a few at a time ("online"): the largest x so far, and the sum of all exp(x - max).
template <typename T> struct Softmax {
    float max = NEVER, sum = 0.0f;

    // `high` is the largest now. All that was weighed before counts this factor.
    __device__ __forceinline__ float raise_to(float high) {
        float factor = power<T>(max - base_of(high));
        max = high, sum *= factor;
        return factor;
    }
    // The weight of an x that is no larger than the largest.
    __device__ __forceinline__ float weigh(float x) {
        float weight = power<T>(x - base_of(max));
        sum += weight;
        return weight;
    }
};

// The logarithm of sum exp(x), or -inf for a row that saw nothing.
__device__ __forceinline__ float log_sum(float max, float sum) { return max == NEVER ? NEVER : max + logf(sum); }

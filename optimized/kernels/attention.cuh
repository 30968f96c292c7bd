// What the attention kernels share: how a key is hidden, and the exponential of a softmax.
#pragma once
#include "dev.cuh"

#define NEVER __uint_as_float(0xff800000u)  // -inf
// A mask's entry at or below half the lowest finite number means the same as -inf.
const float FORBIDDEN = -0x1.fffffep126f;
const float LOG2_E = 1.44269504f;

// e^x for the x <= 0 of a softmax; 0 for -inf. Weights that are rounded to bf16 anyway take the short way, whose error grows
// with -x: 3e-7 at -10, for which an fp32 budget has no room.
template <typename T> __device__ __forceinline__ float power(float x);
template <> __device__ __forceinline__ float power<float>(float x) { return expf(x); }
template <> __device__ __forceinline__ float power<bf16>(float x) {
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x * LOG2_E));
    return y;
}

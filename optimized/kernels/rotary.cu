// The tables of rotary position embedding: cosine and sine of every token's angles (paper 2.1.3; YaRN 3.1.4).
//
//   angle[n,i] = fl32(position[n] * inv_freq[i])                 cos[n,i] = af cos(angle),  sin[n,i] = af sin(angle)
//
// position: [N] i32; inv_freq: [r/2] f32; cos, sin: [N,r/2] f32. The product is one fp32 multiplication: near 131,072
// the neighbouring fp32 numbers are 0.016 apart, so everybody must round the angle in the same way. What follows is
// accurate for every i32 position: an angle of 2^20 is 167,000 turns, of which only the rest counts.
//
// Bytes: 4 N r. Flops: 1 fp32 and about 25 fp64 for each angle, once for all layers of a step.
#include "dev.cuh"

// ---- naive: a thread for each angle, CUDA's own functions with their full range reduction ----

KERNEL(128) rotary_naive_f32(const int* positions, const float* inv_freq, float attention_factor, float* cos,
                             float* sin, int tokens, int half) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)tokens * half) return;
    float angle = __fmul_rn((float)positions[at / half], inv_freq[at % half]);
    cos[at] = cosf(angle) * attention_factor;
    sin[at] = sinf(angle) * attention_factor;
}

// ---- tuned: a warp for each token, fp64 without a slow path ----
//
// CUDA's fp32 functions take a branch with a table in local memory from an angle of 105,615 on, which positions of a
// long context reach. In fp64 two constants reduce any fp32 angle below 2^31, and a short series does the rest.

const int THREADS = 256;

// pi/2 in two parts: together 107 bits.
const double HALF_PI_HIGH = 1.5707963267948966;
const double HALF_PI_LOW = 6.123233995736766e-17;
const double QUARTERS = 0.63661977236758134; // 2/pi

// Cosine and sine to 1e-11 of an angle below 2^31. Its rest x, within pi/4 of a multiple of pi/2, is exact to fp64's
// own precision, since each step is one fused operation; Taylor's series of x ends where a term is below 1e-11.
__device__ __forceinline__ void cosine_and_sine(double angle, double* cosine, double* sine) {
    double turned = rint(angle * QUARTERS);
    double x = fma(-turned, HALF_PI_LOW, fma(-turned, HALF_PI_HIGH, angle));
    double y = x * x;
    double c = fma(y, fma(y, fma(y, fma(y, fma(y, fma(y, 1.0 / 479001600, -1.0 / 3628800), 1.0 / 40320), -1.0 / 720),
                                 1.0 / 24), -0.5), 1.0);
    double s = fma(y * x, fma(y, fma(y, fma(y, fma(y, -1.0 / 39916800, 1.0 / 362880), -1.0 / 5040), 1.0 / 120),
                              -1.0 / 6), x);
    // Quarter turns: (c, s) -> (-s, c).
    int quarter = (int)(long long)turned & 3;
    double odd_c = quarter & 1 ? -s : c, odd_s = quarter & 1 ? c : s;
    *cosine = quarter & 2 ? -odd_c : odd_c;
    *sine = quarter & 2 ? -odd_s : odd_s;
}

KERNEL(THREADS) rotary_tuned_f32(const int* positions, const float* inv_freq, float attention_factor, float* cos,
                                 float* sin, int tokens, int half) {
    long long token = (long long)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (token >= tokens) return;
    float position = (float)positions[token];
    #pragma unroll 1
    for (int i = threadIdx.x % WARP; i < half; i += WARP) {
        double c, s;
        cosine_and_sine(__fmul_rn(position, inv_freq[i]), &c, &s);
        cos[token * half + i] = (float)(c * attention_factor);
        sin[token * half + i] = (float)(s * attention_factor);
    }
}

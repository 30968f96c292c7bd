// f16, bf16 and fp8, as CUDA's headers have them.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

static __device__ unsigned me() { return blockIdx.x * blockDim.x + threadIdx.x; }

#define HALF(name, type, call)                                                          \
    extern "C" __global__ void name(const type *in, type *out) {                        \
        type x = in[3 * me()], y = in[3 * me() + 1], z = in[3 * me() + 2];              \
        out[me()] = call;                                                               \
    }

HALF(f16_add, __half, __hadd(x, y))
HALF(f16_fma, __half, __hfma(x, y, z))
HALF(f16_fma_relu, __half, __hfma_relu(x, y, z))
HALF(f16_divide, __half, __hdiv(x, y))
HALF(f16_max_nan, __half, __hmax_nan(x, y))
HALF(f16_exp, __half, hexp(x))
HALF(f16_log, __half, hlog(x))
HALF(f16_rsqrt, __half, hrsqrt(x))
HALF(f16_less, __half, __float2half(__hlt(x, y) ? 1.0f : 0.0f))
HALF(bf16_add, __nv_bfloat16, __hadd(x, y))
HALF(bf16_fma, __nv_bfloat16, __hfma(x, y, z))
HALF(bf16_multiply, __nv_bfloat16, __hmul(x, y))
HALF(bf16_min, __nv_bfloat16, __hmin(x, y))
HALF(bf16_tanh, __nv_bfloat16, __float2bfloat16(tanhf(__bfloat162float(x))))

// Pairs: a compare of both halves, and a product of both.
extern "C" __global__ void f16_pairs(const __half2 *in, __half2 *out) {
    __half2 x = in[3 * me()], y = in[3 * me() + 1], z = in[3 * me() + 2];
    out[me()] = __hadd2(__hge2(x, y), __hmul2_sat(x, z));
}

extern "C" __global__ void bf16_pairs(const __nv_bfloat162 *in, __nv_bfloat162 *out) {
    __nv_bfloat162 x = in[3 * me()], y = in[3 * me() + 1], z = in[3 * me() + 2];
    out[me()] = __hadd2(__heq2(x, y), __hfma2(x, y, z));
}

#define FP8(name, type)                                                                 \
    extern "C" __global__ void name(const float *in, float *out) {                      \
        out[me()] = float(type(in[me()]));                                              \
    }

FP8(e4m3_round_trip, __nv_fp8_e4m3)
FP8(e5m2_round_trip, __nv_fp8_e5m2)

// Eight numbers of two bits per byte and back.
extern "C" __global__ void e4m3_pairs(const float2 *in, float2 *out) {
    __nv_fp8x2_e4m3 packed(in[me()]);
    out[me()] = float2(packed);
}

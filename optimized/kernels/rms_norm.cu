// RMSNorm, and the addition to the residual stream before it.
//
//   y = w * x / sqrt(mean(x^2) + eps)                 rms_norm
//   h = x + residual,  y = rms_norm(h)                add_rms_norm
//
// x, residual, h, y: [N, D], rows `stride` apart (x only); w: [D]. Statistics are fp32. `h` is rounded to the stream's
// type before it is normalised, so that y is the norm of what is stored.
//
// Bytes: 2 N D sizeof(T) for rms_norm, 4 N D sizeof(T) for add_rms_norm (w stays in the cache). Flops: 4 N D.
#include "rms_norm.cuh"

// ---- the rows of a matrix, naive and tuned as in rms_norm.cuh ----

template <typename T>
__device__ void naive(const T* x, long long stride, const T* residual, const T* weight, T* h, T* y, int rows, int width,
                      float eps) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += row * stride, y += row * width;
    if (residual) residual += row * width, h += row * width;
    norm_naive(Stored<T>{x}, residual, weight, h, y, width, eps);
}

template <typename T>
__device__ void tuned(const T* x, long long stride, const T* residual, const T* weight, T* h, T* y, int rows, int width,
                      float eps) {
    long long row = blockIdx.x;
    x += row * stride, y += row * width;
    if (residual) residual += row * width, h += row * width;
    norm_tuned(Stored<T>{x}, residual, weight, h, y, width, eps);
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                         \
    KERNEL(LAUNCHED) rms_norm_##VARIANT##_##SUFFIX(const T* x, long long stride, const T* weight, T* y, int rows,     \
                                                   int width, float eps) {                                           \
        VARIANT<T>(x, stride, nullptr, weight, nullptr, y, rows, width, eps);                                         \
    }                                                                                                                 \
    KERNEL(LAUNCHED) add_rms_norm_##VARIANT##_##SUFFIX(const T* x, long long stride, const T* residual,               \
                                                       const T* weight, T* h, T* y, int rows, int width, float eps) { \
        VARIANT<T>(x, stride, residual, weight, h, y, rows, width, eps);                                              \
    }

KERNELS(naive, 128, float, f32)
KERNELS(naive, 128, bf16, bf16)
KERNELS(tuned, NORM_THREADS, float, f32)
KERNELS(tuned, NORM_THREADS, bf16, bf16)

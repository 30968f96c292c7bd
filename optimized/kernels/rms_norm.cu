// RMSNorm, and the addition to the residual stream before it.
//
//   y = w * x / sqrt(mean(x^2) + eps)                 rms_norm
//   h = x + residual,  y = rms_norm(h)                add_rms_norm
//
// x, residual, h, y: [N, D], rows `stride` apart (x only); w: [D]. Statistics are fp32. `h` is rounded to the stream's
// type before it is normalised, so that y is the norm of what is stored.
//
// Bytes: 2 N D sizeof(T) for rms_norm, 4 N D sizeof(T) for add_rms_norm (w stays in the cache). Flops: 4 N D.
#include "dev.cuh"

// ---- naive: a thread for each row ----

template <typename T>
__device__ void naive(const T* x, long long stride, const T* residual, const T* weight, T* h, T* y, int rows, int width,
                      float eps) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += row * stride, y += row * width;
    if (residual) residual += row * width, h += row * width;
    float sum = sum_in_runs(width, [&](int i) {
        T value = x[i];
        if (residual) h[i] = value = from_float<T>(to_float(value) + to_float(residual[i]));
        return to_float(value) * to_float(value);
    });
    float scale = 1.0f / sqrtf(sum / width + eps);
    #pragma unroll 1
    for (int i = 0; i < width; i++) {
        float value = to_float(residual ? h[i] : x[i]);
        y[i] = from_float<T>(to_float(weight[i]) * (value * scale));
    }
}

// ---- tuned: a block of 256 threads for each row, 16 bytes at once, each element read once ----

const int THREADS = 256;
// Packs of a row that a thread keeps in registers; longer rows are read twice.
const int KEPT = 4;

template <typename T>
__device__ void tuned(const T* x, long long stride, const T* residual, const T* weight, T* h, T* y, int rows, int width,
                      float eps) {
    const int SIZE = Pack<T>::SIZE;
    __shared__ float partial[THREADS / WARP];
    long long row = blockIdx.x;
    x += row * stride, y += row * width;
    if (residual) residual += row * width, h += row * width;
    // Null pointers are aligned.
    bool aligned = packs(x, 0) & packs(weight, 0) & packs(y, 0) & packs(residual, 0) & packs(h, 0);
    int in_packs = width / SIZE * SIZE;

    float kept[KEPT][SIZE], sum = 0.0f;
    #pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = (k * THREADS + threadIdx.x) * SIZE;
        if (i >= in_packs) break;
        load_pack(x + i, kept[k], aligned);
        if (residual) {
            float other[SIZE];
            load_pack(residual + i, other, aligned);
            #pragma unroll
            for (int j = 0; j < SIZE; j++) kept[k][j] = to_float(from_float<T>(kept[k][j] + other[j]));
            store_pack(h + i, kept[k], aligned);
        }
        #pragma unroll
        for (int j = 0; j < SIZE; j++) sum += kept[k][j] * kept[k][j];
    }
    // What is no whole pack, or more than a thread keeps.
    int done = min(in_packs, KEPT * THREADS * SIZE);
    #pragma unroll 1
    for (int i = done + threadIdx.x; i < width; i += THREADS) {
        T value = x[i];
        if (residual) h[i] = value = from_float<T>(to_float(value) + to_float(residual[i]));
        sum += to_float(value) * to_float(value);
    }
    float scale = 1.0f / sqrtf(block_sum<THREADS>(sum, partial) / width + eps);
    #pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = (k * THREADS + threadIdx.x) * SIZE;
        if (i >= in_packs) break;
        float gain[SIZE];
        load_pack(weight + i, gain, aligned);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) kept[k][j] = gain[j] * (kept[k][j] * scale);
        store_pack(y + i, kept[k], aligned);
    }
    #pragma unroll 1
    for (int i = done + threadIdx.x; i < width; i += THREADS) {
        float value = to_float(residual ? h[i] : x[i]);
        y[i] = from_float<T>(to_float(weight[i]) * (value * scale));
    }
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
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

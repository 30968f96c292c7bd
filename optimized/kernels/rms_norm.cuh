// What normalises a row, and adds it to the residual stream before: of x as it lies in memory, or of what is made on the way.
#pragma once
#include "dev.cuh"

// A row that lies in memory. Other rows have the same functions.
template <typename T> struct Stored {
    const T* x;

    __device__ __forceinline__ bool aligned() const { return packs(x, 0); }
    __device__ __forceinline__ void load(int i, float (&to)[Pack<T>::SIZE], bool aligned) const {
        load_pack(x + i, to, aligned);
    }
    __device__ __forceinline__ float operator[](int i) const { return to_float(x[i]); }
};

// ---- naive: a thread for each row ----

// `residual` may be null; then `h` is not used.
template <typename T, typename Row>
__device__ void norm_naive(const Row& x, const T* residual, const T* weight, T* h, T* y, int width, float eps) {
    float sum = sum_in_runs(width, [&](int i) {
        float value = x[i];
        if (residual) {
            h[i] = from_float<T>(value + to_float(residual[i]));
            value = to_float(h[i]);
        }
        return value * value;
    });
    float scale = 1.0f / sqrtf(sum / width + eps);
    #pragma unroll 1
    for (int i = 0; i < width; i++) {
        float value = residual ? to_float(h[i]) : x[i];
        y[i] = from_float<T>(to_float(weight[i]) * (value * scale));
    }
}

// ---- tuned: a block of 256 threads for each row, 16 bytes at once, each element read once ----

const int NORM_THREADS = 256;
// Packs of a row that a thread keeps in registers; longer rows are read twice.
const int KEPT = 4;

template <typename T, typename Row>
__device__ __forceinline__ void norm_tuned(const Row& x, const T* residual, const T* weight, T* h, T* y, int width,
                                           float eps) {
    const int SIZE = Pack<T>::SIZE, THREADS = NORM_THREADS;
    __shared__ float partial[THREADS / WARP];
    // Null pointers are aligned.
    bool aligned = x.aligned() & packs(weight, 0) & packs(y, 0) & packs(residual, 0) & packs(h, 0);
    int in_packs = width / SIZE * SIZE;

    float kept[KEPT][SIZE], sum = 0.0f;
    #pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = (k * THREADS + threadIdx.x) * SIZE;
        if (i >= in_packs) break;
        x.load(i, kept[k], aligned);
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
        float value = x[i];
        if (residual) {
            h[i] = from_float<T>(value + to_float(residual[i]));
            value = to_float(h[i]);
        }
        sum += value * value;
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
        float value = residual ? to_float(h[i]) : x[i];
        y[i] = from_float<T>(to_float(weight[i]) * (value * scale));
    }
}

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

// ---- the same, stored by this launch's other blocks: a block of THREADS, each of which does the work of several in turn ----

// A row that is not in this multiprocessor's cache: other blocks have just stored it.
template <typename T> struct JustStored {
    const T* x;

    __device__ __forceinline__ bool aligned() const { return packs(x, 0); }
    __device__ __forceinline__ void load(int i, float (&to)[Pack<T>::SIZE], bool aligned) const {
        if (aligned) {
            uint4 word = __ldcg((const uint4*)(x + i));
            load_pack((const T*)&word, to);
        } else {
            #pragma unroll
            for (int j = 0; j < Pack<T>::SIZE; j++) to[j] = (*this)[i + j];
        }
    }
    __device__ __forceinline__ float operator[](int i) const { return to_float(load_past_cache(x + i)); }
};

// The sums of `norm_tuned`, in its order, without an addition before. The row is read twice.
template <int THREADS, typename T>
__device__ __forceinline__ void norm_by_few(const JustStored<T>& x, const T* weight, T* y, int width, float eps) {
    const int SIZE = Pack<T>::SIZE, PARTS = NORM_THREADS / THREADS;
    __shared__ float partial[NORM_THREADS / WARP];
    bool aligned = x.aligned() & packs(weight, 0) & packs(y, 0);
    int in_packs = width / SIZE * SIZE, done = min(in_packs, KEPT * NORM_THREADS * SIZE);
    float sums[PARTS] = {};
    #pragma unroll 1
    for (int first = threadIdx.x * SIZE; first < done; first += NORM_THREADS * SIZE) {
        #pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = first + part * THREADS * SIZE;
            if (i >= done) break;
            float pack[SIZE];
            x.load(i, pack, aligned);
            #pragma unroll
            for (int j = 0; j < SIZE; j++) sums[part] += pack[j] * pack[j];
        }
    }
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int thread = part * THREADS + threadIdx.x;
        #pragma unroll 1
        for (int i = done + thread; i < width; i += NORM_THREADS) sums[part] += x[i] * x[i];
        float sum = warp_sum(sums[part]);
        if (threadIdx.x % WARP == 0) partial[thread / WARP] = sum;
    }
    __syncthreads();
    float sum = 0.0f;
    #pragma unroll
    for (int warp = 0; warp < NORM_THREADS / WARP; warp++) sum += partial[warp];
    // The next row's may take their place.
    __syncthreads();
    float scale = 1.0f / sqrtf(sum / width + eps);
    #pragma unroll 4
    for (int i = threadIdx.x * SIZE; i < in_packs; i += THREADS * SIZE) {
        float pack[SIZE], gain[SIZE];
        x.load(i, pack, aligned);
        load_pack(weight + i, gain, aligned);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) pack[j] = gain[j] * (pack[j] * scale);
        store_pack(y + i, pack, aligned);
    }
    #pragma unroll 1
    for (int i = in_packs + threadIdx.x; i < width; i += THREADS)
        y[i] = from_float<T>(to_float(weight[i]) * (x[i] * scale));
}

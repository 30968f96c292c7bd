// What all kernels share: bf16 without NVIDIA's headers, accesses of 16 bytes, and sums in a fixed order. What tiles in
// shared memory need is in tile.cuh.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS)

const int WARP = 32;
const u32 ALL_LANES = 0xffffffffu;

// ---- numbers ----

// The upper half of a float: 8 bits of exponent, 7 of fraction.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To nearest, ties to even.
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two floats as the halves of a word, the first in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
__device__ __forceinline__ float low_bf16(u32 word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_bf16(u32 word) { return __uint_as_float(word & 0xffff0000u); }

// ---- 16 bytes at once ----

// How many elements are in 16 bytes.
template <typename T> struct Pack {
    static const int SIZE = 16 / sizeof(T);
};

__device__ __forceinline__ void load_pack(const float* from, float (&to)[4]) {
    float4 word = *(const float4*)from;
    to[0] = word.x, to[1] = word.y, to[2] = word.z, to[3] = word.w;
}
__device__ __forceinline__ void load_pack(const bf16* from, float (&to)[8]) {
    uint4 word = *(const uint4*)from;
    to[0] = low_bf16(word.x), to[1] = high_bf16(word.x), to[2] = low_bf16(word.y), to[3] = high_bf16(word.y);
    to[4] = low_bf16(word.z), to[5] = high_bf16(word.z), to[6] = low_bf16(word.w), to[7] = high_bf16(word.w);
}
__device__ __forceinline__ void store_pack(float* to, const float (&from)[4]) {
    *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store_pack(bf16* to, const float (&from)[8]) {
    *(uint4*)to = make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                             pack_bf16(from[6], from[7]));
}

// A pack at an address that may not be a multiple of 16: if it is not `aligned`, one element after another. What is loaded is
// the same, and a sum over packs has the same order: where a row lies depends on the batch, and its sum must not.
template <typename T, int SIZE>
__device__ __forceinline__ void load_pack(const T* from, float (&to)[SIZE], bool aligned) {
    if (aligned) {
        load_pack(from, to);
    } else {
        #pragma unroll
        for (int j = 0; j < SIZE; j++) to[j] = to_float(from[j]);
    }
}
template <typename T, int SIZE>
__device__ __forceinline__ void store_pack(T* to, const float (&from)[SIZE], bool aligned) {
    if (aligned) {
        store_pack(to, from);
    } else {
        #pragma unroll
        for (int j = 0; j < SIZE; j++) to[j] = from_float<T>(from[j]);
    }
}

// COUNT neighbours, a whole number of packs.
template <int COUNT, typename T> __device__ __forceinline__ void load_packs(const T* from, float (&to)[COUNT]) {
    const int SIZE = Pack<T>::SIZE;
    #pragma unroll
    for (int i = 0; i < COUNT; i += SIZE) load_pack(from + i, *(float(*)[SIZE])(to + i));
}

// Whether a row that begins at `p` and repeats every `stride` elements can be read 16 bytes at once.
template <typename T> __device__ __forceinline__ bool packs(const T* p, long long stride) {
    return ((u64)p | (u64)(stride * (long long)sizeof(T))) % 16 == 0;
}

// ---- sums within a thread ----

// A thread that adds thousands of numbers adds runs of this many first, then the runs. One after another, the error of
// 5120 terms is six times that of a library's sum: more than a budget allows.
const int RUN = 64;

// term(0) + ... + term(count - 1), in runs.
template <typename Term> __device__ __forceinline__ float sum_in_runs(int count, Term term) {
    float sum = 0.0f;
    #pragma unroll 1
    for (int start = 0; start < count; start += RUN) {
        float run = 0.0f;
        #pragma unroll 1
        for (int i = start; i < min(start + RUN, count); i++) run += term(i);
        sum += run;
    }
    return sum;
}

// a . b, both of `count` neighbours, in runs.
template <typename A, typename B> __device__ __forceinline__ float dot(const A* a, const B* b, int count) {
    return sum_in_runs(count, [&](int i) { return to_float(a[i]) * to_float(b[i]); });
}

// ---- sums and maxima over a warp and over a block, in an order that depends on nothing but the thread ----

// Over a warp, or over each LANES neighbouring lanes of it; in every lane.
template <int LANES = WARP, typename T> __device__ __forceinline__ T warp_sum(T x) {
    #pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
template <int LANES = WARP> __device__ __forceinline__ float warp_max(float x) {
    #pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over all threads of a block of THREADS, in every thread. `partial` is shared memory of THREADS / 32 floats,
// which may be used again at once: the second barrier sees to it.
template <int THREADS> __device__ __forceinline__ float block_sum(float x, float* partial) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    #pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) sum += partial[warp];
    __syncthreads();
    return sum;
}

// ---- blocks that share a result ----

// What other blocks stored may be stale in this multiprocessor's cache: from the one that all share.
__device__ __forceinline__ float load_past_cache(const float* from) { return __ldcg(from); }
__device__ __forceinline__ bf16 load_past_cache(const bf16* from) { return {__ldcg(&from->bits)}; }

// Whether this block is the last of `all` that come here, in every thread. What the others stored before is to be seen then,
// but not by way of this multiprocessor's cache. `arrivals` is zero before the first and after the last.
__device__ __forceinline__ bool arrives_last(u32* arrivals, u32 all) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrivals, 1) == all - 1;
        // It is this thread that has seen the others come. The barrier tells its block.
        __threadfence();
        if (last) *arrivals = 0;
    }
    __syncthreads();
    return last;
}

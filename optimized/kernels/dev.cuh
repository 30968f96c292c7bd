// What the kernels share: bf16 without NVIDIA's headers, sums in a fixed order, and the instructions that C++ has no
// words for (PTX ISA 8.4, sm_80).
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS)

const int WARP = 32;
const u32 ALL_LANES = 0xffffffffu;

// A thread that adds thousands of numbers adds runs of this many first, then the runs. One after another, the error of
// 5120 terms is six times that of a library's sum: more than a budget allows.
const int RUN = 64;

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

// Whether a row that begins at `p` and repeats every `stride` elements can be read 16 bytes at once.
template <typename T> __device__ __forceinline__ bool packs(const T* p, long long stride) {
    return ((u64)p | (u64)(stride * (long long)sizeof(T))) % 16 == 0;
}

// ---- sums and maxima over a warp and over a block, in an order that depends on nothing but the thread ----

__device__ __forceinline__ float warp_sum(float x) {
    #pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    #pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
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

// ---- asynchronous copies (PTX: "cp.async") ----

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes, both places aligned to 16; zeros instead if `there` is false, and then nothing is read.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most PENDING of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- matrix fragments (PTX: "ldmatrix", "mma.sync.m16n8k16") ----

// Four 8x8 tiles of 16-bit numbers; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row)) : "memory");
}
// The same, each tile transposed.
__device__ __forceinline__ void load_tiles_transposed(u32 (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row)) : "memory");
}

// D[16,8] += A[16,16] B[16,8]. Lane l holds, with g = l / 4 and t = l % 4:
//   a: rows g, g+8, g, g+8 and columns 2t, 2t, 2t+8, 2t+8 (and the column after); b: rows 2t, 2t+8 of column g;
//   d: row g, columns 2t and 2t+1, then row g+8.
__device__ __forceinline__ void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

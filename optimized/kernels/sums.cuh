// The sums of a tile of a matrix product, as a block's threads keep them, and leave them for each other. gemm.cuh makes products
// of them.
#pragma once
#include "tile.cuh"

// The sums that a thread keeps of its block's tile.
template <typename T, int BM, int BN, bool COLUMNS> struct Sums;

// fp32: a warp has BM x 16 results, a thread every eighth row of 4 neighbouring columns.
template <int BM, int BN, bool COLUMNS> struct Sums<float, BM, BN, COLUMNS> {
    static const int ROWS = BM / 8, THREADS = 2 * BN;
    // Rows of the finished tile, so far apart that no two threads that write at once meet in a bank.
    static const int PITCH = BN + 4;
    // Of all stretches that have ended, and of this one.
    float sum[ROWS][4] = {}, stretch[ROWS][4] = {};
    // This thread's first 16 bytes in a tile of a and in one of b.
    u32 a_place = chunk_offset<8>(row(), 0), b_place = COLUMNS ? column() * 4 : chunk_offset<8>(column(), 0);

    __device__ __forceinline__ static u32 row() { return threadIdx.x % 8; }
    __device__ __forceinline__ static u32 column() { return threadIdx.x / 8 * 4; }

    __device__ __forceinline__ void multiply(u32 a, u32 b) {
        float run[ROWS][4] = {};
        #pragma unroll 1
        for (u32 chunk = 0; chunk < 8; chunk++) {
            float right[4][4];
            #pragma unroll
            for (u32 x = 0; x < 4; x++) {
                if (COLUMNS) {
                    u32 k = chunk * 4 + x;
                    load_shared(right[x], b + (b_place ^ k % 8 * 16) + k * BN * 4);
                } else {
                    float line[4];
                    load_shared(line, b + (b_place ^ (chunk ^ x) * 16) + x * 128);
                    #pragma unroll
                    for (int k = 0; k < 4; k++) right[k][x] = line[k];
                }
            }
            #pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float left[4];
                load_shared(left, a + (a_place ^ chunk * 16) + i * 8 * 128);
                #pragma unroll
                for (int k = 0; k < 4; k++)
                    #pragma unroll
                    for (int x = 0; x < 4; x++) run[i][x] = fmaf(left[k], right[k][x], run[i][x]);
            }
        }
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
            #pragma unroll
            for (int x = 0; x < 4; x++) stretch[i][x] += run[i][x];
    }

    __device__ __forceinline__ void put(float* tile) const {
        #pragma unroll
        for (int i = 0; i < ROWS; i++) store_pack(tile + (i * 8 + row()) * PITCH + column(), sum[i]);
    }
};

// bf16: tensor cores. A warp has 64 x 32 results of a tile of 128 x 64, 32 x 32 of one of 32 x 64, or 16 x 16 of one of 16 x 32.
template <int BM, int BN, bool COLUMNS> struct Sums<bf16, BM, BN, COLUMNS> {
    static const int ROWS = BM > 64 ? BM / 2 : BM;
    static const int TILES = ROWS / 16, PAIRS = BN / 2 / 16, THREADS = BM / ROWS * 2 * WARP;
    static const int PITCH = BN + 8;
    // As above; the fragments of a row of tiles one after another.
    float sum[TILES * 2 * PAIRS][4] = {}, stretch[TILES * 2 * PAIRS][4] = {};
    // The row of 8 elements whose address this lane gives, in a tile of a and in one of b.
    u32 a_place = chunk_offset<8>(row() + lane() % 16, lane() / 16);
    u32 b_place = COLUMNS ? chunk_offset<BN / 8>(lane() % 16, column() / 8 + lane() / 16)
                          : chunk_offset<8>(column() + lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);

    __device__ __forceinline__ static u32 lane() { return threadIdx.x % WARP; }
    __device__ __forceinline__ static u32 row() { return threadIdx.x / (2 * WARP) * ROWS; }
    __device__ __forceinline__ static u32 column() { return threadIdx.x / WARP % 2 * (BN / 2); }

    __device__ __forceinline__ void multiply(u32 a, u32 b) {
        float run[TILES * 2 * PAIRS][4] = {};
        #pragma unroll
        for (u32 k = 0; k < 64; k += 16) {
            u32 left[TILES][4];
            #pragma unroll
            for (int i = 0; i < TILES; i++) load_tiles(left[i], a + (a_place ^ k * 2) + i * 16 * 128);
            #pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                // Two 8-column slices of b, each as two tiles of 8 k.
                u32 right[4];
                if (COLUMNS) load_tiles_transposed(right, b + (b_place ^ j * 32) + k * BN * 2);
                else load_tiles(right, b + (b_place ^ k * 2) + j * 16 * 128);
                #pragma unroll
                for (int i = 0; i < TILES; i++) {
                    multiply_add(run[(i * PAIRS + j) * 2], left[i], right[0], right[1]);
                    multiply_add(run[(i * PAIRS + j) * 2 + 1], left[i], right[2], right[3]);
                }
            }
        }
        #pragma unroll
        for (int i = 0; i < TILES * 2 * PAIRS; i++)
            #pragma unroll
            for (int x = 0; x < 4; x++) stretch[i][x] += run[i][x];
    }

    __device__ __forceinline__ void put(float* tile) const {
        #pragma unroll
        for (int i = 0; i < TILES; i++)
            #pragma unroll
            for (int j = 0; j < 2 * PAIRS; j++)
                store_fragment(tile, PITCH, row() + i * 16, column() + j * 8, sum[i * 2 * PAIRS + j]);
    }
};

// Takes what a stretch has summed, which begins anew.
template <int N> __device__ __forceinline__ void take(float (&stretch)[N][4], float (&to)[N][4]) {
    #pragma unroll
    for (int i = 0; i < N; i++)
        #pragma unroll
        for (int x = 0; x < 4; x++) to[i][x] += stretch[i][x], stretch[i][x] = 0.0f;
}

// Leaves it for the block that comes last, in N places that are THREADS apart.
template <int THREADS, int N> __device__ __forceinline__ void leave(float (&stretch)[N][4], float4* places) {
    #pragma unroll
    for (int i = 0; i < N; i++) {
        store_pack((float*)(places + i * THREADS), stretch[i]);
        #pragma unroll
        for (int x = 0; x < 4; x++) stretch[i][x] = 0.0f;
    }
}

// Adds up what all blocks of a tile have left, stretch after stretch. It is not in this multiprocessor's cache.
template <int THREADS, int N>
__device__ __forceinline__ void add_up(const float4* places, int stretches, float (&sum)[N][4]) {
    #pragma unroll 4
    for (int s = 0; s < stretches; s++) {
        #pragma unroll
        for (int i = 0; i < N; i++) {
            float4 left = __ldcg(places + (s * N + i) * THREADS);
            sum[i][0] += left.x, sum[i][1] += left.y, sum[i][2] += left.z, sum[i][3] += left.w;
        }
    }
}

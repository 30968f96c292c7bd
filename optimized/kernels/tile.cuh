// Tiles in shared memory: how they get there (cp.async), how copies and work overlap, where 16-byte chunks lie, and how
// tensor cores multiply them (ldmatrix, mma). PTX ISA 8.4, sm_80.
//
// A block keeps a few tiles of each operand. While it works on one, the next are on their way from global memory: no
// register holds what is under way, and no thread waits for it.
#pragma once
#include "dev.cuh"

// ---- asynchronous copies (PTX: "cp.async") ----

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory, both places aligned to 16. Only the first `bytes` are read; the others are zeros.
__device__ __forceinline__ void copy_async(u32 shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
    copy_async(shared_address(shared), global, there ? 16 : 0);
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most PENDING of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// copy(i, place) and, STAGES - 1 tiles later, work(place) for each tile i of `tiles`, by the whole block. There are
// STAGES places, taken in turn: when a copy begins, nobody works any more on the tile that had the place before.
template <int STAGES, typename Copy, typename Work>
__device__ __forceinline__ void pipeline(int tiles, Copy copy, Work work) {
    int to = 0;
    #pragma unroll 1
    for (int next = 0; next < tiles + STAGES - 1; next++) {
        if (next >= STAGES - 1) {
            // After the barrier every thread's part of the oldest tile is there, and nobody reads the tile before any
            // more: the next one may take its place.
            wait_copies<STAGES - 2>();
            __syncthreads();
        }
        if (next < tiles) copy(next, to);
        // Also where there is nothing left to copy: the wait above counts groups.
        commit_copies();
        // The oldest tile is in the place that comes after the newest one's.
        to = to + 1 < STAGES ? to + 1 : 0;
        if (next >= STAGES - 1) work(to);
    }
}

// The same with two places, one tile at a time: waits for a tile, and begins to load the next into the place of the one
// before. A `Block` says which tiles there are (`has`) and loads them (`load_tile`).
template <typename Block> __device__ __forceinline__ void turn_to(const Block& block, int tile) {
    wait_copies<0>();
    // Every thread's copies are there, and nobody reads the other tile any more.
    __syncthreads();
    if (block.has(tile + 1)) block.load_tile(tile + 1);
}

// A row of `width` numbers by LANES neighbouring threads, or zeros if it is not `there`; 16 bytes at a time and
// asynchronously if both places are `packed`.
template <int LANES, typename T>
__device__ __forceinline__ void copy_row(T* shared, const T* global, int width, bool there, bool packed) {
    const int SIZE = Pack<T>::SIZE;
    int lane = threadIdx.x % LANES;
    if (packed) {
        u32 to = shared_address(shared + lane * SIZE);
        global += lane * SIZE;
        int bytes = there ? 16 : 0;
        #pragma unroll 1
        for (int i = lane * SIZE; i < width; i += LANES * SIZE, to += LANES * 16, global += LANES * SIZE)
            copy_async(to, global, bytes);
    } else {
        #pragma unroll 1
        for (int i = lane; i < width; i += LANES) shared[i] = there ? global[i] : from_float<T>(0.0f);
    }
}

// Zeros behind the `width` numbers of each of `count` rows that take `stride`: products run over whole steps.
template <typename T> __device__ __forceinline__ void clear_padding(T* rows, int count, int width, int stride) {
    int padding = stride - width;
    #pragma unroll 1
    for (int i = threadIdx.x; i < count * padding; i += blockDim.x)
        rows[i / padding * stride + width + i % padding] = from_float<T>(0.0f);
}

// ---- where a chunk lies ----

// The place of chunk `chunk` in a row of a tile whose rows have CHUNKS of 16 bytes, without padding. The order changes
// from row to row, so that the same chunk of 8 rows is in 8 different groups of 4 banks: neither a column of chunks
// (ldmatrix) nor a row (copies) has bank conflicts. It is an exclusive or: from a chunk to one whose number differs in
// some bits the place differs in the same bits; 8 rows further the order is the same.
template <int CHUNKS> __device__ __forceinline__ int swizzle(int row, int chunk) {
    return chunk ^ (CHUNKS >= 8 ? row % 8 : row / 2 % 4);
}
// The same from the beginning of the tile, in bytes, and as an address.
template <int CHUNKS> __device__ __forceinline__ int chunk_offset(int row, int chunk) {
    return (row * CHUNKS + swizzle<CHUNKS>(row, chunk)) * 16;
}
template <int CHUNKS> __device__ __forceinline__ char* chunk_at(char* tile, int row, int chunk) {
    return tile + row * CHUNKS * 16 + swizzle<CHUNKS>(row, chunk) * 16;
}

// sums[i][j] += a_i . b_j, of 4 neighbours each: rows `a_step` and `b_step` apart. What tensor cores do for bf16.
template <int M, int N>
__device__ __forceinline__ void add_products(float (&sums)[M][N], const float* a, int a_step, const float* b,
                                             int b_step) {
    float left[M][4], right[N][4];
    #pragma unroll
    for (int i = 0; i < M; i++) load_pack(a + i * a_step, left[i]);
    #pragma unroll
    for (int j = 0; j < N; j++) load_pack(b + j * b_step, right[j]);
    #pragma unroll
    for (int i = 0; i < M; i++)
        #pragma unroll
        for (int j = 0; j < N; j++)
            #pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j] += left[i][k] * right[j][k];
}

// ---- matrix fragments (PTX: "ldmatrix", "mma.sync.m16n8k16") ----

// Four 8x8 tiles of 16-bit numbers; lane l gives the address of row l % 8 of tile l / 8. An address in shared memory is its
// 32 bits: a generic pointer costs some instructions at every use.
__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(row) : "memory");
}
// The same, each tile transposed.
__device__ __forceinline__ void load_tiles_transposed(u32 (&tiles)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(row) : "memory");
}
// `load_pack` from such an address.
__device__ __forceinline__ void load_shared(float (&to)[4], u32 from) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "r"(from) : "memory");
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
// A fragment D to rows of floats that are `stride` apart; its corner is at `row` and `column` of the tile.
__device__ __forceinline__ void store_fragment(float* tile, int stride, int row, int column, const float (&d)[4]) {
    int lane = threadIdx.x % WARP;
    float* to = tile + (row + lane / 4) * stride + column + lane % 4 * 2;
    *(float2*)to = make_float2(d[0], d[1]);
    *(float2*)(to + 8 * stride) = make_float2(d[2], d[3]);
}

// The maximum and the sum over the four lanes that hold a row of a fragment D.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// The operands of mla_decode.cu, and what its tuned kernels share: a block's part of the problem, in shared memory.
#pragma once
#include "attention.cuh"
#include "tile.cuh"

const int SPLIT = 256;
// Columns of the output that the tuned kernels hold, and threads that hold them.
const int MAX_LATENT = 512;
const int THREADS = 128;
// Threads that copy a key.
const int LANES = 8;

template <typename T> struct Problem {
    const T* q_latent;
    long long latent_batch, latent_token, latent_head;
    const T* q_pe;
    long long pe_batch, pe_token, pe_head;
    const T* cache;
    const int* block_table;
    const int* lengths;
    const float* mask;
    long long mask_batch, mask_token;
    float scale;
    int batch, tokens, heads, latent, rope, max_pages, page_size;
    float* workspace;
    T* out;
    float* lse;

    // A row is a token and a head: row = token * heads + head.
    __device__ __forceinline__ int rows() const { return tokens * heads; }
    __device__ __forceinline__ int width() const { return latent + rope; }
    __device__ __forceinline__ long long capacity() const { return (long long)max_pages * page_size; }
    __device__ __forceinline__ const T* query(int b, int row) const {
        return q_latent + b * latent_batch + row / heads * latent_token + row % heads * latent_head;
    }
    __device__ __forceinline__ const T* query_pe(int b, int row) const {
        return q_pe + b * pe_batch + row / heads * pe_token + row % heads * pe_head;
    }
    __device__ __forceinline__ const T* key(int b, int t) const {
        long long page = block_table[(long long)b * max_pages + t / page_size];
        return cache + (page * page_size + t % page_size) * width();
    }
    // x_t of a product of query and key.
    __device__ __forceinline__ float weigh(float product, int b, int token, int t, int length) const {
        if (t >= (mask ? length : length - tokens + token + 1)) return NEVER;
        return masked(product * scale, mask ? mask[b * mask_batch + token * mask_token + t] : 0.0f);
    }

    // The result of a split for a row: the largest x and the sum of all exp(x - largest); and the sums of the latents
    // with these weights. They take whole packs, so that a kernel need not look where a row ends.
    __device__ __forceinline__ long long splits() const { return (capacity() + SPLIT - 1) / SPLIT; }
    __device__ __forceinline__ long long part(int b, int split, int row) const {
        return (b * splits() + split) * rows() + row;
    }
    __device__ __forceinline__ float* part_sums(long long part) const { return workspace + part * padded(); }
    __device__ __forceinline__ float* part_scale(long long part) const {
        return workspace + batch * splits() * rows() * padded() + part * 2;
    }
    __device__ __forceinline__ int padded() const { return (latent + 3) / 4 * 4; }
};

// What the tuned kernels have in common: a block's place in the problem, and its shared memory, where a row of width
// numbers takes `stride`. Columns from `width` on are zero. There are 8 threads for each row.
template <typename T, int KEYS> struct Block {
    const Problem<T>& p;
    const long long* slots;
    T *tiles, *queries;
    int stride, b, split, first_row, start, end, length;

    __device__ __forceinline__ int rows() const { return blockDim.x / 8; }
    __device__ __forceinline__ bool has(int number) const { return number * KEYS < end - start; }
    __device__ __forceinline__ T* tile(int number) const { return tiles + number % 2 * KEYS * stride; }

    // Where the split's keys are in the cache; each is looked up once. There are none from `end` on.
    __device__ __forceinline__ void find_keys(long long* found) {
        #pragma unroll 1
        for (int i = threadIdx.x; i < end - start; i += blockDim.x) found[i] = p.key(b, start + i) - p.cache;
        slots = found;
    }
    __device__ __forceinline__ void load_queries() const {
        #pragma unroll 1
        for (int i = threadIdx.x / WARP; i < rows(); i += blockDim.x / WARP) {
            bool there = first_row + i < p.rows();
            int row = there ? first_row + i : 0;
            const T *latent = p.query(b, row), *pe = p.query_pe(b, row);
            copy_row<WARP>(queries + i * stride, latent, p.latent, there, packs(latent, p.latent));
            bool packed = packs(pe, p.rope) && packs(queries + i * stride, p.latent);
            copy_row<WARP>(queries + i * stride + p.latent, pe, p.rope, there, packed);
        }
    }
    __device__ __forceinline__ void load_tile(int number) const {
        bool packed = packs(p.cache, p.width());
        // 8 lanes for a key, so that all of them have the same number of packs: 9 of the 72 of 576 bf16.
        #pragma unroll 1
        for (int i = threadIdx.x / LANES; i < KEYS; i += blockDim.x / LANES) {
            int key = number * KEYS + i;
            bool there = start + key < end;
            copy_row<LANES>(tile(number) + i * stride, p.cache + (there ? slots[key] : 0), p.width(), there, packed);
        }
        commit_copies();
    }
};

// A block's part of the problem, or false if the sequence ends before it.
template <typename T, int KEYS>
__device__ __forceinline__ bool begin(Block<T, KEYS>& block, int stride, T* shared, long long* slots) {
    block.b = blockIdx.z, block.split = blockIdx.y, block.first_row = blockIdx.x * block.rows();
    block.length = block.p.lengths[block.b];
    block.start = block.split * SPLIT, block.end = min(block.start + SPLIT, block.length);
    if (block.start >= block.length) return false;
    block.stride = stride, block.tiles = shared, block.queries = shared + 2 * KEYS * stride;
    block.find_keys(slots);
    clear_padding(block.tiles, 2 * KEYS + block.rows(), block.p.width(), stride);
    block.load_queries();
    __syncthreads();
    block.load_tile(0);
    return true;
}

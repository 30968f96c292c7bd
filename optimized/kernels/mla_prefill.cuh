// The operands of mla_prefill.cu, and what its tuned kernels share: a block's part of the problem, in shared memory.
#pragma once
#include "attention.cuh"
#include "tile.cuh"

// Columns of the output that the tuned kernels hold.
const int MAX_VALUE = 128;

template <typename T> struct Problem {
    const T* q;
    long long q_batch, q_token, q_head;
    const T* kv;
    long long kv_batch, kv_token, kv_head;
    const T* k_pe;
    long long pe_batch, pe_token;
    const int* lengths;
    const float* mask;
    long long mask_batch, mask_token;
    float scale;
    int batch, tokens, keys, heads, nope, rope, value;
    T* out;
    float* lse;

    __device__ __forceinline__ int width() const { return nope + rope; }
    __device__ __forceinline__ const T* query(int b, int s, int h) const {
        return q + b * q_batch + s * q_token + h * q_head;
    }
    __device__ __forceinline__ const T* key(int b, int t, int h) const {
        return kv + b * kv_batch + t * kv_token + h * kv_head;
    }
    __device__ __forceinline__ const T* key_pe(int b, int t) const { return k_pe + b * pe_batch + t * pe_token; }
    __device__ __forceinline__ int length(int b) const { return lengths ? lengths[b] : keys; }
    // How many keys from the first on a query may see.
    __device__ __forceinline__ int seen(int s, int length) const { return mask ? length : length - tokens + s + 1; }
    __device__ __forceinline__ const float* mask_row(int b, int s) const {
        return mask + b * mask_batch + s * mask_token;
    }
};

extern __shared__ __align__(16) unsigned char dynamic[];

// What the tuned kernels have in common: a block's place in the problem, and its shared memory: rows of queries, two
// tiles of keys, two of values. Rows take `stride` and `value_stride`; what is behind their numbers is zero.
template <typename T, int KEYS> struct Block {
    const Problem<T>& p;
    T *queries, *keys, *values;
    int rows, stride, value_stride, b, h, first, length, end;

    __device__ __forceinline__ Block(const Problem<T>& p, int rows, int stride, int value_stride)
        : p(p), rows(rows), stride(stride), value_stride(value_stride) {
        queries = (T*)dynamic, keys = queries + rows * stride, values = keys + 2 * KEYS * stride;
        // The tiles with the most keys first, so that the short ones fill the gaps at the end.
        b = blockIdx.z, h = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * rows, length = p.length(b);
        end = p.seen(min(first + rows, p.tokens) - 1, length);
        clear_padding(queries, rows + 2 * KEYS, p.width(), stride);
        clear_padding(values, 2 * KEYS, p.value, value_stride);
        #pragma unroll 1
        for (int i = threadIdx.x / (WARP / 2); i < rows; i += blockDim.x / (WARP / 2)) {
            bool there = first + i < p.tokens;
            copy(queries + i * stride, 0, p.query(b, there ? first + i : 0, h), p.width(), there);
        }
        if (has(0)) load_tile(0);
    }
    // Half a warp for each row, whose numbers from column `offset` on these are.
    static __device__ __forceinline__ void copy(T* row, int offset, const T* global, int width, bool there) {
        bool packed = packs(global, width) && offset % Pack<T>::SIZE == 0;
        copy_row<WARP / 2>(row + offset, global, width, there, packed);
    }
    __device__ __forceinline__ bool has(int number) const { return number * KEYS < end; }
    __device__ __forceinline__ T* key_tile(int number) const { return keys + number % 2 * KEYS * stride; }
    __device__ __forceinline__ T* value_tile(int number) const { return values + number % 2 * KEYS * value_stride; }
    __device__ __forceinline__ void load_tile(int number) const {
        #pragma unroll 1
        for (int i = threadIdx.x / (WARP / 2); i < KEYS; i += blockDim.x / (WARP / 2)) {
            bool there = number * KEYS + i < end;
            int t = there ? number * KEYS + i : 0;
            const T* row = p.key(b, t, h);
            copy(key_tile(number) + i * stride, 0, row, p.nope, there);
            copy(key_tile(number) + i * stride, p.nope, p.key_pe(b, t), p.rope, there);
            copy(value_tile(number) + i * value_stride, 0, row + p.nope, p.value, there);
        }
        commit_copies();
    }
};

// The embedding: a row of the table for each token (paper 2.1, h_t before the first layer).
//
//   out[n] = table[tokens[n]]
//
// tokens: [N] i32; table: [V,D], rows at any stride; out: [N,D]. A token outside of the vocabulary has a row of NaN:
// nothing is read for it, and no other row is touched.
//
// Bytes: 2 N D sizeof(T). Flops: none.
#include "dev.cuh"

// The token's row, or null if there is none.
template <typename T>
__device__ __forceinline__ const T* row_of(const T* table, long long stride, int token, int vocab) {
    return token >= 0 && token < vocab ? table + token * stride : nullptr;
}

template <typename T> __device__ __forceinline__ T not_a_number() {
    return from_float<T>(__uint_as_float(0x7fffffffu));
}

// ---- naive: a thread for each element ----

template <typename T>
__device__ void naive(const int* tokens, const T* table, long long stride, T* out, int count, int vocab, int width) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)count * width) return;
    const T* row = row_of(table, stride, tokens[at / width], vocab);
    out[at] = row ? row[at % width] : not_a_number<T>();
}

// ---- tuned: a block for each stretch of a row, 16 bytes for each thread ----

const int THREADS = 128;

template <typename T>
__device__ void tuned(const int* tokens, const T* table, long long stride, T* out, int count, int vocab, int width) {
    const int SIZE = Pack<T>::SIZE;
    long long n = blockIdx.x;
    const T* row = row_of(table, stride, tokens[n], vocab);
    int start = blockIdx.y * THREADS * SIZE, end = min(start + THREADS * SIZE, width);
    bool packed = packs(row, width) & packs(out, width) & (row != nullptr);
    out += n * width;
    if (packed) {
        int i = start + threadIdx.x * SIZE;
        if (i < end) *(uint4*)(out + i) = *(const uint4*)(row + i);
        return;
    }
    #pragma unroll 1
    for (int i = start + threadIdx.x; i < end; i += THREADS) out[i] = row ? row[i] : not_a_number<T>();
}

#define KERNELS(VARIANT, T, SUFFIX)                                                                                    \
    KERNEL(128) embedding_##VARIANT##_##SUFFIX(const int* tokens, const T* table, long long stride, T* out, int count, \
                                               int vocab, int width) {                                                 \
        VARIANT<T>(tokens, table, stride, out, count, vocab, width);                                                   \
    }

KERNELS(naive, float, f32)
KERNELS(naive, bf16, bf16)
KERNELS(tuned, float, f32)
KERNELS(tuned, bf16, bf16)

// The most likely token: greedy decoding.
//
//   token[n] = min { v : z[n,v] = max z[n] }
//
// logits z: [N,V], rows at any stride; tokens: [N] i32. Of equal logits the first; 0 and -0 are equal. NaN counts as
// larger than every number, as in PyTorch, so that a broken row shows; the result is always a token.
//
// Bytes: N V sizeof(T). Flops: N V comparisons.
#include "dev.cuh"

// A logit and its token as one integer: the larger logit is the larger integer, and of equal ones the first token is.
__device__ __forceinline__ u64 ranked(float logit, int token) {
    u32 bits = __float_as_uint(logit + 0.0f); // -0 becomes 0
    u32 order = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (logit != logit) order = 0xffffffffu;
    return (u64)order << 32 | (u32)~token;
}
__device__ __forceinline__ int token_of(u64 rank) { return ~(int)(u32)rank; }

// ---- naive: a thread for each row ----

template <typename T> __device__ void naive(const T* logits, long long stride, int* tokens, int rows, int vocab) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    logits += row * stride;
    int best = 0;
    #pragma unroll 1
    for (int v = 1; v < vocab; v++) {
        float top = to_float(logits[best]), logit = to_float(logits[v]);
        if (logit > top || (logit != logit && top == top)) best = v;
    }
    tokens[row] = best;
}

// ---- tuned: a block for each row, 16 bytes at a time ----

const int THREADS = 512;

template <typename T> __device__ void tuned(const T* logits, long long stride, int* tokens, int rows, int vocab) {
    const int SIZE = Pack<T>::SIZE;
    __shared__ u64 partial[THREADS / WARP];
    long long row = blockIdx.x;
    logits += row * stride;
    int in_packs = packs(logits, 0) ? vocab / SIZE * SIZE : 0;
    u64 best = 0;
    #pragma unroll 1
    for (int v = threadIdx.x * SIZE; v < in_packs; v += THREADS * SIZE) {
        float pack[SIZE];
        load_pack(logits + v, pack);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) best = max(best, ranked(pack[j], v + j));
    }
    #pragma unroll 1
    for (int v = in_packs + threadIdx.x; v < vocab; v += THREADS) best = max(best, ranked(to_float(logits[v]), v));
    #pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
    #pragma unroll
    for (int warp = 1; warp < THREADS / WARP; warp++) best = max(best, partial[warp]);
    tokens[row] = token_of(best);
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) argmax_##VARIANT##_##SUFFIX(const T* logits, long long stride, int* tokens, int rows,             \
                                                 int vocab) {                                                          \
        VARIANT<T>(logits, stride, tokens, rows, vocab);                                                               \
    }

KERNELS(naive, 32, float, f32)
KERNELS(naive, 32, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

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

// Where the blocks of a row meet. All zero between launches: the last block to come leaves it as it was.
struct Meeting {
    u64 best; // of those that have come; no token has the rank 0
    u32 arrived, unused;
};

// ---- naive: a thread for each row ----

template <typename T>
__device__ void naive(const T* logits, long long stride, Meeting*, int* tokens, int rows, int vocab) {
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

// ---- tuned: a block for each slice of a row, 16 bytes at a time; the last one of a row to come writes its token ----

// One block reads 100K logits in 20 us, and leaves the rest of the chip idle. The largest of slices is the largest whatever
// their order, so that the token depends neither on who comes last nor on the number of rows.
const int THREADS = 512, SLICE = 8192;

template <typename T>
__device__ void tuned(const T* logits, long long stride, Meeting* meetings, int* tokens, int rows, int vocab) {
    const int SIZE = Pack<T>::SIZE;
    __shared__ u64 partial[THREADS / WARP];
    int slices = (vocab + SLICE - 1) / SLICE;
    long long row = blockIdx.x / slices;
    int begin = blockIdx.x % slices * SLICE, end = min(begin + SLICE, vocab);
    logits += row * stride;
    int in_packs = packs(logits, 0) ? end / SIZE * SIZE : begin;
    u64 best = 0;
    #pragma unroll 2
    for (int v = begin + threadIdx.x * SIZE; v < in_packs; v += THREADS * SIZE) {
        float pack[SIZE];
        load_pack(logits + v, pack);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) best = max(best, ranked(pack[j], v + j));
    }
    #pragma unroll 1
    for (int v = in_packs + threadIdx.x; v < end; v += THREADS) best = max(best, ranked(to_float(logits[v]), v));
    #pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
    #pragma unroll
    for (int warp = 1; warp < THREADS / WARP; warp++) best = max(best, partial[warp]);

    Meeting& meeting = meetings[row];
    atomicMax(&meeting.best, best);
    __threadfence();
    // The last of `slices` brings the count back to zero.
    if (atomicInc(&meeting.arrived, slices - 1) != slices - 1) return;
    __threadfence();
    tokens[row] = token_of(atomicExch(&meeting.best, 0));
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) argmax_##VARIANT##_##SUFFIX(const T* logits, long long stride, Meeting* meetings, int* tokens,    \
                                                 int rows, int vocab) {                                                \
        VARIANT<T>(logits, stride, meetings, tokens, rows, vocab);                                                     \
    }

KERNELS(naive, 32, float, f32)
KERNELS(naive, 32, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

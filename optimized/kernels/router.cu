// The router's logits: how much a token has in common with the centroid of each expert.
//
//   z_i = u . e_i                  in fp32, whatever the types
//
// u: [N, D], rows `stride` apart; e: [E, D]; z: [N, E]. What is made of them is in route.cu. Where u and e are of one type
// this is a matrix product like others, and the tuned kernels are those of gemm.cu.
//
// Bytes: N D sizeof(u) + E D sizeof(e) + 4 N E, each expert read once for TOKENS tokens. Flops: 2 N E D.
//
// The ladder, and what each step changes:
//   naive   a thread for each logit
//   tuned   (u in bf16, e in fp32) a block for 8 tokens and 4 experts, which share what is read; its threads share out the columns, so that
//           neighbours read neighbours
#include "dev.cuh"

// ---- naive: a thread for each logit ----

template <typename T, typename W>
__device__ void naive(const T* x, long long stride, const W* weight, float* logits, int tokens, int width,
                      int experts) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)tokens * experts) return;
    x += at / experts * stride, weight += at % experts * width;
    logits[at] = dot(x, weight, width);
}

// ---- tuned: a block of 256 threads for 8 tokens and 4 experts; the threads share out the columns ----

const int THREADS = 256;
const int TOKENS = 8, EXPERTS = 4;

// The sums over a warp of 32 numbers of each lane, the i-th in lane i: 31 shuffles, where 32 sums need 160. Each step
// halves how many numbers a lane has. All sums are the same tree, so that the place of a token in its block is nothing.
template <int HALF> __device__ __forceinline__ void halve(float (&numbers)[WARP]) {
    bool upper = threadIdx.x & HALF;
    #pragma unroll
    for (int i = 0; i < HALF; i++) {
        float low = numbers[i], high = numbers[i + HALF];
        numbers[i] = (upper ? high : low) + __shfl_xor_sync(ALL_LANES, upper ? low : high, HALF);
    }
}
__device__ __forceinline__ float sum_each(float (&numbers)[WARP]) {
    halve<16>(numbers), halve<8>(numbers), halve<4>(numbers), halve<2>(numbers), halve<1>(numbers);
    return numbers[0];
}

template <typename T, typename W>
__device__ void tuned(const T* x, long long stride, const W* weight, float* logits, int tokens, int width,
                      int experts) {
    const int SIZE = Pack<T>::SIZE;
    static_assert(TOKENS * EXPERTS == WARP, "a lane for each logit of a block");
    __shared__ float partial[THREADS / WARP][WARP];
    int expert0 = blockIdx.x * EXPERTS;
    long long token0 = (long long)blockIdx.y * TOKENS;
    int here = (int)min((long long)TOKENS, tokens - token0);
    x += token0 * stride;
    // Where there is no expert, the last one is read again; the result is not stored.
    const W* rows[EXPERTS];
    #pragma unroll
    for (int e = 0; e < EXPERTS; e++) rows[e] = weight + (long long)min(expert0 + e, experts - 1) * width;

    bool packed = packs(x, stride) && packs(weight, width);
    int in_packs = packed ? width / SIZE * SIZE : 0;
    float sums[WARP] = {};
    #pragma unroll 1
    for (int i = threadIdx.x * SIZE; i < in_packs; i += THREADS * SIZE) {
        float w[EXPERTS][SIZE];
        #pragma unroll
        for (int e = 0; e < EXPERTS; e++) load_packs(rows[e] + i, w[e]);
        #pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= here) break;
            float u[SIZE];
            load_packs(x + t * stride + i, u);
            #pragma unroll
            for (int e = 0; e < EXPERTS; e++)
                #pragma unroll
                for (int j = 0; j < SIZE; j++) sums[t * EXPERTS + e] += u[j] * w[e][j];
        }
    }
    // What is no whole pack, or not aligned.
    #pragma unroll 1
    for (int i = in_packs + threadIdx.x; i < width; i += THREADS) {
        #pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= here) break;
            float u = to_float(x[t * stride + i]);
            #pragma unroll
            for (int e = 0; e < EXPERTS; e++) sums[t * EXPERTS + e] += u * to_float(rows[e][i]);
        }
    }

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    partial[warp][lane] = sum_each(sums);
    __syncthreads();
    int t = lane / EXPERTS, e = expert0 + lane % EXPERTS;
    if (warp > 0 || t >= here || e >= experts) return;
    float sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < THREADS / WARP; i++) sum += partial[i][lane];
    logits[(token0 + t) * experts + e] = sum;
}

#define LOGITS(VARIANT, LAUNCHED, T, W, SUFFIX)                                                                       \
    KERNEL(LAUNCHED) router_logits_##VARIANT##_##SUFFIX(const T* x, long long stride, const W* weight, float* logits, \
                                                        int tokens, int width, int experts) {                        \
        VARIANT<T, W>(x, stride, weight, logits, tokens, width, experts);                                    \
    }

LOGITS(naive, 128, float, float, f32)
LOGITS(naive, 128, bf16, bf16, bf16)
LOGITS(naive, 128, bf16, float, bf16_f32)
LOGITS(tuned, THREADS, bf16, float, bf16_f32)

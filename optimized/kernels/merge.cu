// Two partial attentions of the same queries to disjoint keys, made into one: a chunk and the cache before it.
//
//   lse = log(exp(lse_a) + exp(lse_b))                               (natural logarithm)
//   out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
//
// out_a, out_b, out: [N,v]; lse_a, lse_b, lse: [N]. What has seen nothing (lse = -inf) counts nothing; if neither has,
// the result is 0 and -inf, never NaN. The results may be stored over a or b.
//
// Bytes: 3 N v sizeof(T). Flops: 3 N v.
#include "attention.cuh"

// The weights of a and b, and the new lse, for each thread of a warp.
struct Weights {
    float a, b, lse;
    __device__ __forceinline__ Weights(float lse_a, float lse_b) {
        float high = fmaxf(lse_a, lse_b), base = high == NEVER ? 0.0f : high;
        float sum = expf(lse_a - base) + expf(lse_b - base);
        lse = high == NEVER ? NEVER : high + logf(sum);
        a = high == NEVER ? 0.0f : expf(lse_a - base) / sum;
        b = high == NEVER ? 0.0f : expf(lse_b - base) / sum;
    }
};

// ---- a warp for each row: naive a number at a time, tuned 16 bytes where it can ----

template <typename T, bool TUNED>
__device__ void merge(const T* out_a, const float* lse_a, const T* out_b, const float* lse_b, T* out, float* lse,
                      int rows, int width) {
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP, packed = 0;
    if (row >= rows) return;
    Weights weights(lse_a[row], lse_b[row]);
    out_a += (long long)row * width, out_b += (long long)row * width, out += (long long)row * width;
    if (TUNED && packs(out_a, 0) && packs(out_b, 0) && packs(out, 0)) {
        const int SIZE = Pack<T>::SIZE;
        packed = width / SIZE * SIZE;
        #pragma unroll 1
        for (int i = lane * SIZE; i < packed; i += WARP * SIZE) {
            float a[SIZE], b[SIZE];
            load_pack(out_a + i, a), load_pack(out_b + i, b);
            #pragma unroll
            for (int k = 0; k < SIZE; k++) a[k] = weights.a * a[k] + weights.b * b[k];
            store_pack(out + i, a);
        }
    }
    #pragma unroll 1
    for (int i = packed + lane; i < width; i += WARP)
        out[i] = from_float<T>(weights.a * to_float(out_a[i]) + weights.b * to_float(out_b[i]));
    // Every lane has read what may be overwritten.
    __syncwarp();
    if (lane == 0) lse[row] = weights.lse;
}

#define ENTRY(NAME, TUNED, T)                                                                                         \
    KERNEL(128) NAME(const T* out_a, const float* lse_a, const T* out_b, const float* lse_b, T* out, float* lse,      \
                     int rows, int width) {                                                                           \
        merge<T, TUNED>(out_a, lse_a, out_b, lse_b, out, lse, rows, width);                                           \
    }

ENTRY(merge_naive_f32, false, float)
ENTRY(merge_naive_bf16, false, bf16)
ENTRY(merge_tuned_f32, true, float)
ENTRY(merge_tuned_bf16, true, bf16)

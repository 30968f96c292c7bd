// Rotary position embedding of queries or keys (paper 2.1.3, eq. 14 and 15).
//
//   out[n,h,2i]   = x[n,h,2i] cos[n,i] - x[n,h,2i+1] sin[n,i]
//   out[n,h,2i+1] = x[n,h,2i] sin[n,i] + x[n,h,2i+1] cos[n,i]
//
// x, out: [N,H,r], tokens and heads at any stride, `out` may be `x` itself; cos, sin: [N,r/2] f32, the attention factor
// in them (rotary.cu). The pairs are neighbours, not halves. Arithmetic is fp32, each result is rounded once.
//
// Bytes: 2 N H r sizeof(T) (cos and sin stay in the cache). Flops: 3 N H r.
#include "rope.cuh"

// ---- naive: a thread for each pair ----

template <typename T>
__device__ void naive(const T* x, Rows x_rows, const float* cos, const float* sin, T* out, Rows out_rows, int tokens,
                      int heads, int half) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < (long long)tokens * heads * half) turn_pair(x, x_rows, cos, sin, out, out_rows, heads, half, at);
}

// ---- tuned: a block for a token and its heads, 8 lanes for each head, 16 bytes at once ----

const int THREADS = 256;
// 8 lanes read 128 bytes: a head of 64 bf16 at once, one of 64 floats in two steps.
const int LANES = 8;

// The cosines (or sines) of the pairs of a pack.
__device__ __forceinline__ void load_table(const float* from, float (&to)[2]) {
    float2 word = *(const float2*)from;
    to[0] = word.x, to[1] = word.y;
}
__device__ __forceinline__ void load_table(const float* from, float (&to)[4]) { load_pack(from, to); }

template <typename T>
__device__ void tuned(const T* x, Rows x_rows, const float* cos, const float* sin, T* out, Rows out_rows, int tokens,
                      int heads, int half) {
    const int SIZE = Pack<T>::SIZE, PAIRS = SIZE / 2;
    long long token = blockIdx.x;
    x += token * x_rows.token, out += token * out_rows.token, cos += token * half, sin += token * half;
    // Heads of one token may be spread over blocks.
    int first = blockIdx.y * (THREADS / LANES) + threadIdx.x / LANES, step = gridDim.y * (THREADS / LANES);
    bool tables_packed = packs(cos, 0) & packs(sin, 0) & (half % PAIRS == 0);
    if (tables_packed & packs(x, x_rows.head) & packs(out, out_rows.head)) {
        #pragma unroll 1
        for (int i = threadIdx.x % LANES * PAIRS; i < half; i += LANES * PAIRS) {
            // All heads of a token turn alike: the table is read once.
            float c[PAIRS], s[PAIRS];
            load_table(cos + i, c), load_table(sin + i, s);
            #pragma unroll 1
            for (int head = first; head < heads; head += step) {
                float pack[SIZE];
                load_pack(x + head * x_rows.head + 2 * i, pack);
                #pragma unroll
                for (int j = 0; j < PAIRS; j++) {
                    Pair turned = Pair{pack[2 * j], pack[2 * j + 1]}.turned(c[j], s[j]);
                    pack[2 * j] = turned.re, pack[2 * j + 1] = turned.im;
                }
                store_pack(out + head * out_rows.head + 2 * i, pack);
            }
        }
        return;
    }
    #pragma unroll 1
    for (int i = threadIdx.x % LANES; i < half; i += LANES) {
        float c = cos[i], s = sin[i];
        #pragma unroll 1
        for (int head = first; head < heads; head += step) {
            Pair turned = load_pair(x + head * x_rows.head + 2 * i, false).turned(c, s);
            store_pair(out + head * out_rows.head + 2 * i, turned, false);
        }
    }
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) rope_##VARIANT##_##SUFFIX(const T* x, long long x_token, long long x_head, const float* cos,      \
                                               const float* sin, T* out, long long out_token, long long out_head,      \
                                               int tokens, int heads, int half) {                                      \
        VARIANT<T>(x, {x_token, x_head}, cos, sin, out, {out_token, out_head}, tokens, heads, half);                   \
    }

KERNELS(naive, 128, float, f32)
KERNELS(naive, 128, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

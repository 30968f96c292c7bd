// The end of MLA's compression: normalise the latent, turn the key, write both into the paged cache (paper 2.1.2 and
// 2.1.3, eq. 9 and 15: c_KV and k_R are all that is cached).
//
//   [c | k] = kv_a[n]          c^ = w * c / sqrt(mean(c^2) + eps)          k^ = RoPE(k)
//   cache[slots[n] / page_size, slots[n] % page_size] = [c^ | k^]          compressed_kv[n] = c^,  k_pe[n] = k^
//
// kv_a: [N,c+r], rows at any stride; w: [c]; cos, sin: [N,r/2] f32; slots: [N] i32; cache: [pages,page_size,c+r], pages
// and places at any stride; compressed_kv [N,c] and k_pe [N,r] may be null. A token whose slot is none of the cache's,
// such as the -1 of a padded row, writes nothing there. Two tokens must not have the same slot.
// Statistics and rotation are fp32; each result is rounded once.
//
// The queries' parts that turn, q_pe [N,H,r] (rows anywhere), may be turned in the same launch, in their place: rope.cu's work
// by blocks, or threads, of its own.
//
// Bytes: 2 N (c+r) sizeof(T), and N (c+r) sizeof(T) more with the other outputs. Flops: N (4 c + 3 r).
#include "latent.cuh"

// ---- naive: a thread for each token ----

template <typename T>
__device__ void naive(const T* kv_a, long long stride, const T* weight, float eps, const float* cos, const float* sin,
                      const int* slots, Cache<T> cache, T* compressed_kv, T* k_pe, int tokens, int rank, int rope,
                      Queries<T> q) {
    long long token = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) {
        if (q.data && token - tokens < (long long)tokens * q.heads * (rope / 2))
            turn_pair(q.data, q.rows, cos, sin, q.data, q.rows, q.heads, rope / 2, token - tokens);
        return;
    }
    const T* latent = kv_a + token * stride;
    Outputs<T> to(cache, slots[token], compressed_kv, k_pe, token, rank, rope);
    float sum = dot(latent, latent, rank);
    float scale = 1.0f / sqrtf(sum / rank + eps);
    #pragma unroll 1
    for (int i = 0; i < rank; i++) write_latent(to, i, to_float(weight[i]) * (to_float(latent[i]) * scale));
    const T* key = latent + rank;
    #pragma unroll 1
    for (int i = 0; i < rope; i += 2) {
        long long angle = (token * rope + i) / 2;
        Pair turned = load_pair(key + i, false).turned(cos[angle], sin[angle]);
        if (to.cache) store_pair(to.cache + rank + i, turned, false);
        if (to.k_pe) store_pair(to.k_pe + i, turned, false);
    }
}

// ---- tuned: a warp for each token, see latent.cuh ----

const int THREADS = 128;

template <typename T, typename... Operands> __device__ __forceinline__ void tuned(Operands... operands) {
    write_tuned<THREADS>(blockIdx.x, operands...);
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) latent_cache_write_##VARIANT##_##SUFFIX(                                                          \
        const T* kv_a, long long stride, const T* weight, float eps, const float* cos, const float* sin,               \
        const int* slots, T* cache, int pages, int page_size, long long page_stride, long long place_stride,           \
        T* compressed_kv, T* k_pe, int tokens, int rank, int rope, T* q, long long q_token, long long q_head,          \
        int heads) {                                                                                                   \
        VARIANT<T>(kv_a, stride, weight, eps, cos, sin, slots,                                                        \
                   Cache<T>{cache, pages, page_size, page_stride, place_stride}, compressed_kv, k_pe, tokens, rank,    \
                   rope, Queries<T>{q, {q_token, q_head}, heads});                                                     \
    }

KERNELS(naive, 128, float, f32)
KERNELS(naive, 128, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

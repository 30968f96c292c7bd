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
#include "rope.cuh"

// A page and a place in it of a [pages,page_size,c+r] cache.
template <typename T> struct Cache {
    T* data;
    int pages, page_size;
    long long page_stride, place_stride;

    // The row of a slot, or null if there is none.
    __device__ __forceinline__ T* row(int slot) const {
        if (slot < 0 || slot / page_size >= pages) return nullptr;
        return data + slot / page_size * page_stride + slot % page_size * place_stride;
    }
};

// The queries, which may be null.
template <typename T> struct Queries {
    T* data;
    Rows rows;
    int heads;
};

// The places of one token's results, which may be null: a row of the cache gets both, of the others each gets one.
template <typename T> struct Outputs {
    T *cache, *compressed_kv, *k_pe;

    __device__ __forceinline__ Outputs(Cache<T> whole, int slot, T* all_compressed_kv, T* all_k_pe, long long token,
                                       int rank, int rope)
        : cache(whole.row(slot)), compressed_kv(all_compressed_kv ? all_compressed_kv + token * rank : nullptr),
          k_pe(all_k_pe ? all_k_pe + token * rope : nullptr) {}
};

// Element i of the latent, or the pack of elements that begins there, to each place.
template <typename T> __device__ __forceinline__ void write_latent(Outputs<T> to, int i, float value) {
    if (to.cache) to.cache[i] = from_float<T>(value);
    if (to.compressed_kv) to.compressed_kv[i] = from_float<T>(value);
}
template <typename T, int SIZE>
__device__ __forceinline__ void write_latent(Outputs<T> to, int i, const float (&values)[SIZE], bool aligned) {
    if (to.cache) store_pack(to.cache + i, values, aligned);
    if (to.compressed_kv) store_pack(to.compressed_kv + i, values, aligned);
}

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

// ---- tuned: a warp for each token, which needs no barrier; 16 bytes at once, each element read once ----
//
// A lane adds the same elements in the same order whether they are aligned or not: where a row lies depends on the batch,
// and its sum must not.

const int THREADS = 128;
// Packs of a latent that a lane keeps in registers (all of the 512 of V2, in both types); longer ones are read twice.
const int KEPT = 4;

template <typename T>
__device__ void tuned(const T* kv_a, long long stride, const T* weight, float eps, const float* cos, const float* sin,
                      const int* slots, Cache<T> cache, T* compressed_kv, T* k_pe, int tokens, int rank, int rope,
                      Queries<T> q) {
    const int SIZE = Pack<T>::SIZE;
    int of_latents = (tokens + THREADS / WARP - 1) / (THREADS / WARP);
    if ((int)blockIdx.x >= of_latents) {
        // A thread for each pair: a warp's are neighbours, and their cosines too.
        long long at = (long long)(blockIdx.x - of_latents) * THREADS + threadIdx.x;
        if (at < (long long)tokens * q.heads * (rope / 2))
            turn_pair(q.data, q.rows, cos, sin, q.data, q.rows, q.heads, rope / 2, at);
        return;
    }
    long long token = (long long)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (token >= tokens) return;
    const T* latent = kv_a + token * stride;
    Outputs<T> to(cache, slots[token], compressed_kv, k_pe, token, rank, rope);
    // A null pointer is aligned.
    bool aligned = packs(latent, 0) & packs(weight, 0) & packs(to.cache, 0) & packs(to.compressed_kv, 0);
    int in_packs = rank / SIZE * SIZE;

    float kept[KEPT][SIZE], sum = 0.0f;
    #pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = (k * WARP + lane) * SIZE;
        if (i >= in_packs) break;
        load_pack(latent + i, kept[k], aligned);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) sum += kept[k][j] * kept[k][j];
    }
    // What is no whole pack, or more than a lane keeps.
    int done = min(in_packs, KEPT * WARP * SIZE);
    #pragma unroll 1
    for (int i = done + lane; i < rank; i += WARP) sum += to_float(latent[i]) * to_float(latent[i]);
    float scale = 1.0f / sqrtf(warp_sum(sum) / rank + eps);
    #pragma unroll
    for (int k = 0; k < KEPT; k++) {
        int i = (k * WARP + lane) * SIZE;
        if (i >= in_packs) break;
        float gain[SIZE];
        load_pack(weight + i, gain, aligned);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) kept[k][j] = gain[j] * (kept[k][j] * scale);
        write_latent(to, i, kept[k], aligned);
    }
    #pragma unroll 1
    for (int i = done + lane; i < rank; i += WARP) {
        write_latent(to, i, to_float(weight[i]) * (to_float(latent[i]) * scale));
    }

    // The key: a lane for each pair, so that the warp's accesses are whole lines.
    const T* key = latent + rank;
    T* cached_key = to.cache ? to.cache + rank : nullptr;
    bool together = ((u64)key | (u64)cached_key | (u64)to.k_pe) % (2 * sizeof(T)) == 0;
    #pragma unroll 1
    for (int i = lane; i < rope / 2; i += WARP) {
        long long angle = token * (rope / 2) + i;
        Pair turned = load_pair(key + 2 * i, together).turned(cos[angle], sin[angle]);
        if (cached_key) store_pair(cached_key + 2 * i, turned, together);
        if (to.k_pe) store_pair(to.k_pe + 2 * i, turned, together);
    }
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) latent_cache_write_##VARIANT##_##SUFFIX(                                                          \
        const T* kv_a, long long stride, const T* weight, float eps, const float* cos, const float* sin,               \
        const int* slots, T* cache, int pages, int page_size, long long page_stride, long long place_stride,           \
        T* compressed_kv, T* k_pe, int tokens, int rank, int rope, T* q, long long q_token, long long q_head,          \
        int heads) {                                                                                                   \
        VARIANT<T>(kv_a, stride, weight, eps, cos, sin, slots, {cache, pages, page_size, page_stride, place_stride},   \
                   compressed_kv, k_pe, tokens, rank, rope, {q, {q_token, q_head}, heads});                            \
    }

KERNELS(naive, 128, float, f32)
KERNELS(naive, 128, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

// What latent.cu writes, by warps of any block: also of one that does something else in the same launch.
#pragma once
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

// ---- tuned: a warp for each token, which needs no barrier; 16 bytes at once, each element read once ----
//
// A lane adds the same elements in the same order whether they are aligned or not: where a row lies depends on the batch,
// and its sum must not.

// Packs of a latent that a lane keeps in registers (all of the 512 of V2, in both types); longer ones are read twice.
const int LATENT_KEPT = 4;

// What block `block` of those that write does: first those of the tokens, then those of the queries. Blocks after them do nothing.
template <int THREADS, typename T>
__device__ __forceinline__ void write_tuned(u32 block, const T* kv_a, long long stride, const T* weight, float eps,
                                            const float* cos, const float* sin, const int* slots, Cache<T> cache,
                                            T* compressed_kv, T* k_pe, int tokens, int rank, int rope, Queries<T> q) {
    const int SIZE = Pack<T>::SIZE;
    int of_latents = (tokens + THREADS / WARP - 1) / (THREADS / WARP);
    if ((int)block >= of_latents) {
        // A thread for each pair: a warp's are neighbours, and their cosines too.
        long long at = (long long)(block - of_latents) * THREADS + threadIdx.x;
        if (at < (long long)tokens * q.heads * (rope / 2))
            turn_pair(q.data, q.rows, cos, sin, q.data, q.rows, q.heads, rope / 2, at);
        return;
    }
    long long token = (long long)block * (THREADS / WARP) + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (token >= tokens) return;
    const T* latent = kv_a + token * stride;
    Outputs<T> to(cache, slots[token], compressed_kv, k_pe, token, rank, rope);
    // A null pointer is aligned.
    bool aligned = packs(latent, 0) & packs(weight, 0) & packs(to.cache, 0) & packs(to.compressed_kv, 0);
    int in_packs = rank / SIZE * SIZE;

    float kept[LATENT_KEPT][SIZE], sum = 0.0f;
    #pragma unroll
    for (int k = 0; k < LATENT_KEPT; k++) {
        int i = (k * WARP + lane) * SIZE;
        if (i >= in_packs) break;
        load_pack(latent + i, kept[k], aligned);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) sum += kept[k][j] * kept[k][j];
    }
    // What is no whole pack, or more than a lane keeps.
    int done = min(in_packs, LATENT_KEPT * WARP * SIZE);
    #pragma unroll 1
    for (int i = done + lane; i < rank; i += WARP) sum += to_float(latent[i]) * to_float(latent[i]);
    float scale = 1.0f / sqrtf(warp_sum(sum) / rank + eps);
    #pragma unroll
    for (int k = 0; k < LATENT_KEPT; k++) {
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

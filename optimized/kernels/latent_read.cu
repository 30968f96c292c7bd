// Reading the paged latent cache back: for the expanded form of attention, and for traces.
//
// cache: [pages, page_size, c + r], the normed latent and the rotated key of a token side by side; block_table: [B, columns],
// the pages of each sequence; lengths: [B], its tokens. Entries of the table beyond a sequence's pages are not followed.
#include "attention.cuh"

// The place of token t of sequence b.
template <typename T>
__device__ __forceinline__ const T* place(const T* cache, const int* block_table, int columns, int page_size, int width,
                                          int b, int t) {
    long long page = block_table[(long long)b * columns + t / page_size];
    return cache + (page * page_size + t % page_size) * width;
}

// ---- latent_cache_read: latents [B,T,c], keys [B,T,r]; zeros beyond a sequence's end ----
//
// Bytes: 2 B T (c + r) sizeof(T). No flops.

// naive: a thread for each token.
template <typename T>
__device__ void naive(const T* cache, const int* block_table, const int* lengths, T* latents, T* keys, int sequences,
                      int tokens, int columns, int page_size, int latent, int rope) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= (long long)sequences * tokens) return;
    int b = row / tokens, t = row % tokens;
    bool there = t < lengths[b];
    const T* from = there ? place(cache, block_table, columns, page_size, latent + rope, b, t) : cache;
    #pragma unroll 1
    for (int i = 0; i < latent; i++) latents[row * latent + i] = there ? from[i] : from_float<T>(0.0f);
    #pragma unroll 1
    for (int i = 0; i < rope; i++) keys[row * rope + i] = there ? from[latent + i] : from_float<T>(0.0f);
}

// tuned: a block of 128 threads for each token, neighbours read neighbours.
template <typename T>
__device__ void tuned(const T* cache, const int* block_table, const int* lengths, T* latents, T* keys, int sequences,
                      int tokens, int columns, int page_size, int latent, int rope) {
    long long row = blockIdx.x;
    int b = row / tokens, t = row % tokens;
    bool there = t < lengths[b];
    const T* from = there ? place(cache, block_table, columns, page_size, latent + rope, b, t) : cache;
    #pragma unroll 1
    for (int i = threadIdx.x; i < latent + rope; i += blockDim.x) {
        T value = there ? from[i] : from_float<T>(0.0f);
        if (i < latent) latents[row * latent + i] = value;
        else keys[row * rope + i - latent] = value;
    }
}

#define READ(VARIANT, T, SUFFIX)                                                                                      \
    KERNEL(128) latent_cache_read_##VARIANT##_##SUFFIX(const T* cache, const int* block_table, const int* lengths,    \
                                                       T* latents, T* keys, int sequences, int tokens, int columns,  \
                                                       int page_size, int latent, int rope) {                        \
        VARIANT<T>(cache, block_table, lengths, latents, keys, sequences, tokens, columns, page_size, latent, rope);  \
    }

READ(naive, float, f32)
READ(naive, bf16, bf16)
READ(tuned, float, f32)
READ(tuned, bf16, bf16)

// ---- absorbed_scores: what softmax is taken of, for traces; the attention kernels never write it ----
//
//   scores[b,h,s,t] = (q_latent . latent_t + q_pe . key_t) scale + mask[b,s,t],  -inf where the causal rule forbids t
//
// A thread for each score. q_latent: [B,S,H,c], q_pe: [B,S,H,r] with strides; mask: [B,S,T] or none, and then the causal
// rule t < length - S + s + 1 holds.

// Steps between sequences, tokens and heads of a query, in elements.
struct Steps {
    long long sequence, token, head;
};

template <typename T>
__device__ void scores(const T* q_latent, Steps latent_steps, const T* q_pe, Steps pe_steps, const T* cache,
                       const int* block_table, const int* lengths, const float* mask, float scale, float* out,
                       int sequences, int new_tokens, int heads, int tokens, int columns, int page_size, int latent,
                       int rope) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)sequences * heads * new_tokens * tokens) return;
    int t = at % tokens, s = at / tokens % new_tokens;
    int h = at / tokens / new_tokens % heads, b = at / tokens / new_tokens / heads;
    int length = lengths[b];
    float score = NEVER;
    if (t < length && (mask || t < length - new_tokens + s + 1)) {
        const T* key = place(cache, block_table, columns, page_size, latent + rope, b, t);
        const T* q = q_latent + b * latent_steps.sequence + s * latent_steps.token + h * latent_steps.head;
        const T* pe = q_pe + b * pe_steps.sequence + s * pe_steps.token + h * pe_steps.head;
        score = (dot(q, key, latent) + dot(pe, key + latent, rope)) * scale;
        if (mask) score = masked(score, mask[((long long)b * new_tokens + s) * tokens + t]);
    }
    out[at] = score;
}

#define SCORES(T, SUFFIX)                                                                                             \
    KERNEL(128) absorbed_scores_##SUFFIX(const T* q_latent, Steps latent_steps, const T* q_pe, Steps pe_steps,        \
                                         const T* cache, const int* block_table, const int* lengths,                 \
                                         const float* mask, float scale, float* out, int sequences, int new_tokens,  \
                                         int heads, int tokens, int columns, int page_size, int latent, int rope) {  \
        scores<T>(q_latent, latent_steps, q_pe, pe_steps, cache, block_table, lengths, mask, scale, out, sequences,   \
                  new_tokens, heads, tokens, columns, page_size, latent, rope);                                       \
    }

SCORES(float, f32)
SCORES(bf16, bf16)

// ---- score_weights: softmax of scores [rows, T] -> weights [rows, T]; a row that sees nothing has zeros. A warp each. ----

template <typename T> __device__ void softmax(const float* scores, T* weights, int rows, int tokens) {
    long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row >= rows) return;
    int lane = threadIdx.x % WARP;
    scores += row * tokens, weights += row * tokens;
    float largest = NEVER, sum = 0.0f;
    #pragma unroll 1
    for (int t = lane; t < tokens; t += WARP) largest = fmaxf(largest, scores[t]);
    largest = warp_max(largest);
    bool none = largest == NEVER;
    #pragma unroll 1
    for (int t = lane; t < tokens; t += WARP) sum += none ? 0.0f : expf(scores[t] - largest);
    sum = warp_sum(sum);
    #pragma unroll 1
    for (int t = lane; t < tokens; t += WARP)
        weights[t] = from_float<T>(none ? 0.0f : expf(scores[t] - largest) / sum);
}

#define SOFTMAX(T, SUFFIX)                                                                                            \
    KERNEL(128) score_weights_##SUFFIX(const float* scores, T* weights, int rows, int tokens) {                       \
        softmax<T>(scores, weights, rows, tokens);                                                                    \
    }

SOFTMAX(float, f32)
SOFTMAX(bf16, bf16)

// ---- weighted_values: attention from given weights, for replays; the attention kernels never read any ----
//
//   out[b,s,h,i] = sum_t weights[b,h,s,t] values[b,t,h,i]
//
// A thread for each number. weights: [B,H,S,T]; values: [B,T,H,w] with strides (all heads may have the same); out: [B,S,H,w].

template <typename T>
__device__ void weigh(const T* weights, const T* values, Steps steps, T* out, int sequences, int new_tokens, int heads,
                      int tokens, int width) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)sequences * new_tokens * heads * width) return;
    int i = at % width, h = at / width % heads, s = at / width / heads % new_tokens, b = at / width / heads / new_tokens;
    weights += (((long long)b * heads + h) * new_tokens + s) * tokens;
    values += b * steps.sequence + h * steps.head + i;
    float sum = sum_in_runs(tokens, [&](int t) { return to_float(weights[t]) * to_float(values[t * steps.token]); });
    out[at] = from_float<T>(sum);
}

#define WEIGH(T, SUFFIX)                                                                                              \
    KERNEL(128) weighted_values_##SUFFIX(const T* weights, const T* values, Steps steps, T* out, int sequences,       \
                                         int new_tokens, int heads, int tokens, int width) {                         \
        weigh<T>(weights, values, steps, out, sequences, new_tokens, heads, tokens, width);                           \
    }

WEIGH(float, f32)
WEIGH(bf16, bf16)

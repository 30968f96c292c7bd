// Multi-head latent attention with keys and values expanded from the latents, for many new tokens (paper 2.1.2, eq. 42
// to 46).
//
//   x_st = (q^C_s . k^C_t + q^R_s . k^R_t) * scale + mask_st            for the keys t that query s sees
//   out_s = sum_t softmax(x_s)_t v_t,    lse_s = log sum_t exp(x_st)     (natural logarithm)
//
// q [B,S,H,n+r], kv [B,T,H,n+v] (of each head the key's part without position, then the value), k_pe [B,T,r] (one for
// all heads); rows may be anywhere. lengths[b] counts the keys of sequence b, the S new ones too (T if there are no
// lengths): query s sees t < lengths[b] - S + s + 1; with a mask [B,S,T], all t < lengths[b] that it does not forbid. A
// query that sees nothing gives out = 0, lse = -inf. Keys are taken in tiles from the first on, so that what a query
// gets depends neither on the batch nor on the queries beside it. Tiles that no query of a block sees are not read.
//
// Bytes: for each tile of queries, B H T (n+v+r) sizeof(T), half of it if causal. Flops: 2 B H S T (n+r+v), likewise.
//
// The ladder, and what each step changes:
//   naive        a warp for each query and head reads all keys and makes the scores anew for every 32 columns of values
//   tuned bf16   the queries of a tile share each tile of keys and values in shared memory; softmax goes along with the
//                tiles, so that each score is made once; tensor cores
//   tuned f32    the same with fused multiply-adds
#include "mla_prefill.cuh"

// ---- naive: a warp for each row ----

// x_st, in every lane.
template <typename T> __device__ float score(const Problem<T>& p, int b, int s, int h, int t) {
    int lane = threadIdx.x % WARP;
    const T *query = p.query(b, s, h), *key = p.key(b, t, h), *pe = p.key_pe(b, t);
    float product = 0.0f;
    #pragma unroll 1
    for (int i = lane; i < p.nope; i += WARP) product += to_float(query[i]) * to_float(key[i]);
    #pragma unroll 1
    for (int i = lane; i < p.rope; i += WARP) product += to_float(query[p.nope + i]) * to_float(pe[i]);
    float x = warp_sum(product) * p.scale;
    return p.mask ? masked(x, p.mask_row(b, s)[t]) : x;
}

template <typename T> __device__ void naive(const Problem<T>& p) {
    int at = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (at >= p.batch * p.tokens * p.heads) return;
    int lane = threadIdx.x % WARP, h = at % p.heads, s = at / p.heads % p.tokens, b = at / p.heads / p.tokens;
    int seen = p.seen(s, p.length(b));
    float max = NEVER;
    #pragma unroll 1
    for (int t = 0; t < seen; t++) max = fmaxf(max, score(p, b, s, h, t));
    if (max == NEVER) seen = 0;
    // 32 columns at a time; the weights are made anew for each.
    #pragma unroll 1
    for (int first = 0; first < p.value; first += WARP) {
        int column = first + lane;
        float total = 0.0f, sum = 0.0f;
        #pragma unroll 1
        for (int start = 0; start < seen; start += RUN) {
            float run = 0.0f, run_sum = 0.0f;
            #pragma unroll 1
            for (int t = start; t < min(start + RUN, seen); t++) {
                float weight = expf(score(p, b, s, h, t) - max);
                run_sum += weight;
                if (column < p.value) run += weight * to_float(p.key(b, t, h)[p.nope + column]);
            }
            total += run, sum += run_sum;
        }
        if (column < p.value) p.out[(long long)at * p.value + column] = from_float<T>(seen > 0 ? total / sum : 0.0f);
        if (column == 0) p.lse[at] = seen > 0 ? max + logf(sum) : NEVER;
    }
}

// For traces: all x (into `lse`) and all weights (into `out`), both [B,H,S,T].
template <typename T> __device__ void weights(const Problem<T>& p) {
    int at = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (at >= p.batch * p.tokens * p.heads) return;
    int lane = threadIdx.x % WARP, s = at % p.tokens, h = at / p.tokens % p.heads, b = at / p.tokens / p.heads;
    int seen = p.seen(s, p.length(b));
    float *x = p.lse + (long long)at * p.keys, max = NEVER;
    T* weights = p.out + (long long)at * p.keys;
    #pragma unroll 1
    for (int t = 0; t < p.keys; t++) {
        float found = t < seen ? score(p, b, s, h, t) : NEVER;
        if (lane == t % WARP) x[t] = found;
        max = fmaxf(max, found);
    }
    float sum = 0.0f;
    #pragma unroll 1
    for (int t = lane; t < p.keys; t += WARP) sum += max == NEVER ? 0.0f : expf(x[t] - max);
    sum = warp_sum(sum);
    #pragma unroll 1
    for (int t = lane; t < p.keys; t += WARP) weights[t] = from_float<T>(max == NEVER ? 0.0f : expf(x[t] - max) / sum);
}

// ---- tuned: a block for a tile of queries of one head, which share tiles of keys and values in shared memory ----

// bf16: a warp for every 16 queries, 64 keys a tile. The width of the values is even.
const int KEYS = 64;

__device__ void tuned(const Problem<bf16>& p) {
    // Whole steps of 16 columns; the 8 more put neighbouring rows into different banks.
    Block<bf16, KEYS> block(p, blockDim.x / 2, (p.width() + 15) / 16 * 16 + 8, (p.value + 15) / 16 * 16 + 8);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = lane % 4 * 2;
    // This thread's two rows, g and g + 8 of its warp's 16.
    int s[2] = {block.first + warp * 16 + lane / 4, block.first + warp * 16 + lane / 4 + 8};
    float sums[16][4] = {};
    Softmax<bf16> softmax[2];
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        turn_to(block, number);
        float x[8][4] = {};
        u32 queries = shared_address(block.queries + (warp * 16 + lane % 16) * block.stride + lane / 16 * 8);
        u32 keys = shared_address(block.key_tile(number) + (lane % 8 + lane / 16 * 8) * block.stride + lane / 8 % 2 * 8);
        #pragma unroll 1
        for (int i = 0; i < p.width(); i += 16, queries += 32, keys += 32) {
            u32 query[4];
            load_tiles(query, queries);
            #pragma unroll
            for (int n = 0; n < 8; n += 2) {
                u32 key[4];
                load_tiles(key, keys + n * 16 * block.stride);
                multiply_add(x[n], query, key[0], key[1]);
                multiply_add(x[n + 1], query, key[2], key[3]);
            }
        }
        #pragma unroll
        for (int n = 0; n < 8; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) x[n][i] *= p.scale;
        // Only where some query does not see some key.
        if (p.mask || (number + 1) * KEYS > p.seen(block.first, block.length)) {
            #pragma unroll
            for (int r = 0; r < 2; r++) {
                int query = min(s[r], p.tokens - 1), first = number * KEYS + column;
                int seen = p.seen(query, block.length) - first;
                const float* mask = p.mask_row(block.b, query) + first;
                #pragma unroll
                for (int i = 0; i < 16; i++) {
                    float& at = x[i / 2][r * 2 + i % 2];
                    int t = i / 2 * 8 + i % 2;
                    if (t >= seen) at = NEVER;
                    else if (p.mask) at = masked(at, mask[t]);
                }
            }
        }
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = softmax[r].max;
            #pragma unroll
            for (int n = 0; n < 8; n++) high = fmaxf(high, fmaxf(x[n][r * 2], x[n][r * 2 + 1]));
            float factor = softmax[r].raise_to(quad_max(high));
            #pragma unroll
            for (int i = 0; i < 16; i++) {
                float& at = x[i / 2][r * 2 + i % 2];
                at = softmax[r].weigh(at);
            }
            // Once the largest score was there, nothing changes any more: most tiles.
            if (__any_sync(ALL_LANES, factor != 1.0f)) {
                #pragma unroll
                for (int n = 0; n < 16; n++) sums[n][r * 2] *= factor, sums[n][r * 2 + 1] *= factor;
            }
        }
        u32 values = shared_address(block.value_tile(number) + lane % 16 * block.value_stride + lane / 16 * 8);
        #pragma unroll
        for (int step = 0; step < 4; step++) {
            // Two tiles of sums are the fragment of 16 weights.
            u32 weight[4];
            #pragma unroll
            for (int i = 0; i < 4; i++)
                weight[i] = pack_bf16(x[step * 2 + i / 2][i % 2 * 2], x[step * 2 + i / 2][i % 2 * 2 + 1]);
            #pragma unroll
            for (int n = 0; n < 16; n += 2) {
                if (n * 8 >= p.value) break;
                u32 value[4];
                load_tiles_transposed(value, values + (step * 16 * block.value_stride + n * 8) * 2);
                multiply_add(sums[n], weight, value[0], value[1]);
                multiply_add(sums[n + 1], weight, value[2], value[3]);
            }
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = softmax[r].max, sum = quad_sum(softmax[r].sum);
        if (s[r] >= p.tokens) continue;
        long long at = ((long long)block.b * p.tokens + s[r]) * p.heads + block.h;
        float share = max == NEVER ? 0.0f : 1.0f / sum;
        #pragma unroll
        for (int n = 0; n < 16; n++) {
            if (n * 8 + column >= p.value) break;
            u32 pair = pack_bf16(sums[n][r * 2] * share, sums[n][r * 2 + 1] * share);
            *(u32*)(p.out + at * p.value + n * 8 + column) = pair;
        }
        if (column == 0) p.lse[at] = log_sum(max, sum);
    }
}

// f32: 16 threads for every 4 queries, 32 keys a tile. The 16 are half a warp; each has 2 keys of a tile, and then 8
// columns.
const int KEYS_F32 = 32;
// A row of weights: what the two halves of a warp write at once is in different banks.
const int WEIGHTS = KEYS_F32 + 16;

__device__ void tuned(const Problem<float>& p) {
    // An odd number of packs, so that neighbouring rows are in different banks.
    int packed = (p.width() + 3) / 4, rows = blockDim.x / 4, groups = blockDim.x / 16;
    Block<float, KEYS_F32> block(p, rows, (packed | 1) * 4, (p.value + 3) / 4 * 4);
    float* weights = block.values + 2 * KEYS_F32 * block.value_stride;
    // Queries group + i * groups, keys part + j * 16, columns part * 4 + j * 64.
    int group = threadIdx.x / 16, part = threadIdx.x % 16;
    float sums[4][2][4] = {};
    Softmax<float> softmax[4];
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        turn_to(block, number);
        float x[4][2] = {};
        const float* queries = block.queries + group * block.stride;
        const float* keys = block.key_tile(number) + part * block.stride;
        #pragma unroll 1
        for (int c = 0; c < p.width(); c += 4)
            add_products(x, queries + c, groups * block.stride, keys + c, 16 * block.stride);
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = min(block.first + group + i * groups, p.tokens - 1);
            float high = softmax[i].max;
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                int t = number * KEYS_F32 + part + j * 16;
                x[i][j] *= p.scale;
                if (t >= p.seen(s, block.length)) x[i][j] = NEVER;
                else if (p.mask) x[i][j] = masked(x[i][j], p.mask_row(block.b, s)[t]);
                high = fmaxf(high, x[i][j]);
            }
            float factor = softmax[i].raise_to(warp_max<16>(high));
            #pragma unroll
            for (int j = 0; j < 2; j++)
                weights[(group + i * groups) * WEIGHTS + part + j * 16] = softmax[i].weigh(x[i][j]);
            #pragma unroll
            for (int j = 0; j < 2; j++)
                #pragma unroll
                for (int k = 0; k < 4; k++) sums[i][j][k] *= factor;
        }
        // Rows of weights are read by those threads only that have written them: half a warp.
        __syncwarp();
        const float* values = block.value_tile(number);
        #pragma unroll 1
        for (int key = 0; key < KEYS_F32; key += 4) {
            float weight[4][4];
            #pragma unroll
            for (int i = 0; i < 4; i++) load_pack(weights + (group + i * groups) * WEIGHTS + key, weight[i]);
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                int column = part * 4 + j * 64;
                if (column >= p.value) break;
                #pragma unroll
                for (int l = 0; l < 4; l++) {
                    float value[4];
                    load_pack(values + (key + l) * block.value_stride + column, value);
                    #pragma unroll
                    for (int i = 0; i < 4; i++)
                        #pragma unroll
                        for (int k = 0; k < 4; k++) sums[i][j][k] += weight[i][l] * value[k];
                }
            }
        }
    }
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        float max = softmax[i].max, sum = warp_sum<16>(softmax[i].sum);
        int s = block.first + group + i * groups;
        if (s >= p.tokens) continue;
        long long at = ((long long)block.b * p.tokens + s) * p.heads + block.h;
        #pragma unroll
        for (int j = 0; j < 2; j++) {
            int column = part * 4 + j * 64;
            float* to = p.out + at * p.value + column;
            #pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = max == NEVER ? 0.0f : sums[i][j][k] / sum;
            if (column + 4 <= p.value && packs(to, 0)) {
                store_pack(to, sums[i][j]);
            } else {
                #pragma unroll
                for (int k = 0; k < 4; k++)
                    if (column + k < p.value) to[k] = sums[i][j][k];
            }
        }
        if (part == 0) p.lse[at] = log_sum(max, sum);
    }
}

#define ENTRY(NAME, LAUNCHED, T, FUNCTION)                                                                            \
    KERNEL(LAUNCHED) NAME(const T* q, long long q_batch, long long q_token, long long q_head, const T* kv,            \
                          long long kv_batch, long long kv_token, long long kv_head, const T* k_pe,                   \
                          long long pe_batch, long long pe_token, const int* lengths, const float* mask,              \
                          long long mask_batch, long long mask_token, float scale, int batch, int tokens, int keys,   \
                          int heads, int nope, int rope, int value, T* out, float* lse) {                             \
        FUNCTION(Problem<T>{q, q_batch, q_token, q_head, kv, kv_batch, kv_token, kv_head, k_pe, pe_batch, pe_token,   \
                            lengths, mask, mask_batch, mask_token, scale, batch, tokens, keys, heads, nope, rope,     \
                            value, out, lse});                                                                        \
    }

ENTRY(mla_prefill_naive_f32, 128, float, naive)
ENTRY(mla_prefill_naive_bf16, 128, bf16, naive)
ENTRY(mla_prefill_tuned_f32, 256, float, tuned)
ENTRY(mla_prefill_tuned_bf16, 256, bf16, tuned)
ENTRY(attention_weights_naive_f32, 128, float, weights)
ENTRY(attention_weights_naive_bf16, 128, bf16, weights)

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
#include "attention.cuh"

// Columns of the output that the tuned kernels hold.
const int MAX_VALUE = 128;

template <typename T> struct Problem {
    const T* q;
    long long q_batch, q_token, q_head;
    const T* kv;
    long long kv_batch, kv_token, kv_head;
    const T* k_pe;
    long long pe_batch, pe_token;
    const int* lengths;
    const float* mask;
    long long mask_batch, mask_token;
    float scale;
    int batch, tokens, keys, heads, nope, rope, value;
    T* out;
    float* lse;

    __device__ __forceinline__ int width() const { return nope + rope; }
    __device__ __forceinline__ const T* query(int b, int s, int h) const {
        return q + b * q_batch + s * q_token + h * q_head;
    }
    __device__ __forceinline__ const T* key(int b, int t, int h) const {
        return kv + b * kv_batch + t * kv_token + h * kv_head;
    }
    __device__ __forceinline__ const T* key_pe(int b, int t) const { return k_pe + b * pe_batch + t * pe_token; }
    __device__ __forceinline__ int length(int b) const { return lengths ? lengths[b] : keys; }
    // How many keys from the first on a query may see.
    __device__ __forceinline__ int seen(int s, int length) const { return mask ? length : length - tokens + s + 1; }
    __device__ __forceinline__ const float* mask_row(int b, int s) const {
        return mask + b * mask_batch + s * mask_token;
    }
};

__device__ __forceinline__ float masked(float x, float bias) { return bias <= FORBIDDEN ? NEVER : x + bias; }

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

// Half a warp copies a row, or zeros; asynchronously if both places can be accessed 16 bytes at once.
template <typename T>
__device__ __forceinline__ void copy_row(T* shared, int offset, const T* global, int width, bool there) {
    const int HALF = WARP / 2, SIZE = Pack<T>::SIZE;
    int lane = threadIdx.x % HALF;
    if (packs(global, width) && offset % SIZE == 0) {
        #pragma unroll 1
        for (int i = lane * SIZE; i < width; i += HALF * SIZE) copy_async(shared + offset + i, global + i, there);
    } else {
        #pragma unroll 1
        for (int i = lane; i < width; i += HALF) shared[offset + i] = there ? global[i] : from_float<T>(0.0f);
    }
}

extern __shared__ __align__(16) unsigned char dynamic[];

// What the tuned kernels have in common: a block's place in the problem, and its shared memory: rows of queries, two
// tiles of keys, two of values. Rows take `stride` and `value_stride`; what is behind their numbers is zero.
template <typename T, int KEYS> struct Block {
    const Problem<T>& p;
    T *queries, *keys, *values;
    int rows, stride, value_stride, b, h, first, length, end;

    __device__ __forceinline__ Block(const Problem<T>& p, int rows, int stride, int value_stride)
        : p(p), rows(rows), stride(stride), value_stride(value_stride) {
        queries = (T*)dynamic, keys = queries + rows * stride, values = keys + 2 * KEYS * stride;
        // The tiles with the most keys first, so that the short ones fill the gaps at the end.
        b = blockIdx.z, h = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * rows, length = p.length(b);
        end = p.seen(min(first + rows, p.tokens) - 1, length);
        clear(queries, rows + 2 * KEYS, p.width(), stride);
        clear(values, 2 * KEYS, p.value, value_stride);
        #pragma unroll 1
        for (int i = threadIdx.x / (WARP / 2); i < rows; i += blockDim.x / (WARP / 2)) {
            bool there = first + i < p.tokens;
            copy_row(queries + i * stride, 0, p.query(b, there ? first + i : 0, h), p.width(), there);
        }
        if (has(0)) load_tile(0);
    }
    static __device__ __forceinline__ void clear(T* rows, int count, int width, int stride) {
        int padding = stride - width;
        #pragma unroll 1
        for (int i = threadIdx.x; i < count * padding; i += blockDim.x)
            rows[i / padding * stride + width + i % padding] = from_float<T>(0.0f);
    }
    __device__ __forceinline__ bool has(int number) const { return number * KEYS < end; }
    __device__ __forceinline__ T* key_tile(int number) const { return keys + number % 2 * KEYS * stride; }
    __device__ __forceinline__ T* value_tile(int number) const { return values + number % 2 * KEYS * value_stride; }
    __device__ __forceinline__ void load_tile(int number) const {
        #pragma unroll 1
        for (int i = threadIdx.x / (WARP / 2); i < KEYS; i += blockDim.x / (WARP / 2)) {
            bool there = number * KEYS + i < end;
            int t = there ? number * KEYS + i : 0;
            const T* row = p.key(b, t, h);
            copy_row(key_tile(number) + i * stride, 0, row, p.nope, there);
            copy_row(key_tile(number) + i * stride, p.nope, p.key_pe(b, t), p.rope, there);
            copy_row(value_tile(number) + i * value_stride, 0, row + p.nope, p.value, there);
        }
        commit_copies();
    }
    // Waits for a tile, and begins to load the next into the place of the one before.
    __device__ __forceinline__ void turn_to(int number) const {
        wait_copies<0>();
        // Every warp's copies are there, and nobody reads the other tile any more.
        __syncthreads();
        if (has(number + 1)) load_tile(number + 1);
    }
};

// bf16: a warp for every 16 queries, 64 keys a tile. The width of the values is even.
const int KEYS = 64;

__device__ void tuned(const Problem<bf16>& p) {
    // Whole steps of 16 columns; the 8 more put neighbouring rows into different banks.
    Block<bf16, KEYS> block(p, blockDim.x / 2, (p.width() + 15) / 16 * 16 + 8, (p.value + 15) / 16 * 16 + 8);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = lane % 4 * 2;
    // This thread's two rows, g and g + 8 of its warp's 16.
    int s[2] = {block.first + warp * 16 + lane / 4, block.first + warp * 16 + lane / 4 + 8};
    float sums[16][4] = {}, max[2] = {NEVER, NEVER}, sum[2] = {0.0f, 0.0f};
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        block.turn_to(number);
        float x[8][4] = {};
        const bf16* queries = block.queries + (warp * 16 + lane % 16) * block.stride + lane / 16 * 8;
        const bf16* keys = block.key_tile(number) + (lane % 8 + lane / 16 * 8) * block.stride + lane / 8 % 2 * 8;
        #pragma unroll 1
        for (int i = 0; i < p.width(); i += 16) {
            u32 query[4];
            load_tiles(query, queries + i);
            #pragma unroll
            for (int n = 0; n < 8; n += 2) {
                u32 key[4];
                load_tiles(key, keys + n * 8 * block.stride + i);
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
            float high = max[r];
            #pragma unroll
            for (int n = 0; n < 8; n++) high = fmaxf(high, fmaxf(x[n][r * 2], x[n][r * 2 + 1]));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
            // Before a row sees its first key, everything is 0 and not NaN.
            float base = high == NEVER ? 0.0f : high, factor = power<bf16>(max[r] - base);
            max[r] = high, sum[r] *= factor;
            #pragma unroll
            for (int n = 0; n < 8; n++) {
                sum[r] += x[n][r * 2] = power<bf16>(x[n][r * 2] - base);
                sum[r] += x[n][r * 2 + 1] = power<bf16>(x[n][r * 2 + 1] - base);
            }
            #pragma unroll
            for (int n = 0; n < 16; n++) sums[n][r * 2] *= factor, sums[n][r * 2 + 1] *= factor;
        }
        const bf16* values = block.value_tile(number) + lane % 16 * block.value_stride + lane / 16 * 8;
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
                load_tiles_transposed(value, values + step * 16 * block.value_stride + n * 8);
                multiply_add(sums[n], weight, value[0], value[1]);
                multiply_add(sums[n + 1], weight, value[2], value[3]);
            }
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
        if (s[r] >= p.tokens) continue;
        long long at = ((long long)block.b * p.tokens + s[r]) * p.heads + block.h;
        float share = max[r] == NEVER ? 0.0f : 1.0f / sum[r];
        #pragma unroll
        for (int n = 0; n < 16; n++) {
            if (n * 8 + column >= p.value) break;
            u32 pair = pack_bf16(sums[n][r * 2] * share, sums[n][r * 2 + 1] * share);
            *(u32*)(p.out + at * p.value + n * 8 + column) = pair;
        }
        if (column == 0) p.lse[at] = max[r] == NEVER ? NEVER : max[r] + logf(sum[r]);
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
    float sums[4][2][4] = {}, max[4] = {NEVER, NEVER, NEVER, NEVER}, sum[4] = {};
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        block.turn_to(number);
        float x[4][2] = {};
        const float* queries = block.queries + group * block.stride;
        const float* keys = block.key_tile(number) + part * block.stride;
        #pragma unroll 1
        for (int c = 0; c < p.width(); c += 4) {
            float query[4][4], key[2][4];
            #pragma unroll
            for (int i = 0; i < 4; i++) load_pack(queries + i * groups * block.stride + c, query[i]);
            #pragma unroll
            for (int j = 0; j < 2; j++) load_pack(keys + j * 16 * block.stride + c, key[j]);
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 2; j++)
                    #pragma unroll
                    for (int k = 0; k < 4; k++) x[i][j] += query[i][k] * key[j][k];
        }
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = min(block.first + group + i * groups, p.tokens - 1);
            float high = max[i];
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                int t = number * KEYS_F32 + part + j * 16;
                x[i][j] *= p.scale;
                if (t >= p.seen(s, block.length)) x[i][j] = NEVER;
                else if (p.mask) x[i][j] = masked(x[i][j], p.mask_row(block.b, s)[t]);
                high = fmaxf(high, x[i][j]);
            }
            #pragma unroll
            for (int step = 8; step > 0; step /= 2) high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, step));
            float base = high == NEVER ? 0.0f : high, factor = power<float>(max[i] - base);
            max[i] = high, sum[i] *= factor;
            #pragma unroll
            for (int j = 0; j < 2; j++)
                sum[i] += weights[(group + i * groups) * WEIGHTS + part + j * 16] = power<float>(x[i][j] - base);
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
        #pragma unroll
        for (int step = 8; step > 0; step /= 2) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], step);
        int s = block.first + group + i * groups;
        if (s >= p.tokens) continue;
        long long at = ((long long)block.b * p.tokens + s) * p.heads + block.h;
        #pragma unroll
        for (int j = 0; j < 2; j++) {
            int column = part * 4 + j * 64;
            float* to = p.out + at * p.value + column;
            #pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = max[i] == NEVER ? 0.0f : sums[i][j][k] / sum[i];
            if (column + 4 <= p.value && packs(to, 0)) {
                store_pack(to, sums[i][j]);
            } else {
                #pragma unroll
                for (int k = 0; k < 4; k++)
                    if (column + k < p.value) to[k] = sums[i][j][k];
            }
        }
        if (part == 0) p.lse[at] = max[i] == NEVER ? NEVER : max[i] + logf(sum[i]);
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

// Multi-head latent attention for new tokens of sequences whose latents are in a paged cache (paper 2.1.2, eq. 46 with
// W^UK absorbed into the query: all heads share one key of width c + r, whose first c numbers are the value too).
//
//   x_t = (q_latent . latent_t + q_pe . k_pe_t) * scale + mask_t        for the keys t that the query sees
//   out = sum_t softmax(x)_t latent_t,    lse = log sum_t exp(x_t)      (natural logarithm)
//
// q_latent [B,S,H,c], q_pe [B,S,H,r] (rows anywhere), cache [pages,page_size,c+r], block_table [B,max_pages]; key t of
// sequence b is slot t % page_size of page block_table[b][t / page_size]. lengths[b] counts all keys, the S new ones
// too: query s sees t < lengths[b] - S + s + 1; with a mask [B,S,T], all t < lengths[b] that it does not forbid. A
// query that sees nothing gives out = 0, lse = -inf.
//
// Context is split every SPLIT keys, counted from the sequence's start, and the splits' results are added in their
// order: what a sequence gets depends on nothing but itself.
//
// Bytes: B T (c+r) sizeof(T) for each tile of rows (16, or 64), and 4 (c+2) B S H for each split, written and read.
// Flops: 2 B S H T (2c+r).
//
// The ladder, and what each step changes:
//   naive        a warp for each row (a token and a head) reads all keys of its sequence and keeps its scores in memory
//   tuned bf16   16 or 64 rows share each tile of keys in shared memory; softmax goes along with the tiles, so that
//                no score is stored; the splits of the context are blocks of their own; tensor cores
//   tuned f32    the same with 16 rows and fused multiply-adds
//   combine      adds up the splits of the tuned kernels, many at once
#include "mla_decode.cuh"

// ---- naive: a warp for each row; scores, then weights, are kept in the workspace [B,S,H,capacity] ----

template <typename T> __device__ void naive(const Problem<T>& p) {
    int at = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (at >= p.batch * p.rows()) return;
    int lane = threadIdx.x % WARP, b = at / p.rows(), row = at % p.rows(), length = p.lengths[b];
    const T *q_latent = p.query(b, row), *q_pe = p.query_pe(b, row);
    float *weights = p.workspace + p.capacity() * at, max = NEVER;
    #pragma unroll 1
    for (int t = 0; t < length; t++) {
        const T* key = p.key(b, t);
        float product = 0.0f;
        #pragma unroll 1
        for (int i = lane; i < p.latent; i += WARP) product += to_float(q_latent[i]) * to_float(key[i]);
        #pragma unroll 1
        for (int i = lane; i < p.rope; i += WARP) product += to_float(q_pe[i]) * to_float(key[p.latent + i]);
        float x = p.weigh(warp_sum(product), b, row / p.heads, t, length);
        if (lane == 0) weights[t] = x;
        max = fmaxf(max, x);
    }
    if (max == NEVER) length = 0;
    __syncwarp();
    float sum = 0.0f;
    #pragma unroll 1
    for (int t = lane; t < length; t += WARP) sum += weights[t] = expf(weights[t] - max);
    sum = warp_sum(sum);
    __syncwarp();
    #pragma unroll 1
    for (int i = lane; i < p.latent; i += WARP) {
        float total = sum_in_runs(length, [&](int t) { return weights[t] * to_float(p.key(b, t)[i]); });
        p.out[(long long)at * p.latent + i] = from_float<T>(length > 0 ? total / sum : 0.0f);
    }
    if (lane == 0) p.lse[at] = length > 0 ? max + logf(sum) : NEVER;
}

// ---- tuned: a block for a split of a sequence and a tile of rows, which share each tile of keys in shared memory ----

extern __shared__ __align__(16) unsigned char dynamic[];

// bf16: 16 rows, or 64 where there are many; four warps for every 16. Of a tile of 32 keys each of the four multiplies
// 8 keys with the queries, and then, once all scores are there, the weights with a quarter of the columns.
const int KEYS = 32;
// Rows of scores: four in a row of 32 banks, so that pairs of neighbours are read and written without conflicts.
const int SCORES = KEYS + 8;

__device__ void tuned(const Problem<bf16>& p) {
    __shared__ long long slots[SPLIT];
    Block<bf16, KEYS> block = {p};
    // Whole steps of 64 columns; the 8 more put neighbouring rows into different banks.
    int stride = (p.width() + 63) / 64 * 64 + 8;
    if (!begin(block, stride, (bf16*)dynamic, slots)) return;
    float* scores = (float*)(block.queries + block.rows() * stride);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = warp / 4, quarter = warp % 4;
    // This thread's two rows (g and g + 8 of its group's 16) and first of two columns of every 8.
    int row[2] = {group * 16 + lane / 4, group * 16 + lane / 4 + 8}, column = lane % 4 * 2, token[2];
    #pragma unroll
    for (int r = 0; r < 2; r++) token[r] = min(block.first_row + row[r], p.rows() - 1) / p.heads;
    float sums[16][4] = {};
    Softmax<bf16> softmax[2];
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        turn_to(block, number);
        const bf16* tile = block.tile(number);

        // Four chains of products, so that one need not wait for the one before.
        float products[4][4] = {};
        u32 queries = shared_address(block.queries + (group * 16 + lane % 16) * stride + lane / 16 * 8);
        u32 keys = shared_address(tile + (quarter * 8 + lane % 8) * stride + lane / 8 * 8);
        #pragma unroll 3
        for (int i = 0; i < p.width(); i += 64, queries += 128, keys += 128) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 key[4], query[4];
                load_tiles(key, keys + half * 64);
                load_tiles(query, queries + half * 64);
                multiply_add(products[half * 2], query, key[0], key[1]);
                load_tiles(query, queries + half * 64 + 32);
                multiply_add(products[half * 2 + 1], query, key[2], key[3]);
            }
        }
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            float x[2];
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                int i = r * 2 + j, t = block.start + number * KEYS + quarter * 8 + column + j;
                float product = (products[0][i] + products[1][i]) + (products[2][i] + products[3][i]);
                x[j] = p.weigh(product, block.b, token[r], t, block.length);
            }
            *(float2*)(scores + row[r] * SCORES + quarter * 8 + column) = make_float2(x[0], x[1]);
        }
        __syncthreads();

        // Each of the four warps makes all weights of the group, in the form in which mma takes them.
        u32 weights[2][4];
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            float x[8], high = softmax[r].max;
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 pair = *(const float2*)(scores + row[r] * SCORES + i * 8 + column);
                x[i * 2] = pair.x, x[i * 2 + 1] = pair.y;
                high = fmaxf(high, fmaxf(pair.x, pair.y));
            }
            float factor = softmax[r].raise_to(quad_max(high));
            #pragma unroll
            for (int i = 0; i < 8; i++) x[i] = softmax[r].weigh(x[i]);
            #pragma unroll
            for (int i = 0; i < 4; i++) weights[i / 2][i % 2 * 2 + r] = pack_bf16(x[i * 2], x[i * 2 + 1]);
            // Once the largest score was there, nothing changes any more: most tiles.
            if (__any_sync(ALL_LANES, factor != 1.0f)) {
                #pragma unroll
                for (int n = 0; n < 16; n++) sums[n][r * 2] *= factor, sums[n][r * 2 + 1] *= factor;
            }
        }
        u32 values = shared_address(tile + lane % 16 * stride + quarter * (MAX_LATENT / 4) + lane / 16 * 8);
        #pragma unroll
        for (int n = 0; n < 16; n += 2) {
            if (quarter * (MAX_LATENT / 4) + n * 8 >= p.latent) break;
            #pragma unroll
            for (int step = 0; step < 2; step++) {
                u32 value[4];
                load_tiles_transposed(value, values + (step * 16 * stride + n * 8) * 2);
                multiply_add(sums[n], weights[step], value[0], value[1]);
                multiply_add(sums[n + 1], weights[step], value[2], value[3]);
            }
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = quad_sum(softmax[r].sum);
        if (block.first_row + row[r] >= p.rows()) continue;
        long long part = p.part(block.b, block.split, block.first_row + row[r]);
        float* to = p.part_sums(part);
        #pragma unroll
        for (int n = 0; n < 16; n++) {
            int at = quarter * (MAX_LATENT / 4) + n * 8 + column;
            if (at < p.padded()) *(float2*)(to + at) = make_float2(sums[n][r * 2], sums[n][r * 2 + 1]);
        }
        if (quarter == 0 && column == 0) p.part_scale(part)[0] = softmax[r].max, p.part_scale(part)[1] = sum;
    }
}

// f32: four warps, 16 rows, tiles of 16 keys. Each warp multiplies every fourth pack of columns; 8 threads for each row
// add the four parts and make the weights; then each thread multiplies them with 4 columns.
const int ROWS_F32 = 16, KEYS_F32 = 16;
// Rows of these many floats: what a warp writes or reads at once is in different banks.
const int PARTS = KEYS_F32 + 8, WEIGHTS = ROWS_F32 + 4;

__device__ void tuned(const Problem<float>& p) {
    __shared__ long long slots[SPLIT];
    __shared__ float parts[4][ROWS_F32 * PARTS];
    __shared__ __align__(16) float weights[KEYS_F32 * WEIGHTS];
    __shared__ float factors[ROWS_F32];
    Block<float, KEYS_F32> block = {p};
    // An odd number of packs, so that neighbouring rows are in different banks.
    int stride = (p.width() + 3) / 4 * 4 + ((p.width() + 3) / 4 % 2 == 0 ? 4 : 0);
    if (!begin(block, stride, (float*)dynamic, slots)) return;

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row = threadIdx.x / 8, eighth = threadIdx.x % 8, column = threadIdx.x * 4;
    int token = min(block.first_row + row, p.rows() - 1) / p.heads;
    float sums[ROWS_F32][4] = {};
    Softmax<float> softmax;
    #pragma unroll 1
    for (int number = 0; block.has(number); number++) {
        turn_to(block, number);
        const float* tile = block.tile(number);

        // This thread: rows lane / 8 + i * 4, keys lane % 8 + j * 8.
        float products[4][2] = {};
        const float *queries = block.queries + lane / 8 * stride, *keys = tile + lane % 8 * stride;
        #pragma unroll 1
        for (int c = warp * 4; c < p.width(); c += 16)
            add_products(products, queries + c, 4 * stride, keys + c, 8 * stride);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int j = 0; j < 2; j++) parts[warp][(lane / 8 + i * 4) * PARTS + lane % 8 + j * 8] = products[i][j];
        __syncthreads();

        float x[2], high = softmax.max;
        #pragma unroll
        for (int j = 0; j < 2; j++) {
            int at = row * PARTS + eighth + j * 8, t = block.start + number * KEYS_F32 + eighth + j * 8;
            float product = (parts[0][at] + parts[1][at]) + (parts[2][at] + parts[3][at]);
            x[j] = p.weigh(product, block.b, token, t, block.length);
            high = fmaxf(high, x[j]);
        }
        float factor = softmax.raise_to(warp_max<8>(high));
        #pragma unroll
        for (int j = 0; j < 2; j++) weights[(eighth + j * 8) * WEIGHTS + row] = softmax.weigh(x[j]);
        if (eighth == 0) factors[row] = factor;
        __syncthreads();

        if (column < p.latent) {
            #pragma unroll
            for (int i = 0; i < ROWS_F32; i++)
                #pragma unroll
                for (int k = 0; k < 4; k++) sums[i][k] *= factors[i];
            #pragma unroll 2
            for (int key = 0; key < KEYS_F32; key++) {
                float value[4], weight[4];
                load_pack(tile + key * stride + column, value);
                #pragma unroll
                for (int i = 0; i < ROWS_F32; i++) {
                    if (i % 4 == 0) load_pack(weights + key * WEIGHTS + i, weight);
                    #pragma unroll
                    for (int k = 0; k < 4; k++) sums[i][k] += weight[i % 4] * value[k];
                }
            }
        }
    }
    float sum = warp_sum<8>(softmax.sum);
    if (eighth == 0 && block.first_row + row < p.rows()) {
        float* to = p.part_scale(p.part(block.b, block.split, block.first_row + row));
        to[0] = softmax.max, to[1] = sum;
    }
    #pragma unroll
    for (int i = 0; i < ROWS_F32; i++) {
        if (block.first_row + i >= p.rows()) break;
        float* to = p.part_sums(p.part(block.b, block.split, block.first_row + i)) + column;
        if (column < p.latent) store_pack(to, sums[i]);
    }
}

// The splits of a row, added up from the first to the last: a block for each row. Of 128 splits at a time each thread makes
// one weight; then each adds up the sums of 4 columns, 8 splits under way at once: the longest chain of loads that wait for
// each other is that of the lengths and the scales, and then one for every 8 splits.
template <typename T> __device__ void combine(const Problem<T>& p) {
    __shared__ float partial[THREADS / WARP];
    __shared__ float weights[THREADS];
    int row = blockIdx.x, b = blockIdx.y, column = threadIdx.x * 4;
    int splits = (max(p.lengths[b], 0) + SPLIT - 1) / SPLIT;
    float high = NEVER;
    #pragma unroll 1
    for (int split = threadIdx.x; split < splits; split += THREADS)
        high = fmaxf(high, p.part_scale(p.part(b, split, row))[0]);
    high = warp_max(high);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = high;
    __syncthreads();
    #pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) high = fmaxf(high, partial[warp]);

    float base = base_of(high), sums[4] = {}, sum = 0.0f;
    #pragma unroll 1
    for (int first = 0; first < splits; first += THREADS) {
        int count = min(THREADS, splits - first);
        // Nobody reads the weights before these any more, and nobody the maxima.
        __syncthreads();
        if (threadIdx.x < count) {
            const float* scale = p.part_scale(p.part(b, first + threadIdx.x, row));
            float weight = power<T>(scale[0] - base);
            weights[threadIdx.x] = weight;
            sum += weight * scale[1];
        }
        __syncthreads();
        if (column >= p.latent) continue;
        long long step = (long long)p.rows() * p.padded();
        const float* from = p.part_sums(p.part(b, first, row)) + column;
        int split = 0;
        #pragma unroll 1
        for (; split + 8 <= count; split += 8) {
            float part[8][4];
            #pragma unroll
            for (int i = 0; i < 8; i++) load_pack(from + (split + i) * step, part[i]);
            #pragma unroll
            for (int i = 0; i < 8; i++)
                #pragma unroll
                for (int k = 0; k < 4; k++) sums[k] += weights[split + i] * part[i][k];
        }
        #pragma unroll 1
        for (; split < count; split++) {
            float part[4];
            load_pack(from + split * step, part);
            #pragma unroll
            for (int k = 0; k < 4; k++) sums[k] += weights[split] * part[k];
        }
    }
    __syncthreads();
    sum = block_sum<THREADS>(sum, partial);
    long long at = (long long)b * p.rows() + row;
    #pragma unroll
    for (int k = 0; k < 4; k++) sums[k] = high == NEVER ? 0.0f : sums[k] / sum;
    T* out = p.out + at * p.latent + column;
    if (column + 4 <= p.latent && p.latent % 4 == 0) {
        if (sizeof(T) == 4) store_pack((float*)out, sums);
        else *(uint2*)out = make_uint2(pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]));
    } else {
        #pragma unroll
        for (int k = 0; k < 4; k++)
            if (column + k < p.latent) out[k] = from_float<T>(sums[k]);
    }
    if (threadIdx.x == 0) p.lse[at] = log_sum(high, sum);
}

#define ENTRY(NAME, LAUNCHED, T, FUNCTION)                                                                            \
    KERNEL(LAUNCHED) NAME(const T* q_latent, long long latent_batch, long long latent_token, long long latent_head,   \
                          const T* q_pe, long long pe_batch, long long pe_token, long long pe_head, const T* cache,   \
                          const int* block_table, const int* lengths, const float* mask, long long mask_batch,        \
                          long long mask_token, float scale, int batch, int tokens, int heads, int latent, int rope,  \
                          int max_pages, int page_size, float* workspace, T* out, float* lse) {                       \
        FUNCTION(Problem<T>{q_latent, latent_batch, latent_token, latent_head, q_pe, pe_batch, pe_token, pe_head,     \
                            cache, block_table, lengths, mask, mask_batch, mask_token, scale, batch, tokens, heads,   \
                            latent, rope, max_pages, page_size, workspace, out, lse});                                \
    }

ENTRY(mla_decode_naive_f32, THREADS, float, naive)
ENTRY(mla_decode_naive_bf16, THREADS, bf16, naive)
ENTRY(mla_decode_tuned_f32, THREADS, float, tuned)
ENTRY(mla_decode_tuned_bf16, 4 * THREADS, bf16, tuned)
ENTRY(mla_decode_combine_f32, THREADS, float, combine)
ENTRY(mla_decode_combine_bf16, THREADS, bf16, combine)

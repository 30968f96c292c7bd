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
#include "attention.cuh"

const int SPLIT = 256;
// Columns of the output that the tuned kernels hold, and threads that hold them.
const int MAX_LATENT = 512;
const int THREADS = 128;

template <typename T> struct Problem {
    const T* q_latent;
    long long latent_batch, latent_token, latent_head;
    const T* q_pe;
    long long pe_batch, pe_token, pe_head;
    const T* cache;
    const int* block_table;
    const int* lengths;
    const float* mask;
    long long mask_batch, mask_token;
    float scale;
    int batch, tokens, heads, latent, rope, max_pages, page_size;
    float* workspace;
    T* out;
    float* lse;

    // A row is a token and a head: row = token * heads + head.
    __device__ __forceinline__ int rows() const { return tokens * heads; }
    __device__ __forceinline__ int width() const { return latent + rope; }
    __device__ __forceinline__ long long capacity() const { return (long long)max_pages * page_size; }
    __device__ __forceinline__ const T* query(int b, int row) const {
        return q_latent + b * latent_batch + row / heads * latent_token + row % heads * latent_head;
    }
    __device__ __forceinline__ const T* query_pe(int b, int row) const {
        return q_pe + b * pe_batch + row / heads * pe_token + row % heads * pe_head;
    }
    __device__ __forceinline__ const T* key(int b, int t) const {
        long long page = block_table[(long long)b * max_pages + t / page_size];
        return cache + (page * page_size + t % page_size) * width();
    }
    // x_t of a product of query and key.
    __device__ __forceinline__ float weigh(float product, int b, int token, int t, int length) const {
        if (t >= (mask ? length : length - tokens + token + 1)) return NEVER;
        float bias = mask ? mask[b * mask_batch + token * mask_token + t] : 0.0f;
        return bias <= FORBIDDEN ? NEVER : product * scale + bias;
    }

    // The result of a split for a row: the largest x and the sum of all exp(x - largest); and the sums of the latents
    // with these weights. They take whole packs, so that a kernel need not look where a row ends.
    __device__ __forceinline__ long long splits() const { return (capacity() + SPLIT - 1) / SPLIT; }
    __device__ __forceinline__ long long part(int b, int split, int row) const {
        return (b * splits() + split) * rows() + row;
    }
    __device__ __forceinline__ float* part_sums(long long part) const { return workspace + part * padded(); }
    __device__ __forceinline__ float* part_scale(long long part) const {
        return workspace + batch * splits() * rows() * padded() + part * 2;
    }
    __device__ __forceinline__ int padded() const { return (latent + 3) / 4 * 4; }
};

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
        float total = 0.0f;
        #pragma unroll 1
        for (int start = 0; start < length; start += RUN) {
            float run = 0.0f;
            #pragma unroll 1
            for (int t = start; t < min(start + RUN, length); t++) run += weights[t] * to_float(p.key(b, t)[i]);
            total += run;
        }
        p.out[(long long)at * p.latent + i] = from_float<T>(length > 0 ? total / sum : 0.0f);
    }
    if (lane == 0) p.lse[at] = length > 0 ? max + logf(sum) : NEVER;
}

// ---- tuned: a block for a split of a sequence and a tile of rows, which share each tile of keys in shared memory ----

// A warp copies a row of the cache or of a query, or zeros; asynchronously if it can be read 16 bytes at once.
template <typename T>
__device__ __forceinline__ void copy_row(T* shared, const T* global, int width, bool there, bool packed) {
    int lane = threadIdx.x % WARP;
    if (packed) {
        #pragma unroll 1
        for (int i = lane * Pack<T>::SIZE; i < width; i += WARP * Pack<T>::SIZE)
            copy_async(shared + i, global + i, there);
    } else {
        #pragma unroll 1
        for (int i = lane; i < width; i += WARP) shared[i] = there ? global[i] : from_float<T>(0.0f);
    }
}

// What the tuned kernels have in common: a block's place in the problem, and its shared memory, where a row of width
// numbers takes `stride`. Columns from `width` on are zero. There are 8 threads for each row.
template <typename T, int KEYS> struct Block {
    const Problem<T>& p;
    const long long* slots;
    T *tiles, *queries;
    int stride, b, split, first_row, start, end, length;

    __device__ __forceinline__ int rows() const { return blockDim.x / 8; }
    __device__ __forceinline__ T* tile(int number) const { return tiles + number % 2 * KEYS * stride; }

    // Where the split's keys are in the cache; each is looked up once. There are none from `end` on.
    __device__ __forceinline__ void find_keys(long long* found) {
        #pragma unroll 1
        for (int i = threadIdx.x; i < end - start; i += blockDim.x) found[i] = p.key(b, start + i) - p.cache;
        slots = found;
    }
    __device__ __forceinline__ void clear_padding() const {
        int padding = stride - p.width();
        #pragma unroll 1
        for (int i = threadIdx.x; i < (2 * KEYS + rows()) * padding; i += blockDim.x)
            tiles[i / padding * stride + p.width() + i % padding] = from_float<T>(0.0f);
    }
    __device__ __forceinline__ void load_queries() const {
        #pragma unroll 1
        for (int i = threadIdx.x / WARP; i < rows(); i += blockDim.x / WARP) {
            bool there = first_row + i < p.rows();
            int row = there ? first_row + i : 0;
            const T *latent = p.query(b, row), *pe = p.query_pe(b, row);
            copy_row(queries + i * stride, latent, p.latent, there, packs(latent, p.latent));
            bool packed = packs(pe, p.rope) && packs(queries + i * stride, p.latent);
            copy_row(queries + i * stride + p.latent, pe, p.rope, there, packed);
        }
    }
    __device__ __forceinline__ void load_tile(int number) const {
        bool packed = packs(p.cache, p.width());
        #pragma unroll 1
        for (int i = threadIdx.x / WARP; i < KEYS; i += blockDim.x / WARP) {
            int key = number * KEYS + i;
            bool there = start + key < end;
            copy_row(tile(number) + i * stride, p.cache + (there ? slots[key] : 0), p.width(), there, packed);
        }
        commit_copies();
    }
};

// A block's part of the problem, or false if the sequence ends before it.
template <typename T, int KEYS>
__device__ __forceinline__ bool begin(Block<T, KEYS>& block, int stride, T* shared, long long* slots) {
    block.b = blockIdx.z, block.split = blockIdx.y, block.first_row = blockIdx.x * block.rows();
    block.length = block.p.lengths[block.b];
    block.start = block.split * SPLIT, block.end = min(block.start + SPLIT, block.length);
    if (block.start >= block.length) return false;
    block.stride = stride, block.tiles = shared, block.queries = shared + 2 * KEYS * stride;
    block.find_keys(slots);
    block.clear_padding();
    block.load_queries();
    __syncthreads();
    block.load_tile(0);
    return true;
}

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
    int row[2] = {group * 16 + lane / 4, group * 16 + lane / 4 + 8}, column = lane % 4 * 2;
    float sums[16][4] = {}, max[2] = {NEVER, NEVER}, sum[2] = {0.0f, 0.0f};
    #pragma unroll 1
    for (int number = 0; number * KEYS < block.end - block.start; number++) {
        wait_copies<0>();
        // Every warp's copies are there, and nobody reads the other tile any more.
        __syncthreads();
        if ((number + 1) * KEYS < block.end - block.start) block.load_tile(number + 1);
        const bf16* tile = block.tile(number);

        // Four chains of products, so that one need not wait for the one before.
        float products[4][4] = {};
        const bf16* queries = block.queries + (group * 16 + lane % 16) * stride + lane / 16 * 8;
        const bf16* keys = tile + (quarter * 8 + lane % 8) * stride + lane / 8 * 8;
        #pragma unroll 1
        for (int i = 0; i < p.width(); i += 64) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 key[4], query[4];
                load_tiles(key, keys + i + half * 32);
                load_tiles(query, queries + i + half * 32);
                multiply_add(products[half * 2], query, key[0], key[1]);
                load_tiles(query, queries + i + half * 32 + 16);
                multiply_add(products[half * 2 + 1], query, key[2], key[3]);
            }
        }
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            int token = min(block.first_row + row[r], p.rows() - 1) / p.heads;
            float x[2];
            #pragma unroll
            for (int j = 0; j < 2; j++) {
                int i = r * 2 + j, t = block.start + number * KEYS + quarter * 8 + column + j;
                float product = (products[0][i] + products[1][i]) + (products[2][i] + products[3][i]);
                x[j] = p.weigh(product, block.b, token, t, block.length);
            }
            *(float2*)(scores + row[r] * SCORES + quarter * 8 + column) = make_float2(x[0], x[1]);
        }
        __syncthreads();

        // Each of the four warps makes all weights of the group, in the form in which mma takes them.
        u32 weights[2][4];
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            float x[8], high = max[r];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 pair = *(const float2*)(scores + row[r] * SCORES + i * 8 + column);
                x[i * 2] = pair.x, x[i * 2 + 1] = pair.y;
                high = fmaxf(high, fmaxf(pair.x, pair.y));
            }
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
            // Before a row sees its first key, everything is 0 and not NaN.
            float base = high == NEVER ? 0.0f : high, factor = power<bf16>(max[r] - base);
            max[r] = high, sum[r] *= factor;
            #pragma unroll
            for (int i = 0; i < 8; i++) sum[r] += x[i] = power<bf16>(x[i] - base);
            #pragma unroll
            for (int i = 0; i < 4; i++) weights[i / 2][i % 2 * 2 + r] = pack_bf16(x[i * 2], x[i * 2 + 1]);
            #pragma unroll
            for (int n = 0; n < 16; n++) sums[n][r * 2] *= factor, sums[n][r * 2 + 1] *= factor;
        }
        const bf16* values = tile + lane % 16 * stride + quarter * (MAX_LATENT / 4) + lane / 16 * 8;
        #pragma unroll
        for (int n = 0; n < 16; n += 2) {
            if (quarter * (MAX_LATENT / 4) + n * 8 >= p.latent) break;
            #pragma unroll
            for (int step = 0; step < 2; step++) {
                u32 value[4];
                load_tiles_transposed(value, values + step * 16 * stride + n * 8);
                multiply_add(sums[n], weights[step], value[0], value[1]);
                multiply_add(sums[n + 1], weights[step], value[2], value[3]);
            }
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
        if (block.first_row + row[r] >= p.rows()) continue;
        long long part = p.part(block.b, block.split, block.first_row + row[r]);
        float* to = p.part_sums(part);
        #pragma unroll
        for (int n = 0; n < 16; n++) {
            int at = quarter * (MAX_LATENT / 4) + n * 8 + column;
            if (at < p.padded()) *(float2*)(to + at) = make_float2(sums[n][r * 2], sums[n][r * 2 + 1]);
        }
        if (quarter == 0 && column == 0) p.part_scale(part)[0] = max[r], p.part_scale(part)[1] = sum[r];
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
    float sums[ROWS_F32][4] = {}, max = NEVER, sum = 0.0f;
    #pragma unroll 1
    for (int number = 0; number * KEYS_F32 < block.end - block.start; number++) {
        wait_copies<0>();
        __syncthreads();
        if ((number + 1) * KEYS_F32 < block.end - block.start) block.load_tile(number + 1);
        const float* tile = block.tile(number);

        // This thread: rows lane / 8 + i * 4, keys lane % 8 + j * 8.
        float products[4][2] = {};
        const float *queries = block.queries + lane / 8 * stride, *keys = tile + lane % 8 * stride;
        #pragma unroll 1
        for (int c = warp * 4; c < p.width(); c += 16) {
            float query[4][4], key[2][4];
            #pragma unroll
            for (int i = 0; i < 4; i++) load_pack(queries + i * 4 * stride + c, query[i]);
            #pragma unroll
            for (int j = 0; j < 2; j++) load_pack(keys + j * 8 * stride + c, key[j]);
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 2; j++)
                    #pragma unroll
                    for (int k = 0; k < 4; k++) products[i][j] += query[i][k] * key[j][k];
        }
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int j = 0; j < 2; j++) parts[warp][(lane / 8 + i * 4) * PARTS + lane % 8 + j * 8] = products[i][j];
        __syncthreads();

        float x[2], high = max;
        #pragma unroll
        for (int j = 0; j < 2; j++) {
            int at = row * PARTS + eighth + j * 8, t = block.start + number * KEYS_F32 + eighth + j * 8;
            float product = (parts[0][at] + parts[1][at]) + (parts[2][at] + parts[3][at]);
            x[j] = p.weigh(product, block.b, token, t, block.length);
            high = fmaxf(high, x[j]);
        }
        #pragma unroll
        for (int step = 4; step > 0; step /= 2) high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, step));
        float base = high == NEVER ? 0.0f : high, factor = power<float>(max - base);
        max = high, sum *= factor;
        #pragma unroll
        for (int j = 0; j < 2; j++) sum += weights[(eighth + j * 8) * WEIGHTS + row] = power<float>(x[j] - base);
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
    #pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (eighth == 0 && block.first_row + row < p.rows()) {
        float* to = p.part_scale(p.part(block.b, block.split, block.first_row + row));
        to[0] = max, to[1] = sum;
    }
    #pragma unroll
    for (int i = 0; i < ROWS_F32; i++) {
        if (block.first_row + i >= p.rows()) break;
        float* to = p.part_sums(p.part(block.b, block.split, block.first_row + i)) + column;
        if (column < p.latent) store_pack(to, sums[i]);
    }
}

// The splits of a row, added up from the first to the last: a block for each row.
template <typename T> __device__ void combine(const Problem<T>& p) {
    int row = blockIdx.x, b = blockIdx.y, splits = (max(p.lengths[b], 0) + SPLIT - 1) / SPLIT;
    float high = NEVER;
    #pragma unroll 1
    for (int split = 0; split < splits; split++) high = fmaxf(high, p.part_scale(p.part(b, split, row))[0]);
    float base = high == NEVER ? 0.0f : high, sums[MAX_LATENT / THREADS] = {}, sum = 0.0f;
    #pragma unroll 1
    for (int split = 0; split < splits; split++) {
        long long part = p.part(b, split, row);
        float weight = power<T>(p.part_scale(part)[0] - base);
        sum += weight * p.part_scale(part)[1];
        #pragma unroll
        for (int k = 0; k < MAX_LATENT / THREADS; k++) {
            int i = k * THREADS + threadIdx.x;
            if (i < p.latent) sums[k] += weight * p.part_sums(part)[i];
        }
    }
    long long at = (long long)b * p.rows() + row;
    #pragma unroll
    for (int k = 0; k < MAX_LATENT / THREADS; k++) {
        int i = k * THREADS + threadIdx.x;
        if (i < p.latent) p.out[at * p.latent + i] = from_float<T>(high == NEVER ? 0.0f : sums[k] / sum);
    }
    if (threadIdx.x == 0) p.lse[at] = high == NEVER ? NEVER : high + logf(sum);
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

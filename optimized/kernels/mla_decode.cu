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
// A sequence's keys are split, in parts which begin and end where the number of heads alone says (`Splits`), and the
// splits' results are added in their order: what a sequence gets depends on nothing but itself.
//
// Bytes: B T (c+r) sizeof(T) for each tile of rows (16, or 64), and 4 (c+2) B S H for each split, written and read, if there
// is more than one (once more for each sum of eight). Flops: 2 B S H T (2c+r).
//
// The ladder, and what each step changes:
//   naive            a warp for each row (a token and a head) reads all keys of its sequence and keeps its scores in memory
//   few_tuned bf16   16 rows share each tile of keys in shared memory; softmax goes along with the tiles, so that no score is
//                    stored; the splits of the context are blocks of their own, and the one that comes last adds them up;
//                    tensor cores; the queries stay in registers
//   tuned bf16       the same with 64 rows, and a warp has twice as many: each key that it loads from shared memory serves both
//   tuned f32        the same with 16 rows and fused multiply-adds
#include "mla_decode_f32.cuh"

// ---- naive: a warp for each row; scores, then weights, are kept in the workspace [B,S,H,capacity] ----

template <typename T> __device__ void naive(const Problem<T>& p) {
    int at = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (at >= p.batch * p.rows()) return;
    int lane = threadIdx.x % WARP, b = at / p.rows(), row = at % p.rows(), length = p.length(b);
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

// bf16: four warps for 16 rows, or for 32. Each of the four adds up a quarter of the columns of a tile's products. Then the four
// parts are added up, by each warp those of 8 keys; and then, once all scores are there, each warp makes all weights and
// multiplies them with a quarter of the columns.
const int KEYS = 32;
// Steps of 16 columns that a warp has at most, and how many of them are done without looking whether there are more.
const int STEPS = MAX_WIDTH / 64, STRIDE_OF_STEPS = 3;
// Bytes of a warp's 16 x 8 products: 16 of each lane.
const int PART = 16 * WARP;

template <int ROWS, int STAGES> __device__ __forceinline__ void tuned(const Problem<bf16>& p) {
    const int TILES = ROWS > 16 ? 2 : 1, BLOCK = ROWS / TILES / 16 * 4 * WARP;
    // Four chains of products, so that one need not wait for the one before.
    const int PAIRS = 2 / TILES;
    // The steps whose queries are in registers.
    const int HELD = TILES == 1 ? STEPS : STEPS - 1;
    // Queries lie in the places of the last tiles until they are in registers.
    const int EARLY = STAGES - (ROWS + KEYS - 1) / KEYS;
    __shared__ float2 scales[ROWS];
    // How many keys a row sees.
    __shared__ int limits[ROWS];
    Block<bf16, ROWS, BLOCK, KEYS, STAGES> block = {p};
    // The 8 more put neighbouring rows into different banks.
    int steps = (p.width() + 64 * STRIDE_OF_STEPS - 1) / (64 * STRIDE_OF_STEPS) * STRIDE_OF_STEPS, stride = steps * 64 + 8;
    if (!block.begin((bf16*)dynamic, stride)) return;

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = warp / 4, quarter = warp % 4;
    // This thread's first row of two (g and g + 8) of every 16, and first of two columns of every 8.
    int row = group * TILES * 16 + lane / 4, column = lane % 4 * 2;
    if (threadIdx.x < ROWS) limits[threadIdx.x] = p.seen(block.token(threadIdx.x), block.length());

    if (p.width() < steps * 64) clear_padding(block.tiles, STAGES * KEYS, p.width(), stride);
    bf16* queries = block.tile(EARLY);
    block.load_queries(queries);
    commit_copies();
    #pragma unroll 1
    for (int i = 0; i < EARLY; i++) {
        block.load_tile(block.start + i * KEYS, i);
        commit_copies();
    }
    wait_copies<EARLY>();
    __syncthreads();
    // Behind the tiles, of each 16 rows, for the warp of each 8 keys: the parts of each warp, of which the first becomes their
    // sum. Then what registers do not hold of the queries.
    u32 parts = shared_address(block.tile(STAGES)) + group * TILES * 16 * PART + lane * 16;
    u32 others = shared_address(block.tile(STAGES)) + (ROWS * PART + warp * (STEPS - HELD) * TILES * PART) + lane * 16;
    u32 query[TILES][HELD][4];
    #pragma unroll
    for (int s = 0; s < STEPS; s++) {
        if (s % STRIDE_OF_STEPS == 0 && s >= steps) break;
        #pragma unroll
        for (int m = 0; m < TILES; m++) {
            int at = ((group * TILES + m) * 16 + lane % 16) * stride + (quarter * steps + s) * 16 + lane / 16 * 8;
            u32 fragment[4];
            load_tiles(fragment, shared_address(queries + at));
            if (s >= HELD) store_shared(others + ((s - HELD) * TILES + m) * PART, fragment);
            #pragma unroll
            for (int i = 0; i < 4; i++)
                if (s < HELD) query[m][s][i] = fragment[i];
        }
    }
    if (EARLY < STAGES - 1) {
        // Nobody reads the queries any more.
        __syncthreads();
        #pragma unroll 1
        for (int i = EARLY; i < STAGES - 1; i++) {
            block.load_tile(block.start + i * KEYS, i);
            commit_copies();
        }
    }

    float sums[TILES][16][4] = {};
    Softmax<bf16> softmax[TILES][2];
    int place = 0;
    #pragma unroll 1
    for (int first = block.start; first < block.end; first += KEYS) {
        // Every thread's copies of the tile are there, and nobody reads the tile before any more: its place is free.
        wait_copies<STAGES - 2>();
        __syncthreads();
        int next = first + (STAGES - 1) * KEYS;
        if (next < block.end) block.load_tile(next, place == 0 ? STAGES - 1 : place - 1);
        commit_copies();
        const bf16* tile = block.tile(place);
        place = place + 1 < STAGES ? place + 1 : 0;

        u32 keys = shared_address(tile + (lane / 16 * 8 + lane % 8) * stride + quarter * steps * 16 + lane / 8 % 2 * 8);
        #pragma unroll
        for (int half = 0; half < 2; half += PAIRS) {
            float products[TILES][PAIRS * 2][4] = {};
            #pragma unroll
            for (int s = 0; s < STEPS; s++) {
                if (s % STRIDE_OF_STEPS == 0 && s >= steps) break;
                #pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
                    u32 key[4];
                    load_tiles(key, keys + (half + pair) * 32 * stride + s * 32);
                    #pragma unroll
                    for (int m = 0; m < TILES; m++) {
                        u32 fragment[4];
                        if (s >= HELD) load_shared(fragment, others + ((s - HELD) * TILES + m) * PART);
                        #pragma unroll
                        for (int i = 0; i < 4; i++)
                            if (s < HELD) fragment[i] = query[m][s][i];
                        multiply_add(products[m][pair * 2], fragment, key[0], key[1]);
                        multiply_add(products[m][pair * 2 + 1], fragment, key[2], key[3]);
                    }
                }
            }
            #pragma unroll
            for (int m = 0; m < TILES; m++)
                #pragma unroll
                for (int j = 0; j < PAIRS * 2; j++)
                    store_shared(parts + ((m * 4 + half * 2 + j) * 4 + quarter) * PART, products[m][j]);
        }
        __syncthreads();
        #pragma unroll
        for (int m = 0; m < TILES; m++) {
            float part[4][4], x[4];
            u32 mine = parts + (m * 4 + quarter) * 4 * PART;
            #pragma unroll
            for (int i = 0; i < 4; i++) load_shared(part[i], mine + i * PART);
            #pragma unroll
            for (int i = 0; i < 4; i++) x[i] = ((part[0][i] + part[1][i]) + (part[2][i] + part[3][i])) * p.scale;
            // The first row sees no more than the others: most tiles are seen by all.
            if (p.mask || first + KEYS > limits[0]) {
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    int at = row + m * 16 + i / 2 * 8, t = first + quarter * 8 + column + i % 2;
                    bool seen = t < limits[at];
                    if (p.mask && seen) x[i] = masked(x[i], p.bias(block.b(), block.token(at), t));
                    if (!seen) x[i] = NEVER;
                }
            }
            store_shared(mine, x);
        }
        __syncthreads();

        // Each of the four warps makes all weights of its rows, in the form in which mma takes them.
        u32 weights[TILES][2][4];
        #pragma unroll
        for (int m = 0; m < TILES; m++) {
            float x[4][4];
            #pragma unroll
            for (int i = 0; i < 4; i++) load_shared(x[i], parts + (m * 4 + i) * 4 * PART);
            #pragma unroll
            for (int r = 0; r < 2; r++) {
                float high = softmax[m][r].max;
                #pragma unroll
                for (int i = 0; i < 4; i++) high = fmaxf(high, fmaxf(x[i][r * 2], x[i][r * 2 + 1]));
                float factor = softmax[m][r].raise_to(quad_max(high));
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    float first = softmax[m][r].weigh(x[i][r * 2]), second = softmax[m][r].weigh(x[i][r * 2 + 1]);
                    weights[m][i / 2][i % 2 * 2 + r] = pack_bf16(first, second);
                }
                // Once the largest score was there, nothing changes any more: most tiles.
                if (__any_sync(ALL_LANES, factor != 1.0f)) {
                    #pragma unroll
                    for (int n = 0; n < 16; n++) sums[m][n][r * 2] *= factor, sums[m][n][r * 2 + 1] *= factor;
                }
            }
        }
        u32 values = shared_address(tile + lane % 16 * stride + quarter * (MAX_LATENT / 4) + lane / 16 * 8);
        #pragma unroll
        for (int n = 0; n < 16; n += 2) {
            // A row of a tile has whole steps of 64 columns.
            if (n % 8 == 0 && quarter * (MAX_LATENT / 4) + n * 8 >= p.latent) break;
            #pragma unroll
            for (int step = 0; step < 2; step++) {
                u32 value[4];
                load_tiles_transposed(value, values + (step * 16 * stride + n * 8) * 2);
                #pragma unroll
                for (int m = 0; m < TILES; m++) {
                    multiply_add(sums[m][n], weights[m][step], value[0], value[1]);
                    multiply_add(sums[m][n + 1], weights[m][step], value[2], value[3]);
                }
            }
        }
    }
    // Nobody reads a tile or the queries any more, and no copy is on its way.
    wait_copies<0>();
    __syncthreads();
    float* rows = (float*)dynamic;
    const int PITCH = decltype(block)::PITCH;
    #pragma unroll
    for (int m = 0; m < TILES; m++) {
        #pragma unroll
        for (int n = 0; n < 16; n++)
            store_fragment(rows, PITCH, (group * TILES + m) * 16, quarter * (MAX_LATENT / 4) + n * 8, sums[m][n]);
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = quad_sum(softmax[m][r].sum);
            if (quarter == 0 && column == 0) scales[row + m * 16 + r * 8] = make_float2(softmax[m][r].max, sum);
        }
    }
    block.give(rows, scales);
}

#define ENTRY(NAME, LAUNCHED, T, FUNCTION)                                                                            \
    KERNEL(LAUNCHED) NAME(const T* q_latent, long long latent_batch, long long latent_token, long long latent_head,   \
                          const T* q_pe, long long pe_batch, long long pe_token, long long pe_head, const T* cache,   \
                          const int* block_table, const int* lengths, const float* mask, long long mask_batch,        \
                          long long mask_token, float scale, int batch, int tokens, int heads, int latent, int rope,  \
                          int max_pages, int page_size, int most_splits, float* workspace, u32* arrivals, T* out,     \
                          float* lse) {                                                                               \
        FUNCTION(Problem<T>{q_latent, latent_batch, latent_token, latent_head, q_pe, pe_batch, pe_token, pe_head,     \
                            cache, block_table, lengths, mask, mask_batch, mask_token, scale, batch, tokens, heads,   \
                            latent, rope, max_pages, page_size, most_splits, workspace, arrivals, out, lse});         \
    }

ENTRY(mla_decode_naive_f32, THREADS, float, naive)
ENTRY(mla_decode_naive_bf16, THREADS, bf16, naive)
ENTRY(mla_decode_tuned_f32, THREADS, float, tuned)
ENTRY(mla_decode_tuned_bf16, 256, bf16, (tuned<64, 3>))
// Few rows: more keys on their way.
ENTRY(mla_decode_few_tuned_bf16, 128, bf16, (tuned<16, 4>))

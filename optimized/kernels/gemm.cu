// Matrix products a b^T: linear layers, and products head by head.
//
//   out[g,i,j] = sum over k of a[g,i,k] b[g,j,k]  + bias[j]
//
// a: [G, M, K], b: [G, N, K], out: [G, M, N], all with any stride between batches and rows. The elements of a row of a
// and out are neighbours. Of b they may be neighbours along K ("rows": a weight as it is stored) or along N ("columns":
// b is stored [G, K, N], as query absorption has it: q [H, N, n] times W_UK [H, n, c]). Everything is summed in fp32,
// and rounded once.
//
// A sum over K is made of runs of 128 bytes of a row (64 bf16, 32 floats), and of stretches of 8 runs. A run is summed on
// its own, in the order of k; the runs of a stretch are added in their order; the stretches in theirs. Neither the tile, nor its
// place, nor the way it was copied, nor how many blocks share a sum changes this: a row's result does not depend on what
// else is in the batch. And the error stays small where thousands of terms are summed: tensor cores cut off what does not
// fit into a sum instead of rounding it, so that one sum over all of K drifts towards zero.
//
// Bytes: (M K + N K) sizeof(T) + M N sizeof(out) if each element is read once; a tile of BM x BN reads a N / BN times
// and b M / BM times, from the L2 cache where it can. Flops: 2 M N K for each g. Where blocks share sums, 8 bytes more for
// each element of a tile and stretch.
//
// The ladder, and what each step changes:
//   naive        a thread for each result; a is read N times and b M times
//   tuned_f32    a block for a tile of results: both factors go through shared memory, copied ahead of the work
//   tuned_bf16   larger tiles, multiplied by tensor cores
//   few_tuned    small tiles and more copies under way, for the few rows of decoding
//   split        (of any tuned kernel) several blocks share the sums of a tile where its tiles are too few for the GPU
#include "tile.cuh"

// Strides are in elements. One of b_n and b_k is 1. `bias` may be null. `out` is of floats or of T.
template <typename T> struct Product {
    const T *a, *b, *bias;
    void* out;
    long long a_batch, a_row, b_batch, b_n, b_k, out_batch, out_row;
    int out_is_float, m, n, k;
    // How many blocks share the sums of a tile. If there is one, the others are null: places for the sums of each tile's
    // stretches, and for how many of its blocks are done, which is zero before and after.
    int splits;
    float4* parts;
    u32* arrivals;
};

// How many runs a stretch has.
const int STRETCH = 8;

// ---- naive: a thread for each result, a grid of (M N / 128, G) ----

template <typename T> __device__ void naive(const Product<T>& p) {
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)p.m * p.n) return;
    long long i = index / p.n, j = index % p.n;
    const T* a = p.a + blockIdx.y * p.a_batch + i * p.a_row;
    const T* b = p.b + blockIdx.y * p.b_batch + j * p.b_n;
    float sum = sum_in_runs(p.k, [&](int k) { return to_float(a[k]) * to_float(b[k * p.b_k]); });
    if (p.bias) sum += to_float(p.bias[j]);
    long long at = blockIdx.y * p.out_batch + i * p.out_row + j;
    if (p.out_is_float) ((float*)p.out)[at] = sum;
    else ((bf16*)p.out)[at] = from_float<bf16>(sum);
}

// ---- tuned: a block for each tile of BM x BN results, a grid of (M / BM, N / BN, G splits), 2 BN threads ----

// Tiles of both factors, one run deep, are copied STAGES - 1 ahead of the multiplication. Blocks that share rows of b
// are neighbours, so that a weight comes from DRAM once.
//
//                 tile           stages   shared   registers   blocks on an A100's multiprocessor (164 KB)
//   tuned_f32     32 x 64 x 32   4        48 KB    64          3: shared memory
//   tuned_bf16    128 x 64 x 64  3        72 KB    166         2: shared memory
//   few_.._bf16   16 x 32 x 64   6        36 KB    48          4: shared memory; 80 KB of weights under way
//
// Where rows are aligned the emulator counts no bank conflict and no sector that is not needed. tuned_bf16 asks the L2
// cache for a byte every 43 flops, and issues 6.7 instructions (of PTX) for each mma, 0.4 of them ldmatrix: less than
// the 8 cycles that an A100's tensor core takes for it.

// Copies a tile of ROWS rows of CHUNKS times 16 bytes. The matrix ends after `rows` and `columns`; there are zeros
// behind.
template <typename T, u32 ROWS, u32 CHUNKS, u32 THREADS>
__device__ __forceinline__ void copy_tile(char* tile, const T* from, long long stride, int rows, int columns,
                                          bool packed) {
    const u32 SIZE = Pack<T>::SIZE;
    // Rows that begin at multiples of 16 bytes. A thread's rows are a multiple of 8 apart: `swizzle` orders them alike.
    if (packed) {
        const u32 STEP = THREADS / CHUNKS;
        static_assert(STEP % 8 == 0 && ROWS % STEP == 0);
        u32 row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * SIZE;
        u32 to = shared_address(tile + chunk_offset<CHUNKS>(row, column / SIZE));
        int bytes = min(max(columns - (int)column, 0), (int)SIZE) * (int)sizeof(T);
        from += row * stride + column;
        #pragma unroll
        for (u32 i = 0; i < ROWS; i += STEP, from += STEP * stride)
            copy_async(to + i * CHUNKS * 16, from, (int)(i + row) < rows ? bytes : 0);
        return;
    }
    // Others: element by element, neighbours by neighbouring threads.
    #pragma unroll 1
    for (u32 index = threadIdx.x; index < ROWS * CHUNKS * SIZE; index += THREADS) {
        u32 row = index / (CHUNKS * SIZE), column = index % (CHUNKS * SIZE);
        bool there = (int)row < rows && (int)column < columns;
        T x = there ? from[row * stride + column] : from_float<T>(0.0f);
        ((T*)(tile + chunk_offset<CHUNKS>(row, column / SIZE)))[column % SIZE] = x;
    }
}

// The sums that a thread keeps of its block's tile.
template <typename T, int BM, int BN, bool COLUMNS> struct Sums;

// fp32: a warp has BM x 16 results, a thread every eighth row of 4 neighbouring columns.
template <int BM, int BN, bool COLUMNS> struct Sums<float, BM, BN, COLUMNS> {
    static const int ROWS = BM / 8;
    // Rows of the finished tile, so far apart that no two threads that write at once meet in a bank.
    static const int PITCH = BN + 4;
    // Of all stretches that have ended, and of this one.
    float sum[ROWS][4] = {}, stretch[ROWS][4] = {};
    // This thread's first 16 bytes in a tile of a and in one of b.
    u32 a_place = chunk_offset<8>(row(), 0), b_place = COLUMNS ? column() * 4 : chunk_offset<8>(column(), 0);

    __device__ __forceinline__ static u32 row() { return threadIdx.x % 8; }
    __device__ __forceinline__ static u32 column() { return threadIdx.x / 8 * 4; }

    __device__ __forceinline__ void multiply(u32 a, u32 b) {
        float run[ROWS][4] = {};
        #pragma unroll 1
        for (u32 chunk = 0; chunk < 8; chunk++) {
            float right[4][4];
            #pragma unroll
            for (u32 x = 0; x < 4; x++) {
                if (COLUMNS) {
                    u32 k = chunk * 4 + x;
                    load_shared(right[x], b + (b_place ^ k % 8 * 16) + k * BN * 4);
                } else {
                    float line[4];
                    load_shared(line, b + (b_place ^ (chunk ^ x) * 16) + x * 128);
                    #pragma unroll
                    for (int k = 0; k < 4; k++) right[k][x] = line[k];
                }
            }
            #pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float left[4];
                load_shared(left, a + (a_place ^ chunk * 16) + i * 8 * 128);
                #pragma unroll
                for (int k = 0; k < 4; k++)
                    #pragma unroll
                    for (int x = 0; x < 4; x++) run[i][x] = fmaf(left[k], right[k][x], run[i][x]);
            }
        }
        #pragma unroll
        for (int i = 0; i < ROWS; i++)
            #pragma unroll
            for (int x = 0; x < 4; x++) stretch[i][x] += run[i][x];
    }

    __device__ __forceinline__ void put(float* tile) const {
        #pragma unroll
        for (int i = 0; i < ROWS; i++) store_pack(tile + (i * 8 + row()) * PITCH + column(), sum[i]);
    }
};

// bf16: tensor cores. A warp has 64 x 32 results of a tile of 128 x 64, or 16 x 16 of one of 16 x 32.
template <int BM, int BN, bool COLUMNS> struct Sums<bf16, BM, BN, COLUMNS> {
    static const int ROWS = BM > 64 ? BM / 2 : BM;
    static const int TILES = ROWS / 16, PAIRS = BN / 2 / 16;
    static const int PITCH = BN + 8;
    // As above; the fragments of a row of tiles one after another.
    float sum[TILES * 2 * PAIRS][4] = {}, stretch[TILES * 2 * PAIRS][4] = {};
    // The row of 8 elements whose address this lane gives, in a tile of a and in one of b.
    u32 a_place = chunk_offset<8>(row() + lane() % 16, lane() / 16);
    u32 b_place = COLUMNS ? chunk_offset<BN / 8>(lane() % 16, column() / 8 + lane() / 16)
                          : chunk_offset<8>(column() + lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);

    __device__ __forceinline__ static u32 lane() { return threadIdx.x % WARP; }
    __device__ __forceinline__ static u32 row() { return threadIdx.x / (2 * WARP) * ROWS; }
    __device__ __forceinline__ static u32 column() { return threadIdx.x / WARP % 2 * (BN / 2); }

    __device__ __forceinline__ void multiply(u32 a, u32 b) {
        float run[TILES * 2 * PAIRS][4] = {};
        #pragma unroll
        for (u32 k = 0; k < 64; k += 16) {
            u32 left[TILES][4];
            #pragma unroll
            for (int i = 0; i < TILES; i++) load_tiles(left[i], a + (a_place ^ k * 2) + i * 16 * 128);
            #pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                // Two 8-column slices of b, each as two tiles of 8 k.
                u32 right[4];
                if (COLUMNS) load_tiles_transposed(right, b + (b_place ^ j * 32) + k * BN * 2);
                else load_tiles(right, b + (b_place ^ k * 2) + j * 16 * 128);
                #pragma unroll
                for (int i = 0; i < TILES; i++) {
                    multiply_add(run[(i * PAIRS + j) * 2], left[i], right[0], right[1]);
                    multiply_add(run[(i * PAIRS + j) * 2 + 1], left[i], right[2], right[3]);
                }
            }
        }
        #pragma unroll
        for (int i = 0; i < TILES * 2 * PAIRS; i++)
            #pragma unroll
            for (int x = 0; x < 4; x++) stretch[i][x] += run[i][x];
    }

    __device__ __forceinline__ void put(float* tile) const {
        #pragma unroll
        for (int i = 0; i < TILES; i++)
            #pragma unroll
            for (int j = 0; j < 2 * PAIRS; j++)
                store_fragment(tile, PITCH, row() + i * 16, column() + j * 8, sum[i * 2 * PAIRS + j]);
    }
};

// Takes what a stretch has summed, which begins anew.
template <int N> __device__ __forceinline__ void take(float (&stretch)[N][4], float (&to)[N][4]) {
    #pragma unroll
    for (int i = 0; i < N; i++)
        #pragma unroll
        for (int x = 0; x < 4; x++) to[i][x] += stretch[i][x], stretch[i][x] = 0.0f;
}

// Leaves it for the block that comes last, in N places that are THREADS apart.
template <int THREADS, int N> __device__ __forceinline__ void leave(float (&stretch)[N][4], float4* places) {
    #pragma unroll
    for (int i = 0; i < N; i++) {
        store_pack((float*)(places + i * THREADS), stretch[i]);
        #pragma unroll
        for (int x = 0; x < 4; x++) stretch[i][x] = 0.0f;
    }
}

// Adds up what all blocks of a tile have left, stretch after stretch. It is not in this multiprocessor's cache.
template <int THREADS, int N>
__device__ __forceinline__ void add_up(const float4* places, int stretches, float (&sum)[N][4]) {
    #pragma unroll 4
    for (int s = 0; s < stretches; s++) {
        #pragma unroll
        for (int i = 0; i < N; i++) {
            float4 left = __ldcg(places + (s * N + i) * THREADS);
            sum[i][0] += left.x, sum[i][1] += left.y, sum[i][2] += left.z, sum[i][3] += left.w;
        }
    }
}

// Adds the bias to a row's results at `column` and the three after it, and stores those that are before `columns`.
template <typename T, typename Out>
__device__ __forceinline__ void finish(Out* out, const float* sums, const T* bias, int column, int columns,
                                       bool packed) {
    if (packed && column + 4 <= columns) {
        float x[4];
        load_pack(sums + column, x);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            if (bias) x[i] += to_float(bias[column + i]);
        if (sizeof(Out) == 4) store_pack((float*)out + column, x);
        else *(uint2*)(out + column) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
        return;
    }
    #pragma unroll 1
    for (int end = min(column + 4, columns); column < end; column++) {
        float x = sums[column];
        if (bias) x += to_float(bias[column]);
        out[column] = from_float<Out>(x);
    }
}

template <typename T, int BM, int BN, int STAGES, bool COLUMNS>
__device__ __forceinline__ void tuned(const Product<T>& p) {
    const int THREADS = 2 * BN, SIZE = Pack<T>::SIZE, DEPTH = 8 * SIZE;
    const int A_BYTES = BM * 128, STAGE = A_BYTES + BN * 128, PACKS = BM * BN / (4 * THREADS);
    extern __shared__ __align__(128) char shared[];
    u32 batch = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
    long long first_row = (long long)blockIdx.x * BM, first_column = (long long)blockIdx.y * BN;
    int rows = p.m - (int)first_row, columns = p.n - (int)first_column;
    const T* a = p.a + batch * p.a_batch + first_row * p.a_row;
    const T* b = p.b + batch * p.b_batch + first_column * p.b_n;
    bool a_packed = packs(a, p.a_row), b_packed = packs(b, COLUMNS ? p.b_k : p.b_n);
    // This block's stretches, and their runs.
    u32 runs = (u32)(p.k + DEPTH - 1) / DEPTH, stretches = (runs + STRETCH - 1) / STRETCH;
    u32 from = stretches * split / p.splits, to = stretches * (split + 1) / p.splits;
    u32 run = from * STRETCH, end = min(to * STRETCH, runs);
    long long tile_number = ((long long)batch * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    float4* places = p.parts + tile_number * stretches * PACKS * THREADS + threadIdx.x;

    Sums<T, BM, BN, COLUMNS> sums;
    auto copy = [=](int next, int place) {
        char* stage = shared + place * STAGE;
        int k = (run + next) * DEPTH;
        copy_tile<T, BM, 8, THREADS>(stage, a + k, p.a_row, rows, p.k - k, a_packed);
        if (COLUMNS)
            copy_tile<T, DEPTH, BN / SIZE, THREADS>(stage + A_BYTES, b + k * p.b_k, p.b_k, p.k - k, columns, b_packed);
        else copy_tile<T, BN, 8, THREADS>(stage + A_BYTES, b + k, p.b_n, columns, p.k - k, b_packed);
    };
    u32 done = run;
    pipeline<STAGES>(end - run, copy, [&](int place) {
        u32 stage = shared_address(shared) + place * STAGE;
        sums.multiply(stage, stage + A_BYTES);
        if (++done % STRETCH != 0 && done != end) return;
        if (p.splits == 1) take(sums.stretch, sums.sum);
        else leave<THREADS>(sums.stretch, places + (done - 1) / STRETCH * PACKS * THREADS);
    });
    if (p.splits > 1) {
        if (!arrives_last(p.arrivals + tile_number, p.splits)) return;
        add_up<THREADS>(places, stretches, sums.sum);
    }

    // Through shared memory, so that rows are written in whole.
    const int PITCH = Sums<T, BM, BN, COLUMNS>::PITCH;
    float* tile = (float*)shared;
    __syncthreads();
    sums.put(tile);
    __syncthreads();
    bool is_float = sizeof(T) == 4 || p.out_is_float;
    int bytes = is_float ? 4 : 2;
    char* out = (char*)p.out + (batch * p.out_batch + first_row * p.out_row + first_column) * bytes;
    const T* bias = p.bias ? p.bias + first_column : nullptr;
    bool packed = ((u64)out | (u64)(p.out_row * bytes)) % (4 * bytes) == 0;
    #pragma unroll 1
    for (u32 index = threadIdx.x; index < BM * BN / 4; index += THREADS) {
        int row = index / (BN / 4), column = index % (BN / 4) * 4;
        if (row >= rows) break;
        char* to = out + row * p.out_row * bytes;
        if (is_float) finish((float*)to, tile + row * PITCH, bias, column, columns, packed);
        else finish((bf16*)to, tile + row * PITCH, bias, column, columns, packed);
    }
}

KERNEL(128) gemm_naive_f32(Product<float> p) { naive<float>(p); }
KERNEL(128) gemm_naive_bf16(Product<bf16> p) { naive<bf16>(p); }

#define TUNED(NAME, T, BM, BN, STAGES)                                                                               \
    KERNEL(2 * BN) gemm_##NAME(Product<T> p) { tuned<T, BM, BN, STAGES, false>(p); }                                 \
    KERNEL(2 * BN) gemm_columns_##NAME(Product<T> p) { tuned<T, BM, BN, STAGES, true>(p); }
TUNED(tuned_f32, float, 32, 64, 4)
TUNED(tuned_bf16, bf16, 128, 64, 3)
// Few rows (decoding): small tiles many stages deep, for it is the stream of weights that takes the time.
TUNED(few_tuned_bf16, bf16, 16, 32, 6)

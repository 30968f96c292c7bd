// The tiles of a matrix product, and the sums that blocks share: what gemm.cu describes, for its own kernels and for those that
// do something before or behind a product in the same launch.
#pragma once
#include "sums.cuh"

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

// ---- tuned: a block for each tile of BM x BN results, a grid of (M / BM, N / BN, G splits) ----

// Tiles of both factors, one run deep, are copied STAGES - 1 ahead of the multiplication. Blocks that share rows of b
// are neighbours, so that a weight comes from DRAM once.
//
//                 tile           stages   shared   registers   blocks on an A100's multiprocessor (164 KB)
//   tuned_f32     32 x 64 x 32   4        48 KB    80          3: shared memory
//   tuned_bf16    128 x 64 x 64  3        72 KB    255         2: shared memory
//   several_bf16  32 x 64 x 64   5        60 KB    140         2: shared memory; 64 KB of weights under way
//   few_.._bf16   16 x 32 x 64   6        36 KB    54          4: shared memory; 80 KB of weights under way
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

// A result as it is stored, if nothing else becomes of it.
struct AsItIs {
    __device__ __forceinline__ float operator()(float x, long long at) const { return x; }
};

// Adds the bias to a row's results at `column` and the three after it, and stores what `become` makes of those that are
// before `columns`. The row is at element `at` of all results.
template <typename T, typename Out, typename Become>
__device__ __forceinline__ void finish(Out* out, const float* sums, const T* bias, int column, int columns, bool packed,
                                       long long at, const Become& become) {
    if (packed && column + 4 <= columns) {
        float x[4];
        load_pack(sums + column, x);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            if (bias) x[i] += to_float(bias[column + i]);
        #pragma unroll
        for (int i = 0; i < 4; i++) x[i] = become(x[i], at + column + i);
        if (sizeof(Out) == 4) store_pack((float*)out + column, x);
        else *(uint2*)(out + column) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
        return;
    }
    #pragma unroll 1
    for (int end = min(column + 4, columns); column < end; column++) {
        float x = sums[column];
        if (bias) x += to_float(bias[column]);
        out[column] = from_float<Out>(become(x, at + column));
    }
}

// The tile of fp32, and that of few rows in bf16 (decoding): small and many stages deep, for it is the stream of weights that
// takes the time.
template <typename T> struct Few;
template <> struct Few<float> {
    static const int BM = 32, BN = 64, STAGES = 4, THREADS = 2 * BN;
};
template <> struct Few<bf16> {
    static const int BM = 16, BN = 32, STAGES = 6, THREADS = 2 * BN;
};

// `z` numbers this block among those of its tile's place, in all batches. Whether the block has stored a tile: if not, the
// last one of those that share it will.
template <typename T, int BM, int BN, int STAGES, bool COLUMNS, typename Become>
__device__ __forceinline__ bool tuned(const Product<T>& p, u32 z, const Become& become) {
    const int THREADS = Sums<T, BM, BN, COLUMNS>::THREADS, SIZE = Pack<T>::SIZE, DEPTH = 8 * SIZE;
    const int A_BYTES = BM * 128, STAGE = A_BYTES + BN * 128, PACKS = BM * BN / (4 * THREADS);
    extern __shared__ __align__(128) char shared[];
    u32 batch = z / p.splits, split = z % p.splits;
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
        if (!arrives_last(p.arrivals + tile_number, p.splits)) return false;
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
    long long first = batch * p.out_batch + first_row * p.out_row + first_column;
    char* out = (char*)p.out + first * bytes;
    const T* bias = p.bias ? p.bias + first_column : nullptr;
    bool packed = ((u64)out | (u64)(p.out_row * bytes)) % (4 * bytes) == 0;
    #pragma unroll 1
    for (u32 index = threadIdx.x; index < BM * BN / 4; index += THREADS) {
        int row = index / (BN / 4), column = index % (BN / 4) * 4;
        if (row >= rows) break;
        long long from_first = row * p.out_row;
        char* to = out + from_first * bytes;
        const float* results = tile + row * PITCH;
        if (is_float) finish((float*)to, results, bias, column, columns, packed, first + from_first, become);
        else finish((bf16*)to, results, bias, column, columns, packed, first + from_first, become);
    }
    return true;
}

template <typename T, bool COLUMNS, typename Become>
__device__ __forceinline__ bool few_tuned(const Product<T>& p, u32 z, const Become& become) {
    return tuned<T, Few<T>::BM, Few<T>::BN, Few<T>::STAGES, COLUMNS>(p, z, become);
}

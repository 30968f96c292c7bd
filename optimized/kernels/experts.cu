// The experts' gated MLPs, each over the rows of its own tokens.
//
//   h = act(W_gate x) * (W_up x)           gate_up      act is SiLU, z / (1 + exp(-z)), in every published model
//   y = W_down h                           down
//
// Rows are in the order of dispatch.cu: expert e has the rows offsets[e] .. offsets[e + 1] of h and y, and row i of h
// is made of row order[i] / top_k of x. Rows after the last expert's are not touched.
//
// x: [N, D], rows `stride` apart; W_gate and W_up: [E, 2 I, D], the gate's I rows first; h: [N k, I]; W_down: [E, D,
// I]; y: [N k, D]. In the kernels `depth` is the length of the sum and `width` the columns of the result.
//
// A shared expert, which every token visits, is one more: it has a width, weights, rows of h and rows of y of its own, in the
// order of the tokens. Its blocks come first.
//
// fp32 until the one rounding of h, and of y. The sum of an element has one order, whatever the rows beside it.
//
// Bytes: the weights of all experts that have a row, once for each 64 rows; the rows of x once for each tile of
// columns. Flops: 6 N k D I for both, and 6 N D I' for a shared expert of width I'.
//
// The ladder, and what each step changes:
//   naive        a thread for each element of the result; it walks along the experts to find its own
//   tuned        a block for 64 rows of one expert, found by bisection: they share what is read of its weights, through
//                shared memory, copied ahead of the work
//   tuned bf16   the same on tensor cores
#include "tile.cuh"
#include "activation.cuh"

__device__ __forceinline__ float gated(int activation, float gate, float up) { return activate(activation, gate) * up; }

// The shared expert: its rows of x, its weight and its rows of the result. Without one there are no rows.
template <typename T> struct Shared {
    const T* x;
    long long stride;
    const T* weights;
    T* out;
    int rows, depth, width;
};

// ---- naive: a thread for each element of the result ----

template <typename T, bool GATED>
__device__ void naive(const T* x, long long stride, const int* order, int top_k, const T* weights, const int* offsets,
                      T* out, int experts, int depth, int width, int activation, const Shared<T>& shared) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, of_shared = (long long)shared.rows * shared.width;
    bool is_shared = at < of_shared;
    if (is_shared) {
        x = shared.x, stride = shared.stride, order = nullptr, weights = shared.weights, out = shared.out;
        depth = shared.depth, width = shared.width;
    } else at -= of_shared;
    long long row = at / width, column = at % width;
    int expert = 0;
    if (!is_shared) {
        if (row >= offsets[experts]) return;
        #pragma unroll 1
        while (offsets[expert + 1] <= row) expert++;
    }
    weights += ((long long)expert * (GATED ? 2 : 1) * width + column) * depth;
    if (GATED) {
        x += (order ? order[row] / top_k : row) * stride;
        float gate = dot(x, weights, depth), up = dot(x, weights + (long long)width * depth, depth);
        out[at] = from_float<T>(gated(activation, gate, up));
    } else {
        out[at] = from_float<T>(dot(x + row * stride, weights, depth));
    }
}

// ---- tuned: a block of 128 threads for 64 rows of one expert and 128 rows of its weight ----
//
// The sum runs in steps of 128 bytes of each row. Three tiles of x and of the weight are in shared memory: one is
// worked on while two are on their way.

const int THREADS = 128;
const int ROWS = 64, WEIGHTS = 128;
const int STEP = 128, CHUNKS = STEP / 16;
const int STAGES = 3, STAGE = (ROWS + WEIGHTS) * STEP;

// The elements from `k` on of a row of `depth`, one by one; zeros after its end, or if there is no such row.
template <typename T>
__device__ __forceinline__ void copy_slowly(char* to, const T* row, int k, int depth, bool there) {
    #pragma unroll 1
    for (int j = 0; j < Pack<T>::SIZE; j++)
        ((T*)to)[j] = there && k + j < depth ? row[k + j] : from_float<T>(0.0f);
}

// What a thread has of the product of a tile of x and a tile of the weight: bf16, on the tensor cores. Each of the four
// warps has all 64 rows of x, and 2 x 16 rows of the weight: gate and up of the same columns, or neighbours.
template <typename T, bool GATED> struct Product {
    static const int STRIPES = ROWS / 16;
    float sums[STRIPES][4][4];

    __device__ Product() : sums{} {}

    static __device__ int weight_row(int p) {
        int warp = threadIdx.x / WARP;
        return GATED ? p * WEIGHTS / 2 + warp * 16 : warp * 32 + p * 16;
    }

    __device__ __forceinline__ void add(char* x, char* weight, int rows) {
        int lane = threadIdx.x % WARP;
        #pragma unroll 2
        for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
            u32 b[2][4];
            #pragma unroll
            for (int p = 0; p < 2; p++) {
                int row = weight_row(p) + lane / 16 * 8 + lane % 8;
                load_tiles(b[p], chunk_at<CHUNKS>(weight, row, chunk + lane / 8 % 2));
            }
            #pragma unroll
            for (int i = 0; i < STRIPES; i++) {
                if (i * 16 >= rows) break;
                u32 a[4];
                load_tiles(a, chunk_at<CHUNKS>(x, i * 16 + lane % 16, chunk + lane / 16));
                #pragma unroll
                for (int n = 0; n < 4; n++) multiply_add(sums[i][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }

    // To rows of the tile [ROWS, WEIGHTS] that are `stride` apart.
    __device__ __forceinline__ void store(float* tile, int stride) const {
        #pragma unroll
        for (int i = 0; i < STRIPES; i++)
            #pragma unroll
            for (int n = 0; n < 4; n++)
                store_fragment(tile, stride, i * 16, weight_row(n / 2) + n % 2 * 8, sums[i][n]);
    }
};

// The same in fp32: each thread has the rows y, y + 8, ... of x and the rows x, x + 16, ... of the weight.
template <bool GATED> struct Product<float, GATED> {
    float sums[8][8];

    __device__ Product() : sums{} {}

    __device__ __forceinline__ void add(char* x, char* weight, int rows) {
        int x0 = threadIdx.x % 16, y0 = threadIdx.x / 16;
        // The sum of a step by itself first: all in one would be too long a sum.
        float step[8][8] = {};
        #pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            float b[8][4];
            #pragma unroll
            for (int j = 0; j < 8; j++) load_pack((const float*)chunk_at<CHUNKS>(weight, x0 + j * 16, chunk), b[j]);
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                if (i * 8 >= rows) break;
                float a[4];
                load_pack((const float*)chunk_at<CHUNKS>(x, y0 + i * 8, chunk), a);
                #pragma unroll
                for (int j = 0; j < 8; j++)
                    #pragma unroll
                    for (int k = 0; k < 4; k++) step[i][j] += a[k] * b[j][k];
            }
        }
        #pragma unroll
        for (int i = 0; i < 8; i++)
            #pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] += step[i][j];
    }

    __device__ __forceinline__ void store(float* tile, int stride) const {
        int x0 = threadIdx.x % 16, y0 = threadIdx.x / 16;
        #pragma unroll
        for (int i = 0; i < 8; i++)
            #pragma unroll
            for (int j = 0; j < 8; j++) tile[(y0 + i * 8) * stride + x0 + j * 16] = sums[i][j];
    }
};

// Tiles of rows are counted without looking at every expert: before expert e there are at most offsets[e] / ROWS full
// ones, and one that is not full for each expert that has rows, of which there are at most min(e, offsets[e]).
__device__ __forceinline__ int tiles_before(const int* offsets, int expert) {
    return (u32)offsets[expert] / ROWS + min(expert, offsets[expert]);
}

template <typename T, bool GATED>
__device__ void tuned(const T* x, long long stride, const int* order, int top_k, const T* weights, const int* offsets,
                      T* out, int experts, int depth, int width, int activation, const Shared<T>& shared) {
    extern __shared__ __align__(128) char stages[];
    const int SIZE = Pack<T>::SIZE, DEPTH = STEP / sizeof(T), COLUMNS = GATED ? WEIGHTS / 2 : WEIGHTS;
    // The shared expert's tiles come first, one after another in the grid's rows.
    int of_columns = (shared.width + COLUMNS - 1) / COLUMNS, of_rows = (shared.rows + ROWS - 1) / ROWS;
    int before = (of_rows * of_columns + gridDim.x - 1) / gridDim.x, tile = (int)blockIdx.y - before;
    int expert = 0, row0, rows, column0;
    if (tile < 0) {
        int at = blockIdx.y * gridDim.x + blockIdx.x;
        x = shared.x, stride = shared.stride, order = nullptr, weights = shared.weights, out = shared.out;
        depth = shared.depth, width = shared.width;
        row0 = at / of_columns * ROWS, rows = min(ROWS, shared.rows - row0), column0 = at % of_columns * COLUMNS;
    } else {
        // The last expert whose tiles begin at this block's or before.
        int last = experts - 1;
        #pragma unroll 1
        while (expert < last) {
            int middle = (u32)(expert + last + 1) / 2;
            if (tiles_before(offsets, middle) <= tile) expert = middle;
            else last = middle - 1;
        }
        row0 = offsets[expert] + (tile - tiles_before(offsets, expert)) * ROWS;
        rows = min(ROWS, offsets[expert + 1] - row0), column0 = blockIdx.x * COLUMNS;
    }
    if (rows <= 0) return;
    int columns = min(COLUMNS, width - column0);
    weights += ((long long)expert * (GATED ? 2 : 1) * width + column0) * depth;

    // A thread copies chunk `chunk` of the rows `first`, `first` + 16, ... of both tiles, as far as they are looked at.
    // Where a tile has no row, zeros are copied.
    int chunk = threadIdx.x % 8, first = threadIdx.x / 8;
    auto x_row = [&](int row) {
        int place = row0 + min(row, rows - 1);
        return x + (order ? order[place] / top_k : place) * stride;
    };
    auto weight_row = [&](int row) {
        int column = min(row % COLUMNS, columns - 1);
        return weights + (long long)(row < COLUMNS ? column : width + column) * depth;
    };
    bool packed = packs(x, stride) && packs(weights, depth);
    const T *x_rows[ROWS / 16], *weight_rows[WEIGHTS / 16];
    #pragma unroll
    for (int i = 0; i < ROWS / 16; i++) x_rows[i] = x_row(first + i * 16);
    #pragma unroll
    for (int i = 0; i < WEIGHTS / 16; i++) weight_rows[i] = weight_row(first + i * 16);
    auto copy = [&](int step, int place) {
        char *x_tile = stages + place * STAGE, *weight_tile = x_tile + ROWS * STEP;
        int k = step * DEPTH + chunk * SIZE;
        if (packed) {
            #pragma unroll
            for (int i = 0; i < ROWS / 16; i++) {
                int row = first + i * 16;
                if (i * 16 >= rows) break;
                copy_async(chunk_at<CHUNKS>(x_tile, row, chunk), x_rows[i] + k, row < rows && k < depth);
            }
            #pragma unroll
            for (int i = 0; i < WEIGHTS / 16; i++) {
                int row = first + i * 16;
                bool there = row % COLUMNS < columns && k < depth;
                copy_async(chunk_at<CHUNKS>(weight_tile, row, chunk), weight_rows[i] + k, there);
            }
            return;
        }
        #pragma unroll 1
        for (int row = first; row < ROWS; row += 16)
            copy_slowly(chunk_at<CHUNKS>(x_tile, row, chunk), x_row(row), k, depth, row < rows);
        #pragma unroll 1
        for (int row = first; row < WEIGHTS; row += 16)
            copy_slowly(chunk_at<CHUNKS>(weight_tile, row, chunk), weight_row(row), k, depth, row % COLUMNS < columns);
    };

    Product<T, GATED> product;
    pipeline<STAGES>((depth + DEPTH - 1) / DEPTH, copy, [&](int place) {
        char* from = stages + place * STAGE;
        product.add(from, from + ROWS * STEP, rows);
    });

    // Through shared memory, so that 16 bytes of a row are stored at once. The padding keeps the rows that a warp
    // stores at once in different banks.
    const int STRIDE = WEIGHTS + 4 * sizeof(T), PACKS = COLUMNS / SIZE;
    float* sums = (float*)stages;
    __syncthreads();
    product.store(sums, STRIDE);
    __syncthreads();
    out += (long long)row0 * width + column0;
    bool packed_out = packs(out, width);
    #pragma unroll 1
    for (int i = threadIdx.x; i < rows * PACKS; i += THREADS) {
        int row = i / PACKS, column = i % PACKS * SIZE;
        float* from = sums + row * STRIDE + column;
        T* to = out + (long long)row * width + column;
        float result[SIZE];
        load_packs(from, result);
        if (GATED) {
            float up[SIZE];
            load_packs(from + COLUMNS, up);
            #pragma unroll
            for (int j = 0; j < SIZE; j++) result[j] = gated(activation, result[j], up[j]);
        }
        if (packed_out && column + SIZE <= columns) store_pack(to, result);
        else {
            #pragma unroll
            for (int j = 0; j < SIZE; j++)
                if (column + j < columns) to[j] = from_float<T>(result[j]);
        }
    }
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                         \
    KERNEL(LAUNCHED)                                                                                                  \
    gate_up_##VARIANT##_##SUFFIX(const T* x, long long stride, const int* order, int top_k, const T* weights,         \
                                 const int* offsets, T* out, int experts, int depth, int width, int activation,       \
                                 Shared<T> shared) {                                                                  \
        VARIANT<T, true>(x, stride, order, top_k, weights, offsets, out, experts, depth, width, activation, shared);  \
    }                                                                                                                 \
    KERNEL(LAUNCHED)                                                                                                  \
    down_##VARIANT##_##SUFFIX(const T* x, long long stride, const T* weights, const int* offsets, T* out, int experts,\
                              int depth, int width, Shared<T> shared) {                                               \
        VARIANT<T, false>(x, stride, nullptr, 1, weights, offsets, out, experts, depth, width, LINEAR, shared);       \
    }

KERNELS(naive, 128, float, f32)
KERNELS(naive, 128, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

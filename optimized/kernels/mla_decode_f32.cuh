// The tuned f32 kernel of mla_decode.cu.
#pragma once
#include "mla_decode.cuh"

// f32: four warps, 16 rows, tiles of 16 keys. Each warp multiplies every fourth pack of columns; 8 threads for each row
// add the four parts and make the weights; then each thread multiplies them with 4 columns.
const int ROWS_F32 = 16, KEYS_F32 = 16;
// Rows of these many floats: what a warp writes or reads at once is in different banks.
const int PARTS = KEYS_F32 + 8, WEIGHTS = ROWS_F32 + 4;

__device__ void tuned(const Problem<float>& p) {
    __shared__ float parts[4][ROWS_F32 * PARTS];
    __shared__ __align__(16) float weights[KEYS_F32 * WEIGHTS];
    __shared__ float factors[ROWS_F32];
    __shared__ float2 scales[ROWS_F32];
    Block<float, ROWS_F32, THREADS, KEYS_F32, 2> block = {p};
    // An odd number of packs, so that neighbouring rows are in different banks.
    int stride = (p.width() + 3) / 4 * 4 + ((p.width() + 3) / 4 % 2 == 0 ? 4 : 0);
    if (!block.begin((float*)dynamic, stride)) return;
    float* queries = block.tile(2);
    clear_padding(block.tiles, 2 * KEYS_F32 + ROWS_F32, p.width(), stride);
    block.load_queries(queries);
    __syncthreads();
    block.load_tile(block.start, 0);
    commit_copies();

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row = threadIdx.x / 8, eighth = threadIdx.x % 8, column = threadIdx.x * 4;
    int token = block.token(row), length = block.length();
    float sums[ROWS_F32][4] = {};
    Softmax<float> softmax;
    #pragma unroll 1
    for (int first = block.start, place = 0; first < block.end; first += KEYS_F32, place = 1 - place) {
        // Every thread's copies are there, and nobody reads the other tile any more.
        wait_copies<0>();
        __syncthreads();
        if (first + KEYS_F32 < block.end) block.load_tile(first + KEYS_F32, 1 - place);
        commit_copies();
        const float* tile = block.tile(place);

        // This thread: rows lane / 8 + i * 4, keys lane % 8 + j * 8.
        float products[4][2] = {};
        const float *rows = queries + lane / 8 * stride, *keys = tile + lane % 8 * stride;
        #pragma unroll 1
        for (int c = warp * 4; c < p.width(); c += 16)
            add_products(products, rows + c, 4 * stride, keys + c, 8 * stride);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int j = 0; j < 2; j++) parts[warp][(lane / 8 + i * 4) * PARTS + lane % 8 + j * 8] = products[i][j];
        __syncthreads();

        float x[2], high = softmax.max;
        #pragma unroll
        for (int j = 0; j < 2; j++) {
            int at = row * PARTS + eighth + j * 8, t = first + eighth + j * 8;
            float product = (parts[0][at] + parts[1][at]) + (parts[2][at] + parts[3][at]);
            x[j] = p.weigh(product, block.b(), token, t, length);
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
    // Nobody reads a tile or the queries any more, and no copy is on its way.
    wait_copies<0>();
    __syncthreads();
    float* rows = (float*)dynamic;
    float sum = warp_sum<8>(softmax.sum);
    if (eighth == 0) scales[row] = make_float2(softmax.max, sum);
    #pragma unroll
    for (int i = 0; i < ROWS_F32; i++) store_pack(rows + i * decltype(block)::PITCH + column, sums[i]);
    block.give(rows, scales);
}

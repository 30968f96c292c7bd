// The end of a mixture of experts: what the experts of a token made of it, and what the shared experts did.
//
//   out_t = (sum_j weights[t, j] * rows[places[t, j]]) + shared_t                                             (20)
//
// The sum is fp32 in order of rising place, that is of rising expert; then the shared experts' row is added; then all
// is rounded once. A place of -1 (a token that was dropped by that expert) counts nothing, whatever its weight.
//
// rows: [N k, D]; places, weights: [N, k]; shared (or null), out: [N, D].
//
// Bytes: (k + 2) N D sizeof(T). Flops: 2 (k + 1) N D.
#include "dev.cuh"

// ---- naive: a thread for each element ----

template <typename T>
__device__ void naive(const T* rows, const int* places, const float* weights, const T* shared, T* out, int tokens,
                      int width, int k) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)tokens * width) return;
    long long token = at / width, column = at % width;
    places += token * k, weights += token * k;
    float sum = 0.0f;
    int last = -1;
    #pragma unroll 1
    for (int n = 0; n < k; n++) {
        // The lowest place after the last one.
        int next = -1;
        #pragma unroll 1
        for (int j = 0; j < k; j++)
            if (places[j] > last && (next < 0 || places[j] < places[next])) next = j;
        if (next < 0) break;
        last = places[next];
        sum += weights[next] * to_float(rows[(long long)last * width + column]);
    }
    if (shared) sum += to_float(shared[at]);
    out[at] = from_float<T>(sum);
}

// ---- tuned: a block of 256 threads for each token, 16 bytes at once ----

const int THREADS = 256;
const int MOST = 1024;

template <typename T>
__device__ void tuned(const T* rows, const int* places, const float* weights, const T* shared, T* out, int width,
                      int k) {
    const int SIZE = Pack<T>::SIZE;
    __shared__ int sorted_places[MOST];
    __shared__ float sorted_weights[MOST];
    long long token = blockIdx.x;
    places += token * k, weights += token * k, out += token * width;
    // A null pointer is aligned.
    if (shared) shared += token * width;
    // Sorted by place, and those that are -1 by number.
    #pragma unroll 1
    for (int j = threadIdx.x; j < k; j += THREADS) {
        int place = places[j], before = 0;
        #pragma unroll 1
        for (int i = 0; i < k; i++) before += places[i] < place + (i < j);
        sorted_places[before] = place, sorted_weights[before] = weights[j];
    }
    __syncthreads();
    int first = 0;
    #pragma unroll 1
    while (first < k && sorted_places[first] < 0) first++;

    bool packed = packs(rows, width) && packs(out, 0) && packs(shared, 0);
    int in_packs = packed ? width / SIZE * SIZE : 0;
    #pragma unroll 1
    for (int i = threadIdx.x * SIZE; i < in_packs; i += THREADS * SIZE) {
        float sum[SIZE] = {}, one[SIZE];
        #pragma unroll 2
        for (int j = first; j < k; j++) {
            load_pack(rows + (long long)sorted_places[j] * width + i, one);
            #pragma unroll
            for (int n = 0; n < SIZE; n++) sum[n] += sorted_weights[j] * one[n];
        }
        if (shared) {
            load_pack(shared + i, one);
            #pragma unroll
            for (int n = 0; n < SIZE; n++) sum[n] += one[n];
        }
        store_pack(out + i, sum);
    }
    // What is no whole pack, or not aligned.
    #pragma unroll 1
    for (int i = in_packs + threadIdx.x; i < width; i += THREADS) {
        float sum = 0.0f;
        #pragma unroll 1
        for (int j = first; j < k; j++)
            sum += sorted_weights[j] * to_float(rows[(long long)sorted_places[j] * width + i]);
        if (shared) sum += to_float(shared[i]);
        out[i] = from_float<T>(sum);
    }
}

#define KERNELS(T, SUFFIX)                                                                                          \
    KERNEL(128) combine_naive_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared,     \
                                       T* out, int tokens, int width, int k) {                                      \
        naive<T>(rows, places, weights, shared, out, tokens, width, k);                                             \
    }                                                                                                               \
    KERNEL(THREADS) combine_tuned_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared, \
                                           T* out, int tokens, int width, int k) {                                  \
        tuned<T>(rows, places, weights, shared, out, width, k);                                                     \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

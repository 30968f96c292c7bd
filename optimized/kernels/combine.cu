// The end of a mixture of experts: what the experts of a token made of it, and what the shared experts did.
//
//   out_t = (sum_j weights[t, j] * rows[places[t, j]]) + shared_t                  combine                    (20)
//   h_t = out_t + residual_t,  y_t = rms_norm(h_t)                                 combine_add_rms_norm
//
// The sum is fp32 by rising place, that is by rising expert, and rounded; then the shared experts' row is added, and that is
// rounded: where Transformers and DeepSeek round. A place of -1 (the expert dropped the token) counts nothing at any weight.
//
// rows: [N k, D]; places, weights: [N, k]; shared (or null), out, residual, h, y: [N, D]. The second does in one launch, to the
// bit, what the first and add_rms_norm of rms_norm.cu do in two: out, rounded, is never stored.
//
// Bytes: (k + 2) N D sizeof(T), of the second (k + 4) N D sizeof(T). Flops: 2 (k + 1) N D, and 4 N D.
#include "rms_norm.cuh"

// ---- naive: a thread for each element, or (with the norm) for each row ----

// A token's row, made anew wherever it is looked at.
template <typename T> struct Naive {
    const T* rows;
    const int* places;
    const float* weights;
    const T* shared;
    int width, k;

    __device__ float operator[](int column) const {
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
        if (shared) sum = to_float(from_float<T>(sum)) + to_float(shared[column]);
        return to_float(from_float<T>(sum));
    }
};

// Row `token` of the operands.
template <typename T>
__device__ Naive<T> naive_row(const T* rows, const int* places, const float* weights, const T* shared, long long token,
                              int width, int k) {
    return {rows, places + token * k, weights + token * k, shared ? shared + token * width : nullptr, width, k};
}

template <typename T>
__device__ void naive(const T* rows, const int* places, const float* weights, const T* shared, T* out, int tokens,
                      int width, int k) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)tokens * width) return;
    out[at] = from_float<T>(naive_row(rows, places, weights, shared, at / width, width, k)[at % width]);
}

template <typename T>
__device__ void naive_norm(const T* rows, const int* places, const float* weights, const T* shared, const T* residual,
                           const T* gain, T* h, T* y, int tokens, int width, int k, float eps) {
    long long token = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    long long at = token * width;
    norm_naive(naive_row(rows, places, weights, shared, token, width, k), residual + at, gain, h + at, y + at, width, eps);
}

// ---- tuned: a block of 256 threads for each token, 16 bytes at once ----

const int THREADS = NORM_THREADS;
const int MOST = 1024;

// A token's terms by rising place, in shared memory.
template <typename T> struct Sorted {
    const T *rows, *shared;
    const int* places;
    const float* weights;
    int width, first, k;

    __device__ __forceinline__ bool aligned() const { return packs(rows, width) & packs(shared, 0); }
    // Whether it is aligned or not, the sum of an element has the same terms in the same order.
    __device__ __forceinline__ void load(int i, float (&sum)[Pack<T>::SIZE], bool aligned) const {
        const int SIZE = Pack<T>::SIZE;
        float one[SIZE];
        #pragma unroll
        for (int n = 0; n < SIZE; n++) sum[n] = 0.0f;
        #pragma unroll 2
        for (int j = first; j < k; j++) {
            load_pack(rows + (long long)places[j] * width + i, one, aligned);
            #pragma unroll
            for (int n = 0; n < SIZE; n++) sum[n] += weights[j] * one[n];
        }
        if (shared) {
            load_pack(shared + i, one, aligned);
            #pragma unroll
            for (int n = 0; n < SIZE; n++) sum[n] = to_float(from_float<T>(sum[n])) + one[n];
        }
        #pragma unroll
        for (int n = 0; n < SIZE; n++) sum[n] = to_float(from_float<T>(sum[n]));
    }
    __device__ __forceinline__ float operator[](int i) const {
        float sum = 0.0f;
        #pragma unroll 1
        for (int j = first; j < k; j++) sum += weights[j] * to_float(rows[(long long)places[j] * width + i]);
        if (shared) sum = to_float(from_float<T>(sum)) + to_float(shared[i]);
        return to_float(from_float<T>(sum));
    }
};

// The terms of this block's token, sorted by place; those that are -1 come before `first`.
template <typename T>
__device__ __forceinline__ Sorted<T> sorted(const T* rows, const int* places, const float* weights, const T* shared,
                                            int width, int k) {
    __shared__ int sorted_places[MOST];
    __shared__ float sorted_weights[MOST];
    long long token = blockIdx.x;
    places += token * k, weights += token * k;
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
    // A null pointer is aligned.
    return {rows, shared ? shared + token * width : nullptr, sorted_places, sorted_weights, width, first, k};
}

template <typename T>
__device__ void tuned(const T* rows, const int* places, const float* weights, const T* shared, T* out, int width,
                      int k) {
    const int SIZE = Pack<T>::SIZE;
    Sorted<T> row = sorted(rows, places, weights, shared, width, k);
    out += (long long)blockIdx.x * width;
    bool packed = row.aligned() && packs(out, 0);
    int in_packs = packed ? width / SIZE * SIZE : 0;
    #pragma unroll 1
    for (int i = threadIdx.x * SIZE; i < in_packs; i += THREADS * SIZE) {
        float sum[SIZE];
        row.load(i, sum, true);
        store_pack(out + i, sum);
    }
    // What is no whole pack, or not aligned.
    #pragma unroll 1
    for (int i = in_packs + threadIdx.x; i < width; i += THREADS) out[i] = from_float<T>(row[i]);
}

template <typename T>
__device__ void tuned_norm(const T* rows, const int* places, const float* weights, const T* shared, const T* residual,
                           const T* gain, T* h, T* y, int width, int k, float eps) {
    long long at = (long long)blockIdx.x * width;
    norm_tuned(sorted(rows, places, weights, shared, width, k), residual + at, gain, h + at, y + at, width, eps);
}

#define KERNELS(T, SUFFIX)                                                                                          \
    KERNEL(128) combine_naive_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared,     \
                                       T* out, int tokens, int width, int k) {                                      \
        naive<T>(rows, places, weights, shared, out, tokens, width, k);                                             \
    }                                                                                                               \
    KERNEL(THREADS) combine_tuned_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared, \
                                           T* out, int tokens, int width, int k) {                                  \
        tuned<T>(rows, places, weights, shared, out, width, k);                                                     \
    }                                                                                                               \
    KERNEL(128)                                                                                                     \
    combine_add_rms_norm_naive_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared,    \
                                        const T* residual, const T* gain, T* h, T* y, int tokens, int width, int k, \
                                        float eps) {                                                                \
        naive_norm<T>(rows, places, weights, shared, residual, gain, h, y, tokens, width, k, eps);                  \
    }                                                                                                               \
    KERNEL(THREADS)                                                                                                 \
    combine_add_rms_norm_tuned_##SUFFIX(const T* rows, const int* places, const float* weights, const T* shared,    \
                                        const T* residual, const T* gain, T* h, T* y, int tokens, int width, int k, \
                                        float eps) {                                                                \
        tuned_norm<T>(rows, places, weights, shared, residual, gain, h, y, width, k, eps);                          \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

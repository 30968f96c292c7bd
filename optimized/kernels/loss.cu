// Cross-entropy over next tokens, and its mean.
//
//   loss[n] = log sum_v exp z[n,v] - z[n,y_n]          0 if the label y_n is the ignored one          cross_entropy
//   mean    = sum_n loss[n] / count                    count: labels that are not ignored, or given    mean_loss
//
// z: [N,V], rows at any stride; labels: [N] i32, those of the next tokens; loss: [N] f32. A label outside of the
// vocabulary that is not the ignored one has a loss of NaN. Without a label that counts the mean is NaN (0/0).
// All is fp32. With m = max z, the loss is log sum exp(z-m) - (z_y - m): nothing large cancels where it is small.
//
// Bytes: N V sizeof(T). Flops: 3 N V and as many exponentials.
#include "dev.cuh"

// Below every number: exp of what is this far below a maximum is 0. (-inf would make NaN of a masked logit, -inf too.)
const float LOWEST = -3.402823466e38f;

// Whether a label is judged by its row of logits. If not, the loss is one of two.
__device__ __forceinline__ bool judged(int label, int ignored, int vocab) {
    return label != ignored && label >= 0 && label < vocab;
}
__device__ __forceinline__ float loss_unjudged(int label, int ignored) {
    return label == ignored ? 0.0f : __uint_as_float(0x7fffffffu);
}

// ---- naive: a thread for each row, which it reads twice ----

template <typename T>
__device__ void naive(const T* logits, long long stride, const int* labels, int ignored, float* losses, int rows,
                      int vocab) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int label = labels[row];
    if (!judged(label, ignored, vocab)) {
        losses[row] = loss_unjudged(label, ignored);
        return;
    }
    logits += row * stride;
    float largest = LOWEST;
    #pragma unroll 1
    for (int v = 0; v < vocab; v++) largest = fmaxf(largest, to_float(logits[v]));
    float sum = sum_in_runs(vocab, [&](int v) { return expf(to_float(logits[v]) - largest); });
    losses[row] = logf(sum) - (to_float(logits[label]) - largest);
}

KERNEL(32) mean_loss_naive_f32(const float* losses, const int* labels, int ignored, int counted, float divisor,
                               float* mean, int rows) {
    if (threadIdx.x != 0) return;
    int count = 0;
    float sum = sum_in_runs(rows, [&](int n) {
        count += labels[n] != ignored;
        return losses[n];
    });
    *mean = sum / (counted ? (float)count : divisor);
}

// ---- tuned: a block for each row, which it reads once, 16 bytes at a time ----

const int THREADS = 512;

// A sum of exponentials on the way: sum exp(z - largest).
struct Online {
    float largest, sum;

    // The sum becomes one of exponentials below `other`, which is no less.
    __device__ __forceinline__ void raise_to(float other) {
        sum *= expf(largest - other);
        largest = other;
    }
    template <int SIZE> __device__ __forceinline__ void add(const float (&logits)[SIZE]) {
        float top = largest;
        #pragma unroll
        for (int j = 0; j < SIZE; j++) top = fmaxf(top, logits[j]);
        if (top > largest) raise_to(top);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) sum += expf(logits[j] - largest);
    }
};

template <typename T>
__device__ void tuned(const T* logits, long long stride, const int* labels, int ignored, float* losses, int rows,
                      int vocab) {
    const int SIZE = Pack<T>::SIZE;
    __shared__ float partial[THREADS / WARP];
    long long row = blockIdx.x;
    int label = labels[row];
    if (!judged(label, ignored, vocab)) {
        if (threadIdx.x == 0) losses[row] = loss_unjudged(label, ignored);
        return; // with the whole block
    }
    logits += row * stride;
    // A thread adds the same logits whether they are aligned or not: where a row lies depends on the batch.
    bool aligned = packs(logits, 0);
    int in_packs = vocab / SIZE * SIZE;
    Online mine = {LOWEST, 0.0f};
    #pragma unroll 1
    for (int v = threadIdx.x * SIZE; v < in_packs; v += THREADS * SIZE) {
        float pack[SIZE];
        if (aligned) {
            load_pack(logits + v, pack);
        } else {
            #pragma unroll
            for (int j = 0; j < SIZE; j++) pack[j] = to_float(logits[v + j]);
        }
        mine.add(pack);
    }
    #pragma unroll 1
    for (int v = in_packs + threadIdx.x; v < vocab; v += THREADS) {
        float one[1] = {to_float(logits[v])};
        mine.add(one);
    }
    float largest = warp_max(mine.largest);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = largest;
    __syncthreads();
    #pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) largest = fmaxf(largest, partial[warp]);
    __syncthreads();
    mine.raise_to(largest);
    float sum = block_sum<THREADS>(mine.sum, partial);
    if (threadIdx.x == 0) losses[row] = logf(sum) - (to_float(logits[label]) - largest);
}

KERNEL(THREADS) mean_loss_tuned_f32(const float* losses, const int* labels, int ignored, int counted, float divisor,
                                    float* mean, int rows) {
    __shared__ float partial[THREADS / WARP];
    __shared__ int counts[THREADS / WARP];
    float sum = 0.0f;
    int count = 0;
    #pragma unroll 1
    for (int n = threadIdx.x; n < rows; n += THREADS) sum += losses[n], count += labels[n] != ignored;
    count = __reduce_add_sync(ALL_LANES, count);
    if (threadIdx.x % WARP == 0) counts[threadIdx.x / WARP] = count;
    sum = block_sum<THREADS>(sum, partial); // its barriers serve the counts too
    if (threadIdx.x != 0) return;
    #pragma unroll
    for (int warp = 1; warp < THREADS / WARP; warp++) count += counts[warp];
    *mean = sum / (counted ? (float)count : divisor);
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) cross_entropy_##VARIANT##_##SUFFIX(const T* logits, long long stride, const int* labels,          \
                                                        int ignored, float* losses, int rows, int vocab) {             \
        VARIANT<T>(logits, stride, labels, ignored, losses, rows, vocab);                                              \
    }

KERNELS(naive, 32, float, f32)
KERNELS(naive, 32, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

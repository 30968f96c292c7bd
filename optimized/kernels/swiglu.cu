// Two matrices element by element: the gate of the MLP, and the addition to the residual stream.
//
//   out = act(gate) * up                   gated (SwiGLU where act is SiLU: x / (1 + exp(-x)))
//   out = a + b                            add
//
// All are [N, I]. Rows of the factors and summands may be apart; `out` may be one of them. fp32 within, one rounding at
// the end.
//
// Bytes: 3 N I sizeof(T). Flops: about 8 N I for SiLU, N I for add: nothing but memory counts.
#include "dev.cuh"
#include "activation.cuh"

struct Gated {
    int activation;
    // Whether it is small enough to be done for a whole pack at once. Other activations go element by element.
    __device__ __forceinline__ bool is_simple() const { return activation == SILU; }
    __device__ __forceinline__ float simple(float gate, float up) const { return silu(gate) * up; }
    __device__ __forceinline__ float any(float gate, float up) const { return activate(activation, gate) * up; }
};

struct Add {
    __device__ __forceinline__ bool is_simple() const { return true; }
    __device__ __forceinline__ float simple(float a, float b) const { return a + b; }
    __device__ __forceinline__ float any(float a, float b) const { return a + b; }
};

// Rows of `a` and `b` begin every a_row and b_row elements.
template <typename T> struct Pair {
    const T* a;
    long long a_row;
    const T* b;
    long long b_row;
    T* out;
    int rows, width;
};

// ---- naive: a thread for each element, a grid of N I / 128 ----

template <typename T, typename Op> __device__ void naive(const Pair<T>& p, Op op) {
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)p.rows * p.width) return;
    long long row = index / p.width, i = index % p.width;
    p.out[index] = from_float<T>(op.any(to_float(p.a[row * p.a_row + i]), to_float(p.b[row * p.b_row + i])));
}

// ---- tuned: 16 bytes for each of 128 threads, a grid of (N, I / (128 packs)) ----

const int THREADS = 128;

template <typename T, typename Op> __device__ void tuned(const Pair<T>& p, Op op) {
    const int SIZE = Pack<T>::SIZE, PART = THREADS * SIZE;
    long long row = blockIdx.x;
    int start = blockIdx.y * PART, end = min(start + PART, p.width);
    const T* a = p.a + row * p.a_row;
    const T* b = p.b + row * p.b_row;
    T* out = p.out + row * p.width;
    bool packed = op.is_simple() && packs(a, 0) && packs(b, 0) && packs(out, 0);
    int in_packs = packed ? end / SIZE * SIZE : start;
    int i = start + threadIdx.x * SIZE;
    if (i < in_packs) {
        float x[SIZE], y[SIZE];
        load_pack(a + i, x);
        load_pack(b + i, y);
        #pragma unroll
        for (int j = 0; j < SIZE; j++) x[j] = op.simple(x[j], y[j]);
        store_pack(out + i, x);
    }
    // What is no whole pack, not aligned, or another activation.
    #pragma unroll 1
    for (int j = in_packs + threadIdx.x; j < end; j += THREADS)
        out[j] = from_float<T>(op.any(to_float(a[j]), to_float(b[j])));
}

#define KERNELS(VARIANT, T, SUFFIX)                                                                             \
    KERNEL(THREADS) gated_##VARIANT##_##SUFFIX(Pair<T> p, int activation) { VARIANT<T>(p, Gated{activation}); } \
    KERNEL(THREADS) add_##VARIANT##_##SUFFIX(Pair<T> p) { VARIANT<T>(p, Add{}); }

KERNELS(naive, float, f32)
KERNELS(naive, bf16, bf16)
KERNELS(tuned, float, f32)
KERNELS(tuned, bf16, bf16)

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
//   several_...  for 17 to 32 rows of many columns: tiles of as many rows, so that each weight is asked for once
//   split        (of any tuned kernel) several blocks share the sums of a tile where its tiles are too few for the GPU
#include "gemm.cuh"

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

KERNEL(128) gemm_naive_f32(Product<float> p) { naive<float>(p); }
KERNEL(128) gemm_naive_bf16(Product<bf16> p) { naive<bf16>(p); }

#define TUNED(COLUMNS, PREFIX)                                                                                 \
    KERNEL(128) PREFIX##tuned_f32(Product<float> p) { few_tuned<float, COLUMNS>(p, blockIdx.z, AsItIs{}); }    \
    KERNEL(128) PREFIX##tuned_bf16(Product<bf16> p) {                                                          \
        tuned<bf16, 128, 64, 3, COLUMNS>(p, blockIdx.z, AsItIs{});                                             \
    }                                                                                                          \
    KERNEL(64) PREFIX##few_tuned_bf16(Product<bf16> p) { few_tuned<bf16, COLUMNS>(p, blockIdx.z, AsItIs{}); }
TUNED(false, gemm_)
TUNED(true, gemm_columns_)
KERNEL(64) gemm_several_tuned_bf16(Product<bf16> p) { tuned<bf16, 32, 64, 5, false>(p, blockIdx.z, AsItIs{}); }

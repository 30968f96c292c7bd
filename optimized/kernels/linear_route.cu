// The router of few tokens in one launch: the product that makes the logits, the rule, and the sort by expert.
//
//   z = u E^T                       as gemm.cu makes it, in fp32
//   indices, weights                as route.cu makes them of z
//   offsets, order, places          as dispatch.cu makes them of the indices
//
// To the bit. Of all tiles of the product, which lie in one row, the last block to store one routes the tokens, a warp for each,
// and sorts their experts. There are at most 256 experts.
//
// Bytes: those of the product, and 4 N E + 8 N k + 8 N k + 4 E. Flops: 2 N E D.
#include "dispatch.cuh"
#include "gemm.cuh"
#include "route.cuh"

// `arrivals` counts tiles; it is zero before and after. Dynamic shared memory is the product's, which has room for the ranks of
// each warp's groups.
template <typename T>
__device__ __forceinline__ void linear_route(const Product<T>& p, const Rule& rule, int* indices, float* weights,
                                             int* offsets, int* order, int* places, u32* arrivals) {
    if (!few_tuned<T, false>(p, blockIdx.z, AsItIs{})) return;
    if (!arrives_last(arrivals, gridDim.y)) return;
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / WARP;
    u32* groups = (u32*)shared + warp * rule.groups;
    const float* logits = (const float*)p.out;
    #pragma unroll 1
    for (int token = warp; token < p.m; token += Few<T>::THREADS / WARP) {
        tuned_route<IN_REGISTERS>(logits + token * rule.experts, indices + token * rule.k, weights + token * rule.k,
                                  groups, rule);
        __syncwarp();
    }
    __syncthreads();
    sort_few_pairs(indices, offsets, order, places, p.m * rule.k, rule.experts);
}

KERNEL(128)
linear_route_tuned_f32(Product<float> p, Rule rule, int* indices, float* weights, int* offsets, int* order, int* places,
                       u32* arrivals) {
    linear_route(p, rule, indices, weights, offsets, order, places, arrivals);
}
// Shared memory leaves room for 4 blocks on a multiprocessor (an A100's), and they may have its registers: the compiler would
// leave some of them and keep numbers in memory.
extern "C" __global__ void __launch_bounds__(64, 4)
linear_route_few_tuned_bf16(Product<bf16> p, Rule rule, int* indices, float* weights, int* offsets, int* order,
                            int* places, u32* arrivals) {
    linear_route(p, rule, indices, weights, offsets, order, places, arrivals);
}

// The queries' way into the latent space, beside the write to the latent cache, in one launch: neither needs what the other makes.
//
//   q_latent[n,h] = q_nope[n,h] W_UK[h]                          a product head by head, as gemm.cu makes it
//   cache, q_pe                                                  as latent.cu writes and turns them
//
// To the bit. Blocks of the first layers of the grid (z) write, all others multiply. For as many rows as fit the tiles of few rows.
//
// Bytes and flops: those of both.
#include "gemm.cuh"
#include "latent.cuh"

template <typename T, typename... Operands>
__device__ __forceinline__ void absorb(const Product<T>& p, u32 layers, Operands... operands) {
    u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (blockIdx.z < layers) write_tuned<Few<T>::THREADS>(block, operands...);
    else few_tuned<T, true>(p, blockIdx.z - layers, AsItIs{});
}

#define KERNELS(LAUNCHED, T, SUFFIX)                                                                                   \
    KERNEL(LAUNCHED) absorb_columns_##SUFFIX(                                                                          \
        Product<T> p, int layers, const T* kv_a, long long stride, const T* weight, float eps, const float* cos,       \
        const float* sin, const int* slots, T* cache, int pages, int page_size, long long page_stride,                 \
        long long place_stride, T* compressed_kv, T* k_pe, int tokens, int rank, int rope, T* q, long long q_token,    \
        long long q_head, int heads) {                                                                                 \
        absorb(p, layers, kv_a, stride, weight, eps, cos, sin, slots,                                                  \
               Cache<T>{cache, pages, page_size, page_stride, place_stride}, compressed_kv, k_pe, tokens, rank, rope,  \
               Queries<T>{q, {q_token, q_head}, heads});                                                               \
    }

KERNELS(128, float, tuned_f32)
KERNELS(64, bf16, few_tuned_bf16)

// Instantiations of FlashInfer's rotary embedding, for heads of 64.
#include <flashinfer/pos_enc.cuh>

using namespace flashinfer;

#define ROPE(INTERLEAVE, T)                                                                                             \
    template __global__ void flashinfer::BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel<INTERLEAVE, 64, 8, 8, T, int>(    \
        T *, T *, T *, T *, float *, int *, uint32_t, uint32_t, uint32_t, uint32_t, size_t, size_t, size_t, size_t,     \
        size_t, size_t, size_t, size_t);
ROPE(true, nv_bfloat16)
ROPE(true, half)
ROPE(false, nv_bfloat16)
ROPE(false, half)

// Instantiations of FlashInfer's templates: norms, SwiGLU, merge of states.
#include <flashinfer/activation.cuh>
#include <flashinfer/attention/cascade.cuh>
#include <flashinfer/norm.cuh>

using namespace flashinfer;

__device__ __forceinline__ float silu(const float &value) { return value / (1.0f + __expf(-value)); }

#define NORMS(VEC, T)                                                                                                      \
    template __global__ void flashinfer::norm::RMSNormKernel<VEC, T>(T *, T *, T *, uint32_t, uint32_t, uint32_t, float, float);       \
    template __global__ void flashinfer::norm::FusedAddRMSNormKernel<VEC, T>(T *, T *, T *, uint32_t, uint32_t, uint32_t, float, float);
NORMS(8, nv_bfloat16)
NORMS(8, half)
NORMS(1, float)

#define SWIGLU(VEC, T) template __global__ void flashinfer::activation::act_and_mul_kernel<T, silu, VEC>(T *, const T *, int);
SWIGLU(8, nv_bfloat16)
SWIGLU(8, half)
SWIGLU(1, float)

#define MERGE(VEC, T) \
    template __global__ void flashinfer::MergeStateKernel<VEC, T, T>(T *, float *, T *, float *, T *, float *, uint32_t, uint32_t);
MERGE(8, nv_bfloat16)
MERGE(16, nv_bfloat16)
MERGE(8, half)

// Instantiations of FlashInfer's append to the paged latent cache.
#include <flashinfer/page.cuh>

using namespace flashinfer;

#define APPEND(T)                                                                                           \
    template __global__ void flashinfer::AppendPagedKVMlaCacheKernel<512, 64, 8, T, int>(paged_kv_mla_t<T, int>, T *, T *, \
                                                                             int *, int *, uint32_t, size_t, size_t);
APPEND(nv_bfloat16)
APPEND(half)

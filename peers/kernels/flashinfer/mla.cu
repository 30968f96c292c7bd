// Instantiations of FlashInfer's MLA for sm_80, with the tile that it takes on an A100.
#include <flashinfer/attention/mla.cuh>

using namespace flashinfer;

template <bool CAUSAL, typename T>
using Traits = flashinfer::mla::KernelTraits<CAUSAL, 2, true, 512, 64, 64, 32, T, T, T, int>;

#define MLA(CAUSAL, T)                                                                                   \
    template __global__ void flashinfer::mla::BatchMLAPagedAttentionKernel<Traits<CAUSAL, T>, MLAParams<T, T, T, int>>( \
        const __grid_constant__ MLAParams<T, T, T, int>);
MLA(false, nv_bfloat16)
MLA(false, half)
MLA(true, nv_bfloat16)
MLA(true, half)

extern "C" __global__ void shared_bytes(unsigned *bytes) { *bytes = sizeof(Traits<true, half>::SharedStorage); }

// Instantiations of FlashInfer's sampling, deterministic, with the threads that it takes from sm_80 on.
#include <flashinfer/sampling.cuh>

using namespace flashinfer::sampling;

#define SAMPLING(VEC)                                                                                                       \
    template __global__ void flashinfer::sampling::SamplingFromProbKernel<1024, SCAN_ALGO, REDUCE_ALGO, VEC, true, float, int>( \
        float *, int *, bool *, int *, uint32_t, uint64_t *, uint64_t, uint64_t *, uint64_t, uint32_t, uint32_t);           \
    template __global__ void flashinfer::sampling::TopKSamplingFromProbKernel<1024, SCAN_ALGO, REDUCE_ALGO, VEC, true, float, int>( \
        float *, int *, bool *, int *, int *, uint32_t, uint32_t, uint64_t *, uint64_t, uint64_t *, uint64_t, uint32_t,     \
        uint32_t);                                                                                                          \
    template __global__ void flashinfer::sampling::TopPSamplingFromProbKernel<1024, SCAN_ALGO, REDUCE_ALGO, VEC, true, float, int>( \
        float *, int *, bool *, int *, float *, float, uint32_t, uint64_t *, uint64_t, uint64_t *, uint64_t, uint32_t,      \
        uint32_t);                                                                                                          \
    template __global__ void flashinfer::sampling::TopPRenormProbKernel<1024, REDUCE_ALGO, VEC, float>(float *, float *, float *, \
                                                                                                      float, uint32_t);
SAMPLING(4)
SAMPLING(1)

extern "C" __global__ void shared_bytes(unsigned *bytes) {
    bytes[0] = sizeof(SamplingTempStorage<1024, SCAN_ALGO, REDUCE_ALGO>);
    bytes[1] = sizeof(RenormTempStorage<1024, REDUCE_ALGO>);
}

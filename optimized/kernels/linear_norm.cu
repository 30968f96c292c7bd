// A linear layer of few rows, and the norm that stands behind it, in one launch.
//
//   out = x W^T + b                   y = rms_norm(out[:, :width])                   linear_rms_norm
//   h = x W^T + b + residual          y = rms_norm(h)                                linear_add_rms_norm
//
// To the bit what gemm.cu and rms_norm.cu make one after the other: the product is rounded before it is added, and what is
// normalised is what is stored. Blocks of the product add the residual to their tiles; of all tiles, which lie in one row, the last
// block to store one normalises the rows. For few rows that is sooner done than a launch is begun.
//
// Bytes: those of the product, and 4 M N sizeof(T) (2 M width without a residual). Flops: 2 M N K.
#include "gemm.cuh"
#include "rms_norm.cuh"

// The stream that a result is added to, if there is one: rows as far apart as those of the results.
template <typename T> struct Added {
    const T* residual;

    __device__ __forceinline__ float operator()(float x, long long at) const {
        return residual ? to_float(from_float<T>(x)) + to_float(residual[at]) : x;
    }
};

// `arrivals` counts tiles; it is zero before and after.
template <typename T>
__device__ __forceinline__ void linear_norm(const Product<T>& p, const T* residual, const T* gain, T* y, int width,
                                            float eps, u32* arrivals) {
    if (!few_tuned<T, false>(p, blockIdx.z, Added<T>{residual})) return;
    if (!arrives_last(arrivals, gridDim.y)) return;
    const T* rows = (const T*)p.out;
    #pragma unroll 1
    for (long long row = 0; row < p.m; row++)
        norm_by_few<Few<T>::THREADS>(JustStored<T>{rows + row * p.out_row}, gain, y + row * width, width, eps);
}

KERNEL(128)
linear_norm_tuned_f32(Product<float> p, const float* residual, const float* gain, float* y, int width, float eps,
                      u32* arrivals) {
    linear_norm(p, residual, gain, y, width, eps, arrivals);
}
KERNEL(64)
linear_norm_few_tuned_bf16(Product<bf16> p, const bf16* residual, const bf16* gain, bf16* y, int width, float eps,
                           u32* arrivals) {
    linear_norm(p, residual, gain, y, width, eps, arrivals);
}

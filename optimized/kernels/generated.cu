// Generated weights: elements that are a function of tensor name and index (reference/src/weights/generator.rs).
//
//   z     = splitmix64(base plus i)                      base: the mixed hash of name and seed, made by the host
//   s     = sum of the four 16-bit fields of z
//   u     = ((s + 2) / 65536 - 2) * sqrt(3)              fp64: mean 0, variance 1
//   out_i = bf16(f32(mean + u * std))                    both roundings to nearest, ties to even
//
// out: any number of elements, bf16, or f32 that holds the same values. Every operation is one that IEEE 754 defines, and
// none is fused with another: the bits are the host's. A block makes 256 neighbours.
//
// There is one kernel for each type, not two: it has nothing to read and nothing to share, and a model is made once. On a
// GPU with fp64 units it takes as long as writing what it makes.
//
// Bytes: sizeof(T) each. Flops: 5 fp64, and about 40 integer operations, each.
#include "dev.cuh"

// Output x of the SplitMix64 generator, used as a mixing function.
__device__ __forceinline__ u64 splitmix64(u64 x) {
    u64 z = x + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

const double SQRT_3 = 1.7320508075688772;
const int THREADS = 256;

template <typename T>
__device__ __forceinline__ void fill_generated(u64 base, double mean, double std, T* out, long long count) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    u64 z = splitmix64(base + i);
    u32 s = (u32)(z & 0xffff) + (u32)(z >> 16 & 0xffff) + (u32)(z >> 32 & 0xffff) + (u32)(z >> 48);
    // Exact up to here and in the next line; the intrinsics keep what follows apart.
    double even = (s + 2) / 65536.0 - 2.0;
    double x = __dadd_rn(mean, __dmul_rn(__dmul_rn(even, SQRT_3), std));
    out[i] = from_float<T>(to_float(from_float<bf16>(__double2float_rn(x))));
}

#define KERNELS(T, SUFFIX)                                                                                             \
    KERNEL(THREADS) fill_generated_##SUFFIX(u64 base, double mean, double std, T* out, long long count) {              \
        fill_generated<T>(base, mean, std, out, count);                                                                \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)

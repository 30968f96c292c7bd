// Matrices of nvcuda::wmma in the shapes and types of sm_80.

#include <mma.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
using namespace nvcuda;
// out = 2 (x y + z) for one tile.
template <int M, int N, int K, class T, class S, class LA, class LB> __device__ void tile(const T *x, const T *y, const S *z, S *out) {
    __shared__ alignas(32) S s[M * N];
    wmma::fragment<wmma::matrix_a, M, N, K, T, LA> a;
    wmma::fragment<wmma::matrix_b, M, N, K, T, LB> b;
    wmma::fragment<wmma::accumulator, M, N, K, S> c;
    const bool ra = std::is_same<LA, wmma::row_major>::value, rb = std::is_same<LB, wmma::row_major>::value;
    wmma::load_matrix_sync(a, x, ra ? K : M);
    wmma::load_matrix_sync(b, y, rb ? N : K);
    wmma::load_matrix_sync(c, z, N, wmma::mem_row_major);
    wmma::mma_sync(c, a, b, c);
    for (int i = 0; i < c.num_elements; i++) c.x[i] = c.x[i] + c.x[i];
    wmma::store_matrix_sync(s, c, M, wmma::mem_col_major);
    __syncwarp();
    for (int i = threadIdx.x; i < M * N; i += 32) out[i % M * N + i / M] = s[i];
}
using R = wmma::row_major; using C = wmma::col_major;
#define TILE(name, M, N, K, T, S, LA, LB) extern "C" __global__ void name(const T *x, const T *y, const S *z, S *out) { tile<M, N, K, T, S, LA, LB>(x, y, z, out); }
TILE(half_float, 16, 16, 16, half, float, R, C)
TILE(half_half, 16, 16, 16, half, half, C, R)
TILE(wide_half, 8, 32, 16, half, float, R, R)
TILE(tall_half, 32, 8, 16, half, float, C, C)
TILE(bf16_float, 16, 16, 16, __nv_bfloat16, float, R, R)
TILE(wide_bf16, 8, 32, 16, __nv_bfloat16, float, C, R)
TILE(tall_bf16, 32, 8, 16, __nv_bfloat16, float, R, C)
TILE(bytes, 16, 16, 16, signed char, int, R, C)
TILE(wide_bytes, 8, 32, 16, unsigned char, int, C, R)
TILE(tall_bytes, 32, 8, 16, signed char, int, R, R)
TILE(doubles, 8, 8, 4, double, double, R, C)
extern "C" __global__ void tf32(const float *x, const float *y, const float *z, float *out) {
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, R> a;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, C> b;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> c;
    wmma::load_matrix_sync(a, x, 8);
    wmma::load_matrix_sync(b, y, 8);
    wmma::load_matrix_sync(c, z, 16, wmma::mem_row_major);
    for (int i = 0; i < a.num_elements; i++) a.x[i] = wmma::__float_to_tf32(a.x[i]);
    wmma::mma_sync(c, a, b, c);
    for (int i = 0; i < c.num_elements; i++) c.x[i] = c.x[i] + c.x[i];
    wmma::store_matrix_sync(out, c, 16, wmma::mem_row_major);
}
extern "C" __global__ void nibbles(const int *x, const int *y, const int *z, int *out) {
    wmma::fragment<wmma::matrix_a, 8, 8, 32, wmma::experimental::precision::s4, R> a;
    wmma::fragment<wmma::matrix_b, 8, 8, 32, wmma::experimental::precision::s4, C> b;
    wmma::fragment<wmma::accumulator, 8, 8, 32, int> c;
    wmma::load_matrix_sync(a, x, 32);
    wmma::load_matrix_sync(b, y, 32);
    wmma::load_matrix_sync(c, z, 8, wmma::mem_row_major);
    wmma::mma_sync(c, a, b, c);
    for (int i = 0; i < c.num_elements; i++) c.x[i] = c.x[i] + c.x[i];
    wmma::store_matrix_sync(out, c, 8, wmma::mem_row_major);
}
extern "C" __global__ void single_bits(const unsigned *x, const unsigned *y, const int *z, int *out) {
    wmma::fragment<wmma::matrix_a, 8, 8, 128, wmma::experimental::precision::b1, R> a;
    wmma::fragment<wmma::matrix_b, 8, 8, 128, wmma::experimental::precision::b1, C> b;
    wmma::fragment<wmma::accumulator, 8, 8, 128, int> c;
    wmma::load_matrix_sync(a, x, 128);
    wmma::load_matrix_sync(b, y, 128);
    wmma::load_matrix_sync(c, z, 8, wmma::mem_row_major);
    wmma::bmma_sync(c, a, b, c, wmma::experimental::bmmaBitOpAND);
    for (int i = 0; i < c.num_elements; i++) c.x[i] = c.x[i] + c.x[i];
    wmma::store_matrix_sync(out, c, 8, wmma::mem_row_major);
}

// What a GPU can do at most, for the floors of the benchmarks of kernels: reading memory, multiplying matrices with
// the instruction that the kernels use, multiplying and adding in fp32, and a launch that does nothing. These are no
// kernels of the model.
//
//   read_only      reads count times 16 bytes, once
//   matrix_bf16    4096 flops for each round, chain and warp: mma.sync.m16n8k16, 8 chains
//   multiply_f32   2 flops for each round, chain and thread: fma, 16 chains
//
// Chains are independent of each other, so that none waits for itself. `out` keeps the compiler from leaving the work
// out; it has room for a word of each block.

typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS)

const int THREADS = 256;
const int LOADS = 8;
const int MATRIX_CHAINS = 8;
const int CHAINS = 16;

KERNEL(THREADS) read_only(const uint4* data, u64 count, u32* out) {
    u64 step = (u64)gridDim.x * THREADS;
    u64 at = (u64)blockIdx.x * THREADS + threadIdx.x;
    u32 sum = 0;
    // Several loads under way at once for each thread.
    for (; at + (LOADS - 1) * step < count; at += LOADS * step) {
        uint4 words[LOADS];
        #pragma unroll
        for (int i = 0; i < LOADS; i++) words[i] = data[at + i * step];
        #pragma unroll
        for (int i = 0; i < LOADS; i++) sum ^= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
    }
    for (; at < count; at += step) sum ^= data[at].x ^ data[at].y ^ data[at].z ^ data[at].w;
    #pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) sum ^= __shfl_xor_sync(0xffffffffu, sum, lane);
    // One word of a block is enough to make the others' sums count: which, the compiler cannot know.
    if (sum == 0x5eed5eedu || threadIdx.x == 0) out[blockIdx.x] = sum;
}

KERNEL(THREADS) matrix_bf16(u32* out, int rounds) {
    // bf16 numbers between 1 and 2 with different bits: a GPU is faster with zeros.
    u32 bits = threadIdx.x * 2654435761u, a[4], b[2];
    #pragma unroll
    for (int i = 0; i < 4; i++) a[i] = 0x3f803f80u | (bits >> i & 0x007f007fu);
    #pragma unroll
    for (int i = 0; i < 2; i++) b[i] = 0xbf803f80u | (bits >> (i + 4) & 0x007f007fu);
    float sums[MATRIX_CHAINS][4] = {};
    #pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        #pragma unroll
        for (int chain = 0; chain < MATRIX_CHAINS; chain++) {
            float (&d)[4] = sums[chain];
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                         "{%8, %9}, {%0, %1, %2, %3};"
                         : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
    }
    float sum = 0.0f;
    #pragma unroll
    for (int chain = 0; chain < MATRIX_CHAINS; chain++)
        sum += sums[chain][0] + sums[chain][1] + sums[chain][2] + sums[chain][3];
    if (sum == 0.123f || threadIdx.x == 0) out[blockIdx.x] = __float_as_uint(sum);
}

KERNEL(THREADS) multiply_f32(u32* out, int rounds, float factor, float term) {
    float sums[CHAINS];
    #pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) sums[chain] = threadIdx.x + chain;
    #pragma unroll 4
    for (int round = 0; round < rounds; round++) {
        #pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = fmaf(sums[chain], factor, term);
    }
    float sum = 0.0f;
    #pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) sum += sums[chain];
    if (sum == 0.123f || threadIdx.x == 0) out[blockIdx.x] = __float_as_uint(sum);
}

KERNEL(32) nothing() {}

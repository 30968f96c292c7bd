// What the benchmark measures: loops that do one kind of thing. Each thread leaves one number.
typedef unsigned int u32;

// Integer arithmetic: a multiply-add, a shift, an exclusive or and an addition for each round.
extern "C" __global__ void integer(u32* out, u32 rounds) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, x = i + 1;
    #pragma unroll 8
    for (u32 round = 0; round < rounds; round++) {
        x = x * 1664525u + round;
        x += x ^ (x >> 13);
    }
    out[i] = x;
}

// Single precision: four chains of fma, with a multiplication and an addition that are rounded on their own.
extern "C" __global__ void single(float* out, u32 rounds) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    float a = (float)i, b = a + 1.0f, c = a + 2.0f, d = a + 3.0f;
    #pragma unroll 4
    for (u32 round = 0; round < rounds; round++) {
        a = fmaf(a, 0.5f, b);
        b = fmaf(b, 0.25f, c);
        c = fmaf(c, 0.125f, d);
        d = __fadd_rn(__fmul_rn(d, 0.5f), 1.0f);
    }
    out[i] = a + b + c + d;
}

// Shared memory: each of 256 threads reads two neighbours' numbers and writes its own, from one buffer to the other.
extern "C" __global__ void __launch_bounds__(256) shared_traffic(float* out, u32 rounds) {
    __shared__ float row[2][256];
    u32 t = threadIdx.x, left = (t + 255) & 255, right = (t + 1) & 255;
    row[0][t] = (float)t;
    __syncthreads();
    #pragma unroll 4
    for (u32 round = 0; round < rounds; round++) {
        const float* from = row[round & 1];
        row[round & 1 ^ 1][t] = 0.5f * (from[left] + from[right]);
        __syncthreads();
    }
    out[blockIdx.x * 256 + t] = row[rounds & 1][t];
}

// Kernels with one planted bug each; the tests expect it to be found at its line.
typedef unsigned int u32;

extern "C" __global__ void out_of_bounds(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) out[i] = x[0];  // line 6: should be i < n
}

extern "C" __global__ void before_the_start(const float* x, float* out) {
    int i = threadIdx.x;
    out[i] = x[i - 1];  // line 11: thread 0 reads x[-1]
}

extern "C" __global__ void shared_out_of_bounds(float* out) {
    __shared__ float s[64];
    int i = threadIdx.x;
    s[i * 2] = 1.0f;  // line 17: thread 32 and above are outside
    __syncthreads();
    out[i] = s[i];
}

extern "C" __global__ void misaligned(const char* x, float4* out) {
    out[threadIdx.x] = *(const float4*)(x + threadIdx.x * 8);  // line 23: odd threads
}

extern "C" __global__ void uninitialised_shared(float* out) {
    __shared__ float s[64];
    int i = threadIdx.x;
    if (i < 63) s[i] = 1.0f;  // thread 63 stores nothing
    __syncthreads();
    out[i] = s[63 - i];  // line 31
}

extern "C" __global__ void uninitialised_global(const float* x, float* out) {
    out[threadIdx.x] = x[threadIdx.x];  // line 35
}

extern "C" __global__ void missing_wait(const float* x, float* out) {
    __shared__ __align__(16) float s[128];
    u32 t = threadIdx.x;
    u32 to = (u32)__cvta_generic_to_shared(&s[t * 4]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + t * 4) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    __syncthreads();
    out[t] = s[t];  // line 45: nobody has waited for the copy
}

extern "C" __global__ void one_group_too_few(const float* x, float* out) {
    __shared__ __align__(16) float s[2][128];
    u32 t = threadIdx.x;
    for (int stage = 0; stage < 2; stage++) {
        u32 to = (u32)__cvta_generic_to_shared(&s[stage][t * 4]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + t * 4) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    out[t] = s[1][t];  // line 58: only the first group has landed
}

extern "C" __global__ void divergent_barrier(float* out) {
    __shared__ float s[32];
    u32 t = threadIdx.x;
    s[t] = 1.0f;
    if (t < 16) {
        asm volatile("bar.sync 0;" ::: "memory");  // line 66: half of the warp
        out[t] = s[t + 16];
    } else {
        asm volatile("bar.sync 0;" ::: "memory");  // line 69: the other half
        out[t] = s[t - 16] + 1.0f;
    }
}

extern "C" __global__ void deadlock(float* out) {
    u32 t = threadIdx.x;
    if (t < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory");  // line 77: the second warp waits elsewhere
    } else {
        asm volatile("bar.sync 2, 64;" ::: "memory");  // line 79
    }
    out[t] = 1.0f;
}

extern "C" __global__ void shuffle_with_strangers(u32* out) {
    u32 t = threadIdx.x;
    out[t] = __shfl_sync(0x0000ffff, t, 0);  // line 86: lanes 16 to 31 are not in the mask
}

extern "C" __global__ void shuffle_in_a_branch(u32* out) {
    u32 t = threadIdx.x, v = t;
    if (t < 8) v = __shfl_sync(0xffffffff, t, 0);  // line 91: 24 lanes never come
    __syncwarp();
    out[t] = v;
}

extern "C" __global__ void endless(volatile u32* flag) {
    while (*flag == 0) {}  // line 97
}

extern "C" __global__ void trap(u32* out) {
    if (threadIdx.x == 5) asm volatile("trap;");  // line 101
    out[threadIdx.x] = 1;
}

// A lock that lanes of one warp take from each other: needs fair scheduling, and is no bug.
extern "C" __global__ void lock(u32* words) {
    u32 t = threadIdx.x;
    bool done = false;
    while (!done) {
        if (atomicCAS(&words[0], 0u, 1u) == 0u) {
            words[1] = *(volatile u32*)&words[1] + t;
            __threadfence();
            atomicExch(&words[0], 0u);
            done = true;
        }
    }
}

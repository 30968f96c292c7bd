// Kernels whose synchronisation is right, or, with BUG, wrong in one place; the tests name the lines of both accesses.
typedef unsigned int u32;

template <bool BUG> __device__ void reduce(const float* x, float* out) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];  // line 7
    if (!BUG) __syncthreads();
    float sum = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < 64; i++) sum += s[i];  // line 11
    out[t] = sum;
}

template <bool BUG> __device__ void tiles(const float* x, float* out) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (u32 tile = 0; tile < 4; tile++) {
        s[t] = x[tile * 64 + t];  // line 21
        __syncthreads();
        sum += s[63 - t];  // line 23
        if (!BUG) __syncthreads();
    }
    out[t] = sum;
}

template <bool BUG> __device__ void lanes(u32* out) {
    __shared__ u32 s[64];
    u32 t = threadIdx.x;
    s[t] = t;  // line 32
    if (BUG) __shfl_sync(0xffffffff, t, 0);  // brings the lanes together, but orders nothing
    else __syncwarp();
    out[t] = s[t ^ 1];  // line 35
}

template <bool WAIT, bool BARRIER> __device__ void copies(const float* x, float* out) {
    __shared__ __align__(16) float s[256];
    u32 t = threadIdx.x, to = (u32)__cvta_generic_to_shared(&s[t * 4]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + t * 4) : "memory");  // line 41
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group %0;" ::"n"(WAIT ? 0 : 1) : "memory");
    if (BARRIER) __syncthreads();
    out[t] = s[t];  // line 45
}

template <bool BUG> __device__ void blocks(u32* word) {
    if (threadIdx.x != 0) return;
    if (BUG) *word = blockIdx.x;  // line 50
    else atomicAdd(word, 1);
}

template <bool BUG> __device__ void counter(u32* word, u32* out) {
    atomicAdd(word, 1);  // line 55
    u32 now; if (BUG) now = *word; else now = *(volatile u32*)word;  // line 56
    out[blockIdx.x * blockDim.x + threadIdx.x] = now;
}

template <int RELEASE, int ACQUIRE> __device__ void last_block(float* part, u32* count, float* out) {
    __shared__ bool last;
    u32 t = threadIdx.x;
    part[blockIdx.x * 64 + t] = 1.0f;  // line 63
    if (RELEASE == 0) __threadfence();
    if (RELEASE == 1) __threadfence_block();
    __syncthreads();
    if (t == 0) {
        last = atomicAdd(count, 1) == gridDim.x - 1;
        if (ACQUIRE == 0) __threadfence();
    }
    __syncthreads();
    if (!last) return;
    float sum = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < gridDim.x; i++) sum += part[i * 64 + t];  // line 75
    out[t] = sum;
}

__device__ void pipeline(const float* x, float* out) {
    __shared__ float s[32];
    u32 t = threadIdx.x;
#pragma unroll 1
    for (u32 tile = 0; tile < 3; tile++) {
        if (t < 32) {
            asm volatile("bar.sync 1, 64;" ::: "memory");  // the place is free
            s[t] = x[tile * 32 + t];
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            asm volatile("bar.sync 2, 64;" ::: "memory");  // the place is full
            out[tile * 32 + t - 32] = s[t - 32];
        }
    }
}

// A producer that signals on barrier 2 only before it writes: the consumer's barrier has another number.
template <bool BUG> __device__ void signal(const float* x, float* out) {
    __shared__ float s[32];
    u32 t = threadIdx.x;
    if (t < 32) {
        if (BUG) asm volatile("bar.arrive 2, 64;" ::: "memory");
        s[t] = x[t];  // line 102
        if (BUG) asm volatile("bar.arrive 3, 64;" ::: "memory");
        else asm volatile("bar.arrive 2, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 2, 64;" ::: "memory");
        out[t - 32] = s[t - 32];  // line 107
        if (BUG) asm volatile("bar.sync 3, 64;" ::: "memory");
    }
}

template <bool BUG> __device__ void one_store(u32* out) {
    u32 t = threadIdx.x;
    out[BUG ? t / 2 : t] = 1;  // line 114
}

// The source of a copy is overwritten while the copy may still read it.
template <bool BUG> __device__ void source(float* x, float* out) {
    __shared__ __align__(16) float s[128];
    u32 t = threadIdx.x, to = (u32)__cvta_generic_to_shared(&s[t * 4]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + t * 4) : "memory");  // line 121
    if (BUG) x[t * 4] = 0.0f;  // line 122
    asm volatile("cp.async.wait_all;" ::: "memory");
    if (!BUG) x[t * 4] = 0.0f;
    out[t] = s[t * 4];
}

// Neighbouring halves of a word are no race, the same half is one.
template <bool BUG> __device__ void halves(const unsigned short* x, unsigned short* out) {
    __shared__ unsigned short s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];  // line 132
    out[t] = s[BUG ? t ^ 1 : t];  // line 133
}

#define BOTH(name, parameters, arguments) \
    extern "C" __global__ void name##_clean parameters { name<false> arguments; } \
    extern "C" __global__ void name##_bug parameters { name<true> arguments; }
BOTH(reduce, (const float* x, float* out), (x, out))
BOTH(tiles, (const float* x, float* out), (x, out))
BOTH(lanes, (u32* out), (out))
BOTH(blocks, (u32* word), (word))
BOTH(counter, (u32* word, u32* out), (word, out))
BOTH(signal, (const float* x, float* out), (x, out))
BOTH(one_store, (u32* out), (out))
BOTH(source, (float* x, float* out), (x, out))
BOTH(halves, (const unsigned short* x, unsigned short* out), (x, out))
extern "C" __global__ void pipeline_clean(const float* x, float* out) { pipeline(x, out); }
extern "C" __global__ void copies_clean(const float* x, float* out) { copies<true, true>(x, out); }
extern "C" __global__ void copies_no_wait(const float* x, float* out) { copies<false, true>(x, out); }
extern "C" __global__ void copies_no_barrier(const float* x, float* out) { copies<true, false>(x, out); }
#define LAST(name, release, acquire) \
    extern "C" __global__ void name(float* part, u32* count, float* out) { last_block<release, acquire>(part, count, out); }
LAST(last_clean, 0, 0)
LAST(last_no_release, 2, 0)
LAST(last_release_in_block, 1, 0)
LAST(last_no_acquire, 0, 2)

// The CUDA guide's "Memory Fence Functions": the last block adds up what the blocks have left and sets the counter anew.
template <bool BUG> __device__ void last_sum(float* part, u32* count) {
    __shared__ bool last;
    volatile float* result = part;
    if (threadIdx.x == 0) {
        result[blockIdx.x] = 1.0f;
        __threadfence();
        last = atomicInc(count, gridDim.x) == (BUG ? 0 : gridDim.x - 1);
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float sum = 0.0f;
    for (u32 i = 0; i < gridDim.x; i++) sum += result[i];
    result[0] = sum;
    *count = 0;  // line 173
}
BOTH(last_sum, (float* part, u32* count), (part, count))

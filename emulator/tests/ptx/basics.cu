// Small kernels, one for each thing that the emulator must do. Compiled by NVRTC 12.4 for compute_80 with -lineinfo.
typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" __global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

// The sum of each block's 256 elements, through shared memory.
extern "C" __global__ void block_sum(const float* x, float* sums, int n) {
    __shared__ float part[256];
    int t = threadIdx.x, i = blockIdx.x * 256 + t;
    part[t] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int s = 128; s > 0; s >>= 1) {
        if (t < s) part[t] += part[t + s];
        __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = part[0];
}

// The same through shuffles, and dynamic shared memory for one number per warp.
extern "C" __global__ void warp_sum(const float* x, float* sums, int n) {
    extern __shared__ float warps[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    float v = i < n ? x[i] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffff, v, d);
    if ((t & 31) == 0) warps[t >> 5] = v;
    __syncthreads();
    if (t < 32) {
        v = t < (blockDim.x >> 5) ? warps[t] : 0.0f;
        for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(0xffffffff, v, d);
        if (t == 0) sums[blockIdx.x] = v;
    }
}

// All four shuffles, votes, matches and the warp reductions; 12 words for each lane.
extern "C" __global__ void warp_tour(const u32* x, u32* out) {
    u32 t = threadIdx.x, v = x[t], m = 0xffffffff;
    u32* o = out + t * 12;
    o[0] = __shfl_sync(m, v, (t * 7 + 3) & 31);
    o[1] = __shfl_up_sync(m, v, 3);
    o[2] = __shfl_down_sync(m, v, 5, 8);
    o[3] = __shfl_xor_sync(m, v, 9, 16);
    o[4] = __ballot_sync(m, v & 1);
    o[5] = __all_sync(m, v > 0) * 2 + __any_sync(m, v == 0);
    o[6] = __match_any_sync(m, v & 3);
    int same;
    o[7] = __match_all_sync(m, v & 0, &same) + same;
    o[8] = __reduce_add_sync(m, v);
    o[9] = __reduce_max_sync(m, v) ^ __reduce_xor_sync(m, v);
    o[10] = (u32)__reduce_min_sync(m, (int)v);
    o[11] = __activemask();
}

// Nested loops whose trip counts depend on the lane, with a break and a switch inside.
extern "C" __global__ void divergence(const u32* seed, u32* out) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, h = seed[i];
    for (u32 a = 0; a < (i % 7) + 1; a++) {
        for (u32 b = 0; b < (h % 5); b++) {
            if ((h ^ b) % 11 == 3) break;
            switch ((h + a) & 7) {
                case 0: h = h * 1664525u + 1013904223u; break;
                case 1: h ^= h >> 7; break;
                case 2: h += 0x9e3779b9u; break;
                case 3: h = (h << 5) | (h >> 27); break;
                case 4: h -= b; break;
                case 5: h = ~h; break;
                default: h += a * b + 1;
            }
        }
        h = h * 31 + a;
    }
    out[i] = h;
}

// A warp split in two halves that each talk among themselves, in any order.
extern "C" __global__ void split_warp(u32* out) {
    u32 t = threadIdx.x, v;
    if (t < 10) {
        v = __shfl_sync(0x000003ff, t * 3, (t + 1) % 10);
        __syncwarp(0x3ff);
    } else {
        v = __shfl_sync(0xfffffc00, t * 5, t == 31 ? 10 : t + 1);
    }
    __syncwarp();
    out[t] = v + __shfl_xor_sync(0xffffffff, v, 1);
}

extern "C" __global__ void atomics(u32* c, float* f, u64* big, int* s) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&c[0], 1u);
    atomicMax(&c[1], i);
    atomicMin(&c[2], i);
    atomicOr(&c[3], 1u << (i & 31));
    atomicAnd(&c[4], ~(1u << (i & 15)));
    atomicXor(&c[5], i);
    u32 old = atomicAdd(&c[6], 2u);
    atomicExch(&c[7], old);
    u32 seen = c[8], assumed;
    do { assumed = seen; seen = atomicCAS(&c[8], assumed, assumed + 3); } while (seen != assumed);
    atomicAdd(f, 0.5f);
    atomicAdd(big, (u64)i << 20);
    atomicMin(s, -(int)i);
    __shared__ u32 local;
    if (threadIdx.x == 0) local = 0;
    __syncthreads();
    atomicAdd(&local, i);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&c[9], local);
}

// A local array that is indexed at run time: local memory.
extern "C" __global__ void local_array(const u32* x, u32* out) {
    u32 a[16], t = threadIdx.x;
    for (int i = 0; i < 16; i++) a[i] = x[i] + t;
    for (int i = 0; i < 16; i++) { u32 j = (x[i] + t) & 15; u32 k = a[i]; a[i] = a[j]; a[j] = k; }
    u32 h = 0;
    for (int i = 0; i < 16; i++) h = h * 31 + a[i];
    out[t] = h;
}

// A pointer that may be to shared or to global memory: generic addressing.
extern "C" __global__ void generic(u32* x, u32* out) {
    __shared__ u32 s[32];
    u32 t = threadIdx.x;
    s[t] = t * 2;
    __syncwarp();
    u32* p = x[t] & 1 ? &s[t] : &x[t];
    *(volatile u32*)p += 100;
    __syncwarp();
    out[t] = s[t];
}

struct Pair { float scale; int shift; u64 key; };
__constant__ int table[8] = {1, -2, 3, -4, 5, -6, 7, -8};
__device__ u32 counter = 41;

// A struct as an argument, constant memory and a variable of the module.
extern "C" __global__ void with_struct(Pair p, float* out, u64* keys) {
    u32 t = threadIdx.x;
    out[t] = p.scale * (float)table[(t + p.shift) & 7];
    keys[t] = p.key + t;
    if (t == 0) atomicAdd(&counter, 1u);
    __syncthreads();
    if (t == 1) out[0] = (float)counter;
}

// Vector accesses and 64-bit arithmetic.
extern "C" __global__ void vectors(const float4* a, const uint2* b, float4* c, u64* d, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 v = a[i];
    uint2 w = b[i];
    c[i] = make_float4(v.w, v.z * 2.0f, v.y, sqrtf(v.x));
    u64 q = ((u64)w.x << 32) | w.y;
    d[i] = q / (u64)(i + 3) + q % 1000003ull + (u64)__umul64hi(q, 0x123456789abcdefull) + (u64)((long long)q / -7);
}

// Named barriers: the first warp produces, the second consumes.
extern "C" __global__ void named_barriers(u32* out) {
    __shared__ u32 box[32];
    u32 t = threadIdx.x, lane = t & 31;
    for (u32 round = 0; round < 4; round++) {
        if (t < 32) {
            box[lane] = round * 100 + lane;
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            asm volatile("bar.sync 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            out[round * 32 + lane] = box[31 - lane];
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
    u32 many = __syncthreads_count(t & 1);
    u32 both = __syncthreads_and(t < 64) * 2 + __syncthreads_or(t == 64);
    if (t == 0) { out[128] = many; out[129] = both; }
}

// A double-buffered copy of tiles of 128 floats with cp.async; the last tile may be ragged (zero fill).
extern "C" __global__ void async_copy(const float* x, float* out, int n) {
    __shared__ __align__(16) float tile[2][128];
    u32 t = threadIdx.x;
    int tiles = (n + 127) / 128;
    for (int stage = 0; stage <= tiles; stage++) {
        if (stage < tiles) {
            int at = stage * 128 + t * 4, left = n - at;
            int bytes = left >= 4 ? 16 : left > 0 ? left * 4 : 0;
            u32 to = (u32)__cvta_generic_to_shared(&tile[stage & 1][t * 4]);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(bytes ? x + at : x), "r"(bytes) : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (stage == 0) continue;
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int k = 0; k < 4; k++) out[(stage - 1) * 128 + k * 32 + t] = tile[(stage - 1) & 1][k * 32 + t] * 2.0f;
        __syncthreads();
    }
}

__device__ __noinline__ u32 gcd(u32 a, u32 b) {
    while (b != 0) { u32 r = a % b; a = b; b = r; }
    return a;
}

__device__ __noinline__ Pair combine(const u32* x, Pair p) {
    p.key += gcd(x[0], x[1]);
    if (p.shift < 4) return p;
    p.scale = (float)gcd(p.shift, 12);
    return p;
}

// Calls of functions that are not inlined, within each other and under divergence.
extern "C" __global__ void calls(const u32* x, float* scales, u64* keys) {
    u32 t = threadIdx.x;
    Pair p = {0.5f, (int)t, 100};
    if (t % 3 != 0) p = combine(x + 2 * t, p);
    scales[t] = p.scale;
    keys[t] = p.key;
}

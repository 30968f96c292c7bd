// Cooperative groups, cuda::atomic, and blocks that wait for one another.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda/std/utility>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdio>

namespace cg = cooperative_groups;

extern "C" __global__ void tile_reduce(const int *in, int *out) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int sum = cg::reduce(tile, in[threadIdx.x], cg::plus<int>());
    out[threadIdx.x] = sum;
}
extern "C" __global__ void tile_scan(const int *in, int *out) {
    auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    out[threadIdx.x] = cg::exclusive_scan(tile, in[threadIdx.x]);
}
extern "C" __global__ void coalesced(const int *in, int *out) {
    int value = in[threadIdx.x];
    out[threadIdx.x] = -1;
    if (value & 1) {
        auto active = cg::coalesced_threads();
        out[threadIdx.x] = int(active.thread_rank()) + 100 * int(active.size());
    }
}
extern "C" __global__ void labels(const int *in, int *out) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    auto same = cg::labeled_partition(warp, in[threadIdx.x] & 3);
    out[threadIdx.x] = cg::reduce(same, in[threadIdx.x], cg::greater<int>());
}
// Neighbours in a ring of blocks, twice, with a barrier of the grid between.
extern "C" __global__ void grid_ring(const int *in, int *out, int *space) {
    auto grid = cg::this_grid();
    unsigned i = grid.thread_rank(), n = grid.size();
    space[i] = in[i];
    grid.sync();
    int next = space[(i + blockDim.x) % n];
    grid.sync();
    space[i] = 3 * next + 1;
    grid.sync();
    out[i] = space[(i + blockDim.x) % n] - next;
}
extern "C" __global__ void atomic_sum(const int *in, int *out) {
    cuda::atomic_ref<int, cuda::thread_scope_device> sum(out[0]);
    sum.fetch_add(in[blockIdx.x * blockDim.x + threadIdx.x], cuda::memory_order_relaxed);
    cuda::atomic_ref<int, cuda::thread_scope_device> largest(out[1]);
    largest.fetch_max(in[blockIdx.x * blockDim.x + threadIdx.x], cuda::memory_order_relaxed);
}
extern "C" __global__ void atomic_floats(const float *in, float *out) {
    unsigned i = threadIdx.x;
    atomicAdd(out, in[i]);
    atomicAdd(reinterpret_cast<double *>(out + 2), double(in[i]));
    atomicAdd(reinterpret_cast<__half2 *>(out + 4), __float2half2_rn(in[i]));
}
// For sm_80 the header makes a loop of this that reads the sum in the ordinary way first: a race by the letter.
extern "C" __global__ void atomic_brain_floats(const float *in, float *out) {
    atomicAdd(reinterpret_cast<__nv_bfloat162 *>(out), __float2bfloat162_rn(in[threadIdx.x]));
}
// A block waits for the one behind it: hardware runs both at once.
extern "C" __global__ void backwards(const int *in, int *out, unsigned *flag) {
    if (threadIdx.x == 0) {
        cuda::atomic_ref<unsigned, cuda::thread_scope_device> next(flag[blockIdx.x + 1]), mine(flag[blockIdx.x]);
        while (blockIdx.x + 1 < gridDim.x && next.load(cuda::memory_order_acquire) == 0) __nanosleep(20);
        int after = blockIdx.x + 1 < gridDim.x ? out[blockIdx.x + 1] : 0;
        out[blockIdx.x] = in[blockIdx.x] + after;
        mine.store(1, cuda::memory_order_release);
    }
}
// A lock of the grid around a sum that is not atomic.
extern "C" __global__ void lock(const int *in, int *out, unsigned *flag) {
    if (threadIdx.x == 0) {
        cuda::atomic_ref<unsigned, cuda::thread_scope_device> taken(flag[0]);
        while (taken.exchange(1, cuda::memory_order_acquire) != 0) {}
        out[0] += in[blockIdx.x];
        taken.store(0, cuda::memory_order_release);
    }
}
// The last block to finish adds up what all left.
extern "C" __global__ void last_block(const int *in, int *out, unsigned *flag) {
    __shared__ bool last;
    out[1 + blockIdx.x * blockDim.x + threadIdx.x] = 2 * in[blockIdx.x * blockDim.x + threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(flag, 1) + 1 == gridDim.x;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) sum += out[1 + i];
        out[0] = sum;
    }
}
// What a thread says, and what it insists on.
extern "C" __global__ void says(const int *in, int *out) {
    int x = in[threadIdx.x];
    if (threadIdx.x % 16 == 3) out[0] = printf("%d|%5u|%-4x|%08.3f|%e|%g|%c%s%%|%lld\n", x, threadIdx.x, x, x / 8.0, x * 1e5, x * 1e-7, 'c', "text", -(1ll << 40));
}
extern "C" __global__ void insists(const int *in, int *out) {
    if (in[threadIdx.x] > 1000) __assert_fail("in[i] <= 1000", "groups.cu", 42, "insists");
    out[threadIdx.x] = 1;
}
// A barrier of the C++ library; for sm_80 it is one in shared memory.
extern "C" __global__ void block_barrier(const int *in, int *out) {
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    __shared__ int space[128];
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    int sum = 0;
    for (unsigned round = 1; round <= 3; round++) {
        space[threadIdx.x] = in[threadIdx.x] * round;
        auto token = barrier.arrive();
        barrier.wait(cuda::std::move(token));
        sum += space[(threadIdx.x + 33 * round) % blockDim.x];
        barrier.arrive_and_wait();
    }
    out[threadIdx.x] = sum;
}
// Copies that arrive at such a barrier. Without the wait they may come at any time.
template <bool WAITS> __device__ void barrier_copy(const int *in, int *out) {
    __shared__ alignas(16) int space[256];
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    unsigned t = threadIdx.x;
    if (t == 0) init(&barrier, blockDim.x);
    __syncthreads();
    cuda::memcpy_async(space + 4 * t, in + 4 * t, cuda::aligned_size_t<16>(16), barrier);
    auto token = barrier.arrive();
    if (WAITS) barrier.wait(cuda::std::move(token));
    out[t] = space[255 - t] + space[t];
}
extern "C" __global__ void barrier_waits(const int *in, int *out) { barrier_copy<true>(in, out); }
extern "C" __global__ void barrier_does_not_wait(const int *in, int *out) { barrier_copy<false>(in, out); }
// A pipeline of the block in two stages; without the release a stage is filled while others still read it.
template <bool RELEASES> __device__ void pipeline(const int *in, int *out) {
    const unsigned rounds = 5;
    __shared__ alignas(16) int space[2][64];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state);
    int sum = 0;
    for (unsigned fetch = 0, i = 0; i < rounds; i++) {
        for (; fetch < rounds && fetch < i + 2; fetch++) {
            if (RELEASES || fetch < 2) pipe.producer_acquire();
            cuda::memcpy_async(block, space[fetch % 2], in + 64 * fetch, cuda::aligned_size_t<16>(256), pipe);
            pipe.producer_commit();
        }
        pipe.consumer_wait();
        sum += (i + 1) * space[i % 2][63 - threadIdx.x];
        if (RELEASES) pipe.consumer_release();
    }
    out[threadIdx.x] = sum;
}
extern "C" __global__ void pipeline_releases(const int *in, int *out) { pipeline<true>(in, out); }
extern "C" __global__ void pipeline_does_not_release(const int *in, int *out) { pipeline<false>(in, out); }
// A function that is chosen by a pointer from a table, and a switch that compilers make a table of.
__device__ int twice(int x) { return 2 * x; }
__device__ int square(int x) { return x * x; }
__device__ int minus(int x) { return -x; }
__device__ int (*const TABLE[])(int) = {twice, square, minus};
extern "C" __global__ void pointers(const int *in, int *out) {
    out[threadIdx.x] = TABLE[unsigned(in[threadIdx.x]) % 3](in[threadIdx.x] & 0xff);
}
struct Shape {
    __device__ virtual int area(int n) const = 0;
};
struct Square : Shape {
    __device__ int area(int n) const override { return n * n; }
};
struct Strip : Shape {
    __device__ int area(int n) const override { return 3 * n; }
};
extern "C" __global__ void virtual_calls(const int *in, int *out) {
    Square square;
    Strip strip;
    const Shape *shapes[2] = {&square, &strip};
    out[threadIdx.x] = shapes[in[threadIdx.x] & 1]->area(int(threadIdx.x));
}
extern "C" __global__ void table_of_branches(const int *in, int *out) {
    int x = in[threadIdx.x], r;
    switch (x & 7) {
    case 0: r = __popc(x); break;
    case 1: r = __clz(x); break;
    case 2: r = x * 7; break;
    case 3: r = x ^ 0x55; break;
    case 4: r = __brev(x); break;
    case 5: r = x / 3; break;
    case 6: r = x % 11; break;
    default: r = ~x;
    }
    out[threadIdx.x] = r;
}

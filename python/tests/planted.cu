// Small kernels, each with one bug that -DBUG plants.

// A tree sum of a block's values: the barrier between two rounds is missing.
extern "C" __global__ void block_sum(const float *x, float *out) {
    __shared__ float part[128];
    part[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    for (int half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
#ifndef BUG
        __syncthreads();
#endif
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

// Every row's sum, a warp each: the barrier stands where only some threads come.
extern "C" __global__ void row_sums(const float *x, float *out, int rows) {
    __shared__ float part[4];
    int warp = threadIdx.x / 32, row = blockIdx.x * 4 + warp;
    float sum = 0;
#ifdef BUG
    if (threadIdx.x % 32 < 16) __syncthreads();
#else
    __syncthreads();
#endif
    if (row < rows) sum = x[row * 32 + threadIdx.x % 32];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) part[warp] = sum;
    __syncthreads();
    if (threadIdx.x < 4 && blockIdx.x * 4 + threadIdx.x < rows) out[blockIdx.x * 4 + threadIdx.x] = part[threadIdx.x];
}

// A tile is turned in shared memory: the tile has a row too few.
extern "C" __global__ void turn(const float *x, float *out) {
#ifdef BUG
    __shared__ float tile[31][32];
#else
    __shared__ float tile[32][33];
#endif
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    out[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

// Counts in shared memory: nobody sets them to zero.
extern "C" __global__ void count(const int *ids, int *counts, int n) {
    __shared__ int here[8];
#ifndef BUG
    if (threadIdx.x < 8) here[threadIdx.x] = 0;
#endif
    __syncthreads();
    if (threadIdx.x < n) atomicAdd(&here[ids[threadIdx.x]], 1);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], here[threadIdx.x]);
}

// Rows are read four numbers at a time: where a row begins is no multiple of 16 bytes if its pitch is odd.
extern "C" __global__ void copy_rows(const float *x, float *out, int pitch) {
    float4 four = *(const float4 *)(x + blockIdx.x * pitch + threadIdx.x * 4);
    *(float4 *)(out + blockIdx.x * 64 + threadIdx.x * 4) = four;
}

// A tile is fetched while something else is done: nobody waits for it.
extern "C" __global__ void fetch(const float *x, float *out) {
    __shared__ __align__(16) float tile[128];
    unsigned to = (unsigned)__cvta_generic_to_shared(tile + threadIdx.x * 4);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + threadIdx.x * 4) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
#ifndef BUG
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[i * 32 + threadIdx.x];
}

// The order of a struct's fields is another one than the host's.
#ifdef BUG
struct Shape { int columns; int rows; float *data; };
#else
struct Shape { int rows; int columns; float *data; };
#endif
extern "C" __global__ void fill(const __grid_constant__ Shape shape) {
    for (int i = threadIdx.x; i < shape.columns; i += 32) shape.data[blockIdx.x * shape.columns + i] = blockIdx.x;
}

// The mask of a shuffle names lanes that are not there.
extern "C" __global__ void last_lanes(const int *x, int *out, int n) {
    if (threadIdx.x < n) {
#ifdef BUG
        unsigned lanes = 0xffffffff;
#else
        unsigned lanes = __activemask();
#endif
        out[threadIdx.x] = __shfl_sync(lanes, x[threadIdx.x], 0);
    }
    __syncthreads();
}

// Tokens of a ragged batch: the end of a sequence is taken from the one after it.
extern "C" __global__ void sequence_sums(const float *x, const int *starts, float *out, int sequences) {
    int sequence = threadIdx.x;
    if (sequence >= sequences) return;
#ifdef BUG
    int end = starts[sequence + 2];
#else
    int end = starts[sequence + 1];
#endif
    float sum = 0;
    for (int i = starts[sequence]; i < end; ++i) sum += x[i];
    out[sequence] = sum;
}

// The product of two bytes is kept in a byte.
extern "C" __global__ void byte_dot(const signed char *x, const signed char *y, int *out, int n) {
#ifdef BUG
    signed char sum = 0;
#else
    int sum = 0;
#endif
    for (int i = 0; i < n; ++i) sum += x[i] * y[i];
    *out = sum;
}

// A tile of a warp is read by other lanes than those that wrote it: the warp is not brought together before.
extern "C" __global__ void turn_warp(const float *x, float *out) {
    __shared__ float tile[32][5];
    for (int i = 0; i < 4; ++i) tile[threadIdx.x][i] = x[threadIdx.x * 4 + i];
#ifndef BUG
    __syncwarp();
#endif
    for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = tile[i * 8 + threadIdx.x / 4][threadIdx.x % 4];
}

// Two tiles are fetched ahead: before the last one is read, one copy may still be under way.
extern "C" __global__ void fetch_ahead(const float *x, float *out, int tiles) {
    __shared__ __align__(16) float tile[2][128];
    auto fetch = [&](int at) {
        unsigned to = (unsigned)__cvta_generic_to_shared(&tile[at % 2][threadIdx.x * 4]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + at * 128 + threadIdx.x * 4) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(0);
    for (int at = 0; at < tiles; ++at) {
        if (at + 1 < tiles) fetch(at + 1);
#ifdef BUG
        asm volatile("cp.async.wait_group 1;" ::: "memory");
#else
        if (at + 1 < tiles) asm volatile("cp.async.wait_group 1;" ::: "memory");
        else asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
        __syncthreads();
        for (int i = 0; i < 4; ++i) out[at * 128 + i * 32 + threadIdx.x] = tile[at % 2][i * 32 + threadIdx.x];
        __syncthreads();
    }
}

// A buffer is filled anew in each round: some threads still read the last round's.
extern "C" __global__ void rounds(const float *x, float *out, int count) {
    __shared__ float row[64];
    float sum = 0;
    for (int round = 0; round < count; ++round) {
        row[threadIdx.x] = x[round * 64 + threadIdx.x];
        __syncthreads();
        sum += row[63 - threadIdx.x];
#ifndef BUG
        __syncthreads();
#endif
    }
    out[threadIdx.x] = sum;
}

// A warp's sum by shuffles: the first step is left out.
extern "C" __global__ void warp_sum(const float *x, float *out) {
    float sum = x[blockIdx.x * 32 + threadIdx.x];
#ifdef BUG
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
#else
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
#endif
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

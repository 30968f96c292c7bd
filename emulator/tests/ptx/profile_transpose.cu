// A transpose of a matrix of n x n floats in tiles of 32 x 32, blocks of 32 x 8 threads, three times: straight through
// global memory, through shared memory with conflicts, and with a column of padding.
#define TILE 32
#define ROWS 8

extern "C" __global__ void straight(const float* in, float* out, int n) {
    int x = blockIdx.x * TILE + threadIdx.x, y = blockIdx.y * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS) out[x * n + y + j] = in[(y + j) * n + x];
}

template <int WIDTH>
__device__ __forceinline__ void through(const float* in, float* out, int n) {
    __shared__ float tile[TILE][WIDTH];
    int x = blockIdx.x * TILE + threadIdx.x, y = blockIdx.y * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * n + x];
    __syncthreads();
    x = blockIdx.y * TILE + threadIdx.x, y = blockIdx.x * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS) out[(y + j) * n + x] = tile[threadIdx.x][threadIdx.y + j];
}

extern "C" __global__ void conflicting(const float* in, float* out, int n) { through<TILE>(in, out, n); }

extern "C" __global__ void padded(const float* in, float* out, int n) { through<TILE + 1>(in, out, n); }

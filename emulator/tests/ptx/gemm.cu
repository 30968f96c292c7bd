// A bf16 tile product with ldmatrix and mma.sync: D[16x8] = A[16x16] B[16x8], one warp; B is stored as its rows (k, n).
typedef unsigned int u32;
typedef unsigned short u16;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

#define MMA(TYPE)                                                                                                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "  \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                     \
                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]))

#define TILE(NAME, TYPE)                                                                                              \
    extern "C" __global__ void NAME(const u16* a, const u16* b, float* c, int k) {                                    \
        __shared__ __align__(16) u16 sa[16 * 16];                                                                     \
        __shared__ __align__(16) u16 sb[16 * 8];                                                                      \
        u32 lane = threadIdx.x, fa[4], fb[2];                                                                         \
        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};                                                                        \
        for (int at = 0; at < k; at += 16) {                                                                          \
            for (u32 i = lane; i < 256; i += 32) sa[i] = a[(i >> 4) * k + at + (i & 15)];                             \
            for (u32 i = lane; i < 128; i += 32) sb[i] = b[(at + (i >> 3)) * 8 + (i & 7)];                            \
            __syncwarp();                                                                                             \
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"                           \
                         : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])                                         \
                         : "r"(shared_address(sa + (lane & 15) * 16 + (lane >> 4) * 8)) : "memory");                  \
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"                             \
                         : "=r"(fb[0]), "=r"(fb[1]) : "r"(shared_address(sb + (lane & 15) * 8)) : "memory");          \
            MMA(TYPE);                                                                                                \
            __syncwarp();                                                                                             \
        }                                                                                                             \
        u32 row = lane >> 2, col = (lane & 3) * 2;                                                                    \
        c[row * 8 + col] = d[0];                                                                                      \
        c[row * 8 + col + 1] = d[1];                                                                                  \
        c[(row + 8) * 8 + col] = d[2];                                                                                \
        c[(row + 8) * 8 + col + 1] = d[3];                                                                            \
    }

TILE(tile_bf16, "bf16")
TILE(tile_f16, "f16")

// One of four warps computes a quarter of a 64x64 tile of C[M, N] = A[M, K] B[N, K]^T. Tiles of 64x32 of A and B are
// copied asynchronously, one ahead; rows are padded to 40 elements so that ldmatrix has no bank conflicts.
const int TILE_ROWS = 64, TILE_DEPTH = 32, ROW = 40;

__device__ __forceinline__ void copy_tile(u16 (*tile)[ROW], const u16* from, int stride) {
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        int chunk = threadIdx.x + i * 128, row = chunk >> 2, column = (chunk & 3) * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[row][column])),
                     "l"(from + row * stride + column) : "memory");
    }
}

extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const u16* a, const u16* b, float* c, int n, int k) {
    __shared__ __align__(16) u16 sa[2][TILE_ROWS][ROW];
    __shared__ __align__(16) u16 sb[2][TILE_ROWS][ROW];
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int row0 = (warp >> 1) * 32, column0 = (warp & 1) * 32;
    a += blockIdx.y * TILE_ROWS * k;
    b += blockIdx.x * TILE_ROWS * k;
    float sum[2][4][4] = {};
    copy_tile(sa[0], a, k);
    copy_tile(sb[0], b, k);
    asm volatile("cp.async.commit_group;" ::: "memory");
    int stage = 0;
    for (int at = 0; at < k; at += TILE_DEPTH) {
        if (at + TILE_DEPTH < k) {
            copy_tile(sa[stage ^ 1], a + at + TILE_DEPTH, k);
            copy_tile(sb[stage ^ 1], b + at + TILE_DEPTH, k);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        #pragma unroll
        for (int kk = 0; kk < TILE_DEPTH; kk += 16) {
            u32 fa[4], fb[4][2];
            #pragma unroll
            for (int j = 0; j < 4; j++)
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                             : "=r"(fb[j][0]), "=r"(fb[j][1])
                             : "r"(shared_address(&sb[stage][column0 + j * 8 + (lane & 7)][kk + (lane >> 3 & 1) * 8])));
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                             : "r"(shared_address(&sa[stage][row0 + i * 16 + (lane & 15)][kk + (lane >> 4) * 8])));
                #pragma unroll
                for (int j = 0; j < 4; j++) {
                    float* d = sum[i][j];
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[j][0]), "r"(fb[j][1]));
                }
            }
        }
        __syncthreads();
        stage ^= 1;
    }
    #pragma unroll
    for (int i = 0; i < 2; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            float* to = c + (blockIdx.y * TILE_ROWS + row0 + i * 16 + (lane >> 2)) * n + blockIdx.x * TILE_ROWS + column0 +
                        j * 8 + (lane & 3) * 2;
            *(float2*)to = make_float2(sum[i][j][0], sum[i][j][1]);
            *(float2*)(to + 8 * n) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
}

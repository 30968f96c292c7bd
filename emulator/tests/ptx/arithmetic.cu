// Arithmetic of every type, one result per slot, for comparison with formulas written in Rust.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

extern "C" __global__ void integers(const u32* a, const u32* b, u32* out) {
    u32 t = threadIdx.x, x = a[t], y = b[t];
    int sx = (int)x, sy = (int)y;
    u32* o = out + t * 40;
    o[0] = x + y;
    o[1] = x * y;
    o[2] = __umulhi(x, y);
    o[3] = (u32)__mulhi(sx, sy);
    o[4] = x / (y | 1);
    o[5] = x % (y | 1);
    o[6] = (u32)(sx / (sy | 1));
    o[7] = (u32)(sx % (sy | 1));
    o[8] = x << (y & 31);
    o[9] = x >> (y & 31);
    o[10] = (u32)(sx >> (y & 31));
    o[11] = (x & y) ^ (~x | y);
    o[12] = __brev(x);
    o[13] = __clz(x);
    o[14] = __popc(x);
    o[15] = __byte_perm(x, y, 0x3715);
    o[16] = min(x, y);
    o[17] = (u32)max(sx, sy);
    o[18] = (u32)abs(sx);
    o[19] = __usad(x, y, 7u);
    o[20] = (u32)__sad(sx, sy, 7u);
    o[21] = __funnelshift_l(x, y, 9);
    o[22] = __funnelshift_rc(x, y, y & 63);
    o[23] = __ffs(sx);
    o[24] = (u32)__dp4a(sx, sy, 11);
    o[25] = x < y ? x - y : y - x;
    o[26] = (u32)(sx < sy && x != 3);
    o[27] = (u32)(char)x + (u32)(short)y;
    o[28] = __mul24(sx, sy);
    o[29] = (u32)(((u64)x * y) >> 17);
    o[30] = (u32)(((s64)sx * sy) >> 17);
    o[31] = (u32)((s64)sx * sy + (s64)y);
    o[32] = x == y;
    u32 bf, bi;
    asm("bfe.u32 %0, %1, 5, 9;" : "=r"(bf) : "r"(x));
    asm("bfi.b32 %0, %1, %2, 7, 12;" : "=r"(bi) : "r"(x), "r"(y));
    o[33] = bf;
    o[34] = bi;
    asm("bfe.s32 %0, %1, 5, 9;" : "=r"(bf) : "r"(x));
    o[35] = bf;
    asm("{.reg .u16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, l};}" : "=r"(bf) : "r"(x));
    o[36] = bf;
    asm("set.lt.u32.s32 %0, %1, %2;" : "=r"(bf) : "r"(sx), "r"(sy));
    o[37] = bf;
    asm("slct.u32.s32 %0, %1, %2, %3;" : "=r"(bf) : "r"(x), "r"(y), "r"(sx));
    o[38] = bf;
    asm("{.reg .u32 lo; add.cc.u32 lo, %1, %2; addc.u32 %0, %1, 0;}" : "=r"(bf) : "r"(x), "r"(y));
    o[39] = bf;
}

extern "C" __global__ void wide_integers(const u64* a, const u64* b, u64* out) {
    u32 t = threadIdx.x;
    u64 x = a[t], y = b[t];
    u64* o = out + t * 16;
    o[0] = x + y;
    o[1] = x * y;
    o[2] = __umul64hi(x, y);
    o[3] = (u64)__mul64hi((s64)x, (s64)y);
    o[4] = x / (y | 1);
    o[5] = (u64)((s64)x % (s64)(y | 1));
    o[6] = x << (y & 63);
    o[7] = (u64)((s64)x >> (y & 63));
    o[8] = __brevll(x);
    o[9] = __clzll(x) * 100 + __popcll(x);
    o[10] = min(x, y);
    o[11] = (u64)max((s64)x, (s64)y);
    o[12] = (x & y) | (x ^ ~y);
    o[13] = x < y;
    o[14] = (u64)llabs((s64)x);
    o[15] = (u64)(unsigned short)((unsigned short)x * (unsigned short)y + (unsigned short)3);
}

extern "C" __global__ void floats(const float* a, const float* b, float* out) {
    u32 t = threadIdx.x;
    float x = a[t], y = b[t];
    float* o = out + t * 32;
    o[0] = x + y;
    o[1] = x - y;
    o[2] = __fmul_rn(x, y);
    o[3] = fmaf(x, y, 1.5f);
    o[4] = x / y;
    o[5] = sqrtf(x);
    o[6] = 1.0f / x;
    o[7] = fminf(x, y);
    o[8] = fmaxf(x, y);
    o[9] = fabsf(x);
    o[10] = -x;
    o[11] = __fadd_rz(x, y);
    o[12] = __fmul_ru(x, y);
    o[13] = __saturatef(x);
    o[14] = copysignf(x, y);
    o[15] = floorf(x);
    o[16] = ceilf(x);
    o[17] = rintf(x);
    o[18] = truncf(x);
    o[19] = (float)(int)x;
    o[20] = (float)(u32)y;
    o[21] = (float)(u64)x;
    o[22] = (float)(double)x;
    o[23] = (float)((double)x * (double)y);
    o[24] = x < y ? 1.0f : 2.0f;
    o[25] = x != x ? 3.0f : 4.0f;
    o[26] = rsqrtf(x);
    o[27] = exp2f(x);
    o[28] = __log2f(x);
    o[29] = __fdividef(x, y);
    o[30] = __sinf(x) + __cosf(y);
    float th;
    asm("tanh.approx.f32 %0, %1;" : "=f"(th) : "f"(x));
    o[31] = th;
}

extern "C" __global__ void doubles(const double* a, const double* b, double* out) {
    u32 t = threadIdx.x;
    double x = a[t], y = b[t];
    double* o = out + t * 12;
    o[0] = x + y;
    o[1] = x * y;
    o[2] = fma(x, y, 0.25);
    o[3] = x / y;
    o[4] = sqrt(x);
    o[5] = fmin(x, y);
    o[6] = (double)(s64)x;
    o[7] = (double)(u32)fabs(y);
    o[8] = floor(x);
    o[9] = 1.0 / y;
    o[10] = x < y ? x : -y;
    o[11] = (double)__double2float_rz(x);
}

// expf, logf, sinf and tanhf of the CUDA library: long straight code with many special cases.
extern "C" __global__ void library(const float* a, float* out) {
    u32 t = threadIdx.x;
    float x = a[t];
    float* o = out + t * 8;
    o[0] = expf(x);
    o[1] = logf(fabsf(x));
    o[2] = sinf(x);
    o[3] = cosf(x);
    o[4] = tanhf(x);
    o[5] = powf(fabsf(x), 1.7f);
    o[6] = erff(x);
    o[7] = (float)exp((double)x * 0.125);
}

// Half precision through inline PTX; each word holds two numbers.
extern "C" __global__ void halves(const u32* a, const u32* b, u32* out) {
    u32 t = threadIdx.x, x = a[t], y = b[t], r;
    u32* o = out + t * 16;
#define BIN(i, op) asm(op " %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); o[i] = r;
    BIN(0, "add.rn.f16x2")
    BIN(1, "mul.rn.f16x2")
    BIN(2, "sub.rn.f16x2")
    BIN(3, "max.f16x2")
    BIN(4, "min.bf16x2")
    BIN(5, "max.NaN.bf16x2")
    asm("fma.rn.f16x2 %0, %1, %2, %1;" : "=r"(r) : "r"(x), "r"(y)); o[6] = r;
    asm("fma.rn.bf16x2 %0, %1, %2, %1;" : "=r"(r) : "r"(x), "r"(y)); o[7] = r;
    asm("{.reg .b16 l, h; .reg .f32 f, g; mov.b32 {l, h}, %1; cvt.f32.f16 f, l; cvt.f32.f16 g, h; cvt.rn.bf16x2.f32 %0, f, g;}" : "=r"(r) : "r"(x)); o[8] = r;
    asm("{.reg .b16 l, h; .reg .f32 f, g; mov.b32 {l, h}, %1; mov.b32 f, {0, l}; mov.b32 g, {0, h}; cvt.rn.f16x2.f32 %0, f, g;}" : "=r"(r) : "r"(x)); o[9] = r;
    asm("{.reg .b16 l, h, k; .reg .f32 f; mov.b32 {l, h}, %1; mov.b32 f, {0, l}; cvt.rn.bf16.f32 k, f; cvt.rn.f16.f32 h, f; mov.b32 %0, {k, h};}" : "=r"(r) : "r"(x)); o[10] = r;
    asm("neg.f16x2 %0, %1;" : "=r"(r) : "r"(x)); o[11] = r;
    asm("abs.bf16x2 %0, %1;" : "=r"(r) : "r"(x)); o[12] = r;
    asm("{.reg .b16 l, h, k; .reg .pred p; mov.b32 {l, h}, %1; setp.lt.f16 p, l, h; selp.b16 k, l, h, p; mov.b32 %0, {k, k};}" : "=r"(r) : "r"(x)); o[13] = r;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; add.f16 l, l, h; mul.f16 h, l, h; mov.b32 %0, {l, h};}" : "=r"(r) : "r"(x)); o[14] = r;
    asm("{.reg .b16 l, h, k; mov.b32 {l, h}, %1; fma.rn.bf16 k, l, h, l; mov.b32 %0, {k, k};}" : "=r"(r) : "r"(x)); o[15] = r;
}

// CUDA's mathematical functions, one kernel for each: out[i] = f(in[i]), or f(in[2 i], in[2 i + 1]).

#define ONE(name, type, call)                                                     \
    extern "C" __global__ void name(const type *in, type *out) {                  \
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                       \
        type x = in[i];                                                           \
        out[i] = call;                                                            \
    }
#define TWO(name, type, call)                                                     \
    extern "C" __global__ void name(const type *in, type *out) {                  \
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                       \
        type x = in[2 * i], y = in[2 * i + 1];                                    \
        out[i] = call;                                                            \
    }

ONE(f32_sin, float, sinf(x))
ONE(f32_cos, float, cosf(x))
ONE(f32_tan, float, tanf(x))
ONE(f32_asin, float, asinf(x))
ONE(f32_acos, float, acosf(x))
ONE(f32_atan, float, atanf(x))
ONE(f32_sinh, float, sinhf(x))
ONE(f32_cosh, float, coshf(x))
ONE(f32_tanh, float, tanhf(x))
ONE(f32_asinh, float, asinhf(x))
ONE(f32_acosh, float, acoshf(x))
ONE(f32_atanh, float, atanhf(x))
ONE(f32_exp, float, expf(x))
ONE(f32_exp2, float, exp2f(x))
ONE(f32_expm1, float, expm1f(x))
ONE(f32_log, float, logf(x))
ONE(f32_log2, float, log2f(x))
ONE(f32_log10, float, log10f(x))
ONE(f32_log1p, float, log1pf(x))
ONE(f32_sqrt, float, sqrtf(x))
ONE(f32_rsqrt, float, rsqrtf(x))
ONE(f32_cbrt, float, cbrtf(x))
ONE(f32_erf, float, erff(x))
ONE(f32_erfc, float, erfcf(x))
ONE(f32_round, float, roundf(x))
ONE(f32_rint, float, rintf(x))
ONE(f32_trunc, float, truncf(x))
ONE(f32_fast_exp, float, __expf(x))
ONE(f32_fast_log, float, __logf(x))
TWO(f32_pow, float, powf(x, y))
TWO(f32_atan2, float, atan2f(x, y))
TWO(f32_hypot, float, hypotf(x, y))
TWO(f32_fmod, float, fmodf(x, y))
TWO(f32_remainder, float, remainderf(x, y))
TWO(f32_divide, float, x / y)
TWO(f32_fast_divide, float, __fdividef(x, y))
TWO(f32_nextafter, float, nextafterf(x, y))
ONE(f64_sin, double, sin(x))
ONE(f64_exp, double, exp(x))
ONE(f64_log, double, log(x))
ONE(f64_sqrt, double, sqrt(x))
ONE(f64_cbrt, double, cbrt(x))
ONE(f64_tanh, double, tanh(x))
TWO(f64_pow, double, pow(x, y))
TWO(f64_divide, double, x / y)
TWO(i64_divide, long long, x / y)
TWO(i64_remainder, long long, x % y)
TWO(u64_high_product, unsigned long long, __umul64hi(x, y))
TWO(u32_popcount_and_brev, unsigned, __popc(x) + __brev(y))
TWO(u32_funnel, unsigned, __funnelshift_l(x, y, 7))
TWO(u32_bytes, unsigned, __byte_perm(x, y, 0x5410))
TWO(u32_add_bytes, unsigned, __vadd4(x, y))
TWO(u32_max_halves, unsigned, __vmaxs2(x, y))
TWO(u32_differences, unsigned, __vabsdiffu4(x, y))
TWO(i32_dot, int, __dp4a(x, y, 17))

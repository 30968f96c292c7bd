// Sampling with a temperature from the nucleus: the most likely tokens that together have the probability top_p.
//
//   p_v     = exp(z_v / T) / sum_w exp(z_w / T)
//   nucleus = the shortest run of tokens, by falling p and then by rising v, whose sum is top_p or more
//   token   = the first v of the nucleus at which the sum of its p up to and with v exceeds uniform * (its whole sum)
//
// logits z: [N,V], rows at any stride; uniforms: [N] f32 in [0,1); tokens: [N] i32. A NaN is never drawn; from a row of
// nothing but NaN token 0 is. A logit of +inf is certain, and several share the certainty.
//
// Probabilities are integers here: the largest is 2^32 - 256, the others are rounded to that scale. Sums of integers
// are exact in any order (64 bits hold those of any vocabulary), so that both kernels draw the same token, in any
// batch. What rounding adds to or takes from the tail is below V 2^-33: 1.2e-5 of the largest for V2.
//
// Bytes: N V sizeof(T) from memory; the row is read 14 times, from the cache (3 times if top_p is 1). Exponentials: 13
// N V.
#include "dev.cuh"

// The weight of the largest logit: the largest float below 2^32.
const float LARGEST_WEIGHT = 4294967040.0f;
// -inf.
#define LOWEST __uint_as_float(0xff800000u)

template <typename T> struct Row {
    const T* logits;
    int vocab;
    float largest, inverse_temperature;

    // In proportion to the probability. NaN has 0; the largest has it all even if it is infinite.
    __device__ __forceinline__ u32 weight(int v) const {
        float logit = to_float(logits[v]);
        float share = logit == largest ? 1.0f : expf((logit - largest) * inverse_temperature);
        return __float2uint_rn(share * LARGEST_WEIGHT);
    }
};

// The sum that the nucleus has to reach, of the sum of all weights. Below 2^53 the sum is exact in fp64.
__device__ __forceinline__ u64 target_of(u64 sum, float top_p) {
    u64 target = (u64)ceil((double)top_p * (double)sum);
    return max(1ull, min(target, sum));
}

// All weights above `least`, and the first `equals` of those that are equal to it.
struct Nucleus {
    u32 least;
    u64 equals, sum;

    __device__ __forceinline__ Nucleus(u32 least, u64 above, u64 target)
        : least(least), equals((target - above + least - 1) / least), sum(above + equals * least) {}

    // The place in its sum that is drawn.
    __device__ __forceinline__ u64 drawn(float uniform) const {
        return min((u64)((double)uniform * (double)sum), sum - 1);
    }
};

// ---- naive: a thread for each row, the least weight of the nucleus bit by bit ----

// The sum of all weights that are at least `least`.
template <typename T> __device__ u64 sum_from(const Row<T>& row, u32 least) {
    u64 sum = 0;
    #pragma unroll 1
    for (int v = 0; v < row.vocab; v++) {
        u32 weight = row.weight(v);
        if (weight >= least) sum += weight;
    }
    return sum;
}

template <typename T>
__device__ void naive(const T* logits, long long stride, float inverse_temperature, float top_p, const float* uniforms,
                      int* tokens, int rows, int vocab) {
    long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    Row<T> row = {logits + n * stride, vocab, LOWEST, inverse_temperature};
    #pragma unroll 1
    for (int v = 0; v < vocab; v++) row.largest = fmaxf(row.largest, to_float(row.logits[v]));
    u64 sum = sum_from(row, 1);
    tokens[n] = 0;
    if (sum == 0) return;
    u64 target = target_of(sum, top_p);
    u32 least = 0;
    #pragma unroll 1
    for (u32 bit = 1u << 31; bit > 0; bit /= 2) {
        if (sum_from(row, least | bit) >= target) least |= bit;
    }
    Nucleus nucleus(least, sum_from(row, least + 1), target);
    u64 drawn = nucleus.drawn(uniforms[n]), passed = 0, equals = 0;
    #pragma unroll 1
    for (int v = 0; v < vocab; v++) {
        u32 weight = row.weight(v);
        if (weight < least || (weight == least && equals++ >= nucleus.equals)) continue;
        passed += weight;
        if (passed > drawn) {
            tokens[n] = v;
            return;
        }
    }
}

// ---- tuned: a block for each row ----

const int THREADS = 512, WARPS = THREADS / WARP;
// Three bits of the least weight at a time: eight ways, of which seven sums decide. Eleven steps find 33 bits.
const int BITS = 3, WAYS = 1 << BITS, STEPS = 11;

// The sum over a block, in every thread; `partial` may be used again at once.
__device__ __forceinline__ u64 block_total(u64 x, u64* partial) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();
    u64 sum = 0;
    #pragma unroll 1
    for (int warp = 0; warp < WARPS; warp++) sum += partial[warp];
    __syncthreads();
    return sum;
}

// The largest logit of a row, in every thread.
template <typename T> __device__ __forceinline__ float largest_of(const Row<T>& row, u64* partial) {
    float largest = LOWEST;
    #pragma unroll 1
    for (int v = threadIdx.x; v < row.vocab; v += THREADS) largest = fmaxf(largest, to_float(row.logits[v]));
    largest = warp_max(largest);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = __float_as_uint(largest);
    __syncthreads();
    #pragma unroll 1
    for (int warp = 0; warp < WARPS; warp++) largest = fmaxf(largest, __uint_as_float((u32)partial[warp]));
    __syncthreads();
    return largest;
}

// The largest `least` with sum(weights >= least) >= target.
template <typename T> __device__ __forceinline__ u32 least_of(const Row<T>& row, u64 target, u64* partial) {
    u64 least = 0;
    #pragma unroll 1
    for (int shift = BITS * (STEPS - 1); shift >= 0; shift -= BITS) {
        u64 sums[WAYS - 1] = {};
        #pragma unroll 1
        for (int v = threadIdx.x; v < row.vocab; v += THREADS) {
            u32 weight = row.weight(v);
            #pragma unroll
            for (u64 way = 1; way < WAYS; way++) sums[way - 1] += weight >= least + (way << shift) ? weight : 0;
        }
        u64 best = 0;
        #pragma unroll
        for (u64 way = 1; way < WAYS; way++) best += block_total(sums[way - 1], partial) >= target;
        least += best << shift;
    }
    return (u32)least;
}

template <typename T>
__device__ void tuned(const T* logits, long long stride, float inverse_temperature, float top_p, const float* uniforms,
                      int* tokens, int rows, int vocab) {
    __shared__ u64 partial[WARPS], above_of[WARPS];
    __shared__ u32 equals_of[WARPS];
    long long n = blockIdx.x;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Row<T> row = {logits + n * stride, vocab, 0.0f, inverse_temperature};
    row.largest = largest_of(row, partial);
    u64 sum = 0;
    #pragma unroll 1
    for (int v = threadIdx.x; v < vocab; v += THREADS) sum += row.weight(v);
    sum = block_total(sum, partial);
    if (sum == 0) {
        if (threadIdx.x == 0) tokens[n] = 0;
        return; // with the whole block
    }
    u64 target = target_of(sum, top_p);
    u32 least = target < sum ? least_of(row, target, partial) : 1; // or all tokens that have a weight

    // Each warp looks at a stretch of neighbouring tokens.
    int stretch = (vocab + THREADS - 1) / THREADS * WARP, first = warp * stretch, end = min(first + stretch, vocab);
    u64 above = 0;
    u32 equals = 0;
    #pragma unroll 1
    for (int v = first + lane; v < end; v += WARP) {
        u32 weight = row.weight(v);
        above += weight > least ? weight : 0, equals += weight == least;
    }
    u64 above_here = warp_sum(above);
    equals = __reduce_add_sync(ALL_LANES, equals);
    if (lane == 0) above_of[warp] = above_here, equals_of[warp] = equals;
    Nucleus nucleus(least, block_total(above, partial), target); // whose barriers serve the stretches too

    // What the nucleus has in the stretches before this one, and in this one.
    u64 passed = 0, equals_passed = 0;
    #pragma unroll 1
    for (int before = 0; before < warp; before++) {
        passed += above_of[before], equals_passed += equals_of[before];
    }
    passed += min(equals_passed, nucleus.equals) * least;
    u64 here = above_here + (min(equals_passed + equals, nucleus.equals) - min(equals_passed, nucleus.equals)) * least;
    u64 drawn = nucleus.drawn(uniforms[n]);
    if (drawn < passed || drawn >= passed + here) return;

    // One warp is left. It walks along its stretch, 32 tokens at a time.
    #pragma unroll 1
    for (int v = first + lane; v - lane < end; v += WARP) {
        u64 weight = v < end ? row.weight(v) : 0;
        u32 equal = __ballot_sync(ALL_LANES, weight == least);
        u64 rank = equals_passed + __popc(equal & ((1u << lane) - 1));
        if (weight < least || (weight == least && rank >= nucleus.equals)) weight = 0;
        u64 upto = weight;
        #pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            u64 left = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += left;
        }
        u32 beyond = __ballot_sync(ALL_LANES, passed + upto > drawn);
        if (beyond) {
            if (lane == __ffs(beyond) - 1) tokens[n] = v;
            return;
        }
        passed += __shfl_sync(ALL_LANES, upto, WARP - 1);
        equals_passed += __popc(equal);
    }
}

#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    KERNEL(LAUNCHED) sample_##VARIANT##_##SUFFIX(const T* logits, long long stride, float inverse_temperature,         \
                                                 float top_p, const float* uniforms, int* tokens, int rows,            \
                                                 int vocab) {                                                          \
        VARIANT<T>(logits, stride, inverse_temperature, top_p, uniforms, tokens, rows, vocab);                         \
    }

KERNELS(naive, 32, float, f32)
KERNELS(naive, 32, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

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
// Bytes: N V sizeof(T) from memory; the row is read at most 4 times in all, from the cache (twice if top_p is 1), and what
// of it fits into shared memory only once. Exponentials: 3 N V.
#include "dev.cuh"

// The weight of the largest logit: the largest float below 2^32.
const float LARGEST_WEIGHT = 4294967040.0f;
// -inf.
#define LOWEST __uint_as_float(0xff800000u)
#define NAN_LOGIT __uint_as_float(0x7fc00000u)

template <typename T> struct Row {
    const T* logits;
    int vocab;
    float largest, inverse_temperature;

    // In proportion to the probability. NaN has 0; the largest has it all even if it is infinite.
    __device__ __forceinline__ u32 weight(int v) const { return weight_of(to_float(logits[v])); }
    __device__ __forceinline__ u32 weight_of(float logit) const {
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

    // All that have a weight.
    __device__ __forceinline__ Nucleus(u64 sum) : least(0), equals(0), sum(sum) {}

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
//
// pass 1  the largest logit; the first packs of each thread stay in shared memory
//      2  the sum, and sums by the upper digit of the weight: the digit at which the nucleus ends
//      3  among the weights with that digit, the same by the middle one
//      4  among those with both, by the lower one: the least weight. There is a count for each stretch of the row, so that
//         it is known as well which stretch is drawn from
// and then that stretch, a 32nd of the row.
//
// Trap: a histogram of the weights themselves puts nearly all tokens into its first bin, where their additions wait for one
// another. Their logarithms are spread, and a float is nearly one.

const int WARPS = WARP, THREADS = WARPS * WARP;
// So many packs of a thread stay in shared memory: 96 KB, 24K logits in fp32.
const int KEPT = 6;
// Each weight is exact as a float, and the floats from 1 to below 2^32 are 2^28 in number.
const int DIGIT = 10, LOWEST_DIGIT = 8;
const int BINS = 1 << DIGIT, LOWEST_BINS = 1 << LOWEST_DIGIT;

// A number that rises with the weight, of 28 bits; of 0 larger than all.
__device__ __forceinline__ u32 key_of(u32 weight) { return __float_as_uint((float)weight) - 0x3f800000u; }
__device__ __forceinline__ u32 weight_of(u32 key) { return (u32)__uint_as_float(key + 0x3f800000u); }

// Sums of 64 bits in two words, as atomics on shared memory have 32: who makes the lower one overflow carries.
struct Bins {
    u32 low[BINS], high[BINS];

    __device__ __forceinline__ void add(u32 bin, u32 weight) {
        if (atomicAdd(&low[bin], weight) > ~weight) atomicAdd(&high[bin], 1u);
    }
    // The sum of a bin, which is then empty.
    __device__ __forceinline__ u64 take(u32 bin) {
        u64 sum = (u64)high[bin] << 32 | low[bin];
        low[bin] = high[bin] = 0;
        return sum;
    }
};

// Over the lanes up to and with this one.
template <typename N> __device__ __forceinline__ N warp_scan(N x) {
    int lane = threadIdx.x % WARP;
    #pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        N left = __shfl_up_sync(ALL_LANES, x, step);
        if (lane >= step) x += left;
    }
    return x;
}

// Over the threads up to and with this one; `total` is that of all, and `partial` may be used again at once.
__device__ __forceinline__ u64 block_scan(u64 x, u64* partial, u64& total) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_scan(x);
    if (lane == WARP - 1) partial[warp] = x;
    __syncthreads();
    u64 of_warp = partial[lane];
    total = warp_sum(of_warp);
    x += warp_sum(lane < warp ? of_warp : 0);
    __syncthreads();
    return x;
}

// Where sums from the largest weight downwards reach the target: the digit, and the sum of what is above it.
struct Edge {
    u32 digit;
    u64 above;
};

// The edge, in shared memory, if each thread has the sum of one digit, the largest digit in the first thread.
__device__ __forceinline__ void find(Edge* edge, u64 sum, u32 digit, u64 above, u64 target, u64* partial) {
    u64 total, upto = above + block_scan(sum, partial, total);
    if (upto >= target && upto - sum < target) edge->digit = digit, edge->above = upto - sum;
    __syncthreads();
}

// A row in packs, of which each warp has a stretch of neighbours.
template <typename T> struct Packs {
    static const int SIZE = Pack<T>::SIZE;
    Row<T> row;
    uint4* kept; // this thread's, THREADS apart
    int count, stretch;
    bool aligned;

    __device__ __forceinline__ Packs(const Row<T>& row, uint4* kept)
        : row(row), kept(kept + threadIdx.x), count((row.vocab + SIZE - 1) / SIZE),
          stretch((count + THREADS - 1) / THREADS * WARP), aligned(packs(row.logits, 0)) {}

    // The logits of a pack; NaN, which is never drawn, where there are none.
    __device__ __forceinline__ void load(int pack, float (&to)[SIZE]) const {
        int v = pack * SIZE;
        if (aligned && pack < row.vocab / SIZE) {
            load_pack(row.logits + v, to);
            return;
        }
        #pragma unroll
        for (int j = 0; j < SIZE; j++) to[j] = pack < count && v + j < row.vocab ? to_float(row.logits[v + j]) : NAN_LOGIT;
    }

    // Calls visit(logit) for each token of this thread; in the FIRST pass the row is read, and partly kept.
    template <bool FIRST, typename Visit> __device__ __forceinline__ void each(Visit visit) const {
        int begin = threadIdx.x / WARP * stretch, end = min(begin + stretch, count);
        #pragma unroll 1
        for (int pack = begin + threadIdx.x % WARP, k = 0; pack < end; pack += WARP, k++) {
            float logits[SIZE];
            T* place = (T*)(kept + k * THREADS);
            if (FIRST || k >= KEPT) {
                load(pack, logits);
                if (FIRST && k < KEPT) store_pack(place, logits);
            } else {
                load_pack(place, logits);
            }
            #pragma unroll
            for (int j = 0; j < SIZE; j++) visit(logits[j]);
        }
    }

    // Calls visit(weight) for each token of this thread.
    template <typename Visit> __device__ __forceinline__ void each_weight(Visit visit) const {
        each<false>([&](float logit) { visit(row.weight_of(logit)); });
    }
};

// Finds the nucleus. What of it is in each stretch: the sum of what is above its least weight, and how many are equal to that.
template <typename T>
__device__ __forceinline__ Nucleus nucleus_of(const Packs<T>& packs, u64 target, Bins& bins, u64* partial, u64* above_of,
                                              u32* equals_of) {
    __shared__ u32 counts[WARPS][LOWEST_BINS];
    __shared__ Edge edge;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, bin = BINS - 1 - threadIdx.x;
    #pragma unroll
    for (int i = 0; i < LOWEST_BINS; i += WARP) counts[warp][i + lane] = 0;

    find(&edge, bins.take(bin), bin, 0, target, partial);
    u32 prefix = edge.digit;
    packs.each_weight([&](u32 weight) {
        u32 key = key_of(weight);
        if (key >> (DIGIT + LOWEST_DIGIT) == prefix) bins.add(key >> LOWEST_DIGIT & (BINS - 1), weight);
    });
    u64 above = edge.above;
    __syncthreads();
    find(&edge, bins.take(bin), bin, above, target, partial);
    prefix = prefix << DIGIT | edge.digit;

    u64 here = 0;
    packs.each_weight([&](u32 weight) {
        u32 key = key_of(weight);
        if (key >> LOWEST_DIGIT == prefix) atomicAdd(&counts[warp][key & (LOWEST_BINS - 1)], 1u);
        else if (key >> LOWEST_DIGIT > prefix) here += weight; // which of 0 adds nothing
    });
    above = edge.above;
    __syncthreads();
    u32 lowest = LOWEST_BINS - 1 - threadIdx.x, count = 0;
    if (threadIdx.x < LOWEST_BINS) {
        #pragma unroll 4
        for (int other = 0; other < WARPS; other++) count += counts[other][lowest];
    }
    find(&edge, (u64)count * weight_of(prefix << LOWEST_DIGIT | lowest), lowest, above, target, partial);

    #pragma unroll 1
    for (u32 digit = edge.digit + 1 + lane; digit < LOWEST_BINS; digit += WARP) {
        here += (u64)counts[warp][digit] * weight_of(prefix << LOWEST_DIGIT | digit);
    }
    here = warp_sum(here);
    if (lane == 0) above_of[warp] = here, equals_of[warp] = counts[warp][edge.digit];
    __syncthreads();
    return Nucleus(weight_of(prefix << LOWEST_DIGIT | edge.digit), edge.above, target);
}

template <typename T>
__device__ void tuned(const T* logits, long long stride, float inverse_temperature, float top_p, const float* uniforms,
                      int* tokens, int rows, int vocab) {
    const int SIZE = Pack<T>::SIZE;
    extern __shared__ uint4 kept[]; // KEPT THREADS
    __shared__ Bins bins;
    __shared__ u64 partial[WARPS], above_of[WARPS];
    __shared__ u32 equals_of[WARPS];
    long long n = blockIdx.x;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Packs<T> packs({logits + n * stride, vocab, LOWEST, inverse_temperature}, kept);

    float largest = LOWEST;
    packs.template each<true>([&](float logit) { largest = fmaxf(largest, logit); });
    largest = warp_max(largest);
    if (lane == 0) partial[warp] = __float_as_uint(largest), equals_of[warp] = 0;
    bins.take(threadIdx.x);
    __syncthreads();
    packs.row.largest = warp_max(__uint_as_float((u32)partial[lane]));

    u64 above = 0;
    packs.each_weight([&](u32 weight) {
        above += weight;
        if (weight > 0) bins.add(key_of(weight) >> (DIGIT + LOWEST_DIGIT), weight);
    });
    above = warp_sum(above);
    if (lane == 0) above_of[warp] = above;
    __syncthreads();
    u64 sum = warp_sum(above_of[lane]);
    if (sum == 0) {
        if (threadIdx.x == 0) tokens[n] = 0;
        return; // with the whole block
    }
    u64 target = target_of(sum, top_p);
    Nucleus nucleus(sum);
    if (target < sum) nucleus = nucleus_of(packs, target, bins, partial, above_of, equals_of);

    // A lane looks at a stretch: what the nucleus has in it, and in those before.
    u32 equals = equals_of[lane];
    u64 equals_upto = warp_scan(equals), equals_passed = equals_upto - equals;
    u64 here = above_of[lane] + (min(equals_upto, nucleus.equals) - min(equals_passed, nucleus.equals)) * nucleus.least;
    u64 passed = warp_scan(here) - here, drawn = nucleus.drawn(uniforms[n]);
    int stretch = __ffs(__ballot_sync(ALL_LANES, passed + here > drawn)) - 1;
    passed = __shfl_sync(ALL_LANES, passed, stretch), equals_passed = __shfl_sync(ALL_LANES, equals_passed, stretch);

    // The whole block looks for the token in the stretch that is drawn from.
    int begin = stretch * packs.stretch, end = min(begin + packs.stretch, packs.count);
    #pragma unroll 1
    for (; passed <= drawn && begin < end; begin += THREADS) {
        int pack = begin + threadIdx.x;
        u32 weights[SIZE];
        float read[SIZE];
        packs.load(pack < end ? pack : packs.count, read);
        u64 equal = 0, own = 0, total;
        #pragma unroll
        for (int j = 0; j < SIZE; j++) weights[j] = packs.row.weight_of(read[j]), equal += weights[j] == nucleus.least;
        u64 rank = equals_passed + block_scan(equal, partial, total) - equal;
        equals_passed += total;
        #pragma unroll
        for (int j = 0; j < SIZE; j++) {
            u32 weight = weights[j];
            if (weight < nucleus.least || (weight == nucleus.least && rank++ >= nucleus.equals)) weights[j] = 0;
            own += weights[j];
        }
        u64 before = passed + block_scan(own, partial, total) - own;
        passed += total;
        #pragma unroll
        for (int j = 0; j < SIZE; j++) {
            if (before <= drawn && before + weights[j] > drawn) tokens[n] = pack * SIZE + j;
            before += weights[j];
        }
    }
}

// Shared memory has room for one block. Without the 1, ptxas 13 makes registers fit for two, and spills.
#define KERNELS(VARIANT, LAUNCHED, T, SUFFIX)                                                                          \
    extern "C" __global__ void __launch_bounds__(LAUNCHED, 1) sample_##VARIANT##_##SUFFIX(                             \
        const T* logits, long long stride, float inverse_temperature, float top_p, const float* uniforms, int* tokens, \
        int rows, int vocab) {                                                                                         \
        VARIANT<T>(logits, stride, inverse_temperature, top_p, uniforms, tokens, rows, vocab);                         \
    }

KERNELS(naive, 32, float, f32)
KERNELS(naive, 32, bf16, bf16)
KERNELS(tuned, THREADS, float, f32)
KERNELS(tuned, THREADS, bf16, bf16)

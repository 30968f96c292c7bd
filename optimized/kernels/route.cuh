// The router's rule as route.cu describes it, and a warp that applies it to a token: also behind the product that makes the logits.
#pragma once
#include "dev.cuh"

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

struct Rule {
    int experts, groups, kept, k;
    float factor;
    int normalised;

    // A score as it is (and divided by the sum at the end), or the weight.
    __device__ float weigh(float score) const { return divides() ? score : score * factor; }
    __device__ bool divides() const { return normalised && k > 1; }
};

// A place in the order of scores, from 1: scores are not negative, and the bits of such numbers are ordered as the
// numbers are. A logit that is NaN or infinite makes all scores NaN; they are equal then, so that the first experts are
// taken.
__device__ __forceinline__ u32 rank_of(float score) { return score == score ? __float_as_uint(score) + 1 : 1; }
// And of what cannot be selected.
const u32 NOT_THERE = 0;

// ---- tuned: a warp for each token; lane l has experts l, l + 32, l + 64, ... ----

// Up to 8 experts of a lane are in registers. More, which no published model has, are in local memory: unrolled as
// well, they would be half of this module.
const int IN_REGISTERS = 8;
template <int EACH> const int UNROLLED = EACH <= IN_REGISTERS ? EACH : 1;

struct Choice {
    int index;
    u32 rank;
};

// The highest rank of a warp, of equal ones that with the lowest index, which is taken out.
template <int EACH> __device__ __forceinline__ Choice take_best(u32 (&ranks)[EACH]) {
    int lane = threadIdx.x % WARP, mine = 0;
    u32 best = ranks[0];
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 1; i < EACH; i++)
        if (ranks[i] > best) best = ranks[i], mine = i;
    u32 highest = __reduce_max_sync(ALL_LANES, best);
    int index = (int)__reduce_min_sync(ALL_LANES, best == highest ? (u32)(mine * WARP + lane) : 0xffffffffu);
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++)
        if (i * WARP + lane == index) ranks[i] = NOT_THERE;
    return {index, highest};
}

// Takes the experts out that are in none of the best groups. `groups` is shared memory of the warp: first the rank of
// each group's best expert (a maximum, which is the same in any order), then whether the group is kept.
template <int EACH> __device__ __forceinline__ void keep_groups(u32 (&ranks)[EACH], u32* groups, const Rule& rule) {
    int lane = threadIdx.x % WARP, size = rule.experts / rule.groups;
    #pragma unroll 1
    for (int g = lane; g < rule.groups; g += WARP) groups[g] = NOT_THERE;
    __syncwarp();
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        int e = i * WARP + lane;
        if (e < rule.experts) atomicMax(&groups[e / size], ranks[i]);
    }
    __syncwarp();
    u32 of_groups[EACH];
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        int g = i * WARP + lane;
        of_groups[i] = g < rule.groups ? groups[g] : NOT_THERE;
        if (g < rule.groups) groups[g] = false;
    }
    __syncwarp();
    #pragma unroll 1
    for (int j = 0; j < rule.kept; j++) {
        int group = take_best(of_groups).index;
        if (lane == 0) groups[group] = true;
    }
    __syncwarp();
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        int e = i * WARP + lane;
        if (e < rule.experts && !groups[e / size]) ranks[i] = NOT_THERE;
    }
}

// The logits may be other blocks' of this launch.
template <int EACH>
__device__ __forceinline__ void tuned_route(const float* logits, int* indices, float* weights, u32* groups,
                                            const Rule& rule) {
    int lane = threadIdx.x % WARP;
    float scores[EACH], max = minus_infinity(), sum = 0.0f;
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        int e = i * WARP + lane;
        scores[i] = e < rule.experts ? load_past_cache(logits + e) : minus_infinity();
        max = fmaxf(max, scores[i]);
    }
    max = warp_max(max);
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        scores[i] = scores[i] == minus_infinity() ? 0.0f : expf(scores[i] - max);
        sum += scores[i];
    }
    sum = warp_sum(sum);
    u32 ranks[EACH];
    #pragma unroll(UNROLLED<EACH>)
    for (int i = 0; i < EACH; i++) {
        scores[i] = sum == 0.0f ? 0.0f : scores[i] / sum;
        ranks[i] = i * WARP + lane < rule.experts ? rank_of(scores[i]) : NOT_THERE;
    }
    if (rule.kept < rule.groups) keep_groups(ranks, groups, rule);

    // Lane l keeps every 32nd of the selected, and 32 are stored at once.
    bool is_nan = sum != sum;
    float total = 0.0f, score = 0.0f;
    int index = 0;
    #pragma unroll 1
    for (int j = 0; j < rule.k; j++) {
        Choice best = take_best(ranks);
        float found = is_nan ? sum : __uint_as_float(best.rank - 1);
        total += found;
        if (lane == j % WARP) index = best.index, score = found;
        if (j % WARP == WARP - 1 || j == rule.k - 1) {
            int at = j / WARP * WARP + lane;
            if (at <= j) indices[at] = index, weights[at] = rule.weigh(score);
        }
    }
    if (!rule.divides()) return;
    // Each lane what it has stored itself.
    #pragma unroll 1
    for (int j = lane; j < rule.k; j += WARP) weights[j] /= total + 1e-20f;
}

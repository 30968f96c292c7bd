// The router's rule: which experts a token goes to, and with what weight.
//
//   s_i = exp(z_i - max z) / sum_j exp(z_j - max z)                       over all experts            (22)
//   g_i = factor * s_i for the k best experts                                                         (21)
//
// Experts are in `groups` groups of neighbours. Only the `kept` groups whose best expert is best are looked at. Of
// equal scores, and of equal groups, the lower index wins. Experts are listed by falling score.
//
// z: [N, E]; indices, weights: [N, k]. All is fp32.
//
// Bytes: 4 N E + 8 N k. Flops: some 10 N E.
//
// route_and_sort is for the few tokens of decoding: one block routes them, and sorts them by expert as dispatch.cu does.
#include "dispatch.cuh"
#include "route.cuh"

// ---- naive: a thread for each token; scores are computed whenever they are looked at ----

struct Scores {
    const float* logits;
    float max, sum;

    __device__ Scores(const float* logits, int experts) : logits(logits), max(minus_infinity()) {
        #pragma unroll 1
        for (int e = 0; e < experts; e++) max = fmaxf(max, logits[e]);
        // Equal scores, of which a softmax may have many, are rounded all in one direction when they are added in turn.
        double all = 0.0;
        #pragma unroll 1
        for (int e = 0; e < experts; e++) all += exponential(e);
        sum = (float)all;
    }
    // Without any logit above minus infinity, that minus itself would be NaN. Unless there is a NaN, nothing is
    // selected with any weight.
    __device__ float exponential(int e) const { return logits[e] == minus_infinity() ? 0.0f : expf(logits[e] - max); }
    __device__ float score(int e) const { return sum == 0.0f ? 0.0f : exponential(e) / sum; }
    __device__ u32 rank(int e) const { return rank_of(score(e)); }
    __device__ u32 best(int first, int count) const {
        u32 best = NOT_THERE;
        #pragma unroll 1
        for (int e = first; e < first + count; e++) best = max_of(best, rank(e));
        return best;
    }
    static __device__ u32 max_of(u32 a, u32 b) { return a > b ? a : b; }
    // Whether fewer groups than are kept come before this one.
    __device__ bool keeps(int group, const Rule& rule) const {
        int size = rule.experts / rule.groups, before = 0;
        u32 mine = best(group * size, size);
        #pragma unroll 1
        for (int other = 0; other < rule.groups && before < rule.kept; other++) {
            u32 rank = best(other * size, size);
            before += other < group ? rank >= mine : rank > mine;
        }
        return before < rule.kept;
    }
};

KERNEL(128) route_naive_f32(const float* logits, int* indices, float* weights, int tokens, Rule rule) {
    long long token = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    indices += token * rule.k, weights += token * rule.k;
    Scores scores(logits + token * rule.experts, rule.experts);
    int size = rule.experts / rule.groups, taken = -1;
    u32 last = 0xffffffffu;
    float sum = 0.0f;
    #pragma unroll 1
    for (int j = 0; j < rule.k; j++) {
        // The first of those that come after the one taken last.
        int best = -1;
        u32 highest = NOT_THERE;
        #pragma unroll 1
        for (int group = 0; group < rule.groups; group++) {
            if (!scores.keeps(group, rule)) continue;
            #pragma unroll 1
            for (int e = group * size; e < (group + 1) * size; e++) {
                u32 rank = scores.rank(e);
                bool after = rank < last || (rank == last && e > taken);
                if (after && rank > highest) highest = rank, best = e;
            }
        }
        float score = scores.score(best);
        indices[j] = best, weights[j] = rule.weigh(score);
        sum += score, last = highest, taken = best;
    }
    if (!rule.divides()) return;
    #pragma unroll 1
    for (int j = 0; j < rule.k; j++) weights[j] /= sum + 1e-20f;
}

// The weights of experts that somebody else has chosen. A thread for each token.
KERNEL(128) reweigh_f32(const float* logits, const int* indices, float* weights, int tokens, Rule rule) {
    long long token = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    indices += token * rule.k, weights += token * rule.k;
    Scores scores(logits + token * rule.experts, rule.experts);
    float sum = 0.0f;
    #pragma unroll 1
    for (int j = 0; j < rule.k; j++) {
        float score = scores.score(indices[j]);
        weights[j] = rule.weigh(score);
        sum += score;
    }
    if (!rule.divides()) return;
    #pragma unroll 1
    for (int j = 0; j < rule.k; j++) weights[j] /= sum + 1e-20f;
}

// ---- tuned: a warp for each token, see route.cuh ----

const int WARPS = 4;
const int MOST_EXPERTS = 1024;

KERNEL(WARPS* WARP) route_tuned_f32(const float* logits, int* indices, float* weights, int tokens, Rule rule) {
    __shared__ u32 groups[WARPS][MOST_EXPERTS];
    int warp = threadIdx.x / WARP;
    long long token = (long long)blockIdx.x * WARPS + warp;
    if (token >= tokens) return;
    logits += token * rule.experts, indices += token * rule.k, weights += token * rule.k;
    if (rule.experts <= IN_REGISTERS * WARP) tuned_route<IN_REGISTERS>(logits, indices, weights, groups[warp], rule);
    else tuned_route<MOST_EXPERTS / WARP>(logits, indices, weights, groups[warp], rule);
}

// Dynamic shared memory: SORT_WARPS times the number of groups, and of experts and one more. At most 256 experts.
KERNEL(SORT_WARPS* WARP)
route_and_sort_tuned_f32(const float* logits, int* indices, float* weights, int* offsets, int* order, int* places,
                         int tokens, Rule rule) {
    extern __shared__ int shared[];
    int warp = threadIdx.x / WARP, *groups = shared + warp * rule.groups;
    #pragma unroll 1
    for (long long token = warp; token < tokens; token += SORT_WARPS) {
        tuned_route<IN_REGISTERS>(logits + token * rule.experts, indices + token * rule.k, weights + token * rule.k,
                                  (u32*)groups, rule);
        __syncwarp();
    }
    sort_pairs(indices, offsets, order, places, tokens * rule.k, rule.experts, shared + SORT_WARPS * rule.groups);
}

// Sorting by expert: which rows each expert works on.
//
//   pair p = token * k + j, for the token's j-th expert e_p
//   offsets[e] = how many pairs have an expert below e, so that expert e has the places offsets[e] .. offsets[e + 1]
//   order[place] = pair, by rising expert and then by rising pair
//   places[pair] = place
//
// indices, order, places: [P] with P = N k; offsets: [E + 1]. An index that is no expert (a token that was dropped)
// comes after all experts, and its place is -1.
//
// The result is one for one input, whatever the order in which threads run: atomics only count.
//
// Bytes: 8 P + 8 P + 4 E (indices are read twice). No flops.
#include "dispatch.cuh"

// ---- naive: a thread for each expert, and one for the pairs that have none ----

KERNEL(128)
sort_by_expert_naive_i32(const int* indices, int* offsets, int* order, int* places, int pairs, int experts) {
    int bin = blockIdx.x * blockDim.x + threadIdx.x;
    if (bin > experts) return;
    int place = 0;
    #pragma unroll 1
    for (int p = 0; p < pairs; p++) place += bin_of(indices[p], experts) < bin;
    offsets[bin] = place;
    #pragma unroll 1
    for (int p = 0; p < pairs; p++) {
        if (bin_of(indices[p], experts) != bin) continue;
        order[place] = p;
        places[p] = bin < experts ? place : -1;
        place++;
    }
}

// ---- tuned: one block, see dispatch.cuh ----

// Dynamic shared memory: (E + 1) SORT_WARPS numbers.
KERNEL(SORT_WARPS* WARP)
sort_by_expert_tuned_i32(const int* indices, int* offsets, int* order, int* places, int pairs, int experts) {
    extern __shared__ int counts[];
    sort_pairs(indices, offsets, order, places, pairs, experts, counts);
}

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
#include "dev.cuh"

// E for what is no expert.
__device__ __forceinline__ int bin_of(int expert, int experts) {
    return expert >= 0 && expert < experts ? expert : experts;
}

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

// ---- tuned: one block; each of 32 warps counts and then places a run of the pairs ----

const int WARPS = 32;

// An exclusive sum over the block's threads; `partial` is shared memory of WARPS numbers.
__device__ __forceinline__ int sum_before(int x, int* partial) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = x;
    #pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        int left = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += left;
    }
    if (lane == WARP - 1) partial[warp] = sum;
    __syncthreads();
    int before = lane < warp ? partial[lane] : 0;
    return (int)__reduce_add_sync(ALL_LANES, (u32)before) + sum - x;
}

// Dynamic shared memory: (E + 1) WARPS numbers. There are no more experts than threads.
KERNEL(WARPS* WARP)
sort_by_expert_tuned_i32(const int* indices, int* offsets, int* order, int* places, int pairs, int experts) {
    extern __shared__ int counts[];
    __shared__ int partial[WARPS];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, bins = experts + 1;
    // Whole groups of 32 pairs for each warp.
    int run = (pairs + WARPS * WARP - 1) / (WARPS * WARP) * WARP;
    int start = min(warp * run, pairs), end = min(start + run, pairs);

    #pragma unroll 1
    for (int i = threadIdx.x; i < bins * WARPS; i += WARPS * WARP) counts[i] = 0;
    __syncthreads();
    #pragma unroll 1
    for (int p = start + lane; p < end; p += WARP) atomicAdd(&counts[warp * bins + bin_of(indices[p], experts)], 1);
    __syncthreads();

    // Counts become places: where each warp's pairs of each bin begin.
    int bin = threadIdx.x, count = 0;
    #pragma unroll 1
    for (int w = 0; w < WARPS && bin < experts; w++) count += counts[w * bins + bin];
    int place = sum_before(count, partial);
    if (bin < experts) {
        offsets[bin] = place;
        #pragma unroll 1
        for (int w = 0; w < WARPS; w++) {
            int here = counts[w * bins + bin];
            counts[w * bins + bin] = place;
            place += here;
        }
        // The pairs without an expert come after the last one's.
        if (bin == experts - 1) {
            offsets[experts] = place;
            #pragma unroll 1
            for (int w = 0; w < WARPS; w++) {
                int here = counts[w * bins + experts];
                counts[w * bins + experts] = place;
                place += here;
            }
        }
    }
    __syncthreads();

    #pragma unroll 1
    for (int first = start; first < end; first += WARP) {
        int p = first + lane;
        // A lane without a pair is in a bin of its own.
        int bin = p < end ? bin_of(indices[p], experts) : -1;
        u32 peers = __match_any_sync(ALL_LANES, bin);
        int before = __popc(peers & ((1u << lane) - 1));
        int base = p < end ? counts[warp * bins + bin] : 0;
        __syncwarp();
        if (p < end) {
            order[base + before] = p;
            places[p] = bin < experts ? base + before : -1;
            if (before == 0) counts[warp * bins + bin] = base + __popc(peers);
        }
        __syncwarp();
    }
}

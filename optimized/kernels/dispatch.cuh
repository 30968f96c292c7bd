// What sorts pairs of token and expert by expert: one block, behind whatever has made them.
#pragma once
#include "dev.cuh"

// E for what is no expert.
__device__ __forceinline__ int bin_of(int expert, int experts) {
    return expert >= 0 && expert < experts ? expert : experts;
}

// ---- tuned: one block; each of 32 warps counts and then places a run of the pairs ----

const int SORT_WARPS = 32;

// An exclusive sum over the block's threads; `partial` is shared memory of SORT_WARPS numbers.
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

// `counts` is shared memory of (E + 1) SORT_WARPS numbers. There are no more experts than threads. The indices may be
// this block's own: all of them are there after the first barrier.
__device__ __forceinline__ void sort_pairs(const int* indices, int* offsets, int* order, int* places, int pairs,
                                           int experts, int* counts) {
    __shared__ int partial[SORT_WARPS];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, bins = experts + 1;
    // Whole groups of 32 pairs for each warp.
    int run = (pairs + SORT_WARPS * WARP - 1) / (SORT_WARPS * WARP) * WARP;
    int start = min(warp * run, pairs), end = min(start + run, pairs);

    #pragma unroll 1
    for (int i = threadIdx.x; i < bins * SORT_WARPS; i += SORT_WARPS * WARP) counts[i] = 0;
    __syncthreads();
    #pragma unroll 1
    for (int p = start + lane; p < end; p += WARP) atomicAdd(&counts[warp * bins + bin_of(indices[p], experts)], 1);
    __syncthreads();

    // Counts become places: where each warp's pairs of each bin begin.
    int bin = threadIdx.x, count = 0;
    #pragma unroll 1
    for (int w = 0; w < SORT_WARPS && bin < experts; w++) count += counts[w * bins + bin];
    int place = sum_before(count, partial);
    if (bin < experts) {
        offsets[bin] = place;
        #pragma unroll 1
        for (int w = 0; w < SORT_WARPS; w++) {
            int here = counts[w * bins + bin];
            counts[w * bins + bin] = place;
            place += here;
        }
        // The pairs without an expert come after the last one's.
        if (bin == experts - 1) {
            offsets[experts] = place;
            #pragma unroll 1
            for (int w = 0; w < SORT_WARPS; w++) {
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

// ---- few pairs: a block of any size, which counts for each pair how many come before it ----

__device__ __forceinline__ void sort_few_pairs(const int* indices, int* offsets, int* order, int* places, int pairs,
                                               int experts) {
    #pragma unroll 1
    for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
        int bin = bin_of(indices[p], experts), place = 0;
        #pragma unroll 4
        for (int q = 0; q < pairs; q++) {
            int other = bin_of(indices[q], experts);
            place += other < bin || (other == bin && q < p);
        }
        order[place] = p;
        places[p] = bin < experts ? place : -1;
    }
    #pragma unroll 1
    for (int bin = threadIdx.x; bin <= experts; bin += blockDim.x) {
        int place = 0;
        #pragma unroll 4
        for (int q = 0; q < pairs; q++) place += bin_of(indices[q], experts) < bin;
        offsets[bin] = place;
    }
}

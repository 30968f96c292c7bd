// What rotates queries and keys: a pair of neighbours as a complex number (paper 2.1.3, eq. 14 and 15).
#pragma once
#include "dev.cuh"

struct Pair {
    float re, im;

    // Turned by an angle. What is fused is said, so that a token has the same bits on every path.
    __device__ __forceinline__ Pair turned(float cos, float sin) const {
        return {fmaf(re, cos, -(im * sin)), fmaf(re, sin, im * cos)};
    }
};

// In one access if they lie `together` (the address is a multiple of the pair's size), else in two.
__device__ __forceinline__ Pair load_pair(const float* from, bool together) {
    if (!together) return {from[0], from[1]};
    float2 pair = *(const float2*)from;
    return {pair.x, pair.y};
}
__device__ __forceinline__ Pair load_pair(const bf16* from, bool together) {
    if (!together) return {to_float(from[0]), to_float(from[1])};
    u32 pair = *(const u32*)from;
    return {low_bf16(pair), high_bf16(pair)};
}
__device__ __forceinline__ void store_pair(float* to, Pair pair, bool together) {
    if (together) *(float2*)to = make_float2(pair.re, pair.im);
    else to[0] = pair.re, to[1] = pair.im;
}
__device__ __forceinline__ void store_pair(bf16* to, Pair pair, bool together) {
    if (together) *(u32*)to = pack_bf16(pair.re, pair.im);
    else to[0] = from_float<bf16>(pair.re), to[1] = from_float<bf16>(pair.im);
}

// ---- all heads of a token ----

// Where the rows of a [N,H,r] tensor are, in elements.
struct Rows {
    long long token, head;
};

// Naive: a thread for each pair; this is pair `at` of all.
template <typename T>
__device__ __forceinline__ void turn_pair(const T* x, Rows x_rows, const float* cos, const float* sin, T* out,
                                          Rows out_rows, int heads, int half, long long at) {
    int i = at % half, head = at / half % heads, token = at / half / heads;
    x += token * x_rows.token + head * x_rows.head + 2 * i;
    out += token * out_rows.token + head * out_rows.head + 2 * i;
    long long angle = (long long)token * half + i;
    store_pair(out, load_pair(x, false).turned(cos[angle], sin[angle]), false);
}

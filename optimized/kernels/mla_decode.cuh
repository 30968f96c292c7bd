// The operands of mla_decode.cu, and what its tuned kernels share: a block's part of the problem, in shared memory.
#pragma once
#include "attention.cuh"
#include "tile.cuh"

// Columns of the output that the tuned kernels hold, and those of a key.
const int MAX_LATENT = 512, MAX_WIDTH = 576;
// Threads of the naive and of the f32 kernel.
const int THREADS = 128;
// Threads that copy a key.
const int LANES = 8;

extern __shared__ __align__(16) unsigned char dynamic[];

// The keys of the first splits, and twice that with more than MANY_HEADS; those of N keys end at N * (N / SHARE), and twice as
// long ones follow.
const int SPLIT = 256, MANY_HEADS = 64, SHARE = 16;
// How many splits are added up at once.
const int FAN = 8;

// Where splits begin and end follows from their place and the model's heads alone, so that whoever asks, with whatever behind
// it, gets the same sums. What a split leaves costs as much as reading 3.6 keys for each head, so splits should be long; and
// they are all that the multiprocessors can share of a single sequence, so there should be many.
struct Splits {
    // Of the splits of one length: the first key, how many keys each has, and the first key behind them.
    long long first = 0;
    int keys;

    __device__ __forceinline__ explicit Splits(int heads) : keys(heads > MANY_HEADS ? 2 * SPLIT : SPLIT) {}
    __device__ __forceinline__ long long behind() const { return (long long)keys * (keys / SHARE); }
    __device__ __forceinline__ int count() const { return (int)((behind() - first) / keys); }
    __device__ __forceinline__ void become_longer() { first = behind(), keys *= 2; }
};

// How many splits a sequence has; one if it has no keys.
__device__ __forceinline__ int splits_of(int length, int heads) {
    Splits splits(heads);
    int before = 0;
    #pragma unroll 1
    for (; length > splits.behind(); splits.become_longer()) before += splits.count();
    return max(before + (int)((length - splits.first + splits.keys - 1) / splits.keys), 1);
}

// 16 bytes to an address in shared memory, and of it.
__device__ __forceinline__ void store_shared(u32 to, const float (&from)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(from[0]), "f"(from[1]), "f"(from[2]),
                 "f"(from[3]) : "memory");
}
__device__ __forceinline__ void store_shared(u32 to, const u32 (&from)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                 "r"(from[3]) : "memory");
}
__device__ __forceinline__ void load_shared(u32 (&to)[4], u32 from) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// 16 bytes as `copy_async`, and 16 of every STEP behind them, as far as `left` bytes go. Without branches.
template <int STEP, int AT, int END>
__device__ __forceinline__ void copy_every(u32 shared, const void* global, int bytes, int left) {
    if constexpr (AT < END) {
        asm volatile("{ .reg .pred there; setp.gt.s32 there, %3, %4;\n"
                     "@there cp.async.cg.shared.global [%0 + %4], [%1 + %4], 16, %2; }"
                     ::"r"(shared), "l"(global), "r"(bytes), "r"(left), "n"(AT) : "memory");
        copy_every<STEP, AT + STEP, END>(shared, global, bytes, left);
    }
}

template <typename T> struct Problem {
    const T* q_latent;
    long long latent_batch, latent_token, latent_head;
    const T* q_pe;
    long long pe_batch, pe_token, pe_head;
    const T* cache;
    const int* block_table;
    const int* lengths;
    const float* mask;
    long long mask_batch, mask_token;
    float scale;
    int batch, tokens, heads, latent, rope, max_pages, page_size, most_splits;
    // Parts, and for each tile of rows of each sequence so many counters as there may be splits: zero before and after.
    float* workspace;
    u32* arrivals;
    T* out;
    float* lse;

    // A row is a token and a head: row = token * heads + head.
    __device__ __forceinline__ int rows() const { return tokens * heads; }
    __device__ __forceinline__ int width() const { return latent + rope; }
    __device__ __forceinline__ long long capacity() const { return (long long)max_pages * page_size; }
    __device__ __forceinline__ const T* query(int b, int row) const {
        return q_latent + b * latent_batch + row / heads * latent_token + row % heads * latent_head;
    }
    __device__ __forceinline__ const T* query_pe(int b, int row) const {
        return q_pe + b * pe_batch + row / heads * pe_token + row % heads * pe_head;
    }
    // Which key of the whole cache is key t of sequence b.
    __device__ __forceinline__ int slot(int b, int t) const {
        return block_table[(long long)b * max_pages + t / page_size] * page_size + t % page_size;
    }
    __device__ __forceinline__ const T* key(int b, int t) const { return cache + (long long)slot(b, t) * width(); }
    // How many keys a sequence has: no more than the block table has places for. Blocks and counters are for these alone.
    __device__ __forceinline__ int length(int b) const {
        return (int)max(min((long long)lengths[b], capacity()), 0ll);
    }
    // How many keys of a sequence a token sees, but for those that a mask forbids.
    __device__ __forceinline__ int seen(int token, int length) const {
        return mask ? length : length - tokens + token + 1;
    }
    __device__ __forceinline__ float bias(int b, int token, int t) const {
        return mask[b * mask_batch + token * mask_token + t];
    }
    // x_t of a product of query and key.
    __device__ __forceinline__ float weigh(float product, int b, int token, int t, int length) const {
        if (t >= seen(token, length)) return NEVER;
        return masked(product * scale, mask ? bias(b, token, t) : 0.0f);
    }

    // What a split leaves of a row: the largest x and the sum of all exp(x - largest); and the sums of the latents with these
    // weights. They take whole packs, so that a kernel need not look where a row ends.
    __device__ __forceinline__ long long part(int b, int split, int row) const {
        return ((long long)b * most_splits + split) * rows() + row;
    }
    __device__ __forceinline__ float* part_sums(long long part) const { return workspace + part * padded(); }
    __device__ __forceinline__ float2* part_scale(long long part) const {
        return (float2*)(workspace + (long long)batch * most_splits * rows() * padded()) + part;
    }
    __device__ __forceinline__ int padded() const { return (latent + 3) / 4 * 4; }

    // Four columns of a row's result, of its sums and of the largest x and the sum of weights that belong to them.
    __device__ __forceinline__ void finish(int b, int row, int column, float (&sums)[4], float2 scale) const {
        long long at = (long long)b * rows() + row;
        #pragma unroll
        for (int k = 0; k < 4; k++) sums[k] = scale.x == NEVER ? 0.0f : sums[k] / scale.y;
        T* to = out + at * latent + column;
        if (latent % 4 == 0 && (u64)out % (4 * sizeof(T)) == 0) {
            if (sizeof(T) == 4) store_pack((float*)to, sums);
            else *(uint2*)to = make_uint2(pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]));
        } else {
            #pragma unroll
            for (int k = 0; k < 4; k++)
                if (column + k < latent) to[k] = from_float<T>(sums[k]);
        }
        if (column == 0) lse[at] = log_sum(scale.x, scale.y);
    }
};

// What the tuned kernels have in common: a block's place in the problem, its keys on their way into shared memory, and what
// becomes of its sums. A row of shared memory takes `stride` numbers; those from `width` on are zero.
template <typename T, int ROWS, int BLOCK, int KEYS, int STAGES> struct Block {
    // Rows of sums in shared memory: pairs that a warp writes at once are in different banks.
    static const int PITCH = MAX_LATENT + 8;
    const Problem<T>& p;
    T* tiles;
    int stride, start, end;
    // Where the cache has the key of this lane's number in the tile that is copied next, which must be the next one.
    int slot;

    __device__ __forceinline__ static int b() { return blockIdx.z; }
    __device__ __forceinline__ static int split() { return blockIdx.y; }
    __device__ __forceinline__ static int first_row() { return blockIdx.x * ROWS; }

    __device__ __forceinline__ int length() const { return p.length(b()); }
    __device__ __forceinline__ int splits() const { return splits_of(length(), p.heads); }

    // False if the sequence ends before it.
    __device__ __forceinline__ bool begin(T* shared, int of_row) {
        if (split() >= splits()) return false;
        Splits splits(p.heads);
        int place = split();
        #pragma unroll 1
        for (; place >= splits.count(); splits.become_longer()) place -= splits.count();
        start = (int)splits.first + place * splits.keys;
        end = (int)min((long long)start + splits.keys, (long long)length());
        tiles = shared, stride = of_row;
        find(start);
        return true;
    }
    __device__ __forceinline__ bool has(int row) const { return first_row() + row < p.rows(); }
    // Whose row it is; behind the last one, that one's.
    __device__ __forceinline__ int token(int row) const { return min(first_row() + row, p.rows() - 1) / p.heads; }
    __device__ __forceinline__ T* tile(int place) const { return tiles + place * KEYS * stride; }

    // Each key is looked up once by each warp. There are none from `end` on.
    __device__ __forceinline__ void find(int first) {
        int lane = threadIdx.x % WARP, t = first + lane;
        slot = lane < KEYS && t < end ? p.slot(b(), t) : 0;
    }
    __device__ __forceinline__ void load_queries(T* queries) const {
        #pragma unroll 1
        for (int i = threadIdx.x / WARP; i < ROWS; i += BLOCK / WARP) {
            int row = has(i) ? first_row() + i : 0;
            const T *latent = p.query(b(), row), *pe = p.query_pe(b(), row);
            copy_row<WARP>(queries + i * stride, latent, p.latent, has(i), packs(latent, p.latent));
            bool packed = packs(pe, p.rope) && packs(queries + i * stride, p.latent);
            copy_row<WARP>(queries + i * stride + p.latent, pe, p.rope, has(i), packed);
        }
    }
    // The tile of KEYS keys from `first` on; 8 lanes for a key, so that all of them have the same number of packs: 9 of the 72
    // of 576 bf16.
    __device__ __forceinline__ void load_tile(int first, int place) {
        const int SIZE = Pack<T>::SIZE;
        bool packed = packs(p.cache, p.width());
        int lane = threadIdx.x % LANES;
        #pragma unroll
        for (int pass = 0; pass < KEYS; pass += BLOCK / LANES) {
            int i = pass + threadIdx.x / LANES;
            bool there = first + i < end;
            const T* key = p.cache + (long long)__shfl_sync(ALL_LANES, slot, i) * p.width();
            T* to = tile(place) + i * stride;
            if (!packed) {
                copy_row<LANES>(to, key, p.width(), there, false);
                continue;
            }
            const int BYTES = sizeof(T);
            copy_every<LANES * 16, 0, MAX_WIDTH * BYTES>(shared_address(to + lane * SIZE), key + lane * SIZE,
                                                         there ? 16 : 0, (p.width() - lane * SIZE) * BYTES);
        }
        find(first + KEYS);
    }

    // work(row, column) for every four columns of the block's rows, by 128 threads for each row.
    template <typename Work> __device__ __forceinline__ void each_pack(Work work) const {
        const int LINE = MAX_LATENT / 4;
        int column = threadIdx.x % LINE * 4;
        #pragma unroll 1
        for (int row = threadIdx.x / LINE; row < ROWS && has(row); row += BLOCK / LINE)
            if (column < p.padded()) work(row, column);
    }

    // What all threads have put into shared memory, `sums` and `scales` of each row, is the result if there is one split.
    // If there are more it is left for the block of these rows that comes last.
    __device__ __forceinline__ void give(const float* sums, float2* scales) const {
        int splits = this->splits();
        __syncthreads();
        each_pack([&](int row, int column) {
            float pack[4];
            load_pack(sums + row * PITCH + column, pack);
            long long part = p.part(b(), split(), first_row() + row);
            if (splits == 1) {
                p.finish(b(), first_row() + row, column, pack, scales[row]);
            } else {
                store_pack(p.part_sums(part) + column, pack);
                if (column == 0) *p.part_scale(part) = scales[row];
            }
        });
        if (splits > 1) add_up(splits, scales);
    }

    // Adds up the splits of the block's rows as a tree: FAN neighbours, in their order, by the one of their blocks that comes
    // last; it goes on with the sum, in the place of the first, as if that were a split. Who comes last changes no bit. What
    // others have left is not in this multiprocessor's cache.
    __device__ __forceinline__ void add_up(int splits, float2* scales) const {
        __shared__ float weights[FAN][ROWS];
        u32* arrivals = p.arrivals + ((long long)b() * gridDim.x + blockIdx.x) * p.most_splits;
        #pragma unroll 1
        for (int step = 1, level = 0; step < splits; step *= FAN, level++) {
            int first = split() / (step * FAN) * (step * FAN), members = min((splits - first + step - 1) / step, FAN);
            if (members == 1) continue;
            if (!arrives_last(arrivals + first + level, members)) return;
            bool is_result = step * FAN >= splits;
            long long part = p.part(b(), first, first_row()), next = (long long)step * p.rows();
            if (threadIdx.x < ROWS && has(threadIdx.x)) {
                float2 scale[FAN];
                float high = NEVER, sum = 0.0f;
                #pragma unroll
                for (int i = 0; i < FAN; i++) {
                    if (i >= members) break;
                    scale[i] = __ldcg(p.part_scale(part + i * next + threadIdx.x));
                    high = fmaxf(high, scale[i].x);
                }
                #pragma unroll
                for (int i = 0; i < FAN; i++) {
                    if (i >= members) break;
                    float weight = power<T>(scale[i].x - base_of(high));
                    weights[i][threadIdx.x] = weight;
                    sum += weight * scale[i].y;
                }
                scales[threadIdx.x] = make_float2(high, sum);
                if (!is_result) *p.part_scale(part + threadIdx.x) = make_float2(high, sum);
            }
            __syncthreads();
            each_pack([&](int row, int column) {
                float* from = p.part_sums(part + row) + column;
                float4 left[FAN];
                #pragma unroll
                for (int i = 0; i < FAN; i++) {
                    if (i >= members) break;
                    left[i] = __ldcg((const float4*)(from + i * next * p.padded()));
                }
                float sums[4] = {};
                #pragma unroll
                for (int i = 0; i < FAN; i++) {
                    if (i >= members) break;
                    float weight = weights[i][row];
                    sums[0] += weight * left[i].x, sums[1] += weight * left[i].y;
                    sums[2] += weight * left[i].z, sums[3] += weight * left[i].w;
                }
                if (is_result) p.finish(b(), first_row() + row, column, sums, scales[row]);
                else store_pack(from, sums);
            });
        }
    }
};

// CUB's primitives for a block and for a warp. Each kernel runs as one block of 128 threads, or as one warp.

#include <cub/block/block_adjacent_difference.cuh>
#include <cub/block/block_discontinuity.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_shuffle.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_merge_sort.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>

constexpr int THREADS = 128;
constexpr int ITEMS = 4;
constexpr int ALL = THREADS * ITEMS;

template <typename T> __device__ void take(const T *in, T (&items)[ITEMS]) {
    for (int i = 0; i < ITEMS; i++) items[i] = in[threadIdx.x * ITEMS + i];
}
template <typename T> __device__ void give(T *out, const T (&items)[ITEMS]) {
    for (int i = 0; i < ITEMS; i++) out[threadIdx.x * ITEMS + i] = items[i];
}

struct Less {
    template <typename T> __device__ bool operator()(const T &a, const T &b) const { return a < b; }
};
struct Largest {
    template <typename T> __device__ T operator()(const T &a, const T &b) const { return a > b ? a : b; }
};

template <cub::BlockReduceAlgorithm HOW> __device__ void reduce(const int *in, int *out) {
    using Reduce = cub::BlockReduce<int, THREADS, HOW>;
    __shared__ typename Reduce::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    int sum = Reduce(storage).Sum(items);
    if (threadIdx.x == 0) out[0] = sum;
}
extern "C" __global__ void reduce_raking(const int *in, int *out) { reduce<cub::BLOCK_REDUCE_RAKING>(in, out); }
extern "C" __global__ void reduce_warps(const int *in, int *out) { reduce<cub::BLOCK_REDUCE_WARP_REDUCTIONS>(in, out); }
extern "C" __global__ void reduce_commutative(const int *in, int *out) {
    reduce<cub::BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY>(in, out);
}
extern "C" __global__ void reduce_largest_of_some(const int *in, int *out) {
    using Reduce = cub::BlockReduce<int, THREADS>;
    __shared__ typename Reduce::TempStorage storage;
    int value = in[threadIdx.x];
    int largest = Reduce(storage).Reduce(value, Largest(), 77);
    if (threadIdx.x == 0) out[0] = largest;
}

template <cub::BlockScanAlgorithm HOW> __device__ void scan(const int *in, int *out) {
    using Scan = cub::BlockScan<int, THREADS, HOW>;
    __shared__ typename Scan::TempStorage storage;
    int items[ITEMS], total;
    take(in, items);
    Scan(storage).ExclusiveSum(items, items, total);
    give(out, items);
    if (threadIdx.x == 0) out[ALL] = total;
}
extern "C" __global__ void scan_raking(const int *in, int *out) { scan<cub::BLOCK_SCAN_RAKING>(in, out); }
extern "C" __global__ void scan_raking_memoize(const int *in, int *out) { scan<cub::BLOCK_SCAN_RAKING_MEMOIZE>(in, out); }
extern "C" __global__ void scan_warps(const int *in, int *out) { scan<cub::BLOCK_SCAN_WARP_SCANS>(in, out); }
extern "C" __global__ void scan_largest(const int *in, int *out) {
    using Scan = cub::BlockScan<int, THREADS>;
    __shared__ typename Scan::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    Scan(storage).InclusiveScan(items, items, Largest());
    give(out, items);
}

extern "C" __global__ void merge_sort(const int *in, int *out) {
    using Sort = cub::BlockMergeSort<int, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    Sort(storage).Sort(items, Less());
    give(out, items);
}
extern "C" __global__ void merge_sort_some(const int *in, int *out) {
    using Sort = cub::BlockMergeSort<int, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    Sort(storage).Sort(items, Less(), 301, 0x7fffffff);
    give(out, items);
}
extern "C" __global__ void radix_sort(const unsigned *in, unsigned *out) {
    using Sort = cub::BlockRadixSort<unsigned, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    unsigned items[ITEMS];
    take(in, items);
    Sort(storage).Sort(items);
    give(out, items);
}
extern "C" __global__ void radix_sort_floats_down(const float *in, float *out) {
    using Sort = cub::BlockRadixSort<float, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    float items[ITEMS];
    take(in, items);
    Sort(storage).SortDescending(items);
    give(out, items);
}

template <cub::BlockHistogramAlgorithm HOW> __device__ void histogram(const unsigned *in, unsigned *out) {
    using Histogram = cub::BlockHistogram<unsigned, THREADS, ITEMS, 32, HOW>;
    __shared__ typename Histogram::TempStorage storage;
    __shared__ unsigned bins[32];
    unsigned items[ITEMS];
    for (int i = 0; i < ITEMS; i++) items[i] = in[threadIdx.x * ITEMS + i] % 32;
    Histogram(storage).Histogram(items, bins);
    __syncthreads();
    if (threadIdx.x < 32) out[threadIdx.x] = bins[threadIdx.x];
}
extern "C" __global__ void histogram_atomic(const unsigned *in, unsigned *out) { histogram<cub::BLOCK_HISTO_ATOMIC>(in, out); }
extern "C" __global__ void histogram_sort(const unsigned *in, unsigned *out) { histogram<cub::BLOCK_HISTO_SORT>(in, out); }

extern "C" __global__ void exchange(const int *in, int *out) {
    using Exchange = cub::BlockExchange<int, THREADS, ITEMS>;
    __shared__ typename Exchange::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    Exchange(storage).BlockedToStriped(items, items);
    give(out, items);
}
extern "C" __global__ void load_and_store(const int *in, int *out) {
    using Load = cub::BlockLoad<int, THREADS, ITEMS, cub::BLOCK_LOAD_TRANSPOSE>;
    using Store = cub::BlockStore<int, THREADS, ITEMS, cub::BLOCK_STORE_WARP_TRANSPOSE>;
    __shared__ union { typename Load::TempStorage load; typename Store::TempStorage store; } storage;
    int items[ITEMS];
    Load(storage.load).Load(in, items, 333, -1);
    __syncthreads();
    for (int i = 0; i < ITEMS; i++) items[i] = 3 * items[i] + int(threadIdx.x);
    Store(storage.store).Store(out, items);
}
extern "C" __global__ void heads(const int *in, int *out) {
    using Discontinuity = cub::BlockDiscontinuity<int, THREADS>;
    __shared__ typename Discontinuity::TempStorage storage;
    int items[ITEMS], flags[ITEMS];
    take(in, items);
    for (int i = 0; i < ITEMS; i++) items[i] &= 1;
    Discontinuity(storage).FlagHeads(flags, items, cuda::std::not_equal_to<>());
    give(out, flags);
}
struct Minus {
    __device__ int operator()(int a, int b) const { return a - b; }
};
extern "C" __global__ void differences(const int *in, int *out) {
    using Difference = cub::BlockAdjacentDifference<int, THREADS>;
    __shared__ typename Difference::TempStorage storage;
    int items[ITEMS], result[ITEMS];
    take(in, items);
    Difference(storage).SubtractLeft(items, result, Minus());
    give(out, result);
}
extern "C" __global__ void shuffle_up(const int *in, int *out) {
    using Shuffle = cub::BlockShuffle<int, THREADS>;
    __shared__ typename Shuffle::TempStorage storage;
    int items[ITEMS], moved[ITEMS];
    take(in, items);
    moved[0] = -1;
    Shuffle(storage).Up(items, moved);
    give(out, moved);
}

extern "C" __global__ void warp_reduce(const int *in, int *out) {
    using Reduce = cub::WarpReduce<int, 16>;
    __shared__ typename Reduce::TempStorage storage[2];
    int sum = Reduce(storage[threadIdx.x / 16]).Sum(in[threadIdx.x]);
    if (threadIdx.x % 16 == 0) out[threadIdx.x / 16] = sum;
}
extern "C" __global__ void warp_segmented(const int *in, int *out) {
    using Reduce = cub::WarpReduce<int>;
    __shared__ typename Reduce::TempStorage storage;
    out[threadIdx.x] = Reduce(storage).HeadSegmentedSum(in[threadIdx.x], threadIdx.x % 5 == 0);
}
extern "C" __global__ void warp_scan(const double *in, double *out) {
    using Scan = cub::WarpScan<double>;
    __shared__ typename Scan::TempStorage storage;
    double value;
    Scan(storage).InclusiveSum(in[threadIdx.x], value);
    out[threadIdx.x] = value;
}
extern "C" __global__ void warp_merge_sort(const int *in, int *out) {
    using Sort = cub::WarpMergeSort<int, ITEMS, 32>;
    __shared__ typename Sort::TempStorage storage;
    int items[ITEMS];
    take(in, items);
    Sort(storage).Sort(items, Less());
    give(out, items);
}

// One token of every row of logits: guidance, temperature, top-k, top-p, and the greatest of logit + Gumbel noise.
//
// One block a row. Its logits stay in registers as integers of the same order, so that both cut-offs are found by
// bisection over these integers: at most 32 sums over the row each, and no sort.
//
// Macros: THREADS, EACH (codes of a thread). Needs no header but the one beside it.
#include "ordered.cuh"

#define WARPS (THREADS / 32)

__device__ __forceinline__ float number(unsigned key)
{
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

struct Greater {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Of all threads' values, by a commutative function; every thread gets the same result.
template <class T, class Function>
__device__ __forceinline__ T reduce(T value, unsigned long long* shared, Function combine)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const T other = __shfl_xor_sync(0xffffffffu, value, offset);
        value = combine(value, other);
    }
    T* partial = reinterpret_cast<T*>(shared);
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = value;
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < WARPS; ++warp) value = combine(value, partial[warp]);
    __syncthreads();
    return value;
}

// The smallest integer T, from `low`, for which the weights of the keys above T add to less than `limit`.
template <class Weight>
__device__ __forceinline__ unsigned cut(const unsigned (&keys)[EACH], unsigned low, float limit,
                                        unsigned long long* shared, Weight weight)
{
    unsigned high = 0xffffffffu;
    while (low < high) {
        const unsigned middle = low + (high - low) / 2;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < EACH; ++j)
            if (keys[j] > middle) sum += weight(keys[j]);
        sum = reduce(sum, shared, [](float a, float b) { return a + b; });
        if (sum < limit) high = middle;
        else low = middle + 1;
    }
    return low;
}

// conditional, unconditional (or null), noise (or null): (rows, codes) -> tokens (rows), and sure (rows) unless null:
// whether the token stays when every logit changes by up to half of `tolerance`. Top-p keeps no more than a share `up`
// and no less than a share `down` of the probability then.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
guided_sample(const float* __restrict__ conditional, const float* __restrict__ unconditional,
              const float* __restrict__ noise, long long* __restrict__ tokens, bool* __restrict__ sure, int codes,
              float strength, float temperature, int top_k, float top_p, float tolerance, float up, float down)
{
    __shared__ unsigned long long shared[WARPS];
    const Greater greater;
    const size_t row = (size_t)blockIdx.x * codes;
    unsigned keys[EACH];
    unsigned greatest = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int code = j * THREADS + threadIdx.x;
        keys[j] = 0;  // below every number
        if (code < codes) {
            float z = conditional[row + code];
            if (unconditional) z += (z - unconditional[row + code]) * strength;
            keys[j] = ordered(z / temperature);
        }
        greatest = greater(keys[j], greatest);
    }

    // The least key that is kept, and how low and how high it may lie within the tolerance.
    const bool filtered = (top_k > 0 && top_k < codes) || (top_p > 0.f && top_p < 1.f);
    unsigned least = 1;
    if (top_k > 0 && top_k < codes) least = cut(keys, least, (float)top_k, shared, [](unsigned) { return 1.f; });
    unsigned lowest = least, highest = least;
    if (top_p > 0.f && top_p < 1.f) {
        greatest = reduce(greatest, shared, greater);
        const float top = number(greatest);
        const auto share = [top](unsigned key) { return __expf(number(key) - top); };
        float total = 0.f;
#pragma unroll
        for (int j = 0; j < EACH; ++j)
            if (keys[j] >= least) total += share(keys[j]);
        total = reduce(total, shared, [](float a, float b) { return a + b; });
        const unsigned from = least;
        least = cut(keys, from, top_p * total, shared, share);
        if (sure) {
            lowest = cut(keys, from, up * total, shared, share);
            highest = min(cut(keys, from, down * total, shared, share), greatest);
        }
    }
    if (sure && filtered) {
        unsigned kept = 0, last = 0, below = 0;  // complements of the least keys from `highest` and from `lowest` on
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            if (keys[j] >= highest) kept = greater(kept, ~keys[j]);
            if (keys[j] >= lowest) last = greater(last, ~keys[j]);
        }
        kept = ~reduce(kept, shared, greater);
        last = ~reduce(last, shared, greater);
        int equal = 0;
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            if (keys[j] < kept) below = greater(below, keys[j]);
            equal += keys[j] == kept;
        }
        below = reduce(below, shared, greater);
        equal = reduce(equal, shared, [](int a, int b) { return a + b; });
        lowest = ordered(number(last) - tolerance);
        highest = kept;
        const bool swaps = equal > 1 || (below && number(kept) - number(below) <= tolerance);
        if (swaps) highest = ordered(number(kept) + tolerance);
    }

    unsigned long long best = 0;  // score above, complement of the code below: a tie goes to the lowest code
#pragma unroll
    for (int j = 0; j < EACH; ++j)
        if (keys[j] >= least) {
            const unsigned code = j * THREADS + threadIdx.x;
            const float score = number(keys[j]) + (noise ? noise[row + code] : 0.f);
            best = greater(best, (unsigned long long)ordered(score) << 32 | (0xffffffffu - code));
        }
    best = reduce(best, shared, greater);
    const unsigned token = 0xffffffffu - (unsigned)best;
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
    if (!sure) return;

    // Neither a code that might just be kept nor the loss of one that might just be dropped may change the outcome.
    unsigned rival = 0, inside = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const unsigned code = j * THREADS + threadIdx.x;
        if (code == token) inside = keys[j] >= highest;
        else if (keys[j] >= lowest && keys[j] > 0) {
            const float score = number(keys[j]) + (noise ? noise[row + code] : 0.f);
            rival = greater(rival, ordered(score));
        }
    }
    rival = reduce(rival, shared, greater);
    inside = reduce(inside, shared, greater);
    if (threadIdx.x == 0) {
        const float lead = number((unsigned)(best >> 32)) - (rival ? number(rival) : __uint_as_float(0xff800000u));
        sure[blockIdx.x] = inside && lead > tolerance;
    }
}

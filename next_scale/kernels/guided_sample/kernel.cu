// One token of every row of logits: guidance, temperature, top-k, top-p, and the greatest of logit + Gumbel noise.
//
// One block a row. Its logits stay in registers as integers of the same order, so that both cut-offs are found by
// bisection over these integers: at most 32 sums over the row each, and no sort.
//
// Macros: THREADS, EACH (codes of a thread). Needs no header.
#define WARPS (THREADS / 32)

__device__ __forceinline__ unsigned ordered(float x)
{
    const unsigned bits = __float_as_uint(x + 0.f);  // -0 becomes 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float number(unsigned key)
{
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

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

// conditional, unconditional (or null), noise (or null): (rows, codes) -> tokens (rows)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
guided_sample(const float* __restrict__ conditional, const float* __restrict__ unconditional,
              const float* __restrict__ noise, long long* __restrict__ tokens, int codes, float strength,
              float temperature, int top_k, float top_p)
{
    __shared__ unsigned long long shared[WARPS];
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
        greatest = keys[j] > greatest ? keys[j] : greatest;
    }

    unsigned least = 1;
    if (top_k > 0 && top_k < codes) least = cut(keys, least, (float)top_k, shared, [](unsigned) { return 1.f; });
    if (top_p > 0.f && top_p < 1.f) {
        greatest = reduce(greatest, shared, [](unsigned a, unsigned b) { return a > b ? a : b; });
        const float top = number(greatest);
        const auto share = [top](unsigned key) { return __expf(number(key) - top); };
        float total = 0.f;
#pragma unroll
        for (int j = 0; j < EACH; ++j)
            if (keys[j] >= least) total += share(keys[j]);
        total = reduce(total, shared, [](float a, float b) { return a + b; });
        least = cut(keys, least, top_p * total, shared, share);
    }

    unsigned long long best = 0;  // score above, complement of the code below: a tie goes to the lowest code
#pragma unroll
    for (int j = 0; j < EACH; ++j)
        if (keys[j] >= least) {
            const unsigned code = j * THREADS + threadIdx.x;
            const float score = number(keys[j]) + (noise ? noise[row + code] : 0.f);
            const unsigned long long packed = (unsigned long long)ordered(score) << 32 | (0xffffffffu - code);
            best = packed > best ? packed : best;
        }
    best = reduce(best, shared, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
    if (threadIdx.x == 0) tokens[blockIdx.x] = 0xffffffffu - (unsigned)best;
}

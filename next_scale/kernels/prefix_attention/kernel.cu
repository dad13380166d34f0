// Attention in which query i sees the keys [0, visible_end[i]), forward and backward, without a matrix of queries times
// keys: flash attention (arXiv 2205.14135, 2307.08691) whose loop over keys ends where the block's last query does.
//
// A block has ROWS rows of one head, 16 a warp, in registers as left operands of tensor-core products; tiles of the
// other side's rows pass through shared memory as right operands. Forward and gradient of q: rows are queries, columns
// keys. Gradients of k and v: the other way round, so that no two blocks add to the same number.
//
// With `head_scale`, q and k are taken at unit length: a weight's exponent, not its operands, is divided by both norms.
//
// Macros: WIDTH (channels of a head, a multiple of 16), PARTS (bfloat16 numbers that stand for one: 1 for bfloat16; 2
// for float32, without the product of the two low ones), WARPS, FORWARD_KEYS and BACKWARD_COLUMNS (of a tile), TOGETHER
// (1: one launch finds the gradients of k and v), RELOAD (1: rows of the backward pass are too wide to stay in
// registers, and are read again for every tile). Needs no header but those beside it.
//
// Rows of q, k, v and their like: (B, n, H, WIDTH), n queries or keys. Of each row one number: (B, n, H).
#include "fragments.cuh"
#include "mma_bf16.cuh"

#define THREADS (WARPS * 32)
#define ROWS (WARPS * 16)   // of a block
#define WORDS (WIDTH / 2)   // pairs of channels
#define STEPS (WIDTH / 16)  // products of 16 channels
#define STRIDE (WORDS + 4)  // words of a row in shared memory: 4 more keep fragment loads off the same bank

#if PARTS == 1
typedef unsigned Pair;  // two channels
__device__ __forceinline__ float2 numbers(Pair x)
{
    return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}
__device__ __forceinline__ void split(Pair x, unsigned (&parts)[PARTS]) { parts[0] = x; }
__device__ __forceinline__ Pair pair(float first, float second) { return pack_bf16(first, second); }
#else
typedef float2 Pair;
__device__ __forceinline__ float2 numbers(Pair x) { return x; }
__device__ __forceinline__ void split(Pair x, unsigned (&parts)[PARTS])
{
    parts[0] = pack_bf16(x.x, x.y);
    parts[1] = pack_bf16(x.x - __uint_as_float(parts[0] << 16), x.y - __uint_as_float(parts[0] & 0xffff0000u));
}
__device__ __forceinline__ Pair pair(float first, float second) { return {first, second}; }
#endif

typedef unsigned Rows[STEPS][PARTS][4];  // 16 rows, as left operands
template <int N> struct Tile { unsigned words[PARTS][N * STRIDE]; };

// Where the rows of one head lie among those of all.
struct Head {
    size_t first;
    int heads;
    __device__ __forceinline__ Head(int batch, int head, int heads, int rows)
        : first((size_t)batch * rows * heads + head), heads(heads) {}
    __device__ __forceinline__ size_t at(int row) const { return first + (size_t)row * heads; }
};

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// One over the length of a row; 1 where lengths are left as they are.
__device__ __forceinline__ float to_unit(const float* squares, size_t row)
{
    return squares ? 1.f / fmaxf(sqrtf(squares[row]), 1e-12f) : 1.f;
}

// The two rows of this thread among the block's, g and g + 8 of its warp's. Those beyond the last are the last again:
// what comes of them is the same, and is stored again.
__device__ __forceinline__ void place_rows(int (&row)[2], int block_row, int rows)
{
#pragma unroll
    for (int half = 0; half < 2; ++half)
        row[half] = min(block_row + (int)(threadIdx.x >> 5) * 16 + half * 8 + (int)(threadIdx.x & 31) / 4, rows - 1);
}

__device__ __forceinline__ void load_rows(Rows& rows, const Pair* from, const size_t (&at)[2])
{
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Pair* row = from + at[half] * WORDS;
#pragma unroll
        for (int k = 0; k < STEPS; ++k)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                unsigned parts[PARTS];
                split(row[k * 8 + side * 4 + t], parts);
#pragma unroll
                for (int p = 0; p < PARTS; ++p) rows[k][p][side * 2 + half] = parts[p];
            }
    }
}

// The block's tile of N rows; zeros from `end`, whatever is there.
template <int N>
__device__ __forceinline__ void load_tile(Tile<N>& tile, const Pair* from, const Head& head, int first, int end)
{
    for (int i = threadIdx.x; i < N * WORDS; i += THREADS) {
        const int row = i / WORDS, word = i % WORDS;
        unsigned parts[PARTS] = {};
        if (first + row < end) split(from[head.at(first + row) * WORDS + word], parts);
#pragma unroll
        for (int p = 0; p < PARTS; ++p) tile.words[p][row * STRIDE + word] = parts[p];
    }
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[PARTS][4], const unsigned (&b)[PARTS][2])
{
#pragma unroll
    for (int p = 0; p < PARTS; ++p) mma_bf16(sum, a[0], b[p]);
#pragma unroll
    for (int p = 1; p < PARTS; ++p) mma_bf16(sum, a[p], b[0]);
}

// Each of the warp's rows times each row of a tile. A thread's numbers: rows g, g, g + 8, g + 8 and columns 2t, 2t + 1,
// 2t, 2t + 1 of 8 columns.
template <int N>
__device__ __forceinline__ void products(float (&result)[N / 8][4], const Rows& rows, const Tile<N>& tile)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result[n][i] = 0.f;
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            const int word = (n * 8 + g) * STRIDE + k * 8 + t;
            unsigned b[PARTS][2];
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                b[p][0] = tile.words[p][word];
                b[p][1] = tile.words[p][word + 4];
            }
            multiply(result[n], rows[k], b);
        }
    }
}

// To each of the warp's rows the rows of a tile, weighted.
template <int N>
__device__ __forceinline__ void gather(float (&sum)[WIDTH / 8][4], const float (&weights)[N / 8][4],
                                       const Tile<N>& tile)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
        unsigned a[PARTS][4];  // what products() leaves in a thread is what the thread holds of a left operand
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* two = weights[j * 2 + (i >> 1)] + (i & 1) * 2;
            a[0][i] = pack_bf16(two[0], two[1]);
            if (PARTS == 2)
                a[PARTS - 1][i] = pack_bf16(two[0] - __uint_as_float(a[0][i] << 16),
                                            two[1] - __uint_as_float(a[0][i] & 0xffff0000u));
        }
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            unsigned b[2][PARTS][2];
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                unsigned loaded[2][2];
                load_operands(loaded, tile.words[p] + (j * 16 + (lane & 15)) * STRIDE + (k * 2 + (lane >> 4)) * 4);
#pragma unroll
                for (int i = 0; i < 4; ++i) b[i >> 1][p][i & 1] = loaded[i >> 1][i & 1];
            }
            multiply(sum[k * 2], a, b[0]);
            multiply(sum[k * 2 + 1], a, b[1]);
        }
    }
}

// Over the four threads that share a row.
__device__ __forceinline__ float highest_of_row(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float sum_of_row(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// One warp a row: a (rows, WIDTH), b (rows, WIDTH) -> their products' sums (rows)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
row_products(const Pair* __restrict__ a, const Pair* __restrict__ b, float* __restrict__ sums, int rows)
{
    const int lane = threadIdx.x & 31;
    const size_t row = (size_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    float sum = 0.f;
    if (row < rows)
        for (int word = lane; word < WORDS; word += 32) {
            const float2 x = numbers(a[row * WORDS + word]), y = numbers(b[row * WORDS + word]);
            sum += x.x * y.x + x.y * y.y;
        }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0 && row < rows) sums[row] = sum;
}

// -> out, and the logarithm of the sum of each query's exponentials, from which the gradients find the weights again.
// One block a tile of queries and head. Squares of q's and k's lengths and head_scale (H), or null for all three.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attend(const Pair* __restrict__ q, const Pair* __restrict__ k, const Pair* __restrict__ v,
       const int* __restrict__ visible_end, const float* __restrict__ q_squares, const float* __restrict__ k_squares,
       const float* __restrict__ head_scale, Pair* __restrict__ out, float* __restrict__ log_sums, int batch, int heads,
       int length, int keys, float scale)
{
    constexpr int N = FORWARD_KEYS;
    __shared__ __align__(16) Tile<N> key_tile, value_tile;
    __shared__ float key_factors[N];
    const int t = threadIdx.x & 3;
    const int all = batch * heads, b = blockIdx.x % all / heads, h = blockIdx.x % heads;
    const int block_row = (gridDim.x / all - 1 - blockIdx.x / all) * ROWS;  // the longest loops start first
    const Head query_head(b, h, heads, length), key_head(b, h, heads, keys);
    const int least = visible_end[block_row], most = visible_end[min(block_row + ROWS, length) - 1];

    int row[2], end[2];
    place_rows(row, block_row, length);
    const size_t at[2] = {query_head.at(row[0]), query_head.at(row[1])};
    Rows queries;
    load_rows(queries, q, at);
    float sum[WIDTH / 8][4] = {};
    float factor[2], top[2], total[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        factor[half] = scale * (head_scale ? head_scale[h] : 1.f) * to_unit(q_squares, at[half]);
        end[half] = visible_end[row[half]];
        top[half] = -infinity();
        total[half] = 0.f;
    }

    for (int first_key = 0; first_key < most; first_key += N) {
        __syncthreads();
        load_tile(key_tile, k, key_head, first_key, most);
        load_tile(value_tile, v, key_head, first_key, most);
        for (int i = threadIdx.x; i < N; i += THREADS)
            key_factors[i] = first_key + i < most ? to_unit(k_squares, key_head.at(first_key + i)) : 0.f;
        __syncthreads();

        float weights[N / 8][4];
        products(weights, queries, key_tile);
        const bool whole = first_key + N <= least;  // every query of the block sees every key of the tile
        float highest[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = n * 8 + t * 2 + (i & 1);
                const bool seen = whole || first_key + column < end[i >> 1];
                weights[n][i] = seen ? weights[n][i] * (factor[i >> 1] * key_factors[column]) : -infinity();
                highest[i >> 1] = fmaxf(highest[i >> 1], weights[n][i]);
            }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            highest[half] = highest_of_row(highest[half]);
            shrink[half] = __expf(top[half] - highest[half]);  // every query sees key 0: the highest is a number
            top[half] = highest[half];
            total[half] *= shrink[half];
        }
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                weights[n][i] = __expf(weights[n][i] - top[i >> 1]);
                total[i >> 1] += weights[n][i];
            }
#pragma unroll
        for (int c = 0; c < WIDTH / 8; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[c][i] *= shrink[i >> 1];
        gather(sum, weights, value_tile);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] = sum_of_row(total[half]);
        const float share = 1.f / total[half];
#pragma unroll
        for (int c = 0; c < WIDTH / 8; ++c)
            out[at[half] * WORDS + c * 4 + t] = pair(sum[c][half * 2] * share, sum[c][half * 2 + 1] * share);
        if (t == 0) log_sums[at[half]] = top[half] + __logf(total[half]);
    }
}

// Of the other side, in shared memory.
struct Columns {
    Tile<BACKWARD_COLUMNS> factors, values;  // k and v, or q and grad
    float to_units[BACKWARD_COLUMNS], log_sums[BACKWARD_COLUMNS], deltas[BACKWARD_COLUMNS];
    int ends[BACKWARD_COLUMNS];
};

// What the kernels below share: grad is the gradient of out, deltas each query's sum over channels of out times grad;
// of_head_scale is what each query adds to its head's gradient.
#define PARAMETERS                                                                                                    \
    const Pair *__restrict__ q, const Pair *__restrict__ k, const Pair *__restrict__ v, const Pair *__restrict__ grad, \
        const int *__restrict__ visible_end, const float *__restrict__ q_squares, const float *__restrict__ k_squares, \
        const float *__restrict__ head_scale, const float *__restrict__ log_sums, const float *__restrict__ deltas,    \
        Pair *__restrict__ of_q, Pair *__restrict__ of_k, Pair *__restrict__ of_v, float *__restrict__ of_head_scale,  \
        int batch, int heads, int length, int keys, float scale
#define ARGUMENTS                                                                                                  \
    q, k, v, grad, visible_end, q_squares, k_squares, head_scale, log_sums, deltas, of_q, of_k, of_v, of_head_scale, \
        batch, heads, length, keys, scale

// One block a tile of rows and head. The rows are queries, or keys; wanted are the gradients of the weights' factors,
// q or k, or of the values, or both. The weights come from log_sums, so that only one pass over the columns is needed.
template <bool QUERIES, bool FACTORS, bool VALUES>
__device__ __forceinline__ void gradients(Columns& columns, PARAMETERS)
{
    constexpr int N = BACKWARD_COLUMNS;
    const int t = threadIdx.x & 3;
    const int all = batch * heads, b = blockIdx.x % all / heads, h = blockIdx.x % heads;
    const int tile = blockIdx.x / all;
    // the longest loops start first: those of the last queries and of the first keys
    const int block_row = (QUERIES ? gridDim.x / all - 1 - tile : tile) * ROWS;
    const int rows = QUERIES ? length : keys;
    const Head row_head(b, h, heads, rows), column_head(b, h, heads, QUERIES ? keys : length);
    const float* row_squares = QUERIES ? q_squares : k_squares;
    const float* column_squares = QUERIES ? k_squares : q_squares;
    const float head_factor = scale * (head_scale ? head_scale[h] : 1.f);

    int row[2], end[2];
    place_rows(row, block_row, rows);
    const size_t at[2] = {row_head.at(row[0]), row_head.at(row[1])};
    Rows factors, values;
    if (!RELOAD) load_rows(factors, QUERIES ? q : k, at);
    if (FACTORS && !RELOAD) load_rows(values, QUERIES ? grad : v, at);
    float unit[2], log_sum[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unit[half] = to_unit(row_squares, at[half]);
        if (QUERIES) {
            end[half] = visible_end[row[half]];
            log_sum[half] = log_sums[at[half]];
            delta[half] = deltas[at[half]];
        }
    }
    int begin = 0, stop = length;
    if (QUERIES) stop = visible_end[min(block_row + ROWS, length) - 1];
    else
        for (int high = length; begin < high;) {  // the first query that sees the block's first key
            const int middle = (begin + high) / 2;
            if (visible_end[middle] > block_row) high = middle;
            else begin = middle + 1;
        }

    float factor_sum[WIDTH / 8][4] = {}, value_sum[WIDTH / 8][4] = {};
    for (int first_column = begin; first_column < stop; first_column += N) {
        __syncthreads();
        load_tile(columns.factors, QUERIES ? k : q, column_head, first_column, stop);
        load_tile(columns.values, QUERIES ? v : grad, column_head, first_column, stop);
        for (int i = threadIdx.x; i < N; i += THREADS) {
            const int column = first_column + i;
            columns.to_units[i] = 0.f;
            columns.log_sums[i] = infinity();  // beyond the last query: a weight of nothing
            columns.deltas[i] = 0.f;
            columns.ends[i] = 0;
            if (column < stop) {
                columns.to_units[i] = to_unit(column_squares, column_head.at(column));
                if (!QUERIES) {
                    columns.ends[i] = visible_end[column];
                    columns.log_sums[i] = log_sums[column_head.at(column)];
                    columns.deltas[i] = deltas[column_head.at(column)];
                }
            }
        }
        __syncthreads();

        float weights[N / 8][4];
        if (RELOAD) load_rows(factors, QUERIES ? q : k, at);
        products(weights, factors, columns.factors);
        const bool whole = QUERIES ? first_column + N <= visible_end[block_row]
                                   : block_row + ROWS <= visible_end[first_column];
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = n * 8 + t * 2 + (i & 1), half = i >> 1;
                const bool seen = whole || (QUERIES ? first_column + column < end[half]
                                                    : row[half] < columns.ends[column]);
                const float exponent = weights[n][i] * (head_factor * unit[half] * columns.to_units[column]);
                weights[n][i] = seen ? __expf(exponent - (QUERIES ? log_sum[half] : columns.log_sums[column])) : 0.f;
            }
        if (VALUES) gather(value_sum, weights, columns.values);
        if (FACTORS) {
            float slopes[N / 8][4];
            if (RELOAD) load_rows(values, QUERIES ? grad : v, at);
            products(slopes, values, columns.values);
#pragma unroll
            for (int n = 0; n < N / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = n * 8 + t * 2 + (i & 1);
                    slopes[n][i] -= QUERIES ? delta[i >> 1] : columns.deltas[column];
                    slopes[n][i] *= weights[n][i] * columns.to_units[column];
                }
            gather(factor_sum, slopes, columns.factors);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const size_t from = at[half] * WORDS + t;
        if (VALUES)
#pragma unroll
            for (int c = 0; c < WIDTH / 8; ++c)
                of_v[from + c * 4] = pair(value_sum[c][half * 2], value_sum[c][half * 2 + 1]);
        if (FACTORS) {
            // of the row at unit length: the gradient less its part along that, over the row's length
            const Pair* x = (QUERIES ? q : k) + from;
            Pair* to = (QUERIES ? of_q : of_k) + from;
            float along = 0.f;
            if (row_squares) {
#pragma unroll
                for (int c = 0; c < WIDTH / 8; ++c) {
                    const float2 two = numbers(x[c * 4]);
                    along += two.x * factor_sum[c][half * 2] + two.y * factor_sum[c][half * 2 + 1];
                }
                along = sum_of_row(along) * unit[half];
                if (QUERIES && t == 0) of_head_scale[at[half]] = scale * along;
            }
            const float outer = head_factor * unit[half], inner = along * unit[half];
#pragma unroll
            for (int c = 0; c < WIDTH / 8; ++c) {
                const float2 two = numbers(x[c * 4]);
                to[c * 4] = pair(outer * (factor_sum[c][half * 2] - inner * two.x),
                                 outer * (factor_sum[c][half * 2 + 1] - inner * two.y));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_q(PARAMETERS)
{
    __shared__ __align__(16) Columns columns;
    gradients<true, true, false>(columns, ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_k(PARAMETERS)
{
    __shared__ __align__(16) Columns columns;
    gradients<false, true, TOGETHER>(columns, ARGUMENTS);
}

// Needed only where `gradient_of_k` does not find it together with its own.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_v(PARAMETERS)
{
    __shared__ __align__(16) Columns columns;
    gradients<false, false, true>(columns, ARGUMENTS);
}

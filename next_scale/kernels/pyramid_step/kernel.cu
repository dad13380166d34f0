// The steps between the scales of a pyramid: codes up to the full grid, phi, added to the latent, and its areas' means.
//
// pyramid_inputs: some steps in one launch, their tokens given. What a step adds to a channel depends on the codes and
// not on the latent, so that a block may take some output channels of a sample through all steps and meet no other.
// pyramid_tokens: all steps in one launch, their tokens found on the way from all channels: a block a sample.
// pyramid_step_backward: gradients of a step, which only the training of a tokenizer needs.
//
// The latent stays in global memory, where only its block touches it (32 KiB stay in the first-level cache); shared
// memory holds what the convolution reads many times. A grid in one dimension has height 1.
//
// Macros: CHANNELS, KERNEL_Y and KERNEL_X (1 without a phi), GROUP (output channels a block), TILE_C and TILE_P (of
// them, and of cells, a thread at a time; TILE_C divides GROUP), THREADS, POOL (floats of shared memory), ROW_TILES (of
// 16 vectors whose codes are searched at a time). Needs no header but those beside it.
#include "mma_bf16.cuh"
#include "ordered.cuh"
#include "split_bf16.cuh"

#define WARPS (THREADS / 32)
#define TAPS (KERNEL_Y * KERNEL_X)
#define STAGED (GROUP + 4)  // of weights in shared memory: 4 more keep stores off the same bank
#define STEPS ((CHANNELS + 15) / 16)
#define WORDS (STEPS * 8)
#define ROWS (ROW_TILES * 16)

struct Grid {
    int height, width;
    __device__ __forceinline__ int cells() const { return height * width; }
};

// The row of a scale in the table that the launch gets.
struct Scale {
    Grid size, shown;  // shown.height 0: not at all
    int phi, codes;    // which phi, and the first row of its codes
    int token, row;    // where its tokens begin, and where in `shown` its output does
};

// Where one axis of a larger grid reads a smaller one, as PyTorch interpolates without aligned corners.
struct Reads {
    int count, at[4];
    float weight[4];
};

enum Method { NEAREST, LINEAR, CUBIC };

__device__ __forceinline__ Reads reads_of(int place, int from, int to, int method)
{
    Reads r = {1, {place, 0, 0, 0}, {1.f, 0.f, 0.f, 0.f}};
    if (from == to) return r;
    const float scale = (float)from / (float)to;
    if (method == NEAREST) {
        r.at[0] = min((int)floorf(place * scale), from - 1);
        return r;
    }
    float source = (place + 0.5f) * scale - 0.5f;
    if (method == LINEAR) {
        source = fmaxf(source, 0.f);
        r.count = 2;
        r.at[0] = min((int)source, from - 1);
        r.at[1] = min(r.at[0] + 1, from - 1);
        r.weight[1] = source - r.at[0];
        r.weight[0] = 1.f - r.weight[1];
        return r;
    }
    const float whole = floorf(source), t = source - whole, A = -0.75f;
    r.count = 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        r.at[i] = min(max((int)whole - 1 + i, 0), from - 1);
        const float d = fabsf(t + 1.f - i);
        r.weight[i] = d <= 1.f ? ((A + 2.f) * d - (A + 3.f)) * d * d + 1.f
                               : ((A * d - 5.f * A) * d + 8.f * A) * d - 4.f * A;
    }
    return r;
}

// How far apart channels lie in shared memory: the grid and the zeros around it that the convolution pads with, and one
// more where that is even, so that neighbouring channels lie in different banks.
__device__ __forceinline__ int plane_of(Grid grid)
{
    return (grid.height + KERNEL_Y - 1) * (grid.width + KERNEL_X - 1) | 1;
}

// A scale's codes on the full grid, of the channels from `first`: -> up (chunk, plane)
__device__ __forceinline__ void upsample(float* up, const long long* tokens, const float* __restrict__ codes, int first,
                                         int chunk, Grid from, Grid grid, int method)
{
    const int columns = grid.width + KERNEL_X - 1, cells = (grid.height + KERNEL_Y - 1) * columns;
    const int plane = plane_of(grid);
    for (int i = threadIdx.x; i < chunk * cells; i += THREADS) {
        const int c = i % chunk, cell = i / chunk;
        const int y = cell / columns - KERNEL_Y / 2, x = cell % columns - KERNEL_X / 2;
        float sum = 0.f;
        if (y >= 0 && y < grid.height && x >= 0 && x < grid.width) {
            const Reads vertical = reads_of(y, from.height, grid.height, method);
            const Reads horizontal = reads_of(x, from.width, grid.width, method);
#pragma unroll
            for (int a = 0; a < 4; ++a)
                if (a < vertical.count) {
                    float row = 0.f;
#pragma unroll
                    for (int b = 0; b < 4; ++b)
                        if (b < horizontal.count) {
                            const long long token = tokens[vertical.at[a] * from.width + horizontal.at[b]];
                            row += horizontal.weight[b] * codes[token * CHANNELS + first + c];
                        }
                    sum += vertical.weight[a] * row;
                }
        }
        up[c * plane + cell] = sum;
    }
}

// weight (CHANNELS, CHANNELS, TAPS) -> staged (chunk, TAPS, STAGED) of the group's output channels
__device__ __forceinline__ void stage(float* staged, const float* __restrict__ weight, int group, int first, int chunk)
{
    for (int i = threadIdx.x; i < GROUP * chunk * TAPS; i += THREADS) {
        const int o = i / (chunk * TAPS), rest = i % (chunk * TAPS), channel = group * GROUP + o;
        float value = 0.f;
        if (channel < CHANNELS) value = weight[((size_t)channel * CHANNELS + first) * TAPS + rest];
        staged[rest * STAGED + o] = value;
    }
}

// latent += (1 - ratio) up + ratio conv(up), as far as the input channels from `first` tell; ratio 0 is no convolution
__device__ __forceinline__ void smooth(float* latent, const float* up, const float* staged, const float* bias,
                                       int group, int first, int chunk, Grid grid, float ratio)
{
    const int cells = grid.cells(), columns = grid.width + KERNEL_X - 1, plane = plane_of(grid);
    const int strips = (cells + TILE_P - 1) / TILE_P;
    for (int i = threadIdx.x; i < strips * (GROUP / TILE_C); i += THREADS) {
        const int strip = i % strips, o = i / strips * TILE_C;
        int corner[TILE_P];
        float sum[TILE_C][TILE_P];
#pragma unroll
        for (int j = 0; j < TILE_P; ++j) {
            const int cell = min(strip + j * strips, cells - 1);
            corner[j] = cell / grid.width * columns + cell % grid.width;
#pragma unroll
            for (int u = 0; u < TILE_C; ++u) sum[u][j] = 0.f;
        }
        if (ratio != 0.f)
            for (int c = 0; c < chunk; ++c)
#pragma unroll
                for (int tap = 0; tap < TAPS; ++tap) {
                    const float* from = up + c * plane + tap / KERNEL_X * columns + tap % KERNEL_X;
                    const float* by = staged + (c * TAPS + tap) * STAGED + o;
#pragma unroll
                    for (int j = 0; j < TILE_P; ++j) {
                        const float value = from[corner[j]];
#pragma unroll
                        for (int u = 0; u < TILE_C; ++u) sum[u][j] += by[u] * value;
                    }
                }
#pragma unroll
        for (int u = 0; u < TILE_C; ++u) {
            const int channel = group * GROUP + o + u, own = channel - first;
            if (channel < CHANNELS)
#pragma unroll
                for (int j = 0; j < TILE_P; ++j) {
                    const int cell = strip + j * strips;
                    float value = sum[u][j] + (bias && first == 0 ? bias[channel] : 0.f);
                    value *= ratio;
                    if (own >= 0 && own < chunk)
                        value += (1.f - ratio) * up[own * plane + corner[j] + KERNEL_Y / 2 * columns + KERNEL_X / 2];
                    if (cell < cells) latent[channel * cells + cell] += value;
                }
        }
    }
}

// latent (CHANNELS, grid): the group's channels with one more scale. Begins with a barrier.
__device__ __forceinline__ void add_scale(float* latent, const long long* tokens, const float* __restrict__ codes,
                                          const float* weights, const float* biases, const Scale& scale, float* pool,
                                          int group, int chunk, Grid grid, float ratio, int method)
{
    const float* weight = weights ? weights + (size_t)scale.phi * CHANNELS * CHANNELS * TAPS : nullptr;
    const float* bias = weights ? biases + scale.phi * CHANNELS : nullptr;
    float* staged = pool + chunk * plane_of(grid);
    for (int first = 0; first < CHANNELS; first += chunk) {
        const int here = min(chunk, CHANNELS - first);
        __syncthreads();
        upsample(pool, tokens, codes + (size_t)scale.codes * CHANNELS, first, here, scale.size, grid, method);
        if (weights) stage(staged, weight, group, first, here);
        __syncthreads();
        smooth(latent, pool, staged, bias, group, first, here, grid, weights ? ratio : 0.f);
    }
}

// Mean of latent, or of target - latent, of one channel over the area of a cell of a smaller grid.
__device__ __forceinline__ float mean_of(const float* target, const float* latent, int cell, Grid size, Grid grid)
{
    const int y = cell / size.width, x = cell % size.width;
    const int top = y * grid.height / size.height, bottom = ((y + 1) * grid.height + size.height - 1) / size.height;
    const int left = x * grid.width / size.width, right = ((x + 1) * grid.width + size.width - 1) / size.width;
    float sum = 0.f;
    for (int i = top; i < bottom; ++i)
        for (int j = left; j < right; ++j) {
            const int place = i * grid.width + j;
            sum += target ? target[place] - latent[place] : latent[place];
        }
    return sum / ((bottom - top) * (right - left));
}

// before (samples, CHANNELS, grid) or null for zeros, tokens (samples, length), codes (rows, CHANNELS), weights (phis,
// CHANNELS, CHANNELS, TAPS) or null, biases (phis, CHANNELS), scales (steps) -> latent as `before`, shown (samples,
// shown_rows, CHANNELS). A block a sample and group of channels; `chunk` input channels at a time.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
pyramid_inputs(const float* __restrict__ before, const long long* __restrict__ tokens, const float* __restrict__ codes,
               const float* __restrict__ weights, const float* __restrict__ biases, const Scale* __restrict__ scales,
               float* latent, float* shown, int steps, int length, int shown_rows, int height, int width, int chunk,
               float ratio, int method)
{
    __shared__ __align__(16) float pool[POOL];
    const Grid grid = {height, width};
    const int groups = (CHANNELS + GROUP - 1) / GROUP, sample = blockIdx.x / groups, group = blockIdx.x % groups;
    const int cells = grid.cells(), first = group * GROUP, channels = min(GROUP, CHANNELS - first);
    const size_t own = (size_t)sample * CHANNELS * cells;
    latent += own;
    for (int i = threadIdx.x; i < channels * cells; i += THREADS)
        latent[first * cells + i] = before ? before[own + first * cells + i] : 0.f;
    for (int step = 0; step < steps; ++step) {
        const Scale scale = scales[step];
        const long long* ids = tokens + (size_t)sample * length + scale.token;
        add_scale(latent, ids, codes, weights, biases, scale, pool, group, chunk, grid, ratio, method);
        if (scale.shown.height == 0) continue;
        __syncthreads();
        const int rows = scale.shown.cells();
        for (int i = threadIdx.x; i < channels * rows; i += THREADS) {
            const int row = i % rows, channel = first + i / rows;
            shown[((size_t)sample * shown_rows + scale.row + row) * CHANNELS + channel] =
                mean_of(nullptr, latent + channel * cells, row, scale.shown, grid);
        }
    }
}

// The nearest codes of up to ROWS vectors (ROWS, CHANNELS), as nearest_code finds them; every warp searches some of the
// codes for all vectors. -> best (WARPS, ROWS): score above, complement of the code below
__device__ __forceinline__ void search(const float* vectors, const unsigned* __restrict__ parts,
                                       const float* __restrict__ half_norms, int codes, int cosine,
                                       unsigned long long* best)
{
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    unsigned high[ROW_TILES][STEPS][4], low[ROW_TILES][STEPS][4];
    float top[ROW_TILES][2];
    int top_code[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* from = vectors + (m * 16 + half * 8 + g) * CHANNELS;
            float scale = 1.f;
            if (cosine) {
                float sum = 0.f;
                for (int c = 0; c < CHANNELS; ++c) sum += from[c] * from[c];
                scale = 1.f / fmaxf(sqrtf(sum), 1e-12f);
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k)
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int c = k * 16 + side * 8 + t * 2;
                    const float even = c < CHANNELS ? from[c] * scale : 0.f;
                    const float odd = c + 1 < CHANNELS ? from[c + 1] * scale : 0.f;
                    split_bf16(even, odd, high[m][k][side * 2 + half], low[m][k][side * 2 + half]);
                }
            top[m][half] = __uint_as_float(0xff800000u);
            top_code[m][half] = 0;
        }

    for (int from = warp * 8; from < codes; from += WARPS * 8) {  // in rising order: a tie leaves the lower index
        const unsigned* mine = parts + (size_t)min(from + g, codes - 1) * 2 * WORDS;
        const int code = from + t * 2;
        const float none = __uint_as_float(0x7f800000u);
        const float norm0 = code < codes ? half_norms[code] : none;
        const float norm1 = code + 1 < codes ? half_norms[code + 1] : none;
        float score[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            score[m][0] = score[m][2] = -norm0;
            score[m][1] = score[m][3] = -norm1;
        }
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            const unsigned code_h[2] = {mine[k * 8 + t], mine[k * 8 + t + 4]};
            const unsigned code_l[2] = {mine[WORDS + k * 8 + t], mine[WORDS + k * 8 + t + 4]};
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                mma_bf16(score[m], high[m][k], code_h);
                mma_bf16(score[m], high[m][k], code_l);
                mma_bf16(score[m], low[m][k], code_h);
            }
        }
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (score[m][i] > top[m][i >> 1]) {
                    top[m][i >> 1] = score[m][i];
                    top_code[m][i >> 1] = code + (i & 1);
                }
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned long long packed = ordered(top[m][half]);
            packed = packed << 32 | (0xffffffffu - top_code[m][half]);
#pragma unroll
            for (int offset = 1; offset < 4; offset <<= 1) {  // the four threads that share a row
                const unsigned long long other = __shfl_xor_sync(0xffffffffu, packed, offset);
                packed = other > packed ? other : packed;
            }
            if (t == 0) best[warp * ROWS + m * 16 + half * 8 + g] = packed;
        }
}

// target (samples, CHANNELS, grid), codes as split_codes of nearest_code prepares them: parts (rows, 2, WORDS) and
// half_norms (rows); others as above -> tokens (samples, length); `latent` is what the steps add up. A block a sample.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
pyramid_tokens(const float* __restrict__ target, const float* __restrict__ codes, const unsigned* __restrict__ parts,
               const float* __restrict__ half_norms, const float* __restrict__ weights,
               const float* __restrict__ biases, const Scale* __restrict__ scales, float* latent, long long* tokens,
               int steps, int length, int book, int height, int width, int chunk, float ratio, int method, int cosine)
{
    __shared__ __align__(16) float pool[POOL];
    __shared__ unsigned long long best[WARPS * ROWS];
    const Grid grid = {height, width};
    const int cells = grid.cells();
    target += (size_t)blockIdx.x * CHANNELS * cells;
    latent += (size_t)blockIdx.x * CHANNELS * cells;
    tokens += (size_t)blockIdx.x * length;
    for (int i = threadIdx.x; i < CHANNELS * cells; i += THREADS) latent[i] = 0.f;
    for (int step = 0; step < steps; ++step) {
        const Scale scale = scales[step];
        const int rows = scale.size.cells();
        for (int first = 0; first < rows; first += ROWS) {
            __syncthreads();
            for (int i = threadIdx.x; i < ROWS * CHANNELS; i += THREADS) {
                const int row = i % ROWS, channel = i / ROWS;
                float mean = 0.f;
                if (first + row < rows)
                    mean = mean_of(target + channel * cells, latent + channel * cells, first + row, scale.size, grid);
                pool[row * CHANNELS + channel] = mean;
            }
            __syncthreads();
            search(pool, parts + (size_t)scale.codes * 2 * WORDS, half_norms + scale.codes, book, cosine, best);
            __syncthreads();
            for (int i = threadIdx.x; i < ROWS; i += THREADS) {
                unsigned long long found = best[i];
                for (int warp = 1; warp < WARPS; ++warp) {
                    const unsigned long long other = best[warp * ROWS + i];
                    found = other > found ? other : found;
                }
                if (first + i < rows) tokens[scale.token + first + i] = 0xffffffffu - (unsigned)found;
            }
        }
        if (step + 1 < steps)
            add_scale(latent, tokens + scale.token, codes, weights, biases, scale, pool, 0, chunk, grid, ratio, method);
    }
}

// grad (CHANNELS, grid) between zeros, of the channels from `first`: -> padded (chunk, plane)
__device__ __forceinline__ void pad(float* padded, const float* __restrict__ grad, int first, int chunk, Grid grid)
{
    const int columns = grid.width + KERNEL_X - 1, cells = (grid.height + KERNEL_Y - 1) * columns;
    for (int i = threadIdx.x; i < chunk * cells; i += THREADS) {
        const int c = i / cells, cell = i % cells;
        const int y = cell / columns - KERNEL_Y / 2, x = cell % columns - KERNEL_X / 2;
        float value = 0.f;
        if (y >= 0 && y < grid.height && x >= 0 && x < grid.width)
            value = grad[(first + c) * grid.cells() + y * grid.width + x];
        padded[c * plane_of(grid) + cell] = value;
    }
}

// As `stage`, for the way back: the group's channels are the input's, and taps are turned round.
__device__ __forceinline__ void stage_back(float* staged, const float* __restrict__ weight, int group, int first,
                                           int chunk)
{
    for (int i = threadIdx.x; i < GROUP * chunk * TAPS; i += THREADS) {
        const int o = i / (chunk * TAPS), c = i / TAPS % chunk, tap = i % TAPS, channel = group * GROUP + o;
        float value = 0.f;
        if (channel < CHANNELS) value = weight[((size_t)(first + c) * CHANNELS + channel) * TAPS + TAPS - 1 - tap];
        staged[(c * TAPS + tap) * STAGED + o] = value;
    }
}

// How much the cell at `place` reads of what lies at `of` in the smaller grid.
__device__ __forceinline__ float share_of(int of, int place, int from, int to, int method)
{
    const Reads reads = reads_of(place, from, to, method);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < reads.count && reads.at[i] == of) sum += reads.weight[i];
    return sum;
}

// Cells of the larger grid that can read what lies at `of`: those less than two of the smaller grid's cells away.
__device__ __forceinline__ void readers(int of, int from, int to, int& begin, int& end)
{
    begin = max((of - 2) * to / from - 1, 0);
    end = min((of + 3) * to / from + 2, to);
}

// grad (samples, CHANNELS, grid), of the sum; codes, tokens, weight and scale as above -> grad_codes (rows, CHANNELS),
// grad_weight (CHANNELS, CHANNELS, TAPS) and grad_bias (CHANNELS), each added to, or null where not wanted; grad_up as
// grad, where codes learn. A block a sample and group of input channels; `chunk` output channels at a time. Sums over
// samples are in no fixed order.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
pyramid_step_backward(const float* __restrict__ grad, const long long* __restrict__ tokens,
                      const float* __restrict__ codes, const float* __restrict__ weight,
                      const Scale* __restrict__ scales, float* grad_up, float* grad_codes, float* grad_weight,
                      float* grad_bias, int length, int height, int width, int chunk, float ratio, int method)
{
    __shared__ __align__(16) float pool[POOL];
    const Grid grid = {height, width};
    const Scale scale = scales[0];
    const int groups = (CHANNELS + GROUP - 1) / GROUP, sample = blockIdx.x / groups, group = blockIdx.x % groups;
    const int cells = grid.cells(), columns = grid.width + KERNEL_X - 1, plane = plane_of(grid);
    const int own = group * GROUP, channels = min(GROUP, CHANNELS - own);
    float *up = pool, *padded = pool + GROUP * plane, *staged = padded + chunk * plane;
    grad += (size_t)sample * CHANNELS * cells;
    grad_up += (size_t)sample * CHANNELS * cells;
    tokens += (size_t)sample * length;
    if (grad_weight) upsample(up, tokens, codes, own, channels, scale.size, grid, method);
    if (grad_codes)
        for (int i = threadIdx.x; i < channels * cells; i += THREADS) grad_up[own * cells + i] = 0.f;
    for (int first = 0; first < CHANNELS; first += chunk) {
        const int here = min(chunk, CHANNELS - first);
        __syncthreads();
        pad(padded, grad, first, here, grid);
        if (grad_codes && weight) stage_back(staged, weight, group, first, here);
        __syncthreads();
        if (grad_codes) smooth(grad_up, padded, staged, nullptr, group, first, here, grid, weight ? ratio : 0.f);
        if (!grad_weight) continue;
        for (int i = threadIdx.x; i < here * channels * TAPS; i += THREADS) {
            const int c = i / (channels * TAPS), u = i / TAPS % channels, tap = i % TAPS;
            const float* by = padded + c * plane + KERNEL_Y / 2 * columns + KERNEL_X / 2;
            const float* from = up + u * plane + tap / KERNEL_X * columns + tap % KERNEL_X;
            float sum = 0.f;
            for (int y = 0; y < grid.height; ++y)
                for (int x = 0; x < grid.width; ++x) sum += by[y * columns + x] * from[y * columns + x];
            atomicAdd(grad_weight + ((first + c) * CHANNELS + own + u) * TAPS + tap, ratio * sum);
        }
        if (group == 0)
            for (int c = threadIdx.x; c < here; c += THREADS) {
                float sum = 0.f;
                for (int i = 0; i < cells; ++i) sum += grad[(first + c) * cells + i];
                atomicAdd(grad_bias + first + c, ratio * sum);
            }
    }
    if (!grad_codes) return;
    __syncthreads();
    const int rows = scale.size.cells();
    for (int i = threadIdx.x; i < channels * rows; i += THREADS) {
        const int row = i / channels, channel = own + i % channels;
        const int ry = row / scale.size.width, rx = row % scale.size.width;
        int top, bottom, left, right;
        readers(ry, scale.size.height, grid.height, top, bottom);
        readers(rx, scale.size.width, grid.width, left, right);
        float sum = 0.f;
        for (int y = top; y < bottom; ++y) {
            float along = 0.f;
            for (int x = left; x < right; ++x) {
                const float value = grad_up[channel * cells + y * grid.width + x];
                along += share_of(rx, x, scale.size.width, grid.width, method) * value;
            }
            sum += share_of(ry, y, scale.size.height, grid.height, method) * along;
        }
        atomicAdd(grad_codes + tokens[row] * CHANNELS + channel, sum);
    }
}

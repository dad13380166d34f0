// Nearest code of each latent without the matrix of distances: argmax of x.e - |e|^2 / 2, as tensor-core products of
// bfloat16 parts, x.e = xh.eh + xh.el + xl.eh. One launch prepares the codes, another searches them.
//
// Macros: CHANNELS, and the tile: ROW_TILES (of 16 latents, a warp), WARPS, CODES (a tile, a multiple of 8).
// Needs no header but those beside it.
#include "mma_bf16.cuh"
#include "split_bf16.cuh"

#define THREADS (WARPS * 32)
#define STEPS ((CHANNELS + 15) / 16)  // products of 16 channels
#define WORDS (STEPS * 8)             // words of a code's high parts, and of its low ones
#define STRIDE (WORDS + 4)            // words of a code in shared memory: 4 more keep fragment loads off the same bank

// One warp a code: its parts, and half its squared norm; infinity for the codes that fill the last tile.
// codebook (codes, CHANNELS) -> parts (padded, 2, WORDS), half_norms (padded)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
split_codes(const float* __restrict__ codebook, unsigned* __restrict__ parts, float* __restrict__ half_norms,
            int codes, int cosine)
{
    const int lane = threadIdx.x & 31;
    const int code = blockIdx.x * WARPS + (threadIdx.x >> 5);
    const float* from = codebook + (size_t)code * CHANNELS;
    float sum = 0.f;
    for (int c = lane; c < CHANNELS; c += 32) {
        const float value = code < codes ? from[c] : 0.f;
        sum += value * value;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    const float scale = cosine ? 1.f / fmaxf(sqrtf(sum), 1e-12f) : 1.f;
    unsigned* to = parts + (size_t)code * 2 * WORDS;
    for (int word = lane; word < WORDS; word += 32) {
        const int c = 2 * word;
        float first = 0.f, second = 0.f;
        if (code < codes) {
            if (c < CHANNELS) first = from[c] * scale;
            if (c + 1 < CHANNELS) second = from[c + 1] * scale;
        }
        split_bf16(first, second, to[word], to[WORDS + word]);
    }
    if (lane == 0) half_norms[code] = code < codes ? 0.5f * sum * scale * scale : __uint_as_float(0x7f800000u);
}

// latents (rows, CHANNELS), parts (tiles * CODES, 2, WORDS), half_norms (tiles * CODES) -> nearest (rows)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
nearest_code(const float* __restrict__ latents, const uint4* __restrict__ parts, const float* __restrict__ half_norms,
             long long* __restrict__ nearest, int rows, int tiles, int cosine)
{
    __shared__ __align__(16) unsigned code_high[CODES * STRIDE];
    __shared__ __align__(16) unsigned code_low[CODES * STRIDE];
    __shared__ float norms[CODES];
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int first_row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROW_TILES * 16;

    unsigned high[ROW_TILES][STEPS][4], low[ROW_TILES][STEPS][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // rows g and g + 8 of the tile
            const int row = first_row + m * 16 + half * 8 + g;
            const float* from = latents + (size_t)row * CHANNELS;
            float scale = 1.f;
            if (cosine) {
                float sum = 0.f;
                for (int c = t; c < CHANNELS; c += 4) {
                    const float value = row < rows ? from[c] : 0.f;
                    sum += value * value;
                }
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                scale = 1.f / fmaxf(sqrtf(sum), 1e-12f);
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k)
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int c = k * 16 + side * 8 + t * 2;
                    float first = 0.f, second = 0.f;
                    if (row < rows) {
                        if (c < CHANNELS) first = from[c] * scale;
                        if (c + 1 < CHANNELS) second = from[c + 1] * scale;
                    }
                    split_bf16(first, second, high[m][k][side * 2 + half], low[m][k][side * 2 + half]);
                }
        }

    float best[ROW_TILES][2];
    int best_code[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            best[m][half] = __uint_as_float(0xff800000u);
            best_code[m][half] = 0;
        }

    for (int tile = 0; tile < tiles; ++tile) {
        __syncthreads();
        for (int i = threadIdx.x; i < CODES * (WORDS / 4); i += THREADS) {
            const int code = i / (WORDS / 4), quad = i % (WORDS / 4);
            const uint4* from = parts + ((size_t)tile * CODES + code) * 2 * (WORDS / 4) + quad;
            *reinterpret_cast<uint4*>(code_high + code * STRIDE + quad * 4) = from[0];
            *reinterpret_cast<uint4*>(code_low + code * STRIDE + quad * 4) = from[WORDS / 4];
        }
        for (int i = threadIdx.x; i < CODES; i += THREADS) norms[i] = half_norms[tile * CODES + i];
        __syncthreads();
        for (int v = 0; v < CODES; v += 8) {  // in rising order: a tie leaves the lower index
            const float norm0 = norms[v + t * 2], norm1 = norms[v + t * 2 + 1];
            float score[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                score[m][0] = score[m][2] = -norm0;
                score[m][1] = score[m][3] = -norm1;
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                const int word = (v + g) * STRIDE + k * 8 + t;
                const unsigned code_h[2] = {code_high[word], code_high[word + 4]};
                const unsigned code_l[2] = {code_low[word], code_low[word + 4]};
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    mma_bf16(score[m], high[m][k], code_h);
                    mma_bf16(score[m], high[m][k], code_l);
                    mma_bf16(score[m], low[m][k], code_h);
                }
            }
            const int code = tile * CODES + v + t * 2;
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (score[m][i] > best[m][i >> 1]) {
                        best[m][i >> 1] = score[m][i];
                        best_code[m][i >> 1] = code + (i & 1);
                    }
        }
    }

    // the four threads that share a row
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float score = best[m][half];
            int code = best_code[m][half];
#pragma unroll
            for (int offset = 1; offset < 4; offset <<= 1) {
                const float other = __shfl_xor_sync(0xffffffffu, score, offset);
                const int other_code = __shfl_xor_sync(0xffffffffu, code, offset);
                if (other > score || (other == score && other_code < code)) {
                    score = other;
                    code = other_code;
                }
            }
            const int row = first_row + m * 16 + half * 8 + g;
            if (t == 0 && row < rows) nearest[row] = code;
        }
}

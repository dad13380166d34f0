// The CPU's version of the kernels' header of this name: one tensor-core product by exchange within the warp.
#pragma once

inline float bf16_of(unsigned word, int upper) { return __uint_as_float(upper ? word & 0xffff0000u : word << 16); }

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    using namespace on_cpu;
    unsigned* mine = fibers[current].fragments;
    std::copy(a, a + 4, mine);
    std::copy(b, b + 2, mine + 4);
    wait(State::at_warp_barrier);
    const Fiber* warp = &fibers[current & ~31];
    const int g = lane() >> 2, t = lane() & 3;
    for (int i = 0; i < 4; ++i) {
        const int row = g + (i >> 1) * 8, column = t * 2 + (i & 1);
        for (int k = 0; k < 16; ++k) {
            const unsigned left = warp[(row & 7) * 4 + ((k & 7) >> 1)].fragments[(row >> 3) + 2 * (k >> 3)];
            const unsigned right = warp[column * 4 + ((k & 7) >> 1)].fragments[4 + (k >> 3)];
            c[i] += bf16_of(left, k & 1) * bf16_of(right, k & 1);
        }
    }
    wait(State::at_warp_barrier);
}

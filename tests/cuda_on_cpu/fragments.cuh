// The CPU's version of the kernels' header of this name.
#pragma once
#include "split_bf16.cuh"

inline void load_operands(unsigned (&b)[2][2], const unsigned* row)
{
    using namespace on_cpu;
    fibers[current].published = reinterpret_cast<uintptr_t>(row);
    wait(State::at_warp_barrier);
    const Fiber* warp = &fibers[current & ~31];
    const int g = lane() >> 2, t = lane() & 3;
    for (int matrix = 0; matrix < 4; ++matrix) {
        const auto bits = [&](int i) {
            return unsigned(reinterpret_cast<const uint16_t*>(warp[matrix * 8 + i].published)[g]);
        };
        b[matrix >> 1][matrix & 1] = bits(2 * t) | bits(2 * t + 1) << 16;
    }
    wait(State::at_warp_barrier);
}

inline unsigned pack_bf16(float first, float second) { return bf16_bits(first) | bf16_bits(second) << 16; }

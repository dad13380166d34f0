// float32 as integers of the same order. Needs no header.
#pragma once

__device__ __forceinline__ unsigned ordered(float x)
{
    const unsigned bits = __float_as_uint(x + 0.f);  // -0 becomes 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

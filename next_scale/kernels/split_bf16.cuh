// float32 as the sum of two bfloat16 numbers, which keep 16 of its 24 bits. Needs no header.
#pragma once

// The bits of the nearest bfloat16, ties to even.
__device__ __forceinline__ unsigned bf16_bits(float x)
{
    const unsigned bits = __float_as_uint(x);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Two numbers into a word of their high parts and a word of what these leave; the first number is in the lower half.
__device__ __forceinline__ void split_bf16(float first, float second, unsigned& high, unsigned& low)
{
    const unsigned h0 = bf16_bits(first), h1 = bf16_bits(second);
    high = h0 | (h1 << 16);
    low = bf16_bits(first - __uint_as_float(h0 << 16)) | (bf16_bits(second - __uint_as_float(h1 << 16)) << 16);
}

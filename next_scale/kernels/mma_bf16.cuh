// Tensor-core products in bfloat16. Needs no header.
#pragma once

// D (16 x 8, float32) += A (16 x 16, row major) B (16 x 8, column major). With g = lane / 4 and t = lane % 4:
// a[0..3] hold rows g, g + 8, g, g + 8 and columns 2t, 2t, 2t + 8, 2t + 8 (and the one after each, in the upper half);
// b[0..1] hold rows 2t, 2t + 8 of column g; c[0..3] rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type").
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Operands of tensor-core products (see mma_bf16.cuh) from shared memory and from registers. Needs no header.
#pragma once

// Two right operands, of 16 rows and 8 columns each, from bfloat16 numbers whose rows lie in shared memory: lane i
// points at the 8 numbers of row i % 16 that belong to operand i / 16, aligned to 16 bytes
// (PTX ISA, "ldmatrix"; .trans, because an operand packs neighbours of a column into a word and rows hold the others).
__device__ __forceinline__ void load_operands(unsigned (&b)[2][2], const unsigned* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");  // not before the barrier behind which the rows are written
}

// The nearest bfloat16 numbers; the first is in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float first, float second)
{
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}

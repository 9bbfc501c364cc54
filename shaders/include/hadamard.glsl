// The Hadamard transform of 128 values, unscaled, in natural order: butterflies of stride 1, 2, 4 in registers, then
// of 8, 16, 32, 64, so that sums are formed as the textbook loop forms them. Blocks lie in shared memory; no subgroup
// operation is needed, so every subgroup size gives the same bits.
//
//   first pass    thread i of a block (16 a block) has elements 8 i .. 8 i + 7
//   second pass   thread i (8 a block) has elements i, i + 8, .. i + 120
#define HADAMARD_SCALE 0.088388347648318447 // 1 / sqrt(128)
#define HADAMARD_PITCH 132                  // floats between blocks: the pad spreads them over the banks

void butterflies8(inout float v[8])
{
    [[unroll]] for (uint stride = 1; stride < 8; stride *= 2)
        [[unroll]] for (uint i = 0; i < 8; i++)
            if ((i & stride) == 0) {
                const float a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
}

void butterflies16(inout float v[16])
{
    [[unroll]] for (uint stride = 1; stride < 16; stride *= 2)
        [[unroll]] for (uint i = 0; i < 16; i++)
            if ((i & stride) == 0) {
                const float a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
}

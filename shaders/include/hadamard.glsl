// The Hadamard transform of 128 values in natural order: butterflies of stride 1, 2, 4 in registers, then of 8, 16,
// 32, 64, so that sums are formed as the textbook loop forms them, and one multiplication. Blocks lie in shared memory;
// no subgroup operation is needed, so every subgroup size gives the same bits.
//
//   first pass    thread i of a block (16 a block) has elements 8 i .. 8 i + 7
//   second pass   thread i (8 a block) has elements i, i + 8, .. i + 120
//
// A software device takes the textbook loop: llvmpipe compiles a loop over its lanes for each access to memory that
// stands in the code, so that the two passes take it a second.
#define HADAMARD_SCALE 0.088388347648318447 // 1 / sqrt(128)

// Strides are shifts of a counter: llvmpipe unrolls only loops that count by addition.
void butterflies8(inout float v[8])
{
    [[unroll]] for (uint level = 0; level < 3; level++)
        [[unroll]] for (uint pair = 0; pair < 4; pair++) {
            const uint i = pair >> level << (level + 1) | (pair & ((1u << level) - 1)), j = i + (1u << level);
            const float a = v[i], b = v[j];
            v[i] = a + b;
            v[j] = a - b;
        }
}

void butterflies16(inout float v[16])
{
    [[unroll]] for (uint level = 0; level < 4; level++)
        [[unroll]] for (uint pair = 0; pair < 8; pair++) {
            const uint i = pair >> level << (level + 1) | (pair & ((1u << level) - 1)), j = i + (1u << level);
            const float a = v[i], b = v[j];
            v[i] = a + b;
            v[j] = a - b;
        }
}

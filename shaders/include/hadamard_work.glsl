// Transforms `blocks` blocks of shared float work[], HADAMARD_PITCH apart, in place; the whole workgroup of LANES
// calls, at any number of blocks, after a barrier, and a barrier stands at the end. LOOPS: the small form.
#include "include/hadamard.glsl"

void first_pass(uint block, uint i)
{
    const uint at = block * HADAMARD_PITCH + i * 8;
    float v[8];
    [[unroll]] for (uint j = 0; j < 8; j++)
        v[j] = work[at + j];
    butterflies8(v);
    [[unroll]] for (uint j = 0; j < 8; j++)
        work[at + j] = v[j];
}

void second_pass(uint block, uint i)
{
    const uint at = block * HADAMARD_PITCH + i;
    float v[16];
    [[unroll]] for (uint j = 0; j < 16; j++)
        v[j] = work[at + 8 * j];
    butterflies16(v);
    [[unroll]] for (uint j = 0; j < 16; j++)
        work[at + 8 * j] = v[j] * HADAMARD_SCALE;
}

void hadamard_work(uint blocks)
{
    const uint t = gl_LocalInvocationIndex;
    if (LOOPS) {
        for (uint level = 0; level < 7; level++) {
            for (uint base = 0; base < blocks * 64; base += LANES) {
                const uint pair = base + t, low = pair & ((1u << level) - 1);
                const uint at = pair / 64 * HADAMARD_PITCH + ((pair % 64 - low) << 1 | low);
                if (pair < blocks * 64) {
                    const float a = work[at], b = work[at + (1u << level)], scale = level == 6 ? HADAMARD_SCALE : 1.0;
                    work[at] = (a + b) * scale;
                    work[at + (1u << level)] = (a - b) * scale;
                }
            }
            barrier();
        }
        return;
    }
    for (uint first = 0; first < blocks; first += LANES / 16)
        if (first + t / 16 < blocks)
            first_pass(first + t / 16, t % 16);
    barrier();
    for (uint first = 0; first < blocks; first += LANES / 8)
        if (first + t / 8 < blocks)
            second_pass(first + t / 8, t % 8);
    barrier();
}

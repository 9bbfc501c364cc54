// The Hadamard transform of blocks of 128 elements of a row, on its own. LANES / CLUSTER blocks a workgroup along x, or
// with LOOPS LANES / 16. Before it come the constants LANES, CLUSTER, the lanes of a subgroup that have a block (8, 16
// or 32), and LOOPS, for CPUs; behind it:
//
//   vec4 operand(k)       elements k .. k + 3 of the row, zeros behind its end
//   void ask(q, k)        what result(q, k, ..) will want besides, so that nobody waits for it
//   void result(q, k, x)  elements k .. k + 3 of the transformed row
//
// The control flow around transform_row must be the same for the workgroup.
#define HADAMARD_PITCH 132
const uint LOOP_BLOCKS = LOOPS ? LANES / 16 : 1;
shared float work[LOOP_BLOCKS * HADAMARD_PITCH];

vec4 operand(uint k);
void ask(uint q, uint k);
void result(uint q, uint k, vec4 x);

#include "include/hadamard_work.glsl"
#include "include/hadamard_lanes.glsl"

#define TAKE_QUAD(q, k)                                                                                                \
    quads[q] = operand(k + 4 * q);                                                                                     \
    ask(q, k + 4 * q);
#define GIVE_QUAD(q, k) result(q, k + 4 * q, quads[q]);

// width: elements of the row, a multiple of 128.
void transform_row(uint width)
{
    if (!LOOPS) {
        const uint thread = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID, lane = thread % CLUSTER;
        const uint block = gl_WorkGroupID.x * (LANES / CLUSTER) + thread / CLUSTER;
        const uint k = min(block, width / 128 - 1) * 128 + lane * EACH;
        EACH_QUAD(TAKE_QUAD, k)
        hadamard_lanes(lane);
        if (block < width / 128) {
            EACH_QUAD(GIVE_QUAD, k)
        }
        return;
    }
    const uint first = gl_WorkGroupID.x * LOOP_BLOCKS * 128, blocks = min(LOOP_BLOCKS, (width - first) / 128);
    for (uint i = gl_LocalInvocationIndex; i < LOOP_BLOCKS * 32; i += LANES) {
        const vec4 x = operand(min(first + 4 * i, width - 4));
        [[unroll]] for (uint j = 0; j < 4; j++)
            work[i / 32 * HADAMARD_PITCH + i % 32 * 4 + j] = x[j];
    }
    barrier();
    hadamard_work(blocks);
    for (uint i = gl_LocalInvocationIndex; i < blocks * 32; i += LANES) {
        vec4 x;
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = work[i / 32 * HADAMARD_PITCH + i % 32 * 4 + j];
        ask(0, first + 4 * i);
        result(0, first + 4 * i, x);
    }
}

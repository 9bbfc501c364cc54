// The other body of the few-rows kernels, for one row of x on a CPU (BROADCAST): a subgroup without shared memory, as
// broadcast.glsl draws it. The norm's factor, the same for all of x, multiplies the finished sums. Hooks beside those
// of gemv.glsl, here for a single matrix:
//
//   BROADCAST_SLOTS           parts of k: matrices whose products add up
//   BROADCAST_ROW(slot, row)  the row of the planes that row `row` of W is in a part
//   BROADCAST_X(slot, k)      element k < p.k of x in a part
#ifndef BROADCAST_SLOTS
#define BROADCAST_SLOTS 1
#endif
#ifndef BROADCAST_ROW
#define BROADCAST_ROW(slot, row) (row)
#endif
#ifndef BROADCAST_X
#define BROADCAST_X(slot, k) load_act(p.x, X_AT(0, k), X_TYPE)
#endif
#define BROADCAST_K p.k
#include "matmul/broadcast.glsl"

void walk_broadcast()
{
    const uint row0 = (gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupInvocationID) * ROWS;
    float acc[ROWS], squared = 0.0;

    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r] = 0.0;
    for (uint slot = 0; slot < BROADCAST_SLOTS; slot++) {
        uint row[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; r++)
            row[r] = BROADCAST_ROW(slot, min(row0 + r, p.n - 1));
        squared += broadcast_rows(slot, row, acc);
    }
    const float factor = NORM != 0 ? inversesqrt(subgroupAdd(squared) / float(p.k) + p.eps) : 1.0;
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r] = finish(acc[r] * factor, min(row0 + r, p.n - 1));
    [[unroll]] for (uint r = 0; r < ROWS; r += 2)
        if (row0 + r < p.n)
            STORE_PAIR(0, row0 + r, acc[r], acc[min(r + 1, ROWS - 1)], ROWS > 1 && row0 + r + 1 < p.n);
}

// y[pair] = activation(norm(x[pair / slots]) . W[expert of the pair]^T) for few rows: matmul/gemv.glsl, where a
// workgroup (x, y) has block x of an expert's rows and pair y, or tile y of M pairs that chose the same expert: then
// an expert is read once for M pairs.
#include "matmul/gemv_constants.glsl"
layout(push_constant, scalar) uniform Push { mrl_push_moe p; };
#define PLACES p.weights
#include "moe/tile.glsl"
#define ROW_SCALE(n) load_scale(p.scale, expert_row + (n), SCALE)
#include "include/epilogue.glsl"
#include "moe/store_tile.glsl"

uint pairs[M];

bool gemv_prologue()
{
    if (!find_tile(gl_WorkGroupID.y, gl_WorkGroupID.x == 0))
        return false;
    [[unroll]] for (uint m = 0; m < M; m++)
        pairs[m] = tile_pair(m);
    return true;
}

#define GEMV_PROLOGUE
#define K_LENGTH() k_padded()
#define UNIT_AT(row, unit, stride) ((expert_row + (row)) * (stride) + (unit))
#define GROUP_AT(row, k) ((expert_row + (row)) * p.groups + group_of(k))
#define UNIT_UNSCALED (SCALE == SCALE_NONE || GROUP == 0)
#define X_AT(m, at) (pairs[m] / p.slots) * p.k + (at)
#define STORE_PAIR store_tile_pair
#define BROADCAST_ROW(slot, row) (expert_row + (row))
#include "matmul/gemv.glsl"

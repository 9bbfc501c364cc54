// y[pair] = norm(x[pair / slots]) W[expert of the pair], or of activation(gate) * x: gemv.glsl for experts whose trellises
// and scales lie one behind the other. Workgroup (c, s, z) has pair z, or tile z of at most M pairs that chose the same
// expert, so that it is decoded once for them. Pairs of idle rows and of experts in other stacks are left out.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

layout(push_constant, scalar) uniform Push { mrl_push_trellis_moe p; };
uvec2 expert_trellis, expert_suh, expert_svh;
#define PLACES p.places
#include "moe/tile.glsl"
#define TRELLIS expert_trellis
#define SUH expert_suh
#define SVH expert_svh
#define X_ROW(m) (tile_pair(m) / p.slots)
#define X_GATE p.gate
#include "trellis/gemv.glsl"

bool gemv_prologue()
{
    if (!find_tile(gl_WorkGroupID.z))
        return false;
    expert_trellis = address_at(p.trellis, tile_expert, p.k_padded * 8 * gl_NumWorkGroups.x * RATE2);
    expert_suh = address_at(p.suh, tile_expert, 2 * p.k_padded);
    expert_svh = address_at(p.svh, tile_expert, 256 * gl_NumWorkGroups.x);
    return true;
}

void finish_column(uint m, uint n, float y)
{
    if (n < p.n && m < tile_rows)
        store_act(p.y, tile_pair(m) * p.n + n, Y_TYPE, y);
}

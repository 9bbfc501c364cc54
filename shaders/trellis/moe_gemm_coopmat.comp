// y[pair] = x[place] W[expert of the pair] for the pairs of a tile, whose places follow each other: gemm_coopmat.glsl for
// experts whose trellises and scales lie one behind the other. moe_hadamard.comp makes x.
#extension GL_KHR_cooperative_matrix : require
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

layout(push_constant, scalar) uniform Push { mrl_push_trellis_moe p; };
uvec2 expert_trellis, expert_svh;
#define PLACES p.places
#include "moe/tile.glsl"
#define TRELLIS expert_trellis
#define SVH expert_svh
#define FIRST_ROW tile_first
#define ROWS tile_rows
#define Y_ROW(m) (m) // of the tile
#define SHARE_ROW 0 // WHOLE
#define K_PADDED ((p.k + 127) & ~127u)
#define X_SCALE p.eps
#include "trellis/gemm_coopmat.glsl"

bool coopmat_prologue()
{
    if (!find_tile(gl_WorkGroupID.z))
        return false;
    expert_trellis = address_at(p.trellis, tile_expert, K_PADDED * 8 * gl_NumWorkGroups.x * RATE2);
    expert_svh = address_at(p.svh, tile_expert, 256 * gl_NumWorkGroups.x);
    return true;
}

void finish_column(uint m, uint n, float y)
{
    if (n < p.n)
        store_act(p.y, tile_pair(m) * p.n + n, Y_TYPE, y);
}

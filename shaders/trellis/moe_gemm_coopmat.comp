// y[pair] = x[place] W[expert of the pair] for the pairs of a tile, whose places follow each other: gemm_coopmat.glsl
// for experts whose trellises and scales lie one behind the other. moe_hadamard.comp makes x.
#extension GL_KHR_cooperative_matrix : require
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

#include "trellis/moe_operands.glsl"
uvec2 expert_trellis, expert_svh;
#define TRELLIS expert_trellis
#define SVH expert_svh
#define FIRST_ROW tile_first
#define ROWS tile_rows
#define Y_ROW(m) (m) // of the tile
#define SHARE_ROW 0 // WHOLE
#define X_SCALE p.eps
#include "trellis/gemm_coopmat.glsl"
#include "trellis/moe_matrices.glsl"

void finish_columns(uint m, uint n, vec4 y)
{
    if (!FOURS) {
        [[unroll]] for (uint j = 0; j < 4; j++)
            finish_column(m, n + j, y[j]);
    } else if (n < p.n) {
        store_act4(p.y, tile_pair(m) * p.n + n, Y_TYPE, y);
    }
}

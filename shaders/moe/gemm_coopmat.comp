// y[pair] = activation(x[pair / slots] . W[expert]^T) on KHR cooperative matrices for tiles of at most BM pairs with
// one expert: f16 operands, f32 sums. Rows of x are gathered, rows of y scattered. Workgroup (x, y) = (tile of n, tile
// of the plan): matmul/gemm_coopmat.glsl, with tiles as low as 32 rows, where a subgroup owns 32 rows.
#extension GL_KHR_cooperative_matrix : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint BN = 128;     // 128 or 256
layout(constant_id = 8) const uint BUFFERS = 1;
layout(constant_id = 9) const uint BM = 64;      // 32, 64, 128 or 256

layout(push_constant, scalar) uniform Push { mrl_push_moe p; };
#define PLACES p.weights
#include "moe/tile.glsl"
#define ROW_SCALE(n) load_scale(p.scale, expert_row + (n), SCALE)
#include "include/epilogue.glsl"
#include "moe/store_tile.glsl"

const uint ROWS = BM < 64 ? BM / 16 : 4;
const uint HEIGHT = BM < 64 ? 1 : BM / 64;
const uint COLUMNS = BN * HEIGHT / 128;
const uint X_FETCH = (BM + 127) / 128;
uint x_row[X_FETCH];

bool tile_prologue()
{
    if (!find_tile(gl_WorkGroupID.y, false))
        return false;
    [[unroll]] for (uint i = 0; i < X_FETCH; i++)
        x_row[i] = tile_pair(gl_LocalInvocationIndex / 2 + i * 128) / p.slots;
    return true;
}

#define TILE_PROLOGUE
#define X_GUARD if (BM >= 128 || row < BM)
#define X_ROW(i) x_row[i]
#define TILE_ROWS tile_rows
#define W_ROW(column) (expert_row + min(column, p.n - 1))
#define STORE_PAIR store_tile_pair
#define STORE_EIGHT store_tile_eight
#include "matmul/gemm_coopmat.glsl"

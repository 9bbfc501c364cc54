// y[pair] = activation(x[pair / slots] . W[expert]^T) for tiles of at most 64 pairs with one expert, in plain f32.
// Rows of x are gathered, rows of y scattered. Workgroup (x, y) = (tile of n, tile of the plan): matmul/gemm.glsl.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;

layout(push_constant, scalar) uniform Push { mrl_push_moe p; };
#define PLACES p.weights
#include "moe/tile.glsl"
#define ROW_SCALE(n) load_scale(p.scale, expert_row + (n), SCALE)
#include "include/epilogue.glsl"
#include "moe/store_tile.glsl"

bool tile_prologue() { return find_tile(gl_WorkGroupID.y, false); }

const uint TILE = 64;
#define TILE_PROLOGUE
#define X_ROW(i) (tile_pair(i) / p.slots)
#define W_ROW(column) (expert_row + min(column, p.n - 1))
#define STORE_PAIR store_tile_pair
#include "matmul/gemm.glsl"

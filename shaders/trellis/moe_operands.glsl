// What the kernels of experts in EXL3 share: the push block p, and which expert a workgroup works for.
layout(push_constant, scalar) uniform Push { mrl_push_trellis_moe p; };
#define PLACES p.places
#define K_PADDED ((p.k + 127) & ~127u)
#define N_PADDED ((p.n + 127) & ~127u)
#define SUMMED (!is_null(p.weights)) /* the products of a row's pairs are added up */
#define ROW_PAIRS (SUMMED ? p.types >> 16 & 15u : p.types >> 16)
// Which row of x pair `pair` belongs to. Exact below 2^20, which is beyond all pairs of a call, and without the
// twenty instructions of a division.
uint row_of(uint pair) { return uint((float(pair) + 0.5) / float(ROW_PAIRS)); }
#include "moe/tile.glsl"

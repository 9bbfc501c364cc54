// What the kernels of experts in EXL3 share: the push block p, and which expert a workgroup works for.
layout(push_constant, scalar) uniform Push { mrl_push_trellis_moe p; };
#define PLACES p.places
#define K_PADDED ((p.k + 127) & ~127u)
#define ROW_PAIRS (p.types >> 16)
#include "moe/tile.glsl"

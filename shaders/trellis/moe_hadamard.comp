// partial[place] = eps * (x[pair / slots] * suh[expert of the pair]) P in f16, for the pairs of all tiles: what
// moe_gemv_coopmat.comp multiplies. With a gated ACTIVATION x is activation(gate) * x. p.eps is a power of two.
//
// Workgroup (b, i, z) transforms LANES / 16 blocks of 128 of pair i of tile z.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint ACTIVATION = 0;
layout(constant_id = 3) const uint LANES = 128;

#include "trellis/moe_operands.glsl"
#include "include/address.glsl"
#include "include/activation.glsl"

#define HADAMARD_PITCH 132
const uint ROUND = LANES / 16;
const bool LOOPS = false;
shared float work[ROUND * HADAMARD_PITCH];
#include "include/hadamard_work.glsl"

void main()
{
    const uint t = gl_LocalInvocationIndex, i = gl_WorkGroupID.y;
    const uint first = gl_WorkGroupID.x * ROUND * 128, blocks = min(ROUND, (K_PADDED - first) / 128);
    if (!find_tile(gl_WorkGroupID.z, false) || i >= tile_rows)
        return;
    const uint row = tile_pair(i) / ROW_PAIRS * p.k;
    const uvec2 suh = address_at(p.suh, tile_expert, 2 * K_PADDED);
    const uvec2 y = address_at(p.partial, tile_first + i, 2 * K_PADDED);

    for (uint j = t; j < blocks * 128; j += LANES) {
        const uint k = first + j;
        float v = 0.0;
        if (k < p.k) {
            v = load_act(p.x, row + k, X_TYPE) * half_to_float(uint(BufU16(suh).v[k]));
            if (is_gated(ACTIVATION))
                v *= activate(ACTIVATION, load_act(p.gate, row + k, X_TYPE));
        }
        work[j / 128 * HADAMARD_PITCH + j % 128] = v;
    }
    barrier();
    hadamard_work(blocks);
    for (uint j = t; j < blocks * 128; j += LANES) {
        // The power of two keeps all f16 x in range; a product with a gate may be larger.
        store_act(y, first + j, ACT_F16, to_half_range(work[j / 128 * HADAMARD_PITCH + j % 128] * p.eps));
    }
}

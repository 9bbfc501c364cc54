// partial[place] = eps * (x[pair / slots] * suh[expert of the pair]) P in f16, for the pairs of all tiles: what
// moe_gemv_coopmat.comp multiplies. With a gated ACTIVATION x is activation(gate) * x. p.eps is a power of two.
//
// Workgroup (b, i, z): transform.glsl, for pair i of tile z.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint ACTIVATION = 0;
layout(constant_id = 3) const uint LANES = 128;
layout(constant_id = 4) const bool LOOPS = false;
layout(constant_id = 5) const uint CLUSTER = 32;
layout(constant_id = 6) const bool FOURS = false; // four elements at once: k and the addresses allow it

#include "trellis/moe_operands.glsl"
#include "include/address.glsl"
#include "include/activation.glsl"
#include "trellis/transform.glsl"

uint row; // where that of x begins
uvec2 suh, to;

vec4 activations(uvec2 address, uint k)
{
    if (FOURS)
        return load_act4(address, row + k, X_TYPE);
    vec4 x = vec4(0.0);
    [[unroll]] for (uint j = 0; j < 4; j++)
        if (k + j < p.k)
            x[j] = load_act(address, row + k + j, X_TYPE);
    return x;
}

vec4 operand(uint k)
{
    if (k >= p.k)
        return vec4(0.0);
    const uvec2 scales = BufU32x2(suh).v[k / 4];
    vec4 x = activations(p.x, k) * vec4(unpackHalf2x16(scales.x), unpackHalf2x16(scales.y));
    if (is_gated(ACTIVATION)) {
        const vec4 gate = activations(p.gate, k);
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] *= activate(ACTIVATION, gate[j]);
    }
    return x;
}

void ask(uint q, uint k) {}

void result(uint q, uint k, vec4 x)
{
    x *= p.eps;
    // The power of two keeps all f16 x in range; a product with a gate may be larger.
    [[unroll]] for (uint j = 0; j < 4; j++)
        x[j] = to_half_range(x[j]);
    store_act4(to, k, ACT_F16, x);
}

void main()
{
    const uint i = gl_WorkGroupID.y;
    if (!find_tile(gl_WorkGroupID.z, false) || i >= tile_rows)
        return;
    row = tile_pair(i) / ROW_PAIRS * p.k;
    suh = address_at(p.suh, tile_expert, 2 * K_PADDED);
    to = address_at(p.partial, tile_first + i, 2 * K_PADDED);
    transform_row(K_PADDED);
}

// y = s * rsqrt(mean(s^2) + eps) * weight, s = x or x + residual, which is also written as the sum.
// x, residual, sum, y (rows, columns); weight (columns) f32. One workgroup a row, STEP elements a
// lane and turn.
// Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
#include "include/address.glsl"
#include "include/convert.glsl"
#include "include/reduce.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X = ACT_F32;
layout(constant_id = 2) const uint RESIDUAL = ACT_F32; // dtype of residual and sum
layout(constant_id = 3) const uint Y = ACT_F32;
layout(constant_id = 4) const uint STEP = 1; // 4: rows are whole and aligned 4-element groups
layout(push_constant, scalar) uniform Push { mrl_push_rms_norm p; };

uint act_bytes(uint type) { return type == ACT_F32 ? 4 : 2; }

vec4 load(uvec2 row, uint i, uint type)
{
    return STEP == 4 ? load_act4(row, i, type) : vec4(load_act(row, i, type), 0.0, 0.0, 0.0);
}

void store(uvec2 row, uint i, uint type, vec4 v)
{
    [[unroll]] for (uint j = 0; j < STEP; j++)
        store_bits(row, i + j, type, floatBitsToUint(v[j]));
}

void main()
{
    uint row = gl_WorkGroupID.x;
    bool add = !is_null(p.residual);
    uvec2 x = address_at(p.x, row, p.columns * act_bytes(X));
    uvec2 y = address_at(p.y, row, p.columns * act_bytes(Y));
    uvec2 residual = address_at(p.residual, row, p.columns * act_bytes(RESIDUAL));
    uvec2 sum = address_at(p.sum, row, p.columns * act_bytes(RESIDUAL));
    float squares = 0.0;

    for (uint i = gl_LocalInvocationIndex * STEP; i < p.columns; i += gl_WorkGroupSize.x * STEP) {
        vec4 s = load(x, i, X);
        if (add) {
            s += load(residual, i, RESIDUAL);
            store(sum, i, RESIDUAL, s);
        }
        squares += dot(s, s);
    }
    float factor = inversesqrt(workgroup_add(squares) / float(p.columns) + p.eps);
    for (uint i = gl_LocalInvocationIndex * STEP; i < p.columns; i += gl_WorkGroupSize.x * STEP) {
        vec4 s = load(x, i, X);
        if (add)
            s += load(residual, i, RESIDUAL);
        store(y, i, Y, s * factor * load(p.weight, i, ACT_F32));
    }
}

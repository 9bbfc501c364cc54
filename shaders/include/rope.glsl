// Rotary embedding of one head of a qkv row, after an optional RMS norm of the head. The first
// ROPE_DIM elements rotate by position * freq; the pair (a, b) is (i, i + ROPE_DIM / 2), or (2i, 2i
// + 1) when interleaved.
// Source: Su et al. 2021, "RoFormer", equation 34; the half-split pairing is that of GPT-NeoX.
#include "include/kv.glsl"
#include "include/turn.glsl"

layout(constant_id = 4) const uint QKV = ACT_F16;
layout(constant_id = 5) const uint ROPE_DIM = 64;
layout(constant_id = 6) const uint INTERLEAVED = 0;

#include "include/output_gate.glsl"

// cos and sin of pair i of a head, times rope_scale; the pairs beyond ROPE_DIM do not turn.
vec2 rope_turn(int position, uint i)
{
    if (i >= ROPE_DIM / 2)
        return vec2(1.0, 0.0);
    return p.rope_scale * rope_cos_sin(float(position) * BufF32(p.freq).v[i]);
}

// A head's elements, DIM from `head` on in the qkv row, are worked on as DIM / 2 pairs: the
// rotating ones, then the rest two by two. Here: the indices of pair i.
uvec2 rope_pair(uint i)
{
    if (INTERLEAVED != 0 || i >= ROPE_DIM / 2)
        return uvec2(2 * i, 2 * i + 1);
    return uvec2(i, i + ROPE_DIM / 2);
}

// The factor of the RMS norm, 1 without weights. All lanes of a subgroup call it for the same head.
float rope_norm(uvec2 row, uint head, uvec2 weight)
{
    if (is_null(weight))
        return 1.0;
    float squares = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < DIM; i += gl_SubgroupSize) {
        float x = load_act(row, head + i, QKV);
        squares += x * x;
    }
    return inversesqrt(subgroupAdd(squares) / float(DIM) + p.eps);
}

// Pair i of the head, normed with factor and weight and turned.
vec2 rope_rotate(uvec2 row, uint head, uint i, vec2 turn, float factor, uvec2 weight)
{
    uvec2 at = rope_pair(i);
    vec2 x = factor * vec2(load_act(row, head + at.x, QKV), load_act(row, head + at.y, QKV));
    if (!is_null(weight))
        x *= vec2(BufF32(weight).v[at.x], BufF32(weight).v[at.y]);
    return vec2(x.x * turn.x - x.y * turn.y, x.y * turn.x + x.x * turn.y);
}

uvec2 rope_row(uint row)
{
    return address_at(p.qkv, row, qkv_width() * (QKV == ACT_F32 ? 4 : 2));
}

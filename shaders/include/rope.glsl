// Rotary embedding of one head of a qkv row, after an optional RMS norm of the head. The first
// ROPE_DIM elements rotate by position * freq; the pair (a, b) is (i, i + ROPE_DIM / 2), or (2i, 2i
// + 1) when interleaved.
// Source: Su et al. 2021, "RoFormer", equation 34; the half-split pairing is that of GPT-NeoX.
#include "include/kv.glsl"

layout(constant_id = 4) const uint QKV = ACT_F16;
layout(constant_id = 5) const uint ROPE_DIM = 64;
layout(constant_id = 6) const uint INTERLEAVED = 0;

// cos and sin of 0 <= angle < 2^24. The angle is the f32 product position * freq, as in
// transformers; what follows is exact, because device sin and cos are useless at large angles: in
// turns it is a 64-bit fraction, right to 2^-40 for angles up to 2^24, whose top 32 bits split into
// a quadrant and at most pi/4 beside it, where the Taylor series end below 2e-9. The error is that
// of a few f32 roundings, 1.5e-7. (No fma is used: lavapipe's rounds twice.)
vec2 rope_cos_sin(float angle)
{
    const uint inverse_high = 0x28be60dbu, inverse_low = 0x9391054au; // 2^64 / (2 pi)
    uint bits = floatBitsToUint(angle), mantissa = (bits & 0x7fffffu) | 0x800000u;
    uint shift = 150u - min((bits >> 23) & 255u, 150u); // angle = mantissa * 2^-shift
    uint w0, w1, w2, low, carry;

    umulExtended(mantissa, inverse_low, w1, w0);
    umulExtended(mantissa, inverse_high, w2, low);
    w1 = uaddCarry(w1, low, carry);
    w2 += carry; // w = mantissa / (2 pi) * 2^64
    // turns = bits 32 .. 63 of w >> shift
    uint turns = shift >= 64u ? 0u : shift >= 32u ? w2 >> (shift - 32u) : shift == 0u ? w1
               : (w1 >> shift) | (w2 << (32u - shift));

    uint quadrant = (turns + 0x20000000u) >> 30;
    float x = float(int(turns - (quadrant << 30))) * 1.4629180792671596e-9; // 2 pi / 2^32
    float xx = x * x;
    float s = -1.0 / 5040.0 + xx * (1.0 / 362880.0);
    s = x + x * xx * (-1.0 / 6.0 + xx * (1.0 / 120.0 + xx * s));
    float c = 1.0 / 40320.0 - xx * (1.0 / 3628800.0);
    c = 1.0 + xx * (-0.5 + xx * (1.0 / 24.0 + xx * (-1.0 / 720.0 + xx * c)));
    if ((quadrant & 1u) != 0u)
        return (quadrant & 2u) != 0u ? vec2(s, -c) : vec2(-s, c);
    return (quadrant & 2u) != 0u ? vec2(-c, -s) : vec2(c, s);
}

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
    return address_at(p.qkv, row, (p.heads + 2 * p.kv_heads) * DIM * (QKV == ACT_F32 ? 4 : 2));
}

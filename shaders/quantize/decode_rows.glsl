// Rows of W (n, k) to rows of y (rows, k): dequantize and embedding differ only in which row goes where.
// A lane decodes one unit of 16 bytes; w = value * (scale * global), each product rounded once.
#include "include/address.glsl"
#include "include/convert.glsl"
#include "include/scale.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint DST = 0;   // ACT_* of y
layout(constant_id = 2) const uint SCALE = 0; // SCALE_*
layout(constant_id = 3) const uint ZERO = 0;  // 1: a zero plane

layout(push_constant, scalar) uniform Push { mrl_push_dequantize p; };

void decode_unit(uint from, uint to, uint unit)
{
    uvec2 y = address_at(p.y, to, p.k * (DST == ACT_F32 ? 4u : 2u));
    uvec4 w = fmt_load(BufU32x4(p.quant), from * (p.k_padded / FMT_UNIT) + unit);
    [[unroll]] for (uint c = 0; c < FMT_UNIT / FMT_CHUNK; c++) {
        uint column = unit * FMT_UNIT + c * FMT_CHUNK;
        if (column >= p.k)
            return;
        uint at = from * p.groups + (p.group == 0 ? 0 : column / p.group);
        A2 v[FMT_CHUNK / 2];
#if FMT_ZERO
        if (ZERO != 0)
            fmt_decode8z(w, c, A(load_zero(p.zero, at)), v);
        else
#endif
            fmt_decode8(w, c, v);
        precise float scale = 1.0;
        if (SCALE != SCALE_NONE)
            scale = load_scale(p.scale, at, SCALE) * p.global_scale;
        [[unroll]] for (uint i = 0; i < FMT_CHUNK / 2; i++) {
            precise vec2 value = vec2(v[i]);
            if (SCALE != SCALE_NONE)
                value *= scale;
            uvec2 k = column + fmt_pair(i);
            if (k.x < p.k)
                store_bits(y, k.x, DST, floatBitsToUint(value.x));
            if (k.y < p.k)
                store_bits(y, k.y, DST, floatBitsToUint(value.y));
        }
    }
}

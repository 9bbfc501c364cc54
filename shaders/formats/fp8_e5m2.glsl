// fp8_e5m2: OCP 8-bit floats (OFP8 v1.0), the upper byte of a binary16. w = value * scale.
// Sixteen weights in a unit of 16 bytes, two chunks of 8. Interface: f32.glsl.
//
//   word i:  31...24 23...16 15....8 7.....0        a byte:  7 6..2 1..0
//            w 4i+3  w 4i+2  w 4i+1  w 4i                     S  E   M
//
// Infinities and NaNs are those of f16; packers never write them. The six subnormals (below 2^-14) are
// subnormals of f16 too: devices that flush those make them zero, 2^-30 of the largest weight.
#define FMT_BITS 8
#define FMT_UNIT 16
#define FMT_CHUNK 8
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }

#if MATH_F16
uvec2 fmt_pair(uint i) { uint k = (i & 2u) * 2u + (i & 1u); return uvec2(k, k + 2u); }
uint fmt_slot(uint k) { return (k & 4u) | ((k & 1u) << 1) | ((k >> 1) & 1u); }

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    uvec2 x = c == 0u ? w.xy : w.zw;
    v[0] = unpackFloat2x16((x.x << 8) & 0xFF00FF00u);
    v[1] = unpackFloat2x16(x.x & 0xFF00FF00u);
    v[2] = unpackFloat2x16((x.y << 8) & 0xFF00FF00u);
    v[3] = unpackFloat2x16(x.y & 0xFF00FF00u);
}
#else
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    uvec2 x = c == 0u ? w.xy : w.zw;
    vec2 even = unpackHalf2x16((x.x << 8) & 0xFF00FF00u), odd = unpackHalf2x16(x.x & 0xFF00FF00u);
    v[0] = vec2(even.x, odd.x);
    v[1] = vec2(even.y, odd.y);
    even = unpackHalf2x16((x.y << 8) & 0xFF00FF00u);
    odd = unpackHalf2x16(x.y & 0xFF00FF00u);
    v[2] = vec2(even.x, odd.x);
    v[3] = vec2(even.y, odd.y);
}
#endif

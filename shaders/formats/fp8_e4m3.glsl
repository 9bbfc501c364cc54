// fp8_e4m3: OCP 8-bit floats (OFP8 v1.0), bias 7, no infinity. w = value * scale.
// Sixteen weights in a unit of 16 bytes, two chunks of 8. Interface: f32.glsl.
//
//   word i:  31...24 23...16 15....8 7.....0        a byte:  7 6..3 2..0
//            w 4i+3  w 4i+2  w 4i+1  w 4i                     S  E   M
//
//   E > 0: (1 + M/8) * 2^(E-7)      E = 0: M/8 * 2^-6      S.1111.111 is NaN and decodes to 480 here;
//   packers never write it.
//
// The exponent is placed with the bias of the wider type added, which is the value itself for E > 0. For
// E = 0 it is a = (1 + M/8) * 2^-7, and the value is 2a - 2^-6; that line lies below a left of 2^-6 and
// above it right of it, so min(a, 2a - 2^-6) serves all codes, exactly, and no subnormal of the wider type
// ever appears: devices flush those (lavapipe in f32, some GPUs in f16).
#define FMT_BITS 8
#define FMT_UNIT 16
#define FMT_CHUNK 8
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }

#if MATH_F16
uvec2 fmt_pair(uint i) { uint k = (i & 2u) * 2u + (i & 1u); return uvec2(k, k + 2u); }
uint fmt_slot(uint k) { return (k & 4u) | ((k & 1u) << 1) | ((k >> 1) & 1u); }

// x: two codes, each in the upper byte of its half
A2 fmt_e4m3x2(uint x)
{
    A2 a = unpackFloat2x16(((x >> 1) & 0x3F803F80u) + 0x20002000u);
    a = min(a, a * A(2.0) - A2(A(0.015625)));
    return unpackFloat2x16(packFloat2x16(a) | (x & 0x80008000u));
}

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    uvec2 x = c == 0u ? w.xy : w.zw;
    v[0] = fmt_e4m3x2(x.x << 8);
    v[1] = fmt_e4m3x2(x.x);
    v[2] = fmt_e4m3x2(x.y << 8);
    v[3] = fmt_e4m3x2(x.y);
}
#else
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

// x: two codes, each in the upper byte of its word
vec2 fmt_e4m3x2(uvec2 x)
{
    vec2 a = uintBitsToFloat(((x >> 4) & 0x07F00000u) + 0x3C000000u);
    a = min(a, a * 2.0 - 0.015625);
    return uintBitsToFloat(floatBitsToUint(a) | (x & 0x80000000u));
}

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    uvec2 x = c == 0u ? w.xy : w.zw;
    v[0] = fmt_e4m3x2(uvec2(x.x << 24, x.x << 16));
    v[1] = fmt_e4m3x2(uvec2(x.x << 8, x.x));
    v[2] = fmt_e4m3x2(uvec2(x.y << 24, x.y << 16));
    v[3] = fmt_e4m3x2(uvec2(x.y << 8, x.y));
}
#endif

// fp4_e2m1: OCP 4-bit floats (MX v1.0), values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
// w = value * scale, with e8m0 scales (MX), e4m3 scales and a global one (NV), or f16 and f32 scales.
// Thirty-two weights in a unit of 16 bytes, four chunks of 8, a word each. Interface: f32.glsl.
//
//   word i:  31..28  27..24  23..20  19..16  15..12  11...8  7....4  3....0     a nibble:  3 2..1 0
//            w 8i+7  w 8i+6  w 8i+5  w 8i+4  w 8i+3  w 8i+2  w 8i+1  w 8i                   S  E   M
//
//   E > 0: (1 + M/2) * 2^(E-1)      E = 0: M/2
//
// The exponent is placed with the bias of the wider type added: the value itself for E > 0, and
// a = (1 + M/2) / 2 for E = 0, where the value is 2a - 1. That line lies below a left of 1 and above it right
// of it, so min(a, 2a - 1) serves all codes, exactly, without subnormals, which some devices flush.
#define FMT_BITS 4
#define FMT_UNIT 32
#define FMT_CHUNK 8
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }

#if MATH_F16
uvec2 fmt_pair(uint i) { return uvec2(i, i + 4u); }
uint fmt_slot(uint k) { return ((k & 3u) << 1) | (k >> 2); }

// x: two codes, each in the uppermost nibble of its half
A2 fmt_e2m1x2(uint x)
{
    A2 a = unpackFloat2x16(((x >> 3) & 0x0E000E00u) + 0x38003800u);
    a = min(a, a * A(2.0) - A2(A(1.0)));
    return unpackFloat2x16(packFloat2x16(a) | (x & 0x80008000u));
}

// For kernels that declare DenormPreserve: as bits of f16 the code has the same exponents 2^14 lower, 0 those of the
// subnormals, so that a multiplication is all the arithmetic. Instructions for 8 codes: 19 instead of 27.
#define FMT_SUBNORMAL 1

A2 fmt_e2m1x2_subnormal(uint x)
{
    return unpackFloat2x16(((x >> 3) & 0x0E000E00u) | (x & 0x80008000u)) * A(16384.0);
}

// The eight codes of word c, by one of these two.
#define FMT_DECODE8(name, two)              \
    void name(uvec4 w, uint c, out A2 v[4]) \
    {                                       \
        uint x = w[c];                      \
        v[0] = two(x << 12);                \
        v[1] = two(x << 8);                 \
        v[2] = two(x << 4);                 \
        v[3] = two(x);                      \
    }
FMT_DECODE8(fmt_decode8, fmt_e2m1x2)
FMT_DECODE8(fmt_decode8_subnormal, fmt_e2m1x2_subnormal)
#else
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

// x: two codes, each in the uppermost nibble of its word
vec2 fmt_e2m1x2(uvec2 x)
{
    vec2 a = uintBitsToFloat(((x >> 6) & 0x01C00000u) + 0x3F000000u);
    a = min(a, a * 2.0 - 1.0);
    return uintBitsToFloat(floatBitsToUint(a) | (x & 0x80000000u));
}

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    uint x = w[c];
    v[0] = fmt_e2m1x2(uvec2(x << 28, x << 24));
    v[1] = fmt_e2m1x2(uvec2(x << 20, x << 16));
    v[2] = fmt_e2m1x2(uvec2(x << 12, x << 8));
    v[3] = fmt_e2m1x2(uvec2(x << 4, x));
}
#endif

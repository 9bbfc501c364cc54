// int4: w = (q - zero) * scale, q an unsigned nibble, zero 8 unless the tensor stores its own.
// Thirty-two weights in a unit of 16 bytes, four chunks of 8, a word each. Interface: f32.glsl.
//
//   word i:  31..28  27..24  23..20  19..16  15..12  11...8  7....4  3....0
//            q 8i+7  q 8i+6  q 8i+5  q 8i+4  q 8i+3  q 8i+2  q 8i+1  q 8i
//
// Source: compressed-tensors "pack-quantized" with 4 bits, 8 values in an int32, the first one lowest.
// f16: 0x6400 | q is 1024 + q and 0x6400 | q << 4 is 1024 + 16 q, both exact (an f16 step is 1 there), so
// one mask takes the nibbles i and i + 4 of the word to the two halves of a pair, and one fused
// multiply-add brings them to q - zero. Every step is exact, fused or not.
#define FMT_BITS 4
#define FMT_UNIT 32
#define FMT_CHUNK 8
#define FMT_ZERO 1

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }

#if MATH_F16
uvec2 fmt_pair(uint i) { return uvec2(i, i + 4u); }
uint fmt_slot(uint k) { return ((k & 3u) << 1) | (k >> 2); }

void fmt_decode8z(uvec4 w, uint c, A z, out A2 v[4])
{
    uint lo = w[c], hi = lo >> 8;
    A2 one = A2(A(1024.0) + z), sixteenth = A2(A(64.0) + z);
    v[0] = unpackFloat2x16((lo & 0x000F000Fu) | 0x64006400u) - one;
    v[1] = unpackFloat2x16((lo & 0x00F000F0u) | 0x64006400u) * A(0.0625) - sixteenth;
    v[2] = unpackFloat2x16((hi & 0x000F000Fu) | 0x64006400u) - one;
    v[3] = unpackFloat2x16((hi & 0x00F000F0u) | 0x64006400u) * A(0.0625) - sixteenth;
}

void fmt_decode8(uvec4 w, uint c, out A2 v[4]) { fmt_decode8z(w, c, A(8.0), v); }
#else
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

// Flipping the top bits turns q - 8 into two's complement: then a shift, a shift and a conversion.
void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    int x = int(w[c] ^ 0x88888888u);
    v[0] = vec2(ivec2(x << 28, x << 24) >> 28);
    v[1] = vec2(ivec2(x << 20, x << 16) >> 28);
    v[2] = vec2(ivec2(x << 12, x << 8) >> 28);
    v[3] = vec2(ivec2(x << 4, x) >> 28);
}

void fmt_decode8z(uvec4 w, uint c, A z, out A2 v[4])
{
    fmt_decode8(w, c, v);
    vec2 shift = vec2(z - 8.0);
    v[0] -= shift;
    v[1] -= shift;
    v[2] -= shift;
    v[3] -= shift;
}
#endif

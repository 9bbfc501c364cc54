// int8: w = (q - zero) * scale, q an unsigned byte, zero 128 unless the tensor stores its own.
// Sixteen weights in a unit of 16 bytes, two chunks of 8. Interface: f32.glsl.
//
//   word i:  31...24 23...16 15....8 7.....0
//            q 4i+3  q 4i+2  q 4i+1  q 4i
//
// Source: compressed-tensors "naive-quantized", whose signed bytes are these with the top bit flipped.
// f16: 0x6400 | q is 1024 + q exactly, since an f16 step is 1 from 1024 to 2047; the bytes 0 and 2 of a
// word already sit where the mantissas of a pair are, the bytes 1 and 3 are one shift away.
#define FMT_BITS 8
#define FMT_UNIT 16
#define FMT_CHUNK 8
#define FMT_ZERO 1

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }

#if MATH_F16
uvec2 fmt_pair(uint i) { uint k = (i & 2u) * 2u + (i & 1u); return uvec2(k, k + 2u); }
uint fmt_slot(uint k) { return (k & 4u) | ((k & 1u) << 1) | ((k >> 1) & 1u); }

void fmt_decode8z(uvec4 w, uint c, A z, out A2 v[4])
{
    uvec2 x = c == 0u ? w.xy : w.zw;
    A2 bias = A2(A(1024.0) + z);
    v[0] = unpackFloat2x16((x.x & 0x00FF00FFu) | 0x64006400u) - bias;
    v[1] = unpackFloat2x16(((x.x >> 8) & 0x00FF00FFu) | 0x64006400u) - bias;
    v[2] = unpackFloat2x16((x.y & 0x00FF00FFu) | 0x64006400u) - bias;
    v[3] = unpackFloat2x16(((x.y >> 8) & 0x00FF00FFu) | 0x64006400u) - bias;
}

void fmt_decode8(uvec4 w, uint c, out A2 v[4]) { fmt_decode8z(w, c, A(128.0), v); }
#else
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

// Flipping the top bits turns q - 128 into two's complement: then a shift, a shift and a conversion.
void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    ivec2 x = ivec2((c == 0u ? w.xy : w.zw) ^ 0x80808080u);
    v[0] = vec2(ivec2(x.x << 24, x.x << 16) >> 24);
    v[1] = vec2(ivec2(x.x << 8, x.x) >> 24);
    v[2] = vec2(ivec2(x.y << 24, x.y << 16) >> 24);
    v[3] = vec2(ivec2(x.y << 8, x.y) >> 24);
}

void fmt_decode8z(uvec4 w, uint c, A z, out A2 v[4])
{
    fmt_decode8(w, c, v);
    vec2 shift = vec2(z - 128.0);
    v[0] -= shift;
    v[1] -= shift;
    v[2] -= shift;
    v[3] -= shift;
}
#endif

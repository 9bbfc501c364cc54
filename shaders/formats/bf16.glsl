// bf16: the upper half of a binary32, eight weights in a unit of 16 bytes. Interface: f32.glsl.
//
//   word i:  31........16 15.........0
//            weight 2i+1   weight 2i
//
// Only f32 arithmetic: the range of bf16 does not fit f16.
#define FMT_BITS 16
#define FMT_UNIT 8
#define FMT_CHUNK 8
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

vec2 fmt_bf16x2(uint w) { return uintBitsToFloat(uvec2(w << 16, w & 0xFFFF0000u)); }

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
    v[0] = A2(fmt_bf16x2(w.x));
    v[1] = A2(fmt_bf16x2(w.y));
    v[2] = A2(fmt_bf16x2(w.z));
    v[3] = A2(fmt_bf16x2(w.w));
}

// f16: IEEE 754 binary16, eight weights in a unit of 16 bytes. Interface: f32.glsl.
//
//   word i:  31........16 15.........0
//            weight 2i+1   weight 2i
//
// f16 subnormals (below 2^-14) may be flushed to zero by devices that do so in their arithmetic.
#define FMT_BITS 16
#define FMT_UNIT 8
#define FMT_CHUNK 8
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

void fmt_decode8(uvec4 w, uint c, out A2 v[4])
{
#if MATH_F16
    v[0] = unpackFloat2x16(w.x);
    v[1] = unpackFloat2x16(w.y);
    v[2] = unpackFloat2x16(w.z);
    v[3] = unpackFloat2x16(w.w);
#else
    v[0] = unpackHalf2x16(w.x);
    v[1] = unpackHalf2x16(w.y);
    v[2] = unpackHalf2x16(w.z);
    v[3] = unpackHalf2x16(w.w);
#endif
}

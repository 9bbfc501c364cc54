// f32: IEEE 754 binary32, four weights in a unit of 16 bytes. The chunk is a whole unit.
//
//   word k: weight k
//
// Interface of a format (the same in every file of this folder):
//   FMT_BITS        bits a weight                    FMT_UNIT   weights in 16 bytes, one fmt_load
//   FMT_CHUNK       weights in one fmt_decode8       FMT_ZERO   1: fmt_decode8z exists
//   fmt_load        one unit into registers; kernels issue loads long before they decode
//   fmt_decode8     chunk c of a unit (c a constant after unrolling) as FMT_CHUNK / 2 pairs: no scale
//                   applied, the default zero point (FMT_ZERO formats) subtracted
//   fmt_decode8z    the same with zero point z in place of the default one
//   fmt_pair(i)     the two weights of the chunk that pair i holds, in .x and .y
//   fmt_slot(k)     its inverse: weight k of the chunk is component fmt_slot(k) % 2 of pair fmt_slot(k) / 2
#define FMT_BITS 32
#define FMT_UNIT 4
#define FMT_CHUNK 4
#define FMT_ZERO 0

uvec4 fmt_load(BufU32x4 base, uint unit) { return base.v[unit]; }
uvec2 fmt_pair(uint i) { return uvec2(2u * i, 2u * i + 1u); }
uint fmt_slot(uint k) { return k; }

void fmt_decode8(uvec4 w, uint c, out A2 v[2])
{
    v[0] = A2(uintBitsToFloat(w.xy));
    v[1] = A2(uintBitsToFloat(w.zw));
}

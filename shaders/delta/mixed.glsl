// What conv.comp leaves for scan.comp or chunk_coopmat.comp, and those for norm.comp.
#include "delta/delta.glsl"

const uint MIXED = CHANNELS + 2 * VALUE_HEADS + 3 & ~3u; // rows begin where four f32 can be loaded at once

uvec2 mixed_row(uint row) { return address_at(p.mixed, row, MIXED * 4); }

// (rows, VALUE_HEADS * VALUE_DIM) f32: o of each value head.
uvec2 o_row(uint row) { return address_at(p.o, row, VALUE_HEADS * VALUE_DIM * 4); }

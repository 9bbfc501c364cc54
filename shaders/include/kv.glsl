// The KV cache of one layer: K and V are (slots, context, kv_heads, DIM), f16 or f32. Every access
// goes through kv_row, so that a page table has one place to enter. Rows are reached in units of 8
// elements, because DIM is a multiple of 8 and 16 bytes are the widest load.
#include "include/address.glsl"
#include "include/convert.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint DIM = 64;
layout(constant_id = 2) const uint CACHE = ACT_F16; // ACT_F32 or ACT_F16
layout(constant_id = 3) const uint SLOTS = 1;
layout(push_constant, scalar) uniform Push { mrl_push_attention p; };

#include "include/kv_unit.glsl"

const uint HEAD_UNITS = DIM / 8;

// Rows outside of the cache are idle: nothing is written for them and their result is zeros.
bool kv_valid(int slot, int position)
{
    return slot >= 0 && uint(slot) < SLOTS && position >= 0 && uint(position) < p.context;
}

uint kv_row(uint slot, uint position) { return slot * p.context + position; }

// Number of a head's first unit. The host keeps the last one below 2^31 / 2: indices are signed.
uint kv_unit(uint slot, uint position, uint kv_head)
{
    return (kv_row(slot, position) * p.kv_heads + kv_head) * HEAD_UNITS;
}

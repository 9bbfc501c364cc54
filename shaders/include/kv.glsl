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

const uint HEAD_UNITS = DIM / 8;
const uint UNIT_BYTES = CACHE == ACT_F32 ? 32 : 16;

struct KvUnit {
    uvec4 a, b; // b: elements 4..7 of an f32 cache
};

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

KvUnit kv_zero() { return KvUnit(uvec4(0), uvec4(0)); }

KvUnit kv_load(uvec2 cache, uint unit)
{
    if (CACHE == ACT_F32)
        return KvUnit(BufU32x4(cache).v[2 * unit], BufU32x4(cache).v[2 * unit + 1]);
    return KvUnit(BufU32x4(cache).v[unit], uvec4(0));
}

void kv_store(uvec2 cache, uint unit, KvUnit u)
{
    if (CACHE == ACT_F32) {
        BufU32x4(cache).v[2 * unit] = u.a;
        BufU32x4(cache).v[2 * unit + 1] = u.b;
    } else {
        BufU32x4(cache).v[unit] = u.a;
    }
}

// Elements 0..3 and 4..7 of a unit.
vec4 kv_low(KvUnit u)
{
    return CACHE == ACT_F32 ? uintBitsToFloat(u.a)
                            : vec4(unpackHalf2x16(u.a.x), unpackHalf2x16(u.a.y));
}

vec4 kv_high(KvUnit u)
{
    return CACHE == ACT_F32 ? uintBitsToFloat(u.b)
                            : vec4(unpackHalf2x16(u.a.z), unpackHalf2x16(u.a.w));
}

// What the cache holds of x: finite values beyond f16 become its largest, for one such element in
// an otherwise sound row must not turn all later scores into NaN. NaN and infinity stay: they are
// errors to show.
uint kv_bits(float x)
{
    uint bits = floatBitsToUint(x), magnitude = bits & 0x7fffffffu;
    if (CACHE == ACT_F32)
        return bits;
    if (magnitude > 0x477fe000u && magnitude < 0x7f800000u)
        bits = (bits & 0x80000000u) | 0x477fe000u;
    return f16_round(bits);
}

KvUnit kv_pack(uint bits[8])
{
    if (CACHE == ACT_F32)
        return KvUnit(uvec4(bits[0], bits[1], bits[2], bits[3]),
                      uvec4(bits[4], bits[5], bits[6], bits[7]));
    return KvUnit(uvec4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                        bits[6] | bits[7] << 16), uvec4(0));
}

// Units of the cache: 8 elements, 16 bytes in f16 (the widest load) and 32 in f32, whatever a row
// means. Needs CACHE (ACT_F32 or ACT_F16), address.glsl and convert.glsl.
const uint UNIT_BYTES = CACHE == ACT_F32 ? 32 : 16;

struct KvUnit {
    uvec4 a, b; // b: elements 4..7 of an f32 cache
};

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

// f32, f16 and bf16 converted in integers, round to nearest even: the same bits on every device, whatever
// it does with subnormals and however packHalf2x16 rounds there. Values travel as the bits of an f32.

float f16_value(uint h)
{
    uint exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    uint magnitude = exponent == 0u    ? floatBitsToUint(float(mantissa) * 5.9604644775390625e-8)
                     : exponent == 31u ? 0x7f800000u | (mantissa << 13)
                                       : ((exponent + 112u) << 23) | (mantissa << 13);
    return uintBitsToFloat(magnitude | ((h & 0x8000u) << 16));
}

uint f16_round(uint bits)
{
    uint magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
    if (magnitude > 0x7f800000u)
        return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) // 65520: halfway between the largest f16 and 65536
        return sign | 0x7c00u;
    if (magnitude < 0x38800000u) // 2^-14: the step is 2^-24 below it
        return sign | uint(roundEven(uintBitsToFloat(magnitude) * 16777216.0));
    return sign | (((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10));
}

uint bf16_round(uint bits)
{
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// `type` (ACT_*) must be a specialization constant.
uint load_bits(uvec2 address, uint i, uint type)
{
    if (type == ACT_F32)
        return BufU32(address).v[i];
    uint bits = uint(BufU16(address).v[i]);
    return type == ACT_F16 ? floatBitsToUint(f16_value(bits)) : bits << 16;
}

void store_bits(uvec2 address, uint i, uint type, uint bits)
{
    if (type == ACT_F32)
        BufU32(address).v[i] = bits;
    else
        BufU16(address).v[i] = uint16_t(type == ACT_F16 ? f16_round(bits) : bf16_round(bits));
}

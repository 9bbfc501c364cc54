// Scale and zero-point planes of a weight matrix: (n, groups) row-major, element i = row * groups + group.
// `type` must be a specialization constant (mrl_scale of csrc/ops/weight.h): the branches then fold.
#define SCALE_NONE 0
#define SCALE_F32 1
#define SCALE_F16 2
#define SCALE_E8M0 3
#define SCALE_E4M3 4

// E8M0 (OCP MX v1.0): 2^(code - 127); 255 is NaN. Code 0 is an f32 subnormal: devices may flush it to 0.
float scale_e8m0(uint code)
{
    return uintBitsToFloat(code == 0u ? 0x00400000u : code == 255u ? 0x7fc00000u : code << 23);
}

// E4M3 as in formats/fp8_e4m3.glsl; the NaN codes decode to +-480, loaders refuse them.
float scale_e4m3(uint code)
{
    float a = uintBitsToFloat(((code & 0x7fu) << 20) + 0x3c000000u);
    a = min(a, a * 2.0 - 0.015625);
    return (code & 0x80u) != 0u ? -a : a;
}

// The stored bits, and what they mean: kernels load the bits long before they need the value.
uint load_scale_bits(uvec2 address, uint i, uint type)
{
    if (type == SCALE_NONE)
        return 0;
    if (type == SCALE_F32)
        return BufU32(address).v[i];
    return type == SCALE_F16 ? uint(BufU16(address).v[i]) : uint(BufU8(address).v[i]);
}

float scale_value(uint bits, uint type)
{
    switch (type) {
    case SCALE_F32: return uintBitsToFloat(bits);
    case SCALE_F16: return half_to_float(bits);
    case SCALE_E8M0: return scale_e8m0(bits);
    case SCALE_E4M3: return scale_e4m3(bits);
    default: return 1.0;
    }
}

float load_scale(uvec2 address, uint i, uint type) { return scale_value(load_scale_bits(address, i, type), type); }

float load_zero(uvec2 address, uint i) { return float(BufU8(address).v[i]); }

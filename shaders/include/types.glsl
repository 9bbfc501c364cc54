// Extensions, address types and activation access shared by every kernel. The build prepends
// `#version 460` and `#define MATH_F16 0|1`; MATH_F16 chooses the arithmetic type A of the inner loops.
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_control_flow_attributes : require
#pragma use_vulkan_memory_model

#include "include/push.h"

#if MATH_F16
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#define A float16_t
#define A2 f16vec2
#define UNPACK_A2(bits) unpackFloat2x16(bits) /* two f16 in a word -> A2 */
#else
#define A float
#define A2 vec2
#define UNPACK_A2(bits) unpackHalf2x16(bits)
#endif

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer BufU32x4 { uvec4 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer BufF32x4 { vec4 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer BufU32x2 { uvec2 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufU32 { uint v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufI32 { int v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufF32 { float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer BufU16 { uint16_t v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 1) buffer BufU8 { uint8_t v[]; };

// Activation dtypes (csrc/base/dtype.h).
#define ACT_F32 0
#define ACT_F16 1
#define ACT_BF16 2

bool is_null(uvec2 address) { return (address.x | address.y) == 0; }

// float -> bf16 bits, round to nearest even; NaN stays NaN.
uint bf16_bits(float f)
{
    uint u = floatBitsToUint(f);
    return isnan(f) ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

float half_to_float(uint bits) { return unpackHalf2x16(bits).x; }
uint float_to_half(float f) { return packHalf2x16(vec2(f, 0.0)); }
float to_half_range(float f) { return isnan(f) || isinf(f) ? f : clamp(f, -65504.0, 65504.0); }

// `type` must be a specialization constant: the branches then fold.
float load_act(uvec2 address, uint i, uint type)
{
    if (type == ACT_F32)
        return BufF32(address).v[i];
    uint bits = uint(BufU16(address).v[i]);
    return type == ACT_F16 ? half_to_float(bits) : uintBitsToFloat(bits << 16);
}

void store_act(uvec2 address, uint i, uint type, float value)
{
    if (type == ACT_F32)
        BufF32(address).v[i] = value;
    else
        BufU16(address).v[i] = uint16_t(type == ACT_F16 ? float_to_half(value) : bf16_bits(value));
}

// Four at once, as load_act4 reads them.
void store_act4(uvec2 address, uint i, uint type, vec4 x)
{
    if (type == ACT_F32)
        BufF32x4(address).v[i >> 2] = x;
    else if (type == ACT_F16)
        BufU32x2(address).v[i >> 2] = uvec2(packHalf2x16(x.xy), packHalf2x16(x.zw));
    else
        BufU32x2(address).v[i >> 2] =
            uvec2(bf16_bits(x.x) | bf16_bits(x.y) << 16, bf16_bits(x.z) | bf16_bits(x.w) << 16);
}

// Four at once; i in elements, a multiple of 4, address aligned to 16 (f32) or 8 bytes.
vec4 load_act4(uvec2 address, uint i, uint type)
{
    if (type == ACT_F32)
        return BufF32x4(address).v[i >> 2];
    uvec2 b = BufU32x2(address).v[i >> 2];
    if (type == ACT_F16)
        return vec4(unpackHalf2x16(b.x), unpackHalf2x16(b.y));
    return vec4(uintBitsToFloat(b.x << 16), uintBitsToFloat(b.x & 0xffff0000u),
                uintBitsToFloat(b.y << 16), uintBitsToFloat(b.y & 0xffff0000u));
}

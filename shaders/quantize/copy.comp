// dst row row_start + i * row_stride = src row i (or the only one), columns elements, converted between
// f32, f16 and bf16; bytes and words are copied, `bias` added to each byte modulo 256 (in words: 0 or 128,
// where adding is flipping the top bit). Used by weight loading and Tensor.astype. Grid-stride over elements.
#include "include/address.glsl"
#include "include/convert.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SRC = 0; // numbers of mrl_dtype
layout(constant_id = 2) const uint DST = 0;

#define DTYPE_U32 4
#define DTYPE_U8 5

layout(push_constant, scalar) uniform Push { mrl_push_copy p; };

uint width(uint dtype) { return dtype == ACT_F32 || dtype == DTYPE_U32 ? 4u : dtype == DTYPE_U8 ? 1u : 2u; }

void main()
{
    uint total = p.rows * p.columns, step = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    for (uint i = gl_GlobalInvocationID.x; i < total; i += step) {
        uint row = i / p.columns, column = i % p.columns;
        uvec2 src = address_at(p.src, row, p.src_stride * width(SRC));
        uvec2 dst = address_at(p.dst, p.row_start + row * p.row_stride, p.dst_stride * width(DST));
        if (SRC == DTYPE_U8)
            BufU8(dst).v[column] = uint8_t(uint(BufU8(src).v[column]) + p.bias);
        else if (SRC == DTYPE_U32)
            BufU32(dst).v[column] = BufU32(src).v[column] ^ (p.bias * 0x01010101u);
        else if (SRC == DST && SRC != ACT_F32)
            BufU16(dst).v[column] = BufU16(src).v[column];
        else
            store_bits(dst, column, DST, load_bits(src, column, SRC));
    }
}

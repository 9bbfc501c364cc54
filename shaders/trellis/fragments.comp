// y (32, 8) f32: for each lane of a subgroup of 32 and each element that it holds of a 16 x 16 matrix B of f16, 16
// times its row plus its column. Where a lane has what csrc/ops/fragments.c expects, values are put into matrices as
// they are decoded (gemv_coopmat.glsl); the specification leaves to the driver what that is.
#extension GL_KHR_cooperative_matrix : require

layout(local_size_x_id = 0) in;
layout(push_constant, scalar) uniform Push { mrl_push_trellis_copy p; };

shared uvec4 numbers[32]; // 16 x 16 halves

void main()
{
    const uint l = gl_LocalInvocationIndex;
    coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> b;
    uvec4 eight;
    [[unroll]] for (uint i = 0; i < 4; i++)
        eight[i] = packHalf2x16(vec2(8 * l + 2 * i, 8 * l + 2 * i + 1));
    numbers[l] = eight;
    barrier();
    coopMatLoad(b, numbers, 0, 2, gl_CooperativeMatrixLayoutRowMajor);
    for (uint i = 0; i < 8; i++)
        BufF32(p.file).v[l * 8 + i] = i < b.length() ? float(b[i]) : -1.0;
}

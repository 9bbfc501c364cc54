// sums (splits, m, n_padded) = x (m, k) Q for many rows of the transformed f16 x, or y (m, n) = epilogue(x W):
// gemm_coopmat.glsl for one matrix.
#extension GL_KHR_cooperative_matrix : require
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#define TRELLIS p.trellis
#define SVH p.svh
#define FIRST_ROW (gl_WorkGroupID.y * BM)
#define ROWS min(p.m - FIRST_ROW, BM)
#define Y_ROW(m) (FIRST_ROW + (m))
#define SHARE_ROW (gl_WorkGroupID.z * p.m + FIRST_ROW)
#define K_PADDED p.k_padded
#define X_SCALE p.x_scale
#include "trellis/gemm_coopmat.glsl"
#include "trellis/epilogue.glsl"
#include "trellis/epilogue4.glsl"

bool coopmat_prologue() { return true; }

void finish_columns(uint m, uint n, vec4 y)
{
    finish_quad(m, n, y, FOURS ? bias4(n) : vec4(0.0), FOURS ? residual4(m, n) : vec4(0.0));
}

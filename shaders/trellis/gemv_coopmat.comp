// y (m, n) = epilogue(x W) for up to 64 rows of transformed x: gemv_coopmat.glsl for one matrix.
#extension GL_KHR_cooperative_matrix : require
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#define TRELLIS p.trellis
#define FIRST_ROW 0
#define ROWS p.m
#define K_PADDED p.k_padded
#define X_SCALE p.x_scale
#define SVH p.svh
#include "trellis/gemv_coopmat.glsl"
#include "trellis/epilogue.glsl"

bool coopmat_prologue() { return true; }

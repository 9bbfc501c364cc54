// y (m, n) = epilogue(norm(x) W) for 1 to 16 rows of x: gemv.glsl for one matrix.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#define TRELLIS p.trellis
#define SUH p.suh
#define SVH p.svh
#define X_ROW(m) (m)
#define K_PADDED p.k_padded
#include "trellis/gemv.glsl"
#include "trellis/epilogue.glsl"

bool gemv_prologue() { return true; }
void request_sum() {}
void finish_sum() {}

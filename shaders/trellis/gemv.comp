// y (m, n) = epilogue(norm(x) W), or of activation(gate) * x, for 1 to 16 rows of x: gemv.glsl for one matrix.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#define TRELLIS p.trellis
#define SUH p.suh
#define SVH p.svh
#define X_ROW(m) (m)
#define K_PADDED p.k_padded
#define N_PADDED p.n_padded
#define X_SHARES (p.types >> 16)
#define FIRST_SHARE 0
#define X_GATE p.gate
#define X_BASE p.residual
#define X_TOTAL p.gate
#include "trellis/gemv.glsl"

float asked_residual; // with ONE_COLUMN, of the thread's
#define HAS_RESIDUAL (!is_null(p.residual) && !(SHARES && X_SHARES > 0))
#define RESIDUAL(at) (ONE_COLUMN ? asked_residual : BufF32(p.residual).v[at])
#include "trellis/epilogue.glsl"

bool gemv_prologue() { return true; }
void share_operands() {}
void request_column(uint n)
{
    asked_residual = 0.0;
    if (ONE_COLUMN && HAS_RESIDUAL)
        asked_residual = BufF32(p.residual).v[min(n, p.n - 1)];
}

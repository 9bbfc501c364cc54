// y[pair] = epilogue(norm(x[pair / slots]) W[expert of the pair]): gemv.glsl for experts whose trellises and scales lie
// one behind the other. Workgroup (c, s, pair); pairs of idle rows are left out.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

layout(push_constant, scalar) uniform Push { mrl_push_trellis_moe p; };
uvec2 expert_trellis, expert_suh, expert_svh;
#define TRELLIS expert_trellis
#define SUH expert_suh
#define X_ROW(m) (gl_WorkGroupID.z / p.slots)
#include "trellis/gemv.glsl"
#include "include/activation.glsl"

bool gemv_prologue()
{
    const int expert = BufI32(p.ids).v[gl_WorkGroupID.z];
    if (expert < 0)
        return false;
    expert_trellis = address_at(p.trellis, uint(expert), p.k_padded / 16 * p.n_padded * RATE2);
    expert_suh = address_at(p.suh, uint(expert), 2 * p.k_padded);
    expert_svh = address_at(p.svh, uint(expert), 2 * p.n_padded);
    return true;
}

void finish_column(uint m, uint n, float sum)
{
    if (n >= p.n)
        return;
    const uint at = gl_WorkGroupID.z * p.n + n;
    float y = sum * half_to_float(uint(BufU16(expert_svh).v[n]));
    if (is_gated(ACTIVATION)) // gate's own product was computed before
        y *= activate(ACTIVATION, load_act(p.gate, at, Y_TYPE));
    store_act(p.y, at, Y_TYPE, y);
}

// What the trellis kernels do with a column sum that has been through the output transform and times svh: bias,
// activation, residual, conversion. Gated activations act on x. Needs the push block p (mrl_push_trellis) and
// ACTIVATION and Y_TYPE; RESIDUAL(at) where element `at` of the residual was asked for before.
#include "include/activation.glsl"
#include "include/address.glsl"

#ifndef HAS_RESIDUAL
#define HAS_RESIDUAL !is_null(p.residual)
#endif
#ifndef RESIDUAL
#define RESIDUAL(at) BufF32(p.residual).v[at]
#endif

// Column n of row m; columns beyond p.n are padding.
void finish_column(uint m, uint n, float y)
{
    if (n >= p.n)
        return;
    const uint at = m * p.n + n;
    if (!is_null(p.bias))
        y += BufF32(p.bias).v[n];
    if (!is_gated(ACTIVATION))
        y = activate(ACTIVATION, y);
    if (HAS_RESIDUAL)
        y += RESIDUAL(at);
    store_act(p.y, m * p.y_stride + n, Y_TYPE, y);
}

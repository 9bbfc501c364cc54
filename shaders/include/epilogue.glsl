// What the matmul kernels do with a finished sum: per-row scale, bias, activation, residual, conversion.
// Needs the push block p (mrl_push_matmul, or one with its fields) and the constants SCALE, GROUP, ACTIVATION, Y_TYPE.
// ROW_SCALE(n), where it is defined before, is the scale of column n of y in place of the scale plane's row n.
#include "include/scale.glsl"
#include "include/activation.glsl"

#ifndef ROW_SCALE
#define ROW_SCALE(n) load_scale(p.scale, n, SCALE)
#endif

// sum: x . W[n]; applies what is constant along a row of W.
float finish(float sum, uint n)
{
    float scale = p.global_scale;
    if (SCALE != SCALE_NONE && GROUP == 0)
        scale *= ROW_SCALE(n);
    return sum * scale + (is_null(p.bias) ? 0.0 : BufF32(p.bias).v[n]);
}

// Columns n and n + 1 (n even) of row m; second: column n + 1 exists.
void store_pair(uint m, uint n, float a, float b, bool second)
{
    if (is_gated(ACTIVATION)) {
        const uint at = m * (p.n / 2) + n / 2;
        float y = activate(ACTIVATION, a) * b;
        if (!is_null(p.residual))
            y += BufF32(p.residual).v[at];
        store_act(p.y, at, Y_TYPE, y);
        return;
    }
    const uint at = m * p.n + n;
    vec2 y = vec2(activate(ACTIVATION, a), activate(ACTIVATION, b));
    if (!is_null(p.residual)) {
        y.x += BufF32(p.residual).v[at];
        if (second)
            y.y += BufF32(p.residual).v[at + 1];
    }
    store_act(p.y, at, Y_TYPE, y.x);
    if (second)
        store_act(p.y, at + 1, Y_TYPE, y.y);
}

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

// Whether rows of y and of the residual can be written and read by fours.
bool stores_eight() { return (p.n & 7u) == 0 && ((p.y.x | p.residual.x) & 15u) == 0; }

// Columns n .. n + 7 of row m, n a multiple of 8, where stores_eight().
void store_eight(uint m, uint n, const float v[8])
{
    if (is_gated(ACTIVATION)) {
        const uint at = m * (p.n / 2) + n / 2;
        vec4 y;
        [[unroll]] for (uint j = 0; j < 4; j++)
            y[j] = activate(ACTIVATION, v[2 * j]) * v[2 * j + 1];
        if (!is_null(p.residual))
            y += BufF32x4(p.residual).v[at / 4];
        store_act4(p.y, at, Y_TYPE, y);
        return;
    }
    [[unroll]] for (uint h = 0; h < 8; h += 4) {
        const uint at = m * p.n + n + h;
        vec4 y;
        [[unroll]] for (uint j = 0; j < 4; j++)
            y[j] = activate(ACTIVATION, v[h + j]);
        if (!is_null(p.residual))
            y += BufF32x4(p.residual).v[at / 4];
        store_act4(p.y, at, Y_TYPE, y);
    }
}

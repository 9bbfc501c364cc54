// epilogue.glsl, which stands before this file, for columns n .. n + 3, n a multiple of 4. The constant FOURS says
// whether n, y_stride and all addresses allow four at once.

// What bias and residual have for them; with FOURS only.
vec4 bias4(uint n) { return is_null(p.bias) || n >= p.n ? vec4(0.0) : BufF32x4(p.bias).v[n / 4]; }
vec4 residual4(uint m, uint n)
{
    return is_null(p.residual) || n >= p.n ? vec4(0.0) : BufF32x4(p.residual).v[(m * p.n + n) / 4];
}

void finish_quad(uint m, uint n, vec4 y, vec4 bias, vec4 residual)
{
    if (!FOURS) {
        [[unroll]] for (uint j = 0; j < 4; j++)
            finish_column(m, n + j, y[j]);
        return;
    }
    if (n >= p.n)
        return;
    if (!is_null(p.bias))
        y += bias;
    if (!is_gated(ACTIVATION))
        [[unroll]] for (uint j = 0; j < 4; j++)
            y[j] = activate(ACTIVATION, y[j]);
    if (!is_null(p.residual))
        y += residual;
    store_act4(p.y, m * p.y_stride + n, Y_TYPE, y);
}

// The body of the tiled kernels in plain f32: matmul/gemm.comp says what it does. Before it come the constants SCALE,
// ZERO, GROUP and X_TYPE, the push block p, an epilogue, and these hooks:
//
//   TILE_PROLOGUE       if defined, main() calls tile_prologue() first and ends where that is false
//   X_ROW(i)            row of x that is row i of the tile
//   W_ROW(n)            row of the planes of W that column n of y, perhaps beyond the last, comes from
//   STORE_PAIR(i, n, a, b, second)   stores columns n and n + 1 of row i of the tile if that row exists
#include "matmul/load_weights.glsl"

#define TILE 64
#define STEP 32
#define PITCH (TILE + 4)

shared float xs[STEP * PITCH]; // [k][m]
shared float ws[STEP * PITCH]; // [k][n]

void main()
{
#ifdef TILE_PROLOGUE
    if (!tile_prologue())
        return;
#endif
    const uint t = gl_LocalInvocationIndex, n0 = gl_WorkGroupID.x * TILE;
    // Loading: thread t brings 8 elements of row t / 4. Computing: it owns rows tm.. and columns tn..
    const uint row = t / 4, part = (t % 4) * 8, tm = (t / 16) * 4, tn = (t % 16) * 4;
    const uint xm = X_ROW(row), wn = W_ROW(n0 + row);
    float acc[16];

    [[unroll]] for (uint i = 0; i < 16; i++)
        acc[i] = 0.0;
    for (uint k = 0; k < p.k; k += STEP) {
        float w[8];
        load_weights8(wn, k + part, w);
        [[unroll]] for (uint i = 0; i < 8; i++) {
            const uint at = k + part + i;
            xs[(part + i) * PITCH + row] = at < p.k ? load_act(p.x, xm * p.k + at, X_TYPE) : 0.0;
            ws[(part + i) * PITCH + row] = w[i];
        }
        barrier();
        for (uint i = 0; i < STEP; i++) {
            float a[4], b[4];
            [[unroll]] for (uint j = 0; j < 4; j++) {
                a[j] = xs[i * PITCH + tm + j];
                b[j] = ws[i * PITCH + tn + j];
            }
            [[unroll]] for (uint j = 0; j < 16; j++)
                acc[j] = fma(a[j / 4], b[j % 4], acc[j]);
        }
        barrier();
    }
    [[unroll]] for (uint i = 0; i < 4; i++)
        [[unroll]] for (uint j = 0; j < 4; j += 2) {
            const uint n = n0 + tn + j;
            if (n < p.n)
                STORE_PAIR(tm + i, n, finish(acc[i * 4 + j], n), finish(acc[i * 4 + j + 1], min(n + 1, p.n - 1)),
                           n + 1 < p.n);
        }
}

// The body of the tiled kernels in plain f32: matmul/gemm.comp says what it does. Before it come the constants SCALE,
// ZERO, GROUP, X_TYPE and TILE (32 or 64 rows and columns of y, for 256 threads), the push block p, an epilogue, and
// these hooks:
//
//   TILE_PROLOGUE       if defined, main() calls tile_prologue() first and ends where that is false
//   X_ROW(i)            row of x that is row i of the tile
//   W_ROW(n)            row of the planes of W that column n of y, perhaps beyond the last, comes from
//   STORE_PAIR(i, n, a, b, second)   stores columns n and n + 1 of row i of the tile if that row exists
#include "matmul/load_weights.glsl"

const uint STEP = 2048 / TILE; // along k: a thread brings 8 elements of x and of W
const uint PARTS = STEP / 8;   // threads that share a row of it
const uint OWN = TILE / 16;    // a thread makes so many rows and columns of y

shared float xs[STEP * TILE]; // [k][m]
shared float ws[STEP * TILE]; // [k][n]

// Where row or column 0 of element k lies; others stand at their number exclusive-or this, so that the threads that
// share a row, 8 elements apart, write to different banks. A multiple of what a thread owns.
uint swizzle(uint k) { return k / 8 * (32 / PARTS); }

// The 8 elements of x and of W that a thread brings for a step.
#define FETCH_STEP(step)                                                                                               \
    {                                                                                                                  \
        const uint first = (step) + part;                                                                              \
        bits = load_unit(wn, first);                                                                                   \
        second = load_second(bits, wn, first);                                                                         \
        [[unroll]] for (uint i = 0; i < 8; i++)                                                                        \
            x[i] = first + i < p.k ? load_act(p.x, xm * p.k + first + i, X_TYPE) : 0.0;                                \
    }

void main()
{
#ifdef TILE_PROLOGUE
    if (!tile_prologue())
        return;
#endif
    const uint t = gl_LocalInvocationIndex, n0 = gl_WorkGroupID.x * TILE;
    const uint row = t / PARTS, part = t % PARTS * 8, tm = t / 16 * OWN, tn = t % 16 * OWN;
    const uint xm = X_ROW(row), wn = W_ROW(n0 + row);
    float acc[OWN * OWN], x[8];
    uvec4 bits, second; // of W

    [[unroll]] for (uint i = 0; i < OWN * OWN; i++)
        acc[i] = 0.0;
    FETCH_STEP(0)
    for (uint k = 0; k < p.k; k += STEP) {
        float w[8];
        decode_weights8(bits, second, wn, k + part, w);
        [[unroll]] for (uint i = 0; i < 8; i++) {
            xs[(part + i) * TILE + (row ^ swizzle(part))] = x[i];
            ws[(part + i) * TILE + (row ^ swizzle(part))] = w[i];
        }
        barrier();
        if (k + STEP < p.k) // on its way while this step is multiplied
            FETCH_STEP(k + STEP)
        for (uint i = 0; i < STEP; i++) {
            float a[OWN], b[OWN];
            [[unroll]] for (uint j = 0; j < OWN; j++) {
                a[j] = xs[i * TILE + (tm ^ swizzle(i)) + j];
                b[j] = ws[i * TILE + (tn ^ swizzle(i)) + j];
            }
            [[unroll]] for (uint j = 0; j < OWN * OWN; j++)
                acc[j] = fma(a[j / OWN], b[j % OWN], acc[j]);
        }
        barrier();
    }
    [[unroll]] for (uint i = 0; i < OWN; i++)
        [[unroll]] for (uint j = 0; j < OWN; j += 2) {
            const uint n = n0 + tn + j;
            if (n < p.n)
                STORE_PAIR(tm + i, n, finish(acc[i * OWN + j], n), finish(acc[i * OWN + j + 1], min(n + 1, p.n - 1)),
                           n + 1 < p.n);
        }
}

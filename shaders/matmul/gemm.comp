// y (m, n) = epilogue(x (m, k) . W (n, k)^T) for many rows of x, in plain f32: runs on every device.
//
// A workgroup of 256 owns 64 x 64 of y and walks k in steps of 32 through shared memory; a thread owns 4 x 4.
// Workgroup (x, y) = (tile of n, tile of m).
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"
#include "matmul/load_weights.glsl"

#define TILE 64
#define STEP 32
#define PITCH (TILE + 4)

shared float xs[STEP * PITCH]; // [k][m]
shared float ws[STEP * PITCH]; // [k][n]

void main()
{
    const uint t = gl_LocalInvocationIndex, m0 = gl_WorkGroupID.y * TILE, n0 = gl_WorkGroupID.x * TILE;
    // Loading: thread t brings 8 elements of row t / 4. Computing: it owns rows tm.. and columns tn..
    const uint row = t / 4, part = (t % 4) * 8, tm = (t / 16) * 4, tn = (t % 16) * 4;
    const uint xm = min(m0 + row, p.m - 1), wn = min(n0 + row, p.n - 1);
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
            const uint m = m0 + tm + i, n = n0 + tn + j;
            if (m < p.m && n < p.n)
                store_pair(m, n, finish(acc[i * 4 + j], n), finish(acc[i * 4 + j + 1], min(n + 1, p.n - 1)),
                           n + 1 < p.n);
        }
}

// y (m, n) = epilogue(x (m, k) . W (n, k)^T) for many rows of x, in plain f32: runs on every device.
//
// A workgroup of 256 owns TILE x TILE of y and walks k through shared memory; a thread owns 4 x 4, or 2 x 2 of low
// tiles. Workgroup (x, y) = (tile of n, tile of m).
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint TILE = 64; // or 32: more workgroups for products with few columns

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"

void store_row_pair(uint m, uint n, float a, float b, bool second)
{
    if (m < p.m)
        store_pair(m, n, a, b, second);
}

#define M0 (gl_WorkGroupID.y * TILE)
#define X_ROW(i) min(M0 + (i), p.m - 1)
#define W_ROW(column) min(column, p.n - 1)
#define STORE_PAIR(i, n, a, b, second) store_row_pair(M0 + (i), n, a, b, second)
#include "matmul/gemm.glsl"

// y (m, n) = epilogue(x (m, k) . W (n, k)^T) on KHR cooperative matrices: f16 operands, f32 sums.
//
// A workgroup of 8 subgroups of 32 owns BM rows x BN columns of y and walks k in steps of 32. While the matrix
// units work on the step in shared memory, every thread has the loads of the next one in flight in registers;
// weights are decoded on their way to shared memory, so high tiles decode least. Subgroups stand in BM / 64 rows and
// 512 / BM columns; each owns 64 rows as 4 x COLUMNS matrices of 16 x 16. Workgroup (x, y) = (tile of n, tile of m).
#extension GL_KHR_cooperative_matrix : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint BN = 128;     // 128 or 256
layout(constant_id = 8) const uint BUFFERS = 2;  // tiles in shared memory: 2 saves a barrier a step
layout(constant_id = 9) const uint BM = 128;     // 128 or 256

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"

#define ROWS 4
const uint COLUMNS = BM * BN / 8192;
const uint X_FETCH = BM / 128;
const uint HEIGHT = BM / 64;

void store_row_pair(uint m, uint n, float a, float b, bool second)
{
    if (m < p.m)
        store_pair(m, n, a, b, second);
}

void store_row_eight(uint m, uint n, const float v[8])
{
    if (m < p.m)
        store_eight(m, n, v);
}

#define M0 (gl_WorkGroupID.y * BM)
#define X_GUARD
#define X_ROW(i) min(M0 + gl_LocalInvocationIndex / 2 + (i) * 128, p.m - 1)
#define W_ROW(column) min(column, p.n - 1)
#define STORE_PAIR(i, n, a, b, second) store_row_pair(M0 + (i), n, a, b, second)
#define STORE_EIGHT(i, n, v) store_row_eight(M0 + (i), n, v)
#define TILE_ROWS (p.m - M0)
#include "matmul/gemm_coopmat.glsl"

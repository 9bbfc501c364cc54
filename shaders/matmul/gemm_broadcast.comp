// y (m, n) = epilogue(x (m, k) . W (n, k)^T) for devices whose loads are dear and whose shuffles are free: llvmpipe
// loads lane by lane, some 100 cycles a subgroup, but takes a broadcast of one lane as an operand.
//
// A workgroup is one subgroup. A lane owns two columns of y (so that gated pairs meet) in ROWS rows:
//
//   columns   lane 0: n0, n0 + 1   lane 1: n0 + 2, n0 + 3 ...      weights: a unit of 16 bytes each, decoded once
//   x row r   lane 0: k0           lane 1: k0 + 1         ...      one load a row and step, then broadcast lane by lane
//
// Workgroup (x, y) = (tile of 2 * lanes columns, tile of ROWS rows). No barriers, no shared memory.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint ROWS = 8;

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"
#include "matmul/load_weights.glsl"

#define STEP 8 // of k: what load_weights8 brings
const uint SUMS = 2 * ROWS;

void main()
{
    const uint lane = gl_SubgroupInvocationID, lanes = gl_WorkGroupSize.x;
    const uint n0 = (gl_WorkGroupID.x * lanes + lane) * 2, m0 = gl_WorkGroupID.y * ROWS;
    const uint first = min(n0, p.n - 1), second = min(n0 + 1, p.n - 1);
    float acc[SUMS];

    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
    for (uint k = 0; k < p.k; k += STEP) {
        float w0[STEP], w1[STEP];
        load_weights8(first, k, w0);
        load_weights8(second, k, w1);
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            const uint row = min(m0 + r, p.m - 1) * p.k;
            [[unroll]] for (uint i = 0; i < STEP; i += lanes) {
                const uint at = k + i + lane;
                const float x = at < p.k ? load_act(p.x, row + at, X_TYPE) : 0.0;
                [[unroll]] for (uint j = 0; j < min(lanes, STEP); j++) {
                    const float xj = subgroupBroadcast(x, j);
                    acc[2 * r] = fma(xj, w0[i + j], acc[2 * r]);
                    acc[2 * r + 1] = fma(xj, w1[i + j], acc[2 * r + 1]);
                }
            }
        }
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        if (m0 + r < p.m && n0 < p.n)
            store_pair(m0 + r, n0, finish(acc[2 * r], first), finish(acc[2 * r + 1], second), n0 + 1 < p.n);
}

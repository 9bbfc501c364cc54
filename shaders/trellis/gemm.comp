// sums (splits, m, n_padded) = x (m, k) Q for many rows of the transformed x, in plain f32: runs on every device.
//
// Workgroup (c, r, s) of 256 owns columns 128 c .. and rows 32 r .. of the sums over its share of k, which it walks
// in steps of 64: thread 64 g + l decodes lane l of tile g of the step (exact f16 values) into shared memory, then
// owns 4 rows x 4 columns of the product.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint STEPS = 1; // of 64 rows of Q that a workgroup has at most

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#include "include/trellis.glsl"
#include "include/address.glsl"

#define ROWS 32
#define X_PITCH 36
#define W_PITCH 132

shared float xs[64 * X_PITCH];  // [k][m]
shared uint ws[32 * W_PITCH];   // [k / 2][n]: two f16

void main()
{
    const uint t = gl_LocalInvocationIndex, g = t / 64, lane = t % 64, units = p.k_padded / UNIT_ROWS;
    const uint m0 = gl_WorkGroupID.y * ROWS, tm = t / 32 * 4, tn = t % 32;
    const uint first = gl_WorkGroupID.z * STEPS, steps = min(STEPS, p.k_padded / 64 - first);
    float acc[16];

    [[unroll]] for (uint i = 0; i < 16; i++)
        acc[i] = 0.0;
    for (uint step = first; step < first + steps; step++) {
        const uint tile = step * 4 + g;
        load_tile(p.trellis, unit_at(gl_WorkGroupID.x, tile / TILES, units), lane, tile % TILES);
        [[unroll]] for (uint c = 0; c < 32; c += 2) {
            const uint column = lane / 8 * 16 + lane % 8 + c / 4 % 2 * 8, row = c / 8 * 2 + c / 2 % 2 * 8;
            ws[(g * 8 + row / 2) * W_PITCH + column] =
                packHalf2x16(vec2(value_of(state_of(c)), value_of(state_of(c + 1))));
        }
        // Thread t brings 8 elements of row t / 8 of x.
        const uint m = min(m0 + t / 8, p.m - 1), k = t % 8 * 8;
        [[unroll]] for (uint i = 0; i < 8; i += 4) {
            const vec4 x = BufF32x4(p.x).v[(m * p.k_padded + step * 64 + k + i) / 4];
            [[unroll]] for (uint j = 0; j < 4; j++)
                xs[(k + i + j) * X_PITCH + t / 8] = x[j];
        }
        barrier();
        for (uint i = 0; i < 32; i++) {
            vec2 b[4];
            [[unroll]] for (uint j = 0; j < 4; j++)
                b[j] = unpackHalf2x16(ws[i * W_PITCH + tn + 32 * j]);
            [[unroll]] for (uint r = 0; r < 4; r++) {
                const float a0 = xs[2 * i * X_PITCH + tm + r], a1 = xs[(2 * i + 1) * X_PITCH + tm + r];
                [[unroll]] for (uint j = 0; j < 4; j++)
                    acc[r * 4 + j] = fma(a1, b[j].y, fma(a0, b[j].x, acc[r * 4 + j]));
            }
        }
        barrier();
    }
    [[unroll]] for (uint r = 0; r < 4; r++)
        if (m0 + tm + r < p.m) {
            const uvec2 y = address_at(p.partial, gl_WorkGroupID.z * p.m + m0 + tm + r, p.n_padded * 4);
            [[unroll]] for (uint j = 0; j < 4; j++)
                BufF32(y).v[gl_WorkGroupID.x * 128 + tn + 32 * j] = acc[r * 4 + j];
        }
}

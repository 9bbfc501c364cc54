// The decoded matrix Q (k, n), f16 and exact; or, with LEFT, diag(suh) P Q in f32: the rows of the weight that still
// lack the output side's transform.
//
// Workgroup (b, a) of 64 owns 128 rows x 16 columns: thread 8 t + m decodes lane m of tile t. Rows from tile row p.row
// on, of which the first is the first of the result. Always f32 arithmetic.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint LEFT = 0;
layout(constant_id = 4) const bool LOOPS = false;

layout(push_constant, scalar) uniform Push { mrl_push_trellis_copy p; };
#include "include/trellis.glsl"
#include "include/address.glsl"

#define HADAMARD_PITCH 132
const uint LANES = 64;

shared float work[16 * HADAMARD_PITCH]; // [column][row]

#include "include/hadamard_work.glsl"

void main()
{
    const uint t = gl_LocalInvocationIndex, tile = t / 8, m = t % 8, units = p.k / UNIT_ROWS;
    const uint block = p.row / 8 + gl_WorkGroupID.y;
    const uint unit = block * (128 / UNIT_ROWS) + tile / TILES, lane = gl_WorkGroupID.x % 8 * 8 + m;

    load_tile(p.trellis, unit_at(gl_WorkGroupID.x / 8, unit, units), lane, tile % TILES);
    [[unroll]] for (uint c = 0; c < 32; c++) {
        const uint column = m + c / 4 % 2 * 8, row = c / 8 * 2 + c / 2 % 2 * 8 + c % 2;
        work[column * HADAMARD_PITCH + tile * 16 + row] = value_of(state_of(c));
    }
    barrier();
    if (LEFT != 0)
        hadamard_work(16);
    for (uint i = t; i < 2048; i += 64) {
        const uint row = gl_WorkGroupID.y * 128 + i / 16, column = i % 16;
        const float v = work[column * HADAMARD_PITCH + i / 16];
        const uvec2 y = address_at(p.file, row, p.n * (LEFT != 0 ? 4 : 2));
        if (LEFT != 0)
            BufF32(y).v[gl_WorkGroupID.x * 16 + column] =
                v * half_to_float(uint(BufU16(p.suh).v[block * 128 + i / 16]));
        else
            BufU16(y).v[gl_WorkGroupID.x * 16 + column] = uint16_t(float_to_half(v));
    }
}

// Writes cache rows: [rms_norm(kv[:RANK]) * norm | rope(kv[RANK:])] at (slot, position). kv (rows,
// RANK + ROPE_DIM). One workgroup a row, a unit of 8 elements a lane and turn.
// Source: DeepSeek-V2, arXiv 2405.04434, equations 9 and 15 (the norm as in the released code).
#include "include/mla.glsl"
#include "include/reduce.glsl"

layout(constant_id = 11) const uint HELD = 1; // units of a row that a lane has at most

shared float turned[ROPE_DIM];

// Elements 8 unit .. of a row of kv.
void load_unit(uvec2 kv, uint unit, out float v[8])
{
    if ((kv.x & 15u) == 0) {
        const vec4 low = load_act4(kv, 8 * unit, X), high = load_act4(kv, 8 * unit + 4, X);
        [[unroll]] for (uint j = 0; j < 4; j++) {
            v[j] = low[j];
            v[4 + j] = high[j];
        }
    } else {
        [[unroll]] for (uint j = 0; j < 8; j++)
            v[j] = load_act(kv, 8 * unit + j, X);
    }
}

void main()
{
    uint row = gl_WorkGroupID.x;
    uvec2 kv = address_at(p.x, row, ROW * act_bytes(X));
    float x[8 * HELD], norm[8 * HELD], squares = 0.0;

    // Everything is on its way before the position, which says where it goes, has come.
    int position = BufI32(p.positions).v[row], slot = BufI32(p.slots).v[row];
    [[unroll]] for (uint h = 0; h < HELD; h++) {
        const uint unit = gl_LocalInvocationIndex + h * gl_WorkGroupSize.x;
        float v[8];
        load_unit(kv, min(unit, ROW_UNITS - 1), v);
        [[unroll]] for (uint j = 0; j < 8; j++) {
            x[8 * h + j] = v[j];
            norm[8 * h + j] = unit < RANK / 8 ? BufF32(p.norm).v[8 * unit + j] : 0.0;
            squares += unit < RANK / 8 ? v[j] * v[j] : 0.0;
        }
    }
    // Element by element: sines are a kilobyte of machine code each time they stand there.
    for (uint base = 0; base < ROPE_DIM; base += gl_WorkGroupSize.x) {
        const uint e = min(base + gl_LocalInvocationIndex, ROPE_DIM - 1);
        turned[e] = mla_turned(kv, RANK, e, max(position, 0));
    }
    barrier();
    float factor = inversesqrt(workgroup_add(squares) / float(RANK) + p.eps);
    if (!mla_valid(slot, position))
        return;
    uint first = mla_unit(uint(slot), uint(position));
    [[unroll]] for (uint h = 0; h < HELD; h++) {
        const uint unit = gl_LocalInvocationIndex + h * gl_WorkGroupSize.x;
        uint bits[8];
        [[unroll]] for (uint j = 0; j < 8; j++)
            bits[j] = kv_bits(unit < RANK / 8 ? x[8 * h + j] * factor * norm[8 * h + j]
                                              : turned[min(8 * unit + j - RANK, ROPE_DIM - 1)]);
        if (unit < ROW_UNITS)
            kv_store(p.cache, first + unit, kv_pack(bits));
    }
}

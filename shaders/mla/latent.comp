// Writes cache rows: [rms_norm(kv[:RANK]) * norm | rope(kv[RANK:])] at (slot, position). kv (rows,
// RANK + ROPE_DIM). One workgroup a row, a unit of 8 elements a lane and turn.
// Source: DeepSeek-V2, arXiv 2405.04434, equations 9 and 15 (the norm as in the released code).
#include "include/mla.glsl"
#include "include/reduce.glsl"

void main()
{
    uint row = gl_WorkGroupID.x;
    int position = BufI32(p.positions).v[row], slot = BufI32(p.slots).v[row];
    if (!mla_valid(slot, position))
        return;
    uvec2 kv = address_at(p.x, row, ROW * act_bytes(X));
    uint first = mla_unit(uint(slot), uint(position));
    float squares = 0.0;

    for (uint i = gl_LocalInvocationIndex; i < RANK; i += gl_WorkGroupSize.x) {
        float x = load_act(kv, i, X);
        squares += x * x;
    }
    float factor = inversesqrt(workgroup_add(squares) / float(RANK) + p.eps);
    for (uint unit = gl_LocalInvocationIndex; unit < ROW_UNITS; unit += gl_WorkGroupSize.x) {
        uint bits[8];
        [[unroll]] for (uint j = 0; j < 8; j++) {
            uint e = unit * 8 + j;
            float x = e < RANK ? load_act(kv, e, X) * factor * BufF32(p.norm).v[e]
                               : mla_turned(kv, RANK, e - RANK, position);
            bits[j] = kv_bits(x);
        }
        kv_store(p.cache, first + unit, kv_pack(bits));
    }
}

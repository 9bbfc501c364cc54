// Causal attention of consecutive rows of one slot, after rope.comp, on KHR cooperative matrices: what prefill.comp
// does in plain arithmetic. p.qkv is the rotated q here, (rows, heads * DIM) f32; K and V are in the f16 cache, this
// call's rows included.
//
// Line n of a kv head is row n / RATIO, head n % RATIO of those that share it. Grid (line tiles, kv_heads).
#extension GL_KHR_cooperative_matrix : require
#include "include/kv.glsl"
layout(constant_id = 4) const uint QKV = ACT_F16; // of the rows with gates
layout(constant_id = 7) const uint OUT = ACT_F16;
layout(constant_id = 8) const uint RATIO = 1;      // q heads a kv head
layout(constant_id = 9) const uint SUBGROUPS = 8;
layout(constant_id = 10) const uint SUBGROUP = 32; // its size: 8, 16 or 32

const uint K_DIM = DIM;
const uint V_DIM = DIM;
const float LOG2_E = 1.4426950408889634;
const float LOWEST = -3.0e38; // -inf would make NaN of differences

uint lines() { return p.rows * RATIO; }
uint line_row(uint line) { return line / RATIO; }
uint line_element(uint line) { return (gl_WorkGroupID.y * RATIO + line % RATIO) * DIM; }

int row_position(uint row, out int slot)
{
    const int position = BufI32(p.positions).v[row];
    slot = BufI32(p.slots).v[row];
    return kv_valid(slot, position) ? position : -1;
}

vec4 load_q(uint line, uint i)
{
    const uvec2 row = address_at(p.qkv, line_row(line), p.heads * DIM * 4);
    return BufF32x4(row).v[line_element(line) / 4 + i] * (p.scale * LOG2_E);
}

uvec4 load_k(uint slot, uint key, uint i) { return BufU32x4(p.cache_k).v[kv_unit(slot, key, gl_WorkGroupID.y) + i]; }
uvec4 load_v(uint slot, uint key, uint i) { return BufU32x4(p.cache_v).v[kv_unit(slot, key, gl_WorkGroupID.y) + i]; }

#include "include/store8.glsl"
#include "include/output_gate.glsl"

void store_o(uint line, uint at, bool idle, vec4 a, vec4 b)
{
    const uint row = line_row(line), first = line_element(line) + at;
    if (!is_null(p.gate) && !idle)
        [[unroll]] for (uint i = 0; i < 4; i++) {
            a[i] *= output_gate(gate_row(row), first + i);
            b[i] *= output_gate(gate_row(row), first + 4 + i);
        }
    store_act8(address_at(p.y, row, p.heads * DIM * (OUT == ACT_F32 ? 4 : 2)), first, OUT, a, b);
}

#include "attention/prefill_coopmat.glsl"

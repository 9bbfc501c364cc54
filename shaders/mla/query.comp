// Absorbed queries, f32: y_h = [q_h[:NOPE] W_uk_h | rope(q_h[NOPE:])] * softmax scale * log2(e).
// q (rows, HEADS * (NOPE + ROPE_DIM)) -> y (rows, HEADS, RANK + ROPE_DIM).
//
// W_uk_h is NOPE rows of kv_b, RANK long. A workgroup owns COLUMNS of them, 8 a lane; SPLIT groups of
// lanes deal out the rows and add up in shared memory. Grid (column tiles + 1, HEADS, rows): the last
// workgroup of a head turns the rope part.
//
// On a CPU (BROADCAST) a workgroup is one subgroup: a lane owns a unit of 16 bytes of every row, and elements of q are
// loaded one a lane and broadcast, with the scales of their rows where these have one each.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2 (W_uk absorbed into the query).
#include "include/mla.glsl"
#include "include/scale.glsl"
layout(constant_id = 11) const uint SCALE = 0;
layout(constant_id = 12) const uint ZERO = 0;
layout(constant_id = 13) const uint GROUP = 0;
layout(constant_id = 14) const uint SPLIT = 1;
layout(constant_id = 15) const uint ACROSS = 8; // lanes along the columns: local size / SPLIT
layout(constant_id = 16) const uint BROADCAST = 0;
layout(constant_id = 17) const uint BATCH = 1; // rows whose loads are under way together
#include "matmul/load_weights.glsl"

const uint COLUMNS = 8 * ACROSS;
const bool ROW_SCALED = SCALE != SCALE_NONE && (GROUP == 0 || GROUP >= RANK);
const bool UNIT_SCALED = SCALE != SCALE_NONE && !(GROUP == 0 || GROUP >= RANK);
const float LOG2_E = 1.4426950408889634;

shared float sums[SPLIT > 1 ? SPLIT * COLUMNS : 1];

// Columns column .. column + FMT_UNIT - 1 of y.
void broadcast_columns(uvec2 q, uint q_head, uint head, uint column, float factor, BufF32 y)
{
    const uint lanes = gl_WorkGroupSize.x, from = min(column, (RANK - 1) / FMT_UNIT * FMT_UNIT);
    float acc[FMT_UNIT];

    [[unroll]] for (uint j = 0; j < FMT_UNIT; j++)
        acc[j] = 0.0;
    for (uint n0 = 0; n0 < NOPE; n0 += lanes) {
        const uint own = min(n0 + gl_SubgroupInvocationID, NOPE - 1);
        float mine = load_act(q, q_head + own, X) * factor * p.global_scale;
        if (ROW_SCALED)
            mine *= load_scale(p.scale, (head * (NOPE + VALUES) + own) * p.groups, SCALE);
        if (n0 + gl_SubgroupInvocationID >= NOPE)
            mine = 0.0;
        [[unroll]] for (uint i = 0; i < lanes; i++) {
            float w[FMT_UNIT];
            const float x = subgroupBroadcast(mine, i);
            load_weights_unit(head * (NOPE + VALUES) + min(n0 + i, NOPE - 1), from, UNIT_SCALED, w);
            [[unroll]] for (uint j = 0; j < FMT_UNIT; j++)
                acc[j] = fma(x, w[j], acc[j]);
        }
    }
    [[unroll]] for (uint j = 0; j < FMT_UNIT; j++)
        if (column + j < RANK)
            y.v[column + j] = acc[j];
}

void main()
{
    uint head = gl_WorkGroupID.y, row = gl_WorkGroupID.z, q_head = head * (NOPE + ROPE_DIM);
    uvec2 q = address_at(p.x, row, HEADS * (NOPE + ROPE_DIM) * act_bytes(X));
    BufF32 y = BufF32(address_at(p.y, row * HEADS + head, ROW * 4));
    float factor = p.softmax * LOG2_E;

    if (gl_WorkGroupID.x == gl_NumWorkGroups.x - 1) {
        int position = max(BufI32(p.positions).v[row], 0);
        for (uint e = gl_LocalInvocationIndex; e < ROPE_DIM; e += gl_WorkGroupSize.x)
            y.v[RANK + e] = factor * mla_turned(q, q_head + NOPE, e, position);
        return;
    }
    if (BROADCAST != 0) {
        broadcast_columns(q, q_head, head, gl_GlobalInvocationID.x * FMT_UNIT, factor, y);
        return;
    }
    uint lane = gl_LocalInvocationIndex % ACROSS, part = gl_LocalInvocationIndex / ACROSS;
    uint tile = gl_WorkGroupID.x * COLUMNS, column = min(tile + lane * 8, RANK - 8);
    float acc[8];
    [[unroll]] for (uint j = 0; j < 8; j++)
        acc[j] = 0.0;
    for (uint base = 0; base < NOPE; base += BATCH * SPLIT)
        [[unroll]] for (uint i = 0; i < BATCH; i++) {
            uint n = min(base + i * SPLIT + part, NOPE - 1), w_row = head * (NOPE + VALUES) + n;
            float w[8], x = load_act(q, q_head + n, X) * factor * p.global_scale;
            if (SCALE != SCALE_NONE && GROUP == 0)
                x *= load_scale(p.scale, w_row, SCALE);
            load_weights8(w_row, column, w);
            [[unroll]] for (uint j = 0; j < 8; j++)
                acc[j] = fma(base + i * SPLIT + part < NOPE ? x : 0.0, w[j], acc[j]);
        }
    if (SPLIT == 1) {
        if (tile + lane * 8 < RANK)
            [[unroll]] for (uint j = 0; j < 8; j++)
                y.v[column + j] = acc[j];
        return;
    }
    [[unroll]] for (uint j = 0; j < 8; j++)
        sums[part * COLUMNS + j * ACROSS + lane] = acc[j];
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < COLUMNS && tile + i < RANK; i += gl_WorkGroupSize.x) {
        float sum = 0.0;
        [[unroll]] for (uint s = 0; s < SPLIT; s++)
            sum += sums[s * COLUMNS + i % 8 * ACROSS + i / 8];
        y.v[tile + i] = sum;
    }
}

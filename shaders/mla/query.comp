// Absorbed queries, f32 or f16: y_h = [q_h[:NOPE] W_uk_h | rope(q_h[NOPE:])] * softmax scale * log2(e).
// q (rows, HEADS * (NOPE + ROPE_DIM)) -> y (rows, HEADS, RANK + ROPE_DIM).
//
// W_uk_h is NOPE rows of kv_b, RANK long. A workgroup owns COLUMNS of them, 8 a lane; SPLIT groups of lanes deal out
// the rows and add up in shared memory, where the query is as well. Grid (column tiles + 1, HEADS, rows): the last
// workgroup of a head turns the rope part.
//
// On a CPU (BROADCAST) a workgroup is one subgroup: a lane owns a unit of 16 bytes of every row, and elements of q are
// loaded one a lane and broadcast, with the scales of their rows where these have one each.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2 (W_uk absorbed into the query).
layout(constant_id = 19) const bool SHARES = false; // q is one row, in p.shares shares
#define LOAD_X(x, at) rope_of_q(x, at)
float rope_of_q(uvec2 q, uint at);
#include "include/mla.glsl"
#include "include/shares.glsl"
#include "include/scale.glsl"
layout(constant_id = 11) const uint SCALE = 0;
layout(constant_id = 12) const uint ZERO = 0;
layout(constant_id = 13) const uint GROUP = 0;
layout(constant_id = 14) const uint SPLIT = 1;
layout(constant_id = 15) const uint ACROSS = 8; // lanes along the columns: local size / SPLIT
layout(constant_id = 16) const uint BROADCAST = 0;
layout(constant_id = 17) const uint BATCH = 1; // rows whose loads are under way together, at most 8
layout(constant_id = 18) const uint Y = ACT_F32; // ACT_F32 or ACT_F16
#include "matmul/load_weights.glsl"

float load_q(uvec2 q, uint at)
{
    return SHARES ? sum_shares(q, 0, HEADS * (NOPE + ROPE_DIM), p.shares, at) : load_act(q, at, X);
}

const uint COLUMNS = 8 * ACROSS;
const bool ROW_SCALED = SCALE != SCALE_NONE && (GROUP == 0 || GROUP >= RANK);
const bool UNIT_SCALED = SCALE != SCALE_NONE && !(GROUP == 0 || GROUP >= RANK);
const float LOG2_E = 1.4426950408889634;

const uint PITCH = 8 * (ACROSS + 1);           // of the lines of sums: so that parts and columns meet in no bank
const uint TEAM = SPLIT >= 32 ? 4 : 1;         // lanes that add up a column
const uint PADDED = (NOPE + SPLIT - 1) / SPLIT * SPLIT;
shared float queries[PADDED > ROPE_DIM ? PADDED : ROPE_DIM]; // of the head, or its rope part
shared float sums[SPLIT > 1 ? SPLIT * PITCH : 1];

uvec4 asked[8]; // indices are literals: NVIDIA unrolls loops too late for what lives across a barrier
#define EACH_ASKED(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define ASK(i)                                                                                                         \
    if (i < BATCH)                                                                                                     \
        asked[i] = load_unit(head_row + min(i * SPLIT + part, NOPE - 1), column);
#define ADD_ASKED(i)                                                                                                   \
    if (i < BATCH) {                                                                                                   \
        float w[8];                                                                                                    \
        decode_weights8(asked[i], head_row + min(i * SPLIT + part, NOPE - 1), column, w);                              \
        [[unroll]] for (uint j = 0; j < 8; j++)                                                                        \
            acc[j] = fma(queries[i * SPLIT + part], w[j], acc[j]);                                                     \
    }

float rope_of_q(uvec2 q, uint at)
{
    return BROADCAST != 0 ? load_q(q, at) : queries[at - gl_WorkGroupID.y * (NOPE + ROPE_DIM) - NOPE];
}

// The last workgroup of a head.
void turn_rope(uvec2 q, uint q_head, uint row, float factor, uvec2 y)
{
    const int position = max(BufI32(p.positions).v[row], 0);
    for (uint e = gl_LocalInvocationIndex; e < ROPE_DIM; e += gl_WorkGroupSize.x)
        store_act(y, RANK + e, Y, factor * mla_turned(q, q_head + NOPE, e, position));
}

// Columns column .. column + FMT_UNIT - 1 of y.
void broadcast_columns(uvec2 q, uint q_head, uint head, uint column, float factor, uvec2 y)
{
    const uint lanes = gl_WorkGroupSize.x, from = min(column, (RANK - 1) / FMT_UNIT * FMT_UNIT);
    float acc[FMT_UNIT];

    [[unroll]] for (uint j = 0; j < FMT_UNIT; j++)
        acc[j] = 0.0;
    for (uint n0 = 0; n0 < NOPE; n0 += lanes) {
        const uint own = min(n0 + gl_SubgroupInvocationID, NOPE - 1);
        float mine = load_q(q, q_head + own) * factor * p.global_scale;
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
            store_act(y, column + j, Y, acc[j]);
}

void main()
{
    uint head = gl_WorkGroupID.y, row = gl_WorkGroupID.z, q_head = head * (NOPE + ROPE_DIM);
    uvec2 q = address_at(p.x, row, HEADS * (NOPE + ROPE_DIM) * act_bytes(X));
    uvec2 y = address_at(p.y, row * HEADS + head, ROW * act_bytes(Y));
    float factor = p.softmax * LOG2_E;

    // The last workgroup, but without gl_NumWorkGroups, which comes later than the push block does.
    const bool rope = gl_WorkGroupID.x * (BROADCAST != 0 ? ACROSS * FMT_UNIT : COLUMNS) >= RANK;
    if (BROADCAST != 0) {
        if (rope)
            turn_rope(q, q_head, row, factor, y);
        else
            broadcast_columns(q, q_head, head, gl_GlobalInvocationID.x * FMT_UNIT, factor, y);
        return;
    }
    const uint thread = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    const uint lane = thread % ACROSS, part = thread / ACROSS, head_row = head * (NOPE + VALUES);
    const uint tile = gl_WorkGroupID.x * COLUMNS, column = min(tile + lane * 8, RANK - 8);
    float acc[8];
    [[unroll]] for (uint j = 0; j < 8; j++)
        acc[j] = 0.0;
    // The first weights are on their way before the barrier: behind it the compiler asks for a few at a time.
    EACH_ASKED(ASK)
    // Of both kinds of workgroups in the same code.
    const uint most = rope ? ROPE_DIM : PADDED, count = rope ? ROPE_DIM : NOPE;
    [[dont_unroll]] for (uint base = 0; base < most; base += gl_WorkGroupSize.x) {
        const uint n = min(base + thread, most - 1);
        float x = n < count ? load_q(q, q_head + (rope ? NOPE : 0) + n) : 0.0;
        if (!rope)
            x *= factor * p.global_scale;
        if (SCALE != SCALE_NONE && GROUP == 0 && n < NOPE && !rope)
            x *= load_scale(p.scale, head_row + n, SCALE);
        queries[n] = x;
    }
    barrier();
    if (rope) {
        turn_rope(q, q_head, row, factor, y);
        return;
    }
    EACH_ASKED(ADD_ASKED)
    [[dont_unroll]] for (uint n = BATCH * SPLIT + part; n < PADDED; n += SPLIT) {
        float w[8];
        load_weights8(head_row + min(n, NOPE - 1), column, w);
        [[unroll]] for (uint j = 0; j < 8; j++)
            acc[j] = fma(queries[n], w[j], acc[j]);
    }
    if (SPLIT == 1) {
        if (tile + lane * 8 < RANK)
            [[unroll]] for (uint j = 0; j < 8; j++)
                store_act(y, column + j, Y, acc[j]);
        return;
    }
    [[unroll]] for (uint j = 0; j < 8; j++)
        sums[part * PITCH + j * (ACROSS + 1) + lane] = acc[j];
    barrier();
    for (uint base = 0; base < COLUMNS * TEAM; base += gl_WorkGroupSize.x) {
        const uint i = min((base + thread) / TEAM, COLUMNS - 1);
        float sum = 0.0;
        [[unroll]] for (uint s = 0; s < SPLIT; s += TEAM)
            sum += sums[(s + thread % TEAM) * PITCH + i % 8 * (ACROSS + 1) + i / 8];
        [[unroll]] for (uint mask = 1; mask < TEAM; mask *= 2)
            sum += subgroupShuffleXor(sum, mask);
        if (thread % TEAM == 0 && tile + i < RANK && (base + thread) / TEAM == i)
            store_act(y, tile + i, Y, sum);
    }
}

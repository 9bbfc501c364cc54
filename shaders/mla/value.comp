// y_h = W_uv_h (sum over chunks of O / sum of weights): the end of latent attention. Chunk results as
// mla/decode.comp leaves them -> y (rows, HEADS * VALUES).
//
// W_uv_h is VALUES rows of kv_b, RANK long. A workgroup first puts the chunks of its head together
// (every workgroup of the head does, that spares a dispatch), then a subgroup owns ROWS rows at a time.
// Grid (row tiles, HEADS, rows). Idle rows get zeros.
//
// On a CPU (BROADCAST) a lane owns ROWS rows and the latent is shared by broadcasts: matmul/broadcast.glsl. TURNS is 1.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2 (W_uv absorbed into the output).
#include "include/mla.glsl"
#include "include/scale.glsl"
layout(constant_id = 11) const uint SCALE = 0;
layout(constant_id = 12) const uint ZERO = 0;
layout(constant_id = 13) const uint GROUP = 0;
layout(constant_id = 14) const uint ROWS = 1;  // a subgroup, at a time
layout(constant_id = 15) const uint TURNS = 1; // times a workgroup takes ROWS rows a subgroup
layout(constant_id = 16) const uint MERGE = 1; // chunks whose results are loaded at once
layout(constant_id = 17) const uint BROADCAST = 0;
#include "matmul/load_weights.glsl"

const uint QUADS = RANK / 4;
const uint SCALES = GROUP != 0 && GROUP < FMT_UNIT ? FMT_UNIT / GROUP : 1; // groups in a unit

shared vec4 latent[QUADS];

// Quad i of the attention over all chunks.
vec4 merged(uint row, uint head, uint busy, uint i)
{
    vec4 o = vec4(0.0);
    float highest = LOWEST, sum = 0.0;
    for (uint c = 0; c < busy; c += MERGE) {
        vec4 x[MERGE];
        vec2 stat[MERGE];
        float top = highest;
        [[unroll]] for (uint j = 0; j < MERGE; j++) {
            BufF32x4 from = BufF32x4(mla_partial(p.x, row, head, min(c + j, busy - 1)));
            x[j] = from.v[i];
            stat[j] = from.v[QUADS].xy;
        }
        [[unroll]] for (uint j = 0; j < MERGE; j++)
            top = max(top, stat[j].x);
        float shrink = exp2(highest - top);
        o *= shrink;
        sum *= shrink;
        [[unroll]] for (uint j = 0; j < MERGE; j++) {
            float weight = c + j < busy ? exp2(stat[j].x - top) : 0.0;
            o += weight * x[j];
            sum += weight * stat[j].y;
        }
        highest = top;
    }
    return o / sum;
}

// ---- the same by broadcasts

uint k_padded() { return p.k_padded; }
uint group_of(uint k) { return GROUP == 0 ? 0 : min(k / max(GROUP, 1), p.groups - 1); }

void decode(uvec4 w, uint piece, float zero, out A2 v[FMT_CHUNK / 2])
{
#if FMT_ZERO
    if (ZERO != 0) {
        fmt_decode8z(w, piece, A(zero), v);
        return;
    }
#endif
    fmt_decode8(w, piece, v);
}

uvec2 partials; // of the head
uint busy_chunks;
float top, total; // of the scores and weights of all chunks

BufF32 partial_of(uint chunk) { return BufF32(address_at(partials, chunk, PARTIAL * 4)); }

void weigh_chunks()
{
    top = LOWEST;
    total = 0.0;
    for (uint c = 0; c < busy_chunks; c++)
        top = max(top, partial_of(c).v[RANK]);
    for (uint c = 0; c < busy_chunks; c++)
        total += partial_of(c).v[RANK + 1] * exp2(partial_of(c).v[RANK] - top);
}

float merged_element(uint k)
{
    float o = 0.0;
    for (uint c = 0; c < busy_chunks; c++)
        o += partial_of(c).v[k] * exp2(partial_of(c).v[RANK] - top);
    return o / total;
}

#define NORM 0
#define UNIT_UNSCALED (SCALE == SCALE_NONE || GROUP == 0)
#define BROADCAST_K RANK
#define BROADCAST_X(slot, k) merged_element(k)
#include "matmul/broadcast.glsl"

// Rows first + lane * ROWS .. of the head.
void walk_broadcast(uint row, uint head, uint first, uint busy, uvec2 y)
{
    const uint row0 = first + gl_SubgroupInvocationID * ROWS, head_row = head * (NOPE + VALUES) + NOPE;
    float acc[ROWS];
    uint rows[ROWS];

    partials = mla_partial(p.x, row, head, 0);
    busy_chunks = busy;
    weigh_chunks();
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        rows[r] = head_row + min(row0 + r, VALUES - 1);
        acc[r] = 0.0;
    }
    broadcast_rows(0, rows, acc);
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        float sum = acc[r] * p.global_scale;
        if (SCALE != SCALE_NONE && GROUP == 0)
            sum *= load_scale(p.scale, rows[r], SCALE);
        if (row0 + r < VALUES)
            store_act(y, row0 + r, OUT, sum);
    }
}

void main()
{
    uint head = gl_WorkGroupID.y, row = gl_WorkGroupID.z;
    uint step = (BROADCAST != 0 ? gl_WorkGroupSize.x : gl_NumSubgroups) * ROWS, first = gl_WorkGroupID.x * step * TURNS;
    int position = BufI32(p.positions).v[row];
    uvec2 y = address_at(p.y, row * HEADS + head, VALUES * act_bytes(OUT));

    if (!mla_valid(BufI32(p.slots).v[row], position)) {
        for (uint i = first + gl_LocalInvocationIndex; i < min(first + step * TURNS, VALUES);
             i += gl_WorkGroupSize.x)
            store_act(y, i, OUT, 0.0);
        return;
    }
    uint count = uint(position) + 1, length = mla_chunk_length(count), busy = (count + length - 1) / length;
    if (BROADCAST != 0) {
        walk_broadcast(row, head, first, busy, y);
        return;
    }
    for (uint i = gl_LocalInvocationIndex; i < QUADS; i += gl_WorkGroupSize.x)
        latent[i] = merged(row, head, busy, i);
    barrier();
    for (uint turn = 0; turn < TURNS; turn++) {
        uint row0 = first + turn * step + gl_SubgroupID * ROWS;
        float acc[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; r++)
            acc[r] = 0.0;
        for (uint k = gl_SubgroupInvocationID * 8; k < RANK; k += gl_SubgroupSize * 8) {
            vec4 low = latent[k / 4], high = latent[k / 4 + 1];
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                float w[8];
                load_weights8(head * (NOPE + VALUES) + NOPE + min(row0 + r, VALUES - 1), k, w);
                acc[r] += dot(low, vec4(w[0], w[1], w[2], w[3])) + dot(high, vec4(w[4], w[5], w[6], w[7]));
            }
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            float sum = subgroupAdd(acc[r]) * p.global_scale;
            uint n = row0 + r;
            if (n < VALUES && gl_SubgroupInvocationID == r % gl_SubgroupSize) {
                if (SCALE != SCALE_NONE && GROUP == 0)
                    sum *= load_scale(p.scale, head * (NOPE + VALUES) + NOPE + n, SCALE);
                store_act(y, n, OUT, sum);
            }
        }
    }
}

// y_h = W_uv_h (sum over chunks of O / sum of weights): the end of latent attention. Chunk results as
// mla/decode.comp leaves them -> y (rows, HEADS * VALUES).
//
// W_uv_h is VALUES rows of kv_b, RANK long. A workgroup first puts the chunks of its head together
// (every workgroup of the head does, that spares a dispatch), then a subgroup owns ROWS rows at a time.
// Grid (row tiles, HEADS, rows). Idle rows get zeros.
//
// All loads are under way before anything is waited for: the weights, results of chunks whether they count or not, and
// the position that tells which do. SHARES threads deal out the chunks of four elements.
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
layout(constant_id = 18) const uint SHARES = 1;
layout(constant_id = 19) const uint HELD = 1;  // units of a row that a lane has at most
#include "matmul/load_weights.glsl"

const uint QUADS = RANK / 4;
const uint SCALES = GROUP != 0 && GROUP < FMT_UNIT ? FMT_UNIT / GROUP : 1; // groups in a unit

const uint UNITS = RANK / FMT_UNIT + (RANK % FMT_UNIT == 0 ? 0 : 1);
const uint LATENT_QUADS = UNITS * FMT_UNIT / 4 > QUADS ? UNITS * FMT_UNIT / 4 : QUADS; // the tail of a unit is zeros
const uint HELD_BITS = ROWS * HELD;

shared vec4 latent[LATENT_QUADS];
shared vec4 share_quads[SHARES > 1 ? SHARES * QUADS : 1];
shared vec2 share_stats[SHARES]; // maximum and sum

// Chunks share, share + SHARES ... of quad i: O, maximum and sum of the weights.
void merge(uint row, uint head, uint busy, uint i, uint share, out vec4 o, out vec2 stats)
{
    o = vec4(0.0);
    stats = vec2(LOWEST, 0.0);
    for (uint c = share; c < p.chunks; c += MERGE * SHARES) {
        vec4 x[MERGE];
        vec2 stat[MERGE];
        [[unroll]] for (uint j = 0; j < MERGE; j++) {
            BufF32x4 from = BufF32x4(mla_partial(p.x, row, head, min(c + j * SHARES, p.chunks - 1)));
            x[j] = from.v[i];
            stat[j] = from.v[QUADS].xy;
        }
        float top = stats.x;
        [[unroll]] for (uint j = 0; j < MERGE; j++)
            top = max(top, c + j * SHARES < busy ? stat[j].x : LOWEST);
        const float shrink = exp2(stats.x - top);
        o *= shrink;
        stats = vec2(top, stats.y * shrink);
        [[unroll]] for (uint j = 0; j < MERGE; j++)
            if (c + j * SHARES < busy) { // what others hold may be NaN
                const float weight = exp2(stat[j].x - top);
                o += weight * x[j];
                stats.y += weight * stat[j].y;
            }
    }
}

// The attention over all chunks to shared memory.
void merge_chunks(uint row, uint head, uint busy)
{
    for (uint base = 0; base < SHARES * QUADS; base += gl_WorkGroupSize.x) {
        const uint item = base + gl_LocalInvocationIndex, i = item % QUADS, share = min(item / QUADS, SHARES - 1);
        vec4 o;
        vec2 stats;
        merge(row, head, busy, i, share, o, stats);
        if (item >= SHARES * QUADS)
            continue;
        if (SHARES == 1) {
            latent[i] = o / stats.y;
            continue;
        }
        share_quads[item] = o;
        if (i == 0)
            share_stats[share] = stats;
    }
    for (uint i = QUADS + gl_LocalInvocationIndex; i < LATENT_QUADS; i += gl_WorkGroupSize.x)
        latent[i] = vec4(0.0);
    barrier();
    if (SHARES == 1)
        return;
    for (uint i = gl_LocalInvocationIndex; i < QUADS; i += gl_WorkGroupSize.x) {
        float top = LOWEST, sum = 0.0;
        vec4 o = vec4(0.0);
        [[unroll]] for (uint s = 0; s < SHARES; s++)
            top = max(top, share_stats[s].x);
        [[unroll]] for (uint s = 0; s < SHARES; s++) {
            const float weight = exp2(share_stats[s].x - top);
            o += weight * share_quads[s * QUADS + i];
            sum += weight * share_stats[s].y;
        }
        latent[i] = o / sum;
    }
    barrier();
}

// Units lane, lane + subgroup size ... of ROWS rows of the head from row0 on; those behind the last are never used.
void load_rows(uint head, uint row0, out uvec4 bits[HELD_BITS])
{
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        [[unroll]] for (uint h = 0; h < HELD; h++) {
            const uint unit = min(gl_SubgroupInvocationID + h * gl_SubgroupSize, UNITS - 1);
            bits[r * HELD + h] = load_unit(head * (NOPE + VALUES) + NOPE + min(row0 + r, VALUES - 1), unit * FMT_UNIT);
        }
}

// This lane's share of the products of those rows with the latent.
void multiply_rows(const uvec4 bits[HELD_BITS], uint head, uint row0, out float acc[ROWS])
{
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r] = 0.0;
    [[unroll]] for (uint h = 0; h < HELD; h++) {
        const uint unit = gl_SubgroupInvocationID + h * gl_SubgroupSize;
        if (unit >= UNITS)
            continue;
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            const uint w_row = head * (NOPE + VALUES) + NOPE + min(row0 + r, VALUES - 1);
            float w[FMT_UNIT];
            decode_unit(bits[r * HELD + h], w_row, unit * FMT_UNIT, SCALE != SCALE_NONE && GROUP != 0, w);
            [[unroll]] for (uint j = 0; j < FMT_UNIT; j += 4)
                acc[r] += dot(latent[unit * (FMT_UNIT / 4) + j / 4], vec4(w[j], w[j + 1], w[j + 2], w[j + 3]));
        }
    }
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
    uint row0 = first + gl_SubgroupID * ROWS;
    uvec4 bits[HELD_BITS];
    if (BROADCAST == 0)
        load_rows(head, row0, bits);
    int position = BufI32(p.positions).v[row];
    bool idle = !mla_valid(BufI32(p.slots).v[row], position);
    uvec2 y = address_at(p.y, row * HEADS + head, VALUES * act_bytes(OUT));
    uint count = idle ? 1 : uint(position) + 1, length = mla_chunk_length(count), busy = (count + length - 1) / length;

    if (BROADCAST == 0)
        merge_chunks(row, head, busy);
    if (idle) {
        for (uint i = first + gl_LocalInvocationIndex; i < min(first + step * TURNS, VALUES); i += gl_WorkGroupSize.x)
            store_act(y, i, OUT, 0.0);
        return;
    }
    if (BROADCAST != 0) {
        walk_broadcast(row, head, first, busy, y);
        return;
    }
    for (uint turn = 0; turn < TURNS; turn++) {
        if (turn > 0) {
            row0 += step;
            load_rows(head, row0, bits);
        }
        float acc[ROWS];
        multiply_rows(bits, head, row0, acc);
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

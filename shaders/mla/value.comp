// y_h = W_uv_h (sum over chunks of O / sum of weights): the end of latent attention. Chunk results as
// mla/decode.comp leaves them -> y (rows, HEADS * VALUES).
//
// W_uv_h is VALUES rows of kv_b, RANK long. A workgroup first puts the chunks of its head together
// (every workgroup of the head does, that spares a dispatch), then a subgroup owns ROWS rows at a time.
// Grid (row tiles, HEADS, rows). Idle rows get zeros.
//
// With MERGE all loads are under way before anything is waited for: the weights, results of chunks whether they count
// or not, and the position that tells which do. SHARES threads deal out the chunks of an item, four elements in f32 or
// eight in f16. Without, chunks are loaded one by one: where subgroups are small or chunks too many for the threads.
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
layout(constant_id = 16) const uint MERGE = 0; // results of chunks that a thread asks for, all at once; 0: a loop
layout(constant_id = 17) const uint BROADCAST = 0;
layout(constant_id = 18) const uint SHARES = 1;
layout(constant_id = 19) const uint HELD = 1;  // units of a row that a lane has at most
layout(constant_id = 20) const uint PARTIAL_TYPE = ACT_F32; // of results of chunks: ACT_F32 or ACT_F16
#define STATS_MAX 5 // times 32: all chunks that a workgroup can have asked for
#include "include/subgroup_sum.glsl"
#include "matmul/load_weights.glsl"

const uint SCALES = GROUP != 0 && GROUP < FMT_UNIT ? FMT_UNIT / GROUP : 1; // groups in a unit

const uint UNITS = RANK / FMT_UNIT + (RANK % FMT_UNIT == 0 ? 0 : 1);
const uint LATENT_QUADS = (UNITS * FMT_UNIT > RANK ? UNITS * FMT_UNIT : RANK) / 4; // the tail of a unit is zeros
const uint HELD_BITS = ROWS * HELD;
const uint LOADED = PARTIAL_TYPE == ACT_F16 ? 8 : 4; // elements of a chunk's result in 16 bytes
const uint ITEMS = RANK / LOADED;

shared vec4 latent[LATENT_QUADS];
shared float chunk_weights[MRL_MLA_CHUNKS]; // by which results are added up, but for 1 / total
shared float share_sums[SHARES > 1 ? SHARES * RANK : 1];

uvec2 results; // of the chunks of the head

vec4 result_unit(uint chunk, uint item) { return BufF32x4(results).v[chunk * (ITEMS + 1) + item]; }

// Their maximum and sum.
vec2 result_stats(uint chunk) { return result_unit(chunk, ITEMS).xy; }

// ---- the attention over all chunks

// What lives across a barrier has indices that are literals: NVIDIA unrolls loops too late.
vec4 asked[MRL_MLA_MERGE];
vec2 asked_stats[STATS_MAX];
vec4 merged[2];

#define EACH_ASKED(DO)                                                                                                 \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15) DO(16)
#define EACH_STATS(DO) DO(0) DO(1) DO(2) DO(3) DO(4)
#define ASK(j)                                                                                                         \
    if (j < MERGE)                                                                                                     \
        asked[j] = from.v[j * SHARES * (ITEMS + 1)];
#define ADD_ASKED(j)                                                                                                   \
    if (j < MERGE)                                                                                                     \
        add_chunk(asked[j], share + j * SHARES, busy);
#define ASK_STATS(j)                                                                                                   \
    if (32 * j < MERGE * SHARES)                                                                                       \
        asked_stats[j] = from.v[j * gl_SubgroupSize * (ITEMS + 1)].xy;
#define TOP_STATS(j)                                                                                                   \
    if (32 * j < MERGE * SHARES)                                                                                       \
        top = max(top, gl_SubgroupInvocationID + j * gl_SubgroupSize < busy ? asked_stats[j].x : LOWEST);
#define WEIGH_STATS(j)                                                                                                 \
    if (32 * j < MERGE * SHARES)                                                                                       \
        total += weigh_chunk(gl_SubgroupInvocationID + j * gl_SubgroupSize, busy, asked_stats[j], top);

float weigh_chunk(uint chunk, uint busy, vec2 stats, float top)
{
    const float weight = exp2(stats.x - top), sum = weight * stats.y;
    if (gl_SubgroupID == 0 && chunk < busy)
        chunk_weights[chunk] = PARTIAL_TYPE == ACT_F16 ? sum : weight;
    return chunk < busy ? sum : 0.0; // what others hold may be NaN
}

void add_chunk(vec4 x, uint chunk, uint busy)
{
    if (chunk >= busy)
        return;
    const float weight = chunk_weights[chunk];
    if (PARTIAL_TYPE == ACT_F16) {
        const uvec4 bits = floatBitsToUint(x);
        merged[0] += weight * vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
        merged[1] += weight * vec4(unpackHalf2x16(bits.z), unpackHalf2x16(bits.w));
    } else {
        merged[0] += weight * x;
    }
}

// Offsets from an address that is computed once are constants, which loads take for nothing. Behind the last chunk of
// the last head the host leaves room.
void ask_chunks(uint share, uint item)
{
    BufF32x4 from = BufF32x4(address_at(results, gl_SubgroupInvocationID * (ITEMS + 1) + ITEMS, 16));
    EACH_STATS(ASK_STATS)
    from = BufF32x4(address_at(results, share * (ITEMS + 1) + item, 16));
    EACH_ASKED(ASK)
}

// Weights to shared memory; the sum of them all. Each subgroup finds it, one stores.
float weigh_chunks(uint busy)
{
    float top = LOWEST, total = 0.0;
    EACH_STATS(TOP_STATS)
    if (MERGE == 0)
        for (uint c = gl_SubgroupInvocationID; c < busy; c += gl_SubgroupSize)
            top = max(top, result_stats(c).x);
    top = subgroup_max(top);
    EACH_STATS(WEIGH_STATS)
    if (MERGE == 0)
        for (uint c = gl_SubgroupInvocationID; c < busy; c += gl_SubgroupSize)
            total += weigh_chunk(c, busy, result_stats(c), top);
    return subgroup_sum(total);
}

void store_merged(uint share, uint item, float factor)
{
    [[unroll]] for (uint i = 0; i < LOADED; i += 4)
        if (SHARES == 1)
            latent[(item * LOADED + i) / 4] = merged[i / 4] * factor;
        else
            [[unroll]] for (uint j = 0; j < 4; j++)
                share_sums[share * RANK + item * LOADED + i + j] = merged[i / 4][j];
}

// The attention over all chunks to shared memory: SHARES threads deal out the chunks of an item. With MERGE they have
// been asked for, and a workgroup has a thread for each share of each item.
void merge_chunks(uint share, uint item, uint busy)
{
    const float factor = 1.0 / weigh_chunks(busy);
    barrier();
    if (MERGE != 0) {
        merged[0] = merged[1] = vec4(0.0);
        EACH_ASKED(ADD_ASKED)
        if (share < SHARES)
            store_merged(share, item, factor);
    } else {
        for (uint base = 0; base < SHARES * ITEMS; base += gl_WorkGroupSize.x) {
            const uint all = min(base + gl_LocalInvocationIndex, SHARES * ITEMS - 1);
            merged[0] = merged[1] = vec4(0.0);
            for (uint c = all / ITEMS; c < busy; c += SHARES)
                add_chunk(result_unit(c, all % ITEMS), c, busy);
            if (all == base + gl_LocalInvocationIndex)
                store_merged(all / ITEMS, all % ITEMS, factor);
        }
    }
    for (uint i = RANK / 4 + gl_LocalInvocationIndex; i < LATENT_QUADS; i += gl_WorkGroupSize.x)
        latent[i] = vec4(0.0);
    barrier();
    if (SHARES == 1)
        return;
    for (uint k = gl_LocalInvocationIndex; k < RANK; k += gl_WorkGroupSize.x) {
        float sum = 0.0;
        [[unroll]] for (uint s = 0; s < SHARES; s++)
            sum += share_sums[s * RANK + k];
        latent[k / 4][k % 4] = sum * factor;
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

uint busy_chunks;
float top, total; // of the scores and weights of all chunks

float result_element(uint chunk, uint k) { return BufF32(results).v[chunk * (RANK + 4) + k]; }

void weigh_results()
{
    top = LOWEST;
    total = 0.0;
    for (uint c = 0; c < busy_chunks; c++)
        top = max(top, result_element(c, RANK));
    for (uint c = 0; c < busy_chunks; c++)
        total += result_element(c, RANK + 1) * exp2(result_element(c, RANK) - top);
}

float merged_element(uint k)
{
    float o = 0.0;
    for (uint c = 0; c < busy_chunks; c++)
        o += result_element(c, k) * exp2(result_element(c, RANK) - top);
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

    busy_chunks = busy;
    weigh_results();
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
    const uint share = gl_LocalInvocationIndex / ITEMS, item = gl_LocalInvocationIndex % ITEMS;
    results = mla_partial(p.x, row, head, 0, PARTIAL_TYPE);
    if (BROADCAST == 0) {
        ask_chunks(share, item);
        load_rows(head, row0, bits);
    }
    int position = BufI32(p.positions).v[row];
    bool idle = !mla_valid(BufI32(p.slots).v[row], position);
    uvec2 y = address_at(p.y, row * HEADS + head, VALUES * act_bytes(OUT));
    uint count = idle ? 1 : uint(position) + 1, length = mla_chunk_length(count), busy = (count + length - 1) / length;

    if (BROADCAST == 0)
        merge_chunks(share, item, busy);
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
            float sum = subgroup_sum(acc[r]) * p.global_scale;
            uint n = row0 + r;
            if (n < VALUES && gl_SubgroupInvocationID == r % gl_SubgroupSize) {
                if (SCALE != SCALE_NONE && GROUP == 0)
                    sum *= load_scale(p.scale, head * (NOPE + VALUES) + NOPE + n, SCALE);
                store_act(y, n, OUT, sum);
            }
        }
    }
}

// One query row a slot, in one dispatch: norm + rope of q and k, cache write, attention over
// positions 0 .. position of the row's slot (split over workgroups), combination.
//
//   qkv row -> q heads (shared, f32) --+
//   qkv row -> k, v -> cache ----------+-> scores, softmax, O of a chunk -> partial -> last -> y
//
// Grid (chunks, kv_heads * blocks, rows). A workgroup owns a chunk of positions and up to GROUP of
// the q heads that share a kv head. Its subgroups are TILES wide over the heads; those with equal
// heads deal out the positions: a team of TEAM lanes takes KEYS rows at a time, a lane 8 elements
// of a row (UNITS times, where TEAM is less than DIM / 8), so that a row of K and V is loaded once
// for the TILE heads of the subgroup. The chunk length follows from the row's position: the active
// chunks share the positions evenly, whatever the bound was that the grid was captured for. The
// workgroups of the chunk that holds the position rope k; they use k and v from shared memory and
// the first block writes them to the cache. No other workgroup reads that row. Scores are in base
// 2: q is multiplied by scale * log2(e).
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; the split over
// workgroups is Dao et al. 2023, "Flash-Decoding".
#include "include/rope.glsl"
#include "include/arrive.glsl"

layout(constant_id = 7) const uint OUT = ACT_F16;
layout(constant_id = 8) const uint GROUP = 1;
layout(constant_id = 9) const uint TEAM = 4; // power of two, 4 .. subgroup size
layout(constant_id = 10) const uint TILE = 1;
// Floats of shared memory: at least GROUP * DIM, subgroups * TILE * DIM, 6 * local size.
layout(constant_id = 11) const uint WORK = 256;
layout(constant_id = 12) const uint SUBGROUPS = 1; // at least as many as there are
layout(constant_id = 13) const uint COUNTERS = 1;  // arrival counters at the start of the scratch
layout(constant_id = 14) const bool PIPELINED = false; // loads go out early and many at once
layout(constant_id = 15) const uint RATIO = 1;         // q heads that share a kv head

const uint TILES = (GROUP + TILE - 1) / TILE;
const uint UNITS = (HEAD_UNITS + TEAM - 1) / TEAM;
const uint KEYS = 4;            // the reduction of scores below is written for 4
const uint CHUNK_STEP = 32;     // chunk lengths are multiples of this many positions
const float LOWEST = -3.0e38;   // below all finite scores; -inf would make NaN of differences
const uint PARTIAL_BYTES = (GROUP * (DIM + 2) * 4 + 15) / 16 * 16;
const uint BLOCKS = (RATIO + GROUP - 1) / GROUP;
const uint MERGE = PIPELINED ? 8 : 1; // chunks whose results are loaded at once
const float LOG2_E = 1.4426950408889634;

// A chunk's result: GROUP * DIM / 2 pairs of O, then (maximum, sum) of each head, as
// arrive.glsl wants it. The qualifier stands at the member: glslang ignores it before a block of a buffer reference.
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer BufPartial {
    devicecoherent vec2 v[];
};
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer BufPartial4 {
    devicecoherent vec4 v[];
};

shared float work[WORK];
shared vec2 stats[SUBGROUPS * TILE]; // maximum and sum of each subgroup's heads
shared float raw[DIM];               // k of this position ...
shared uvec4 fresh[4 * HEAD_UNITS];  // ... and, with v, as the cache holds it: a and b of each unit

// Where element e of head h lies in shared memory: lanes that hold successive units meet different
// banks.
uint work_at(uint h, uint e) { return h * DIM + e % 8 * HEAD_UNITS + e / 8; }

// Elements i and i + 1 of y, i even.
void write_pair(uvec2 y, uint i, vec2 x)
{
    uvec2 bits = floatBitsToUint(x);
    if (OUT == ACT_F32)
        BufU32x2(y).v[i / 2] = bits;
    else if (OUT == ACT_F16)
        BufU32(y).v[i / 2] = f16_round(bits.x) | f16_round(bits.y) << 16;
    else
        BufU32(y).v[i / 2] = bf16_round(bits.x) | bf16_round(bits.y) << 16;
}

// The same, times the output gates.
void write_result(uvec2 qkv, uvec2 y, uint i, vec2 x)
{
    if (!is_null(p.gate))
        x *= vec2(output_gate(qkv, i), output_gate(qkv, i + 1));
    write_pair(y, i, x);
}

// What the chunks first, first + step ... give for elements 4 i .. 4 i + 3: O, maximum, sum.
void merge(uvec2 partials, uint busy, uint i, uint first, uint step, out vec4 o, out float highest,
           out float sum)
{
    o = vec4(0.0);
    highest = LOWEST;
    sum = 0.0;
    for (uint c = first; c < busy; c += MERGE * step) {
        vec4 x[MERGE];
        vec2 stat[MERGE];
        float top = highest;
        [[unroll]] for (uint j = 0; j < MERGE; j++) {
            uvec2 from = address_at(partials, min(c + j * step, busy - 1), PARTIAL_BYTES);
            x[j] = BufPartial4(from).v[i];
            stat[j] = BufPartial(from).v[GROUP * DIM / 2 + 4 * i / DIM];
        }
        [[unroll]] for (uint j = 0; j < MERGE; j++)
            top = max(top, stat[j].x);
        float shrink = exp2(highest - top);
        o *= shrink;
        sum *= shrink;
        [[unroll]] for (uint j = 0; j < MERGE; j++) {
            float weight = c + j * step < busy ? exp2(stat[j].x - top) : 0.0;
            o += weight * x[j];
            sum += weight * stat[j].y;
        }
        highest = top;
    }
}

void write_quad(uvec2 qkv, uvec2 y, uint i, vec4 x)
{
    write_result(qkv, y, i, x.xy);
    write_result(qkv, y, i + 2, x.zw);
}

float team_max4(float x)
{
    x = max(x, subgroupShuffleXor(x, 1));
    return max(x, subgroupShuffleXor(x, 2));
}

void main()
{
    uint chunk = gl_WorkGroupID.x, row = gl_WorkGroupID.z;
    uint kv_head = gl_WorkGroupID.y / BLOCKS, block = gl_WorkGroupID.y % BLOCKS;
    uint first_head = kv_head * RATIO + block * GROUP, heads = min(GROUP, RATIO - block * GROUP);
    int at = BufI32(p.positions).v[row], in_slot = BufI32(p.slots).v[row];
    uvec2 y = address_at(p.y, row, p.heads * DIM * (OUT == ACT_F32 ? 4 : 2));

    if (!kv_valid(in_slot, at)) {
        uint pairs = chunk == 0 ? heads * DIM / 2 : 0;
        for (uint i = gl_LocalInvocationIndex; i < pairs; i += gl_WorkGroupSize.x)
            write_pair(y, first_head * DIM + 2 * i, vec2(0.0));
        return;
    }
    uint position = uint(at), slot = uint(in_slot), count = position + 1;
    uint share_of_it = (count + p.chunks - 1) / p.chunks;
    uint chunk_length = (share_of_it + CHUNK_STEP - 1) / CHUNK_STEP * CHUNK_STEP;
    uint busy = (count + chunk_length - 1) / chunk_length;
    if (chunk >= busy)
        return;
    uint first = chunk * chunk_length, last = min(first + chunk_length, count);
    bool holds_fresh = chunk == busy - 1;

    uint part = gl_SubgroupInvocationID % TEAM, team = gl_SubgroupInvocationID / TEAM;
    uint teams = gl_SubgroupSize / TEAM;
    uint tile = gl_SubgroupID % TILES, stream = gl_SubgroupID / TILES;
    uint streams = gl_NumSubgroups / TILES;
    uint stride = streams * teams * KEYS;               // positions a turn of the workgroup
    uint key0 = first + (stream * teams + team) * KEYS; // this team's, in the first turn
    KvUnit k[KEYS * UNITS], v[KEYS * UNITS];

    // The next KEYS rows of the team. What must not be read becomes zeros, for it may be NaN, and 0
    // * NaN would spoil the sum.
#define LOAD(units, cache)                                                                         \
    [[unroll]] for (uint i = 0; i < KEYS; i++)                                                     \
        [[unroll]] for (uint u = 0; u < UNITS; u++) {                                              \
            uint key = key0 + i, unit = part + u * TEAM;                                           \
            units[i * UNITS + u] = kv_zero();                                                      \
            if (key < min(last, position) && unit < HEAD_UNITS)                                    \
                units[i * UNITS + u] = kv_load(cache, kv_unit(slot, key, kv_head) + unit);         \
        }
#define TAKE_FRESH(units, half_row)                                                                \
    [[unroll]] for (uint i = 0; i < KEYS; i++)                                                     \
        [[unroll]] for (uint u = 0; u < UNITS; u++)                                                \
            if (holds_fresh && key0 + i == position && part + u * TEAM < HEAD_UNITS) {             \
                uint at_unit = 2 * (half_row * HEAD_UNITS + part + u * TEAM);                      \
                units[i * UNITS + u] = KvUnit(fresh[at_unit], fresh[at_unit + 1]);                 \
            }
    // The first loads go out before q is ready.
    if (PIPELINED) {
        LOAD(k, p.cache_k)
        LOAD(v, p.cache_v)
    }

    // One head a subgroup: q to shared memory; k and v, by who holds this position, to the cache as
    // well.
    uvec2 qkv = rope_row(row);
    for (uint h = gl_SubgroupID; h < heads + (holds_fresh ? 2 : 0); h += gl_NumSubgroups) {
        bool is_q = h < heads, is_k = h == heads;
        uint head = is_q ? (first_head + h) * q_stride()
                         : p.heads * q_stride() + ((is_k ? 0 : p.kv_heads) + kv_head) * DIM;
        if (is_q || is_k) {
            uvec2 weight = is_q ? p.q_norm : p.k_norm;
            float factor = rope_norm(qkv, head, weight), multiply = is_q ? p.scale * LOG2_E : 1.0;
            for (uint i = gl_SubgroupInvocationID; i < DIM / 2; i += gl_SubgroupSize) {
                uvec2 pair = rope_pair(i);
                vec2 x = rope_rotate(qkv, head, i, rope_turn(at, i), factor, weight) * multiply;
                if (is_q) {
                    work[work_at(h, pair.x)] = x.x;
                    work[work_at(h, pair.y)] = x.y;
                } else {
                    raw[pair.x] = x.x;
                    raw[pair.y] = x.y;
                }
            }
        }
        if (!is_q) {
            subgroupMemoryBarrierShared();
            subgroupBarrier(); // raw has been written by this very subgroup
            for (uint unit = gl_SubgroupInvocationID; unit < HEAD_UNITS; unit += gl_SubgroupSize) {
                uint bits[8], to = 2 * (unit + (is_k ? 0 : HEAD_UNITS));
                [[unroll]] for (uint j = 0; j < 8; j++)
                    bits[j] = kv_bits(is_k ? raw[8 * unit + j]
                                           : load_act(qkv, head + 8 * unit + j, QKV));
                KvUnit packed = kv_pack(bits);
                fresh[to] = packed.a;
                fresh[to + 1] = packed.b;
                if (block == 0)
                    kv_store(is_k ? p.cache_k : p.cache_v,
                             kv_unit(slot, position, kv_head) + unit, packed);
            }
        }
    }
    barrier();

    vec4 q[TILE * UNITS * 2], o[TILE * UNITS * 2];
    float m[TILE], l[TILE];
    [[unroll]] for (uint h = 0; h < TILE; h++) {
        m[h] = LOWEST;
        l[h] = 0.0;
        [[unroll]] for (uint u = 0; u < 2 * UNITS; u++) {
            uint head = tile * TILE + h, element = (part + u / 2 * TEAM) * 8 + u % 2 * 4;
            o[h * 2 * UNITS + u] = vec4(0.0);
            q[h * 2 * UNITS + u] = vec4(0.0);
            if (head < heads && element < DIM)
                [[unroll]] for (uint j = 0; j < 4; j++)
                    q[h * 2 * UNITS + u][j] = work[work_at(head, element + j)];
        }
    }

    if (stream < streams) // the same for a whole subgroup
        for (uint turn = 0; turn < last - first; turn += stride) {
            if (!PIPELINED) {
                LOAD(k, p.cache_k)
                LOAD(v, p.cache_v)
            }
            TAKE_FRESH(k, 0)
            TAKE_FRESH(v, 1)
            float s[TILE * KEYS];
            [[unroll]] for (uint h = 0; h < TILE * KEYS; h++)
                s[h] = 0.0;
            [[unroll]] for (uint i = 0; i < KEYS; i++)
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    vec4 low = kv_low(k[i * UNITS + u]), high = kv_high(k[i * UNITS + u]);
                    [[unroll]] for (uint h = 0; h < TILE; h++)
                        s[h * KEYS + i] += dot(low, q[(h * UNITS + u) * 2]) +
                                           dot(high, q[(h * UNITS + u) * 2 + 1]);
                }
            uint mine = key0 + (part & 3), from = gl_SubgroupInvocationID & ~3u;
            bool odd = (part & 1) != 0, upper = (part & 2) != 0;
            float w[TILE * KEYS];
            [[unroll]] for (uint h = 0; h < TILE; h++) {
                // Sums over the team by halving: lane `part` ends with the score of key part & 3.
                float a = odd ? s[h * 4 + 1] : s[h * 4], b = odd ? s[h * 4 + 3] : s[h * 4 + 2];
                a += subgroupShuffleXor(odd ? s[h * 4] : s[h * 4 + 1], 1);
                b += subgroupShuffleXor(odd ? s[h * 4 + 2] : s[h * 4 + 3], 1);
                float x = (upper ? b : a) + subgroupShuffleXor(upper ? a : b, 2);
                [[unroll]] for (uint mask = 4; mask < TEAM; mask *= 2)
                    x += subgroupShuffleXor(x, mask);

                float highest = max(m[h], team_max4(mine < last ? x : LOWEST));
                float weight = mine < last ? exp2(x - highest) : 0.0, shrink = exp2(m[h] - highest);
                m[h] = highest;
                l[h] = l[h] * shrink + weight;
                [[unroll]] for (uint i = 0; i < KEYS; i++)
                    w[h * KEYS + i] = subgroupShuffle(weight, from + i);
                [[unroll]] for (uint u = 0; u < 2 * UNITS; u++)
                    o[h * 2 * UNITS + u] *= shrink;
            }
            [[unroll]] for (uint i = 0; i < KEYS; i++)
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    vec4 low = kv_low(v[i * UNITS + u]), high = kv_high(v[i * UNITS + u]);
                    [[unroll]] for (uint h = 0; h < TILE; h++) {
                        o[(h * UNITS + u) * 2] += w[h * KEYS + i] * low;
                        o[(h * UNITS + u) * 2 + 1] += w[h * KEYS + i] * high;
                    }
                }
            key0 += stride;
            if (PIPELINED) {
                LOAD(k, p.cache_k)
                LOAD(v, p.cache_v)
            }
        }

    // Teams of a subgroup, by shuffles.
    [[unroll]] for (uint h = 0; h < TILE; h++) {
        float highest = m[h];
        for (uint mask = TEAM; mask < gl_SubgroupSize; mask *= 2)
            highest = max(highest, subgroupShuffleXor(highest, mask));
        float shrink = exp2(m[h] - highest);
        m[h] = highest;
        l[h] *= shrink;
        l[h] += subgroupShuffleXor(l[h], 1);
        l[h] += subgroupShuffleXor(l[h], 2);
        for (uint mask = TEAM; mask < gl_SubgroupSize; mask *= 2)
            l[h] += subgroupShuffleXor(l[h], mask);
        [[unroll]] for (uint u = 0; u < 2 * UNITS; u++) {
            o[h * 2 * UNITS + u] *= shrink;
            for (uint mask = TEAM; mask < gl_SubgroupSize; mask *= 2)
                o[h * 2 * UNITS + u] += subgroupShuffleXor(o[h * 2 * UNITS + u], mask);
        }
    }
    // Subgroups, through shared memory.
    barrier(); // q has been read
    if (team == 0 && stream < streams)
        [[unroll]] for (uint h = 0; h < TILE; h++) {
            if (part == 0)
                stats[gl_SubgroupID * TILE + h] = vec2(m[h], l[h]);
            [[unroll]] for (uint u = 0; u < 2 * UNITS; u++) {
                uint element = (part + u / 2 * TEAM) * 8 + u % 2 * 4;
                if (element < DIM)
                    [[unroll]] for (uint j = 0; j < 4; j++)
                        work[work_at(gl_SubgroupID * TILE + h, element + j)] =
                            o[h * 2 * UNITS + u][j];
            }
        }
    barrier();
    uint group = row * p.kv_heads * BLOCKS + gl_WorkGroupID.y;
    uvec2 partials = address_at(p.partial, COUNTERS, 4);
    partials = address_at(partials, group * p.chunks, PARTIAL_BYTES);
    BufPartial partial = BufPartial(address_at(partials, chunk, PARTIAL_BYTES));
    for (uint i = gl_LocalInvocationIndex; i < heads * DIM / 2; i += gl_WorkGroupSize.x) {
        uint h = 2 * i / DIM, rest = i % (DIM / 2);
        // Successive lanes take successive units.
        uint element = rest % HEAD_UNITS * 8 + rest / HEAD_UNITS * 2;
        float highest = LOWEST, sum = 0.0;
        vec2 value = vec2(0.0);
        for (uint n = 0; n < streams; n++)
            highest = max(highest, stats[n * TILES * TILE + h].x);
        for (uint n = 0; n < streams; n++) {
            uint at_head = n * TILES * TILE + h;
            float shrink = exp2(stats[at_head].x - highest);
            sum += stats[at_head].y * shrink;
            value += shrink * vec2(work[work_at(at_head, element)],
                                   work[work_at(at_head, element + 1)]);
        }
        if (busy == 1) {
            write_result(qkv, y, (first_head + h) * DIM + element, value / sum);
        } else {
            partial.v[(h * DIM + element) / 2] = value;
            if (element == 0)
                partial.v[GROUP * DIM / 2 + h] = vec2(highest, sum);
        }
    }
    if (busy == 1)
        return;

    // The last to arrive combines, always in the same order.
    if (!last_to_arrive(p.partial, group, busy))
        return;
    uint quads = heads * DIM / 4, shares = gl_WorkGroupSize.x / quads;
    vec4 sum_o;
    float highest, sum;
    if (shares <= 1) {
        for (uint i = gl_LocalInvocationIndex; i < quads; i += gl_WorkGroupSize.x) {
            merge(partials, busy, i, 0, 1, sum_o, highest, sum);
            write_quad(qkv, y, first_head * DIM + 4 * i, sum_o / sum);
        }
        return;
    }
    // More lanes than quads: they split the chunks.
    uint share = gl_LocalInvocationIndex / quads, i = gl_LocalInvocationIndex % quads;
    merge(partials, share < shares ? busy : 0, i, share, shares, sum_o, highest, sum);
    [[unroll]] for (uint j = 0; j < 4; j++)
        work[6 * gl_LocalInvocationIndex + j] = sum_o[j];
    work[6 * gl_LocalInvocationIndex + 4] = highest;
    work[6 * gl_LocalInvocationIndex + 5] = sum;
    barrier();
    if (share > 0)
        return;
    for (uint n = 1; n < shares; n++) {
        uint from = 6 * (n * quads + i);
        float top = max(highest, work[from + 4]);
        float a = exp2(highest - top), b = exp2(work[from + 4] - top);
        sum_o = a * sum_o + b * vec4(work[from], work[from + 1], work[from + 2], work[from + 3]);
        sum = a * sum + b * work[from + 5];
        highest = top;
    }
    write_quad(qkv, y, first_head * DIM + 4 * i, sum_o / sum);
}

// Attention of absorbed queries over the latent cache, without its last step: for each (row, head,
// chunk of positions) O = sum of w * latent, the maximum of the scores and the sum of the weights w.
// mla/value.comp puts the chunks together and multiplies with W_uv.
//
// Grid (chunks, blocks, rows). A workgroup owns a chunk of positions and GROUP heads; a team of TEAM
// lanes owns TILE of these, and the STREAMS teams of the same heads deal out the positions, KEYS (4, or
// 1 for less code: a CPU compiles it) at a time. A lane holds every TEAM-th unit of 8 elements of the queries and of O:
//
//   cache row   | unit 0 | unit 1 | ... | unit TEAM | ...   latent   ...   | rope part |
//   lane           0        1              0                                   scores only
//
// so that a row is loaded once, for the scores (all units) and for O (the latent ones). Where STAGED,
// the workgroup brings STAGE rows at a time to shared memory, the next ones under way meanwhile.
// Scores are in base 2: the query carries scale * log2(e).
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; the split over
// workgroups is Dao et al. 2023, "Flash-Decoding".
#include "include/mla.glsl"
layout(constant_id = 11) const uint GROUP = 1;
layout(constant_id = 12) const uint TILE = 1;
layout(constant_id = 13) const uint TEAM = 4; // power of two, 4 .. subgroup size
layout(constant_id = 14) const uint STREAMS = 1;
layout(constant_id = 15) const bool STAGED = false;
layout(constant_id = 16) const uint STAGE = 4; // positions at a time, a multiple of KEYS * STREAMS
layout(constant_id = 17) const uint LANES = 4; // local size
// uvec4s of shared memory: STAGE rows, or the O of all teams where there are several streams.
layout(constant_id = 18) const uint WORK = 1;

layout(constant_id = 19) const uint KEYS = 4;

const uint TILES = (GROUP + TILE - 1) / TILE;
const uint UNITS = (ROW_UNITS + TEAM - 1) / TEAM;
const uint VALUE_UNITS = (RANK / 8 + TEAM - 1) / TEAM;
const uint UNIT_WORDS = CACHE == ACT_F32 ? 2 : 1; // uvec4s
const uint FETCH = STAGED ? (STAGE * ROW_UNITS + LANES - 1) / LANES : 1;
const uint QUADS = RANK / 4;
const bool WHOLE = ROW_UNITS % TEAM == 0; // every lane has UNITS units of a row
const uint SCORES = TILE * KEYS;

shared uvec4 work[WORK];
shared vec2 stats[STREAMS * TILES * TILE]; // maximum and sum of each stream's heads

float team_max4(float x)
{
    x = max(x, subgroupShuffleXor(x, 1));
    return max(x, subgroupShuffleXor(x, 2));
}

// Sums of a, b, c, d over lanes 4 n .. 4 n + 3 by halving: lane `part` gets the one of part & 3.
float team_halve(float a, float b, float c, float d, uint part)
{
    bool odd = (part & 1) != 0, upper = (part & 2) != 0;
    float low = (odd ? b : a) + subgroupShuffleXor(odd ? a : b, 1);
    float high = (odd ? d : c) + subgroupShuffleXor(odd ? c : d, 1);
    return (upper ? high : low) + subgroupShuffleXor(upper ? low : high, 2);
}

// This lane's share of rows first .. first + STAGE - 1; zeros from `last` on, where there may be NaN.
#define FETCH_ROWS(first_row)                                                                      \
    [[unroll]] for (uint i = 0; i < FETCH; i++) {                                                  \
        uint at = gl_LocalInvocationIndex + i * LANES, key = (first_row) + at / ROW_UNITS;         \
        fetched[i] = kv_zero();                                                                    \
        if (at < STAGE * ROW_UNITS && key < last)                                                  \
            fetched[i] = kv_load(p.cache, mla_unit(slot, key) + at % ROW_UNITS);                   \
    }

void main()
{
    uint chunk = gl_WorkGroupID.x, row = gl_WorkGroupID.z;
    uint first_head = gl_WorkGroupID.y * GROUP, heads = min(GROUP, HEADS - first_head);
    int at_position = BufI32(p.positions).v[row], in_slot = BufI32(p.slots).v[row];
    if (!mla_valid(in_slot, at_position))
        return;
    uint slot = uint(in_slot), count = uint(at_position) + 1, chunk_length = mla_chunk_length(count);
    uint first = chunk * chunk_length, last = min(first + chunk_length, count);
    if (first >= count)
        return;

    uint part = gl_SubgroupInvocationID % TEAM;
    uint team = gl_SubgroupID * (gl_SubgroupSize / TEAM) + gl_SubgroupInvocationID / TEAM;
    uint tile = team % TILES, stream = team / TILES;
    vec4 q[TILE * UNITS * 2], o[TILE * VALUE_UNITS * 2];
    float m[TILE], l[TILE];
    KvUnit fetched[FETCH];

    if (STAGED)
        FETCH_ROWS(first)
    [[unroll]] for (uint h = 0; h < TILE; h++) {
        uint head = first_head + min(tile * TILE + h, heads - 1);
        BufF32x4 from = BufF32x4(address_at(p.x, row * HEADS + head, ROW * 4));
        m[h] = LOWEST;
        l[h] = 0.0;
        [[unroll]] for (uint u = 0; u < UNITS; u++) {
            uint unit = part + u * TEAM;
            q[(h * UNITS + u) * 2] = WHOLE || unit < ROW_UNITS ? from.v[2 * unit] : vec4(0.0);
            q[(h * UNITS + u) * 2 + 1] = WHOLE || unit < ROW_UNITS ? from.v[2 * unit + 1] : vec4(0.0);
        }
        [[unroll]] for (uint u = 0; u < 2 * VALUE_UNITS; u++)
            o[h * 2 * VALUE_UNITS + u] = vec4(0.0);
    }

    for (uint base = first; base < last; base += STAGE) {
        if (STAGED) {
            barrier(); // the rows before have been read
            [[unroll]] for (uint i = 0; i < FETCH; i++) {
                uint at = gl_LocalInvocationIndex + i * LANES;
                if (at < STAGE * ROW_UNITS) {
                    work[at * UNIT_WORDS] = fetched[i].a;
                    if (CACHE == ACT_F32)
                        work[at * UNIT_WORDS + UNIT_WORDS - 1] = fetched[i].b;
                }
            }
            barrier();
            FETCH_ROWS(base + STAGE)
        }
        for (uint turn = 0; turn < STAGE; turn += KEYS * STREAMS) {
            uint key0 = turn + KEYS * stream;
            KvUnit k[KEYS * UNITS];
            [[unroll]] for (uint i = 0; i < KEYS; i++)
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    uint unit = part + u * TEAM, key = min(key0 + i, STAGE - 1);
                    k[i * UNITS + u] = kv_zero();
                    if (STAGED && (WHOLE || unit < ROW_UNITS)) {
                        uint at = (key * ROW_UNITS + unit) * UNIT_WORDS;
                        k[i * UNITS + u] = KvUnit(work[at], work[at + UNIT_WORDS - 1]);
                    }
                    // A single key is one that counts.
                    if (!STAGED && (KEYS == 1 || base + key < last) && (WHOLE || unit < ROW_UNITS))
                        k[i * UNITS + u] = kv_load(p.cache, mla_unit(slot, base + key) + unit);
                }
            float s[SCORES];
            [[unroll]] for (uint h = 0; h < SCORES; h++)
                s[h] = 0.0;
            [[unroll]] for (uint i = 0; i < KEYS; i++)
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    vec4 low = kv_low(k[i * UNITS + u]), high = kv_high(k[i * UNITS + u]);
                    [[unroll]] for (uint h = 0; h < TILE; h++)
                        s[h * KEYS + i] += dot(low, q[(h * UNITS + u) * 2]) +
                                           dot(high, q[(h * UNITS + u) * 2 + 1]);
                }
            float w[SCORES];
            [[unroll]] for (uint h = 0; h < TILE; h++) {
                uint mine = base + key0 + (KEYS == 4 ? part & 3 : 0);
                bool counts = key0 < STAGE && mine < last;
                float x = s[h * KEYS];
                if (KEYS == 4) // lane `part` ends with the score of key part & 3
                    x = team_halve(x, s[min(h * KEYS + 1, SCORES - 1)], s[min(h * KEYS + 2, SCORES - 1)],
                                   s[min(h * KEYS + 3, SCORES - 1)], part);
                [[unroll]] for (uint mask = KEYS; mask < TEAM; mask *= 2)
                    x += subgroupShuffleXor(x, mask);

                float best = counts ? x : LOWEST;
                if (KEYS == 4)
                    best = team_max4(best);
                float highest = max(m[h], best);
                float weight = counts ? exp2(x - highest) : 0.0, shrink = exp2(m[h] - highest);
                m[h] = highest;
                l[h] = l[h] * shrink + weight; // of this lane's keys
                [[unroll]] for (uint i = 0; i < KEYS; i++)
                    w[h * KEYS + i] =
                        KEYS == 4 ? subgroupShuffle(weight, (gl_SubgroupInvocationID & ~3u) + i) : weight;
                [[unroll]] for (uint u = 0; u < 2 * VALUE_UNITS; u++)
                    o[h * 2 * VALUE_UNITS + u] *= shrink;
            }
            [[unroll]] for (uint i = 0; i < KEYS; i++)
                [[unroll]] for (uint u = 0; u < VALUE_UNITS; u++) {
                    vec4 low = kv_low(k[i * UNITS + u]), high = kv_high(k[i * UNITS + u]);
                    [[unroll]] for (uint h = 0; h < TILE; h++) {
                        o[(h * VALUE_UNITS + u) * 2] += w[h * KEYS + i] * low;
                        o[(h * VALUE_UNITS + u) * 2 + 1] += w[h * KEYS + i] * high;
                    }
                }
        }
    }
    if (KEYS == 4)
        [[unroll]] for (uint h = 0; h < TILE; h++) {
            l[h] += subgroupShuffleXor(l[h], 1);
            l[h] += subgroupShuffleXor(l[h], 2);
        }

    if (STREAMS > 1) { // put the streams together, in their order
        barrier(); // the rows have been read
        if (stream < STREAMS)
            [[unroll]] for (uint h = 0; h < TILE; h++) {
                uint at_head = team * TILE + h;
                if (part == 0)
                    stats[at_head] = vec2(m[h], l[h]);
                [[unroll]] for (uint u = 0; u < VALUE_UNITS; u++) {
                    uint unit = part + u * TEAM;
                    if (unit < RANK / 8) {
                        work[at_head * QUADS + 2 * unit] =
                            floatBitsToUint(o[(h * VALUE_UNITS + u) * 2]);
                        work[at_head * QUADS + 2 * unit + 1] =
                            floatBitsToUint(o[(h * VALUE_UNITS + u) * 2 + 1]);
                    }
                }
            }
        barrier();
        for (uint i = gl_LocalInvocationIndex; i < heads * QUADS; i += LANES) {
            uint h = i / QUADS;
            float highest = LOWEST, sum = 0.0;
            vec4 value = vec4(0.0);
            for (uint n = 0; n < STREAMS; n++)
                highest = max(highest, stats[n * TILES * TILE + h].x);
            for (uint n = 0; n < STREAMS; n++) {
                uint at_head = n * TILES * TILE + h;
                float shrink = exp2(stats[at_head].x - highest);
                sum += stats[at_head].y * shrink;
                value += shrink * uintBitsToFloat(work[at_head * QUADS + i % QUADS]);
            }
            BufF32x4 to = BufF32x4(mla_partial(p.y, row, first_head + h, chunk, ACT_F32));
            to.v[i % QUADS] = value;
            if (i % QUADS == 0)
                to.v[QUADS] = vec4(highest, sum, 0.0, 0.0);
        }
        return;
    }
    if (stream == 0)
        [[unroll]] for (uint h = 0; h < TILE; h++) {
            if (tile * TILE + h >= heads)
                continue;
            BufF32x4 to = BufF32x4(mla_partial(p.y, row, first_head + tile * TILE + h, chunk, ACT_F32));
            [[unroll]] for (uint u = 0; u < VALUE_UNITS; u++) {
                uint unit = part + u * TEAM;
                if (unit < RANK / 8) {
                    to.v[2 * unit] = o[(h * VALUE_UNITS + u) * 2];
                    to.v[2 * unit + 1] = o[(h * VALUE_UNITS + u) * 2 + 1];
                }
            }
            if (part == 0)
                to.v[QUADS] = vec4(m[h], l[h], 0.0, 0.0);
        }
}

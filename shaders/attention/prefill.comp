// Causal attention of consecutive rows of one slot, after rope.comp: y = softmax(q K^T * scale) V.
// p.qkv is the rotated q here, (rows, heads * DIM) f32; K and V are in the cache, this call's rows
// included.
//
// Query lines are (row, head) pairs: line n of a kv head is row n / RATIO, head n % RATIO of those
// that share it. A workgroup owns LINES = 4 * ROWS_Y lines and walks over the cache in tiles of
// KEYS = 4 * LANES_X rows:
//
//           KEYS (lane x: keys x, x + LANES_X ..)         DIM (lane x: groups x, x + LANES_X ..)
//   lines   +-----------------------+                     lines  +-----------------------+
//   (lane y:| 4 x 4 scores a lane   |  -- exp2, f16 -->   (same  | 4 lines x GROUPS x 4  |
//   4y..4y+3)-----------------------+     in shared        lane) +-----------------------+
//
// Shared memory holds the q lines, one tile that is K and then V, and the weights; maxima and sums
// of a line live in its LANES_X lanes. Grid (line tiles, kv_heads); the last tiles, which are the
// longest, start first.
// Source: Dao 2023, "FlashAttention-2", algorithm 1.
#include "include/kv.glsl"

layout(constant_id = 4) const uint QKV = ACT_F16; // of the rows with gates
layout(constant_id = 7) const uint OUT = ACT_F16;
layout(constant_id = 8) const uint RATIO = 1;    // q heads a kv head
layout(constant_id = 9) const uint LANES_X = 4;  // power of two, at most the subgroup size
layout(constant_id = 10) const uint ROWS_Y = 1;  // local size / LANES_X

#include "include/output_gate.glsl"

const uint LINES = 4 * ROWS_Y;
const uint KEYS = 4 * LANES_X;
const uint DIM_GROUPS = DIM / 4;                                    // 4 elements each
const uint GROUPS = (DIM_GROUPS + LANES_X - 1) / LANES_X;           // of an output line, a lane
const uint PAIR = CACHE == ACT_F32 ? 2 : 1;                         // uvec2 a group
// One group of padding a line: lanes that read one group of successive lines meet different banks.
const uint LINE_STRIDE = (DIM_GROUPS + 1) * PAIR;
const uint WEIGHT_STRIDE = (LANES_X + 1) * PAIR;
const uint TILE_UNITS = (KEYS * HEAD_UNITS + LANES_X * ROWS_Y - 1) / (LANES_X * ROWS_Y); // a lane
const float LOWEST = -3.0e38; // below all finite scores; -inf would make NaN of differences
const float LOG2_E = 1.4426950408889634;

shared uvec2 q_lines[LINES * LINE_STRIDE];
shared uvec2 kv_tile[KEYS * LINE_STRIDE];
shared uvec2 weights[LINES * WEIGHT_STRIDE];
shared int line_position[LINES]; // -1: idle
shared int tile_slot, tile_last; // slot of the rows; last position of any of them

// Four values of shared memory, f16 or f32 as the cache is.
#define GET4(array, i)                                                                             \
    (CACHE == ACT_F32 ? uintBitsToFloat(uvec4(array[i], array[(i) + PAIR - 1]))                    \
                      : vec4(unpackHalf2x16(array[i].x), unpackHalf2x16(array[i].y)))
#define PUT4(array, i, value)                                                                      \
    if (CACHE == ACT_F32) {                                                                        \
        array[i] = floatBitsToUint((value).xy);                                                    \
        array[(i) + PAIR - 1] = floatBitsToUint((value).zw);                                       \
    } else {                                                                                       \
        array[i] = uvec2(packHalf2x16((value).xy), packHalf2x16((value).zw));                      \
    }

// Units of rows first .. first + KEYS - 1; zeros from `end` on, where the cache may hold anything.
#define LOAD_TILE(cache, first, end)                                                               \
    [[unroll]] for (uint n = 0; n < TILE_UNITS; n++) {                                             \
        uint at = gl_LocalInvocationIndex + n * (LANES_X * ROWS_Y);                                \
        uint key = (first) + at / HEAD_UNITS;                                                      \
        units[n] = kv_zero();                                                                      \
        if (at < KEYS * HEAD_UNITS && key < (end))                                                 \
            units[n] = kv_load(cache, kv_unit(slot, key, kv_head) + at % HEAD_UNITS);              \
    }
#define STORE_TILE()                                                                               \
    [[unroll]] for (uint n = 0; n < TILE_UNITS; n++) {                                             \
        uint at = gl_LocalInvocationIndex + n * (LANES_X * ROWS_Y);                                \
        uint to = at / HEAD_UNITS * LINE_STRIDE + at % HEAD_UNITS * 2 * PAIR;                      \
        if (at < KEYS * HEAD_UNITS) {                                                              \
            kv_tile[to] = units[n].a.xy;                                                           \
            kv_tile[to + 1] = units[n].a.zw;                                                       \
            if (CACHE == ACT_F32) {                                                                \
                kv_tile[to + 2] = units[n].b.xy;                                                   \
                kv_tile[to + 3] = units[n].b.zw;                                                   \
            }                                                                                      \
        }                                                                                          \
    }

void main()
{
    uint kv_head = gl_WorkGroupID.y, lines = p.rows * RATIO;
    uint line0 = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * LINES;
    uint x = gl_SubgroupInvocationID % LANES_X;
    uint y = (gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID) / LANES_X;

    if (gl_LocalInvocationIndex == 0) {
        tile_slot = -1;
        tile_last = -1;
    }
    barrier();
    // Equally many rounds in all threads, as llvmpipe wants before a barrier; what is done twice is done alike.
    for (uint base = 0; base < LINES; base += gl_WorkGroupSize.x) {
        uint n = min(base + gl_LocalInvocationIndex, LINES - 1);
        uint row = min(line0 + n, lines - 1) / RATIO;
        int position = BufI32(p.positions).v[row], row_slot = BufI32(p.slots).v[row];
        bool valid = line0 + n < lines && kv_valid(row_slot, position);
        line_position[n] = valid ? position : -1;
        if (valid) {
            atomicMax(tile_slot, row_slot);
            atomicMax(tile_last, position);
        }
    }
    for (uint base = 0; base < LINES * DIM_GROUPS; base += gl_WorkGroupSize.x) {
        uint n = min(base + gl_LocalInvocationIndex, LINES * DIM_GROUPS - 1);
        uint line = n / DIM_GROUPS, group = n % DIM_GROUPS, at = min(line0 + line, lines - 1);
        uvec2 q_row = address_at(p.qkv, at / RATIO, p.heads * DIM * 4);
        uint element = (kv_head * RATIO + at % RATIO) * DIM + group * 4;
        vec4 q = load_act4(q_row, element, ACT_F32) * (p.scale * LOG2_E);
        PUT4(q_lines, line * LINE_STRIDE + group * PAIR, q)
    }
    barrier();

    uint slot = uint(max(tile_slot, 0)), end = uint(tile_last + 1); // 0 when all lines are idle
    float m[4], l[4];
    vec4 o[4 * GROUPS];
    int position[4];
    KvUnit units[TILE_UNITS];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        m[i] = LOWEST;
        l[i] = 0.0;
        position[i] = line_position[4 * y + i];
        [[unroll]] for (uint g = 0; g < GROUPS; g++)
            o[i * GROUPS + g] = vec4(0.0);
    }

    LOAD_TILE(p.cache_k, 0, end)
    for (uint first = 0; first < end; first += KEYS) {
        STORE_TILE()
        barrier();
        LOAD_TILE(p.cache_v, first, end) // arrives while the scores are computed

        float s[16]; // 4 lines x 4 keys
        [[unroll]] for (uint i = 0; i < 16; i++)
            s[i] = 0.0;
        for (uint g = 0; g < DIM_GROUPS; g++) {
            vec4 k[4];
            [[unroll]] for (uint j = 0; j < 4; j++)
                k[j] = GET4(kv_tile, (x + j * LANES_X) * LINE_STRIDE + g * PAIR);
            [[unroll]] for (uint i = 0; i < 4; i++) {
                vec4 q = GET4(q_lines, (4 * y + i) * LINE_STRIDE + g * PAIR);
                [[unroll]] for (uint j = 0; j < 4; j++)
                    s[4 * i + j] += dot(q, k[j]);
            }
        }
        [[unroll]] for (uint i = 0; i < 4; i++) {
            float highest = LOWEST;
            vec4 w;
            [[unroll]] for (uint j = 0; j < 4; j++)
                if (int(first + x + j * LANES_X) <= position[i])
                    highest = max(highest, s[4 * i + j]);
            [[unroll]] for (uint mask = 1; mask < LANES_X; mask *= 2)
                highest = max(highest, subgroupShuffleXor(highest, mask));
            highest = max(highest, m[i]);
            [[unroll]] for (uint j = 0; j < 4; j++)
                w[j] = int(first + x + j * LANES_X) <= position[i] ? exp2(s[4 * i + j] - highest)
                                                                   : 0.0;
            float shrink = exp2(m[i] - highest);
            m[i] = highest;
            l[i] = l[i] * shrink + w.x + w.y + w.z + w.w; // of this lane's keys
            [[unroll]] for (uint g = 0; g < GROUPS; g++)
                o[i * GROUPS + g] *= shrink;
            PUT4(weights, (4 * y + i) * WEIGHT_STRIDE + x * PAIR, w)
        }
        barrier(); // K has been read
        STORE_TILE()
        barrier();
        LOAD_TILE(p.cache_k, first + KEYS, end)

        for (uint t = 0; t < LANES_X; t++) { // group t of the weights: keys t, t + LANES_X ..
            vec4 w[4];
            [[unroll]] for (uint i = 0; i < 4; i++)
                w[i] = GET4(weights, (4 * y + i) * WEIGHT_STRIDE + t * PAIR);
            [[unroll]] for (uint g = 0; g < GROUPS; g++) {
                uint group = min(x + g * LANES_X, DIM_GROUPS - 1);
                [[unroll]] for (uint j = 0; j < 4; j++) {
                    vec4 v = GET4(kv_tile, (t + j * LANES_X) * LINE_STRIDE + group * PAIR);
                    [[unroll]] for (uint i = 0; i < 4; i++)
                        o[i * GROUPS + g] += w[i][j] * v;
                }
            }
        }
        barrier(); // V and the weights have been read
    }

    [[unroll]] for (uint i = 0; i < 4; i++)
        [[unroll]] for (uint mask = 1; mask < LANES_X; mask *= 2)
            l[i] += subgroupShuffleXor(l[i], mask);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint line = line0 + 4 * y + i;
        if (line >= lines)
            break;
        uvec2 row = address_at(p.y, line / RATIO, p.heads * DIM * (OUT == ACT_F32 ? 4 : 2));
        [[unroll]] for (uint g = 0; g < GROUPS; g++) {
            uint group = x + g * LANES_X;
            vec4 value = position[i] < 0 ? vec4(0.0) : o[i * GROUPS + g] / l[i];
            uint element = (kv_head * RATIO + line % RATIO) * DIM + group * 4;
            if (group < DIM_GROUPS)
                [[unroll]] for (uint j = 0; j < 4; j++) {
                    if (!is_null(p.gate) && position[i] >= 0)
                        value[j] *= output_gate(gate_row(line / RATIO), element + j);
                    store_bits(row, element + j, OUT, floatBitsToUint(value[j]));
                }
        }
    }
}

// The body of causal attention on cooperative matrices, for consecutive rows of one slot: f16 operands, f32 sums.
// Before it come the constants OUT, SUBGROUPS and SUBGROUP, K_DIM and V_DIM (elements of a key and of a value, of which
// 16 and, above 128 values, 32 are the step), LOWEST (below all finite scores), and these hooks:
//
//   lines()                     query lines of the call, (row, head) pairs of this workgroup's key and value head
//   line_row(line)              their row
//   row_position(row, slot)     position of a row and its slot; negative: idle
//   load_q(line, i)             elements 4 i .. 4 i + 3 of a query, times the softmax scale and log2(e)
//   load_k(slot, key, i)        elements 8 i .. 8 i + 7 of a key, f16
//   load_v(slot, key, i)        and of a value
//   store_o(line, at, idle, a, b)   elements at .. at + 7 of the result, zeros of an idle line
//
// SHARE subgroups own 16 lines. They hold the queries in registers, and of O, in registers too, each has its part of
// the columns. A turn of the workgroup takes KEYS rows of the cache, staged in shared memory while the loads of the
// next ones are under way:
//
//           KEYS                                    V_DIM
//       +-----+-----+                       +---------+---------+
//   16  | sg 0| sg 1|  -- exp2, f16 -->  16 |  sg 0   |  sg 1   |      SHARE 2
//       +-----+-----+   shared memory       +---------+---------+
//
// A lane can not know which elements of a matrix it holds. So sums that a new maximum shrinks make a detour through
// shared memory, and a maximum is followed only where it grows by more than 2^SLACK: mostly in the first turn.
// Source: Dao 2023, "FlashAttention-2", algorithm 1.
const uint SHARE = V_DIM > 128 ? 2 : 1;
const uint GROUPS = SUBGROUPS / SHARE;
const uint LINES = 16 * GROUPS;
const uint KEYS = 32;
const uint LANES = SUBGROUPS * SUBGROUP;
const uint Q_MATRICES = K_DIM / 16;
const uint O_MATRICES = V_DIM / 16 / SHARE; // of a subgroup
const uint S_MATRICES = 2 / SHARE;

// Shared memory, in uvec4s. The pad of a row spreads rows over the banks.
const uint K_PITCH = K_DIM / 8 + 1;
const uint V_PITCH = V_DIM / 8 + 1;
const uint S_PITCH = KEYS / 4 + 1; // scores in f32
const uint W_PITCH = KEYS / 8 + 1; // weights in f16
const uint V_AT = KEYS * K_PITCH;
const uint S_AT = V_AT + KEYS * V_PITCH;
const uint W_AT = S_AT + LINES * S_PITCH;
const uint TURN_WORDS = W_AT + LINES * W_PITCH;
const uint Q_WORDS = LINES * K_PITCH; // the queries, before the first turn
shared uvec4 pool[TURN_WORDS > Q_WORDS ? TURN_WORDS : Q_WORDS];
shared int line_position[LINES]; // -1: idle
shared float line_factor[LINES]; // what sums shrink by in this turn; at the end 1 / sum of the weights
shared int tile_slot, tile_last; // slot of the rows; last position of any of them

const uint K_FETCH = (KEYS * K_DIM / 8 + LANES - 1) / LANES; // units of a lane
const uint V_FETCH = (KEYS * V_DIM / 8 + LANES - 1) / LANES;
const uint PARTS = 2 * SHARE;                 // lanes that share the scores of a line
const uint QUADS = KEYS / 4 / PARTS;          // fours of scores of such a lane
const uint TURNS = 32 / SUBGROUP;             // lines that a lane helps with
const float SLACK = 8.0;                      // weights stay below 2^8: f16 holds them as well as those below 1

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

// The subgroups of a group of lines have written what they read now.
void group_barrier()
{
    if (SHARE > 1)
        barrier();
    else
        subgroupBarrier();
}

uvec4 pack8(vec4 a, vec4 b)
{
    return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

// Positions of the lines, their slot and the last position.
void find_lines(uint line0)
{
    if (gl_LocalInvocationIndex == 0) {
        tile_slot = -1;
        tile_last = -1;
    }
    barrier();
    for (uint base = 0; base < LINES; base += LANES) {
        const uint n = base + gl_LocalInvocationIndex;
        if (n < LINES) {
            int slot;
            const int position = row_position(line_row(min(line0 + n, lines() - 1)), slot);
            const bool valid = line0 + n < lines() && position >= 0;
            line_position[n] = valid ? position : -1;
            if (valid) {
                atomicMax(tile_slot, slot);
                atomicMax(tile_last, position);
            }
        }
    }
    for (uint i = gl_LocalInvocationIndex; i < LINES * K_DIM / 8; i += LANES) {
        const uint line = min(line0 + i / (K_DIM / 8), lines() - 1), unit = i % (K_DIM / 8);
        pool[i / (K_DIM / 8) * K_PITCH + unit] = pack8(load_q(line, 2 * unit), load_q(line, 2 * unit + 1));
    }
    barrier();
}

// Units of keys and values from position `first` on; zeros from `end` on, where the cache may hold anything.
#define FETCH_TURN(first, end)                                                                                         \
    [[unroll]] for (uint n = 0; n < K_FETCH; n++) {                                                                    \
        const uint at = gl_LocalInvocationIndex + n * LANES, key = (first) + at / (K_DIM / 8);                         \
        k_units[n] = at < KEYS * K_DIM / 8 && key < (end) ? load_k(slot, key, at % (K_DIM / 8)) : uvec4(0);            \
    }                                                                                                                  \
    [[unroll]] for (uint n = 0; n < V_FETCH; n++) {                                                                    \
        const uint at = gl_LocalInvocationIndex + n * LANES, key = (first) + at / (V_DIM / 8);                         \
        v_units[n] = at < KEYS * V_DIM / 8 && key < (end) ? load_v(slot, key, at % (V_DIM / 8)) : uvec4(0);            \
    }

void main()
{
    // The last tiles, which are the longest, start first.
    const uint line0 = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * LINES;
    const uint group = gl_SubgroupID / SHARE, mate = gl_SubgroupID % SHARE, lane = gl_SubgroupInvocationID;
    const uint scores = S_AT + group * 16 * S_PITCH, weights = W_AT + group * 16 * W_PITCH;
    const uint detour = scores + mate * 64; // 1 KiB for a matrix of f32: the scores are not needed any more then
    find_lines(line0);

    const uint slot = uint(max(tile_slot, 0)), end = uint(tile_last + 1); // 0 when all lines are idle
    MatA q[Q_MATRICES];
    MatC o[O_MATRICES];
    uvec4 k_units[K_FETCH], v_units[V_FETCH];
    float top[TURNS], sum[TURNS]; // of a line, the sum over this lane's keys
    [[unroll]] for (uint d = 0; d < Q_MATRICES; d++)
        coopMatLoad(q[d], pool, group * 16 * K_PITCH + d * 2, K_PITCH, gl_CooperativeMatrixLayoutRowMajor);
    [[unroll]] for (uint i = 0; i < O_MATRICES; i++)
        o[i] = MatC(0.0);
    [[unroll]] for (uint i = 0; i < TURNS; i++) {
        top[i] = LOWEST;
        sum[i] = 0.0;
    }

    FETCH_TURN(0, end)
    for (uint first = 0; first < end; first += KEYS) {
        barrier(); // the queries, or the turn before, have been read
        [[unroll]] for (uint n = 0; n < K_FETCH; n++) {
            const uint at = gl_LocalInvocationIndex + n * LANES;
            if (at < KEYS * K_DIM / 8)
                pool[at / (K_DIM / 8) * K_PITCH + at % (K_DIM / 8)] = k_units[n];
        }
        [[unroll]] for (uint n = 0; n < V_FETCH; n++) {
            const uint at = gl_LocalInvocationIndex + n * LANES;
            if (at < KEYS * V_DIM / 8)
                pool[V_AT + at / (V_DIM / 8) * V_PITCH + at % (V_DIM / 8)] = v_units[n];
        }
        barrier();
        FETCH_TURN(first + KEYS, end)

        MatC s[S_MATRICES];
        [[unroll]] for (uint i = 0; i < S_MATRICES; i++)
            s[i] = MatC(0.0);
        [[unroll]] for (uint d = 0; d < Q_MATRICES; d++)
            [[unroll]] for (uint i = 0; i < S_MATRICES; i++) {
                MatB k;
                coopMatLoad(k, pool, (mate * S_MATRICES + i) * 16 * K_PITCH + d * 2, K_PITCH,
                            gl_CooperativeMatrixLayoutColumnMajor);
                s[i] = coopMatMulAdd(q[d], k, s[i]);
            }
        [[unroll]] for (uint i = 0; i < S_MATRICES; i++)
            coopMatStore(s[i], pool, scores + (mate * S_MATRICES + i) * 4, S_PITCH, gl_CooperativeMatrixLayoutRowMajor);
        group_barrier();

        [[unroll]] for (uint i = 0; i < TURNS; i++) {
            const uint item = (i * SHARE + mate) * SUBGROUP + lane, line = item / PARTS, part = item % PARTS;
            const int before = line_position[group * 16 + line] - int(first + part * QUADS * 4); // keys up to it count
            vec4 x[QUADS];
            float highest = LOWEST;
            [[unroll]] for (uint j = 0; j < QUADS; j++) {
                x[j] = uintBitsToFloat(pool[scores + line * S_PITCH + part * QUADS + j]);
                [[unroll]] for (uint c = 0; c < 4; c++)
                    if (int(4 * j + c) <= before)
                        highest = max(highest, x[j][c]);
            }
            highest = max(highest, subgroupShuffleXor(highest, 1));
            if (PARTS == 4)
                highest = max(highest, subgroupShuffleXor(highest, 2));
            const float reference = highest > top[i] + SLACK ? highest : top[i], factor = exp2(top[i] - reference);
            top[i] = reference;
            sum[i] *= factor;
            [[unroll]] for (uint j = 0; j < QUADS; j++)
                [[unroll]] for (uint c = 0; c < 4; c++) {
                    x[j][c] = int(4 * j + c) <= before ? exp2(x[j][c] - reference) : 0.0;
                    sum[i] += x[j][c];
                }
            [[unroll]] for (uint j = 0; j < QUADS; j += 2)
                pool[weights + line * W_PITCH + (part * QUADS + j) / 2] = pack8(x[j], x[j + 1]);
            if (part == 0)
                line_factor[group * 16 + line] = factor;
        }
        group_barrier();

        if (subgroupAny(line_factor[group * 16 + lane % 16] != 1.0))
            [[unroll]] for (uint i = 0; i < O_MATRICES; i++) {
                coopMatStore(o[i], pool, detour, 4, gl_CooperativeMatrixLayoutRowMajor);
                subgroupBarrier();
                [[unroll]] for (uint j = 0; j < 64; j += SUBGROUP) {
                    const vec4 x = uintBitsToFloat(pool[detour + j + lane]);
                    pool[detour + j + lane] = floatBitsToUint(x * line_factor[group * 16 + (j + lane) / 4]);
                }
                subgroupBarrier();
                coopMatLoad(o[i], pool, detour, 4, gl_CooperativeMatrixLayoutRowMajor);
                subgroupBarrier();
            }
        [[unroll]] for (uint n = 0; n < KEYS; n += 16) {
            MatA w;
            coopMatLoad(w, pool, weights + n / 8, W_PITCH, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint i = 0; i < O_MATRICES; i++) {
                MatB v;
                coopMatLoad(v, pool, V_AT + n * V_PITCH + (mate * O_MATRICES + i) * 2, V_PITCH,
                            gl_CooperativeMatrixLayoutRowMajor);
                o[i] = coopMatMulAdd(w, v, o[i]);
            }
        }
    }

    group_barrier(); // the factors of the last turn have been read
    [[unroll]] for (uint i = 0; i < TURNS; i++) {
        const uint item = (i * SHARE + mate) * SUBGROUP + lane;
        float total = sum[i] + subgroupShuffleXor(sum[i], 1);
        if (PARTS == 4)
            total += subgroupShuffleXor(total, 2);
        if (item % PARTS == 0)
            line_factor[group * 16 + item / PARTS] = 1.0 / total;
    }
    group_barrier();
    [[unroll]] for (uint i = 0; i < O_MATRICES; i++) {
        coopMatStore(o[i], pool, detour, 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        [[unroll]] for (uint j = 0; j < 32; j += SUBGROUP) {
            const uint line = group * 16 + (j + lane) / 2, half_row = (j + lane) % 2;
            const bool idle = line_position[line] < 0;
            const float factor = line_factor[line];
            const vec4 a = uintBitsToFloat(pool[detour + (j + lane) * 2]) * factor;
            const vec4 b = uintBitsToFloat(pool[detour + (j + lane) * 2 + 1]) * factor;
            if (line0 + line < lines())
                store_o(line0 + line, (mate * O_MATRICES + i) * 16 + half_row * 8, idle, idle ? vec4(0.0) : a,
                        idle ? vec4(0.0) : b);
        }
        subgroupBarrier();
    }
}

// mla/decode.comp on cooperative matrices: for each (row, head, chunk of positions) O = sum of w * latent over the sum
// of the weights w, in f16; the maximum of the scores and the sum of the weights. f16 operands, f32 sums; 16 heads are
// the lines of a matrix. Queries are in f16; lines behind the last head hold anything, and count for nothing.
//
// Grid (chunks, blocks of 16 heads, rows). A turn takes KEYS rows of the cache, staged in shared memory while the next
// are on their way. 8 subgroups of 32 share it: for the scores each has 16 keys and every fourth sixteen of the row,
// then the four parts are added; of O each has an eighth of the columns, in registers.
//
//        ROW / 16 steps, dealt out                     KEYS              RANK
//       +---+---+---+---+---+- -                      +----+      +----+----+- -+----+
//   16  | 0 | 1 | 2 | 3 | 0 |      x rows^T = scores  |    |  ->  | sg0| sg1|   | sg7|
//       +---+---+---+---+---+- -                      +----+      +----+----+- -+----+
//
// A lane can not know which elements of a matrix it holds. So sums that a new maximum shrinks make a detour through
// shared memory, and a maximum is followed only where it grows by more than 2^SLACK: mostly in the first turn.
// Scores are in base 2: the query carries scale * log2(e). Source: as in mla/decode.comp.
#extension GL_KHR_cooperative_matrix : require
#include "include/mla.glsl"

const uint LANES = 256;
const uint SUBGROUPS = 8;
const uint KEYS = 32;
const uint PARTS = 4;                  // of a score
const uint STEPS = ROW / 16;
const uint Q_MATRICES = (STEPS + PARTS - 1) / PARTS;
const uint O_MATRICES = RANK / 16 / SUBGROUPS;
const uint FETCH = (KEYS * ROW_UNITS + LANES - 1) / LANES;
const uint Q_FETCH = (16 * ROW_UNITS + LANES - 1) / LANES;
const float SLACK = 8.0;               // weights stay below 2^8: f16 holds them as well as those below 1

// Shared memory, in uvec4s. The pad of a row spreads rows over the banks.
const uint PITCH = ROW_UNITS + 1;
const uint S_PITCH = KEYS / 4 + 1;     // scores in f32
const uint S_AT = KEYS * PITCH;
const uint W_PITCH = KEYS / 8 + 1;     // weights in f16
const uint W_AT = S_AT + PARTS * 16 * S_PITCH;
shared uvec4 pool[W_AT + 16 * W_PITCH];
shared float line_factor[16];          // what the sums of a head shrink by in this turn
shared float line_inverse[16];         // 1 / sum of the weights
// O at the end, where rows of the cache were: 16 lines a subgroup.
const uint O_PITCH = O_MATRICES * 4 + 1;

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

// This thread's share of rows first .. first + KEYS - 1, which lie one behind the other; zeros from `last` on, where
// the cache may hold anything. Offsets from an address computed once are constants, which loads take for nothing.
#define FETCH_ROWS(first, last)                                                                                        \
    {                                                                                                                  \
        BufU32x4 rows = BufU32x4(address_at(p.cache, mla_unit(slot, first) + t, 16));                                  \
        const uint units = min((last) - (first), KEYS) * ROW_UNITS;                                                    \
        [[unroll]] for (uint i = 0; i < FETCH; i++)                                                                    \
            fetched[i] = t + i * LANES < units ? rows.v[i * LANES] : uvec4(0);                                         \
    }

// Unit `at` of lines of ROW_UNITS in shared memory.
uint pool_unit(uint at) { return at + at / ROW_UNITS; }

void main()
{
    const uint chunk = gl_WorkGroupID.x, row = gl_WorkGroupID.z, first_head = gl_WorkGroupID.y * 16;
    const uint subgroup = gl_SubgroupID, lane = gl_SubgroupInvocationID, t = subgroup * 32 + lane;
    const uint part = subgroup % PARTS, keys = subgroup / PARTS * 16; // of the scores
    const uint line = t / 16, pair = t % 16;                          // a thread has two keys of a head
    const int at_position = BufI32(p.positions).v[row], in_slot = BufI32(p.slots).v[row];
    // Queries to shared memory before the position is waited for.
    BufU32x4 queries = BufU32x4(address_at(p.x, (row * HEADS + first_head) * ROW_UNITS + t, 16));
    uvec4 fetched[FETCH];
    [[unroll]] for (uint i = 0; i < Q_FETCH; i++)
        fetched[i] = t + i * LANES < 16 * ROW_UNITS ? queries.v[i * LANES] : uvec4(0);
    [[unroll]] for (uint i = 0; i < Q_FETCH; i++)
        if (t + i * LANES < 16 * ROW_UNITS)
            pool[pool_unit(t + i * LANES)] = fetched[i];
    if (!mla_valid(in_slot, at_position))
        return;
    const uint slot = uint(in_slot), count = uint(at_position) + 1, chunk_length = mla_chunk_length(count);
    const uint first = chunk * chunk_length, last = min(first + chunk_length, count);
    if (first >= count)
        return;

    const uint detour = S_AT + subgroup * 64; // 1 KiB for a matrix of f32: the scores are not needed any more then
    MatA q[Q_MATRICES];
    MatC o[O_MATRICES];
    float top = LOWEST, sum = 0.0; // the sum over this thread's keys

    FETCH_ROWS(first, last)
    barrier();
    [[unroll]] for (uint i = 0; i < Q_MATRICES; i++) // a step behind the last stands for none: it is not multiplied
        coopMatLoad(q[i], pool, min(i * PARTS + part, STEPS - 1) * 2, PITCH, gl_CooperativeMatrixLayoutRowMajor);
    [[unroll]] for (uint i = 0; i < O_MATRICES; i++)
        o[i] = MatC(0.0);

    for (uint base = first; base < last; base += KEYS) {
        barrier(); // the queries, or the turn before, have been read
        [[unroll]] for (uint i = 0; i < FETCH; i++) {
            const uint at = t + i * LANES;
            if (at < KEYS * ROW_UNITS)
                pool[pool_unit(at)] = fetched[i];
        }
        barrier();
        if (base + KEYS < last)
            FETCH_ROWS(base + KEYS, last)

        MatC s = MatC(0.0);
        [[unroll]] for (uint i = 0; i < Q_MATRICES; i++)
            if (i * PARTS + part < STEPS) {
                MatB k;
                coopMatLoad(k, pool, keys * PITCH + (i * PARTS + part) * 2, PITCH,
                            gl_CooperativeMatrixLayoutColumnMajor);
                s = coopMatMulAdd(q[i], k, s);
            }
        coopMatStore(s, pool, S_AT + part * 16 * S_PITCH + keys / 4, S_PITCH, gl_CooperativeMatrixLayoutRowMajor);
        barrier();

        vec2 x = vec2(0.0);
        [[unroll]] for (uint i = 0; i < PARTS; i++) {
            const vec4 four = uintBitsToFloat(pool[S_AT + (i * 16 + line) * S_PITCH + pair / 2]);
            x += pair % 2 == 0 ? four.xy : four.zw;
        }
        const uint end = first_head + line < HEADS ? last : 0;
        const bvec2 counts = lessThan(uvec2(base + 2 * pair) + uvec2(0, 1), uvec2(end));
        float highest = max(counts.x ? x.x : LOWEST, counts.y ? x.y : LOWEST);
        [[unroll]] for (uint mask = 1; mask < 16; mask *= 2)
            highest = max(highest, subgroupShuffleXor(highest, mask));
        const float reference = highest > top + SLACK ? highest : top, factor = exp2(top - reference);
        const vec2 weights = vec2(counts.x ? exp2(x.x - reference) : 0.0, counts.y ? exp2(x.y - reference) : 0.0);
        top = reference;
        sum = sum * factor + weights.x + weights.y;
        pool[W_AT + line * W_PITCH + pair / 4][pair % 4] = packHalf2x16(weights);
        if (pair == 0)
            line_factor[line] = factor;
        barrier();

        if (base > first && subgroupAny(line_factor[lane % 16] != 1.0))
            [[unroll]] for (uint i = 0; i < O_MATRICES; i++) {
                coopMatStore(o[i], pool, detour, 4, gl_CooperativeMatrixLayoutRowMajor);
                subgroupBarrier();
                [[unroll]] for (uint j = 0; j < 64; j += 32)
                    pool[detour + j + lane] =
                        floatBitsToUint(uintBitsToFloat(pool[detour + j + lane]) * line_factor[(j + lane) / 4]);
                subgroupBarrier();
                coopMatLoad(o[i], pool, detour, 4, gl_CooperativeMatrixLayoutRowMajor);
                subgroupBarrier();
            }
        [[unroll]] for (uint n = 0; n < KEYS; n += 16) {
            MatA w;
            coopMatLoad(w, pool, W_AT + n / 8, W_PITCH, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint i = 0; i < O_MATRICES; i++) {
                MatB v;
                coopMatLoad(v, pool, n * PITCH + (subgroup * O_MATRICES + i) * 2, PITCH,
                            gl_CooperativeMatrixLayoutRowMajor);
                o[i] = coopMatMulAdd(w, v, o[i]);
            }
        }
    }

    [[unroll]] for (uint mask = 1; mask < 16; mask *= 2)
        sum += subgroupShuffleXor(sum, mask);
    if (pair == 0) {
        line_inverse[line] = sum == 0.0 ? 0.0 : 1.0 / sum; // all scores -inf
        if (first_head + line < HEADS)
            BufF32x4(mla_partial(p.y, row, first_head + line, chunk, ACT_F16)).v[RANK / 8] = vec4(top, sum, 0.0, 0.0);
    }
    barrier(); // the rows have been read
    const uint own = subgroup * 16 * O_PITCH;
    [[unroll]] for (uint i = 0; i < O_MATRICES; i++)
        coopMatStore(o[i], pool, own + i * 4, O_PITCH, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    BufU32x4 results = BufU32x4(mla_partial(p.y, row, first_head, chunk, ACT_F16));
    const uint pitch = p.chunks * (RANK / 8 + 1); // of heads
    [[unroll]] for (uint i = 0; i < O_MATRICES; i++) { // eight columns of a line
        const uint item = i * 32 + lane, of = item / (2 * O_MATRICES), octet = item % (2 * O_MATRICES);
        const vec4 a = line_inverse[of] * uintBitsToFloat(pool[own + of * O_PITCH + 2 * octet]);
        const vec4 b = line_inverse[of] * uintBitsToFloat(pool[own + of * O_PITCH + 2 * octet + 1]);
        if (first_head + of < HEADS)
            results.v[of * pitch + subgroup * 2 * O_MATRICES + octet] =
                uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
    }
}

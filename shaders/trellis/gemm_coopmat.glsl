// Many rows of the transformed f16 x times an EXL3 trellis on KHR cooperative matrices. Shared by gemm_coopmat.comp and
// moe_gemm_coopmat.comp, which declare the push block p, define coopmat_prologue and finish_columns behind this file,
// and say before it where things are: TRELLIS, SVH, FIRST_ROW and ROWS, those of x that a workgroup has, Y_ROW(m), what
// finish_columns calls the one that is m of them, and SHARE_ROW, where its sums begin; K_PADDED; and X_SCALE, which x
// was multiplied by.
//
//   sums (splits, m, n_padded) = x Q       or, WHOLE, with all of k in a workgroup: y = epilogue(x W)
//
// Workgroup (c, r, s) of 8 subgroups of 32 owns columns 128 c .. and BM rows over its share of k, walked in steps of
// 64, what the next step needs on its way. f16 operands, f32 sums.
//
//   FRAGMENTS   a subgroup has all rows of 16 columns, whose values it decodes into matrices (fragments.glsl); shared
//               memory holds two steps of x, so that there is one barrier a step, and as many are on their way
//   without     thread 64 g + l decodes lane l of tile g of the step into shared memory, 16 rows of two columns;
//               subgroups stand in HEIGHT rows, each owns BM / HEIGHT rows and 16 * HEIGHT columns
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint STEPS = 1; // of 64 rows of Q that a workgroup has at most
layout(constant_id = 4) const uint BM = 64;   // 16, 32, 64 or 128
layout(constant_id = 5) const uint FRAGMENTS = 0;
layout(constant_id = 6) const uint WHOLE = 0; // with FRAGMENTS only
layout(constant_id = 7) const uint Y_TYPE = 0;
layout(constant_id = 8) const uint ACTIVATION = 0;
layout(constant_id = 9) const bool FOURS = false; // n, y_stride and all addresses allow four columns at once

bool coopmat_prologue();                       // false: nothing to do, for the whole workgroup
void finish_columns(uint m, uint n, vec4 y);   // n .. n + 3

#include "include/trellis.glsl"
#include "include/trellis_f16.glsl"
#include "include/address.glsl"

#define BK 64
#define PITCH (BK + 8) // halves; the pad spreads rows over the banks
const uint LANES = 256;
const uint HEIGHT = FRAGMENTS == 0 && BM >= 32 ? 2 : 1;
const uint HIGH = BM / HEIGHT / 16; // matrices of a subgroup
const uint WIDE = HEIGHT;
const uint MATRICES = HIGH * WIDE;
const uint X_TILE = BM * PITCH / 8; // uvec4s
const uint W_TILE = 128 * PITCH / 8;
const uint X_FETCH = (BM + 31) / 32; // uvec4s of x that a thread brings
const uint TWO_STEPS = 2 * X_TILE > 512 ? 2 * X_TILE : 512; // the sums pass through 512 of them

shared uvec4 tiles[FRAGMENTS != 0 ? TWO_STEPS : X_TILE + W_TILE];

// WHOLE: the output transform, of 32 rows at a time, a row a subgroup.
#define HADAMARD_PITCH 132
const uint CLUSTER = 32;
const uint PART = BM < 32 ? BM : 32;
shared float work[WHOLE != 0 ? PART * HADAMARD_PITCH : 1];
#include "include/hadamard.glsl"
#include "include/hadamard_lanes.glsl"

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define FRAGMENT_TILES 4
#define FRAGMENT_SLOTS 2
#include "trellis/fragments.glsl"
MatC acc[MATRICES];
uvec4 fetched[2 * X_FETCH]; // of two steps

// To slot 0 or 1, a constant, as x.
void load_words(uint step, uint slot)
{
    const uint t = gl_LocalInvocationIndex, units = K_PADDED / UNIT_ROWS, tile = step * 4 + t / 64;
    if (FRAGMENTS != 0)
        [[unroll]] for (uint j = 0; j < 4; j++)
            fetch_fragment(slot * FRAGMENT_TILES + j, unit_at(gl_WorkGroupID.x, 0, units), gl_SubgroupID, step * 4 + j);
    else
        load_tile(TRELLIS, unit_at(gl_WorkGroupID.x, tile / TILES, units), t % 64, tile % TILES);
}

void load_x(uint step, uint slot)
{
    [[unroll]] for (uint i = 0; i < X_FETCH; i++) {
        const uint task = gl_LocalInvocationIndex + LANES * i, m = FIRST_ROW + min(task / 8, ROWS - 1);
        fetched[slot * X_FETCH + i] = BufU32x4(p.x).v[(m * K_PADDED + step * BK) / 8 + task % 8];
    }
}

void store_x(uint at, uint slot)
{
    [[unroll]] for (uint i = 0; i < X_FETCH; i++) {
        const uint task = gl_LocalInvocationIndex + LANES * i;
        if (task / 8 < BM)
            tiles[at + (task / 8 * PITCH) / 8 + task % 8] = fetched[slot * X_FETCH + i];
    }
}

// Tile j of the step, a constant, times the rows of x that lie at `at` in shared memory.
void multiply_fragment(uint step, uint j, uint at)
{
    const MatB b = fragment(j, fragment_bit(step * 4 + j) % 32);
    [[unroll]] for (uint r = 0; r < HIGH; r++) {
        MatA a;
        coopMatLoad(a, tiles, at + (r * 16 * PITCH + j * 16) / 8, PITCH / 8, gl_CooperativeMatrixLayoutRowMajor);
        acc[r] = coopMatMulAdd(a, b, acc[r]);
    }
}

// What the step after the next one needs is asked for while this one is multiplied.
void take_step(uint step, uint last, uint slot)
{
    const uint at = slot * X_TILE;
    store_x(at, slot);
    barrier();
    next_fragments(slot);
    if (step + 2 < last) {
        load_x(step + 2, slot);
        load_words(step + 2, slot);
    }
    multiply_fragment(step, 0, at);
    multiply_fragment(step, 1, at);
    subgroupBarrier();
    multiply_fragment(step, 2, at);
    multiply_fragment(step, 3, at);
}

void walk_fragments(uint first, uint last)
{
    if (first + 1 < last) {
        load_x(first + 1, 1);
        load_words(first + 1, 1);
    }
    for (uint step = first; step < last; step += 2) {
        take_step(step, last, 0);
        if (step + 1 < last)
            take_step(step + 1, last, 1);
    }
}

// The words in w to shared memory, eight rows of two columns at a time.
void decode_tile()
{
    const uint t = gl_LocalInvocationIndex, lane = t % 64, column = lane / 8 * 16 + lane % 8;
    [[unroll]] for (uint h = 0; h < 2; h++)
        [[unroll]] for (uint r = 0; r < 2; r++) {
            uvec4 rows;
            [[unroll]] for (uint q = 0; q < 4; q++)
                rows[q] = packFloat2x16(pair_of(state_of(8 * q + 4 * h + 2 * r), state_of(8 * q + 4 * h + 2 * r + 1)));
            tiles[X_TILE + ((column + 8 * h) * PITCH + 16 * (t / 64)) / 8 + r] = rows;
        }
}

void walk_staged(uint first, uint last, uint sm, uint sn)
{
    for (uint step = first; step < last; step++) {
        barrier(); // the step before has been read
        store_x(0, 0);
        decode_tile();
        barrier();
        if (step + 1 < last) {
            load_x(step + 1, 0);
            load_words(step + 1, 0);
        }
        [[unroll]] for (uint i = 0; i < BK; i += 16) {
            MatA a[HIGH];
            MatB b;
            [[unroll]] for (uint r = 0; r < HIGH; r++)
                coopMatLoad(a[r], tiles, ((sm + r * 16) * PITCH + i) / 8, PITCH / 8,
                            gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint c = 0; c < WIDE; c++) {
                coopMatLoad(b, tiles, X_TILE + ((sn + c * 16) * PITCH + i) / 8, PITCH / 8,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < HIGH; r++)
                    acc[r * WIDE + c] = coopMatMulAdd(a[r], b, acc[r * WIDE + c]);
            }
        }
    }
}

// Each subgroup passes its matrices through 1 KiB of shared memory: lane l gets 8 columns of row l / 2.
void store_sums(uint sm, uint sn)
{
    const uint base = gl_SubgroupID * 64, l = gl_SubgroupInvocationID, width = gl_NumWorkGroups.x * 128;
    [[unroll]] for (uint i = 0; i < MATRICES; i++) {
        coopMatStore(acc[i], tiles, base, 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        const uint m = sm + i / WIDE * 16 + l / 2, n = sn + i % WIDE * 16 + l % 2 * 8;
        if (m < ROWS) {
            const uvec2 y = address_at(p.partial, SHARE_ROW + m, width * 4);
            BufU32x4(y).v[gl_WorkGroupID.x * 32 + n / 4] = tiles[base + l * 2];
            BufU32x4(y).v[gl_WorkGroupID.x * 32 + n / 4 + 1] = tiles[base + l * 2 + 1];
        }
        subgroupBarrier();
    }
}

void finish_rows()
{
    const uint lane = gl_SubgroupInvocationID, n = gl_WorkGroupID.x * 128 + lane * 4, rows = ROWS;
    const uvec2 svh = BufU32x2(SVH).v[n / 4];
    const vec4 factor = vec4(unpackHalf2x16(svh.x), unpackHalf2x16(svh.y)) / X_SCALE;
    [[dont_unroll]] for (uint part = 0; part < rows; part += PART) {
        if (part > 0)
            barrier();
        [[unroll]] for (uint r = 0; r < HIGH; r++)
            if (r * 16 / PART == part / PART)
                coopMatStore(acc[r], work, r * 16 % PART * HADAMARD_PITCH + gl_SubgroupID * 16, HADAMARD_PITCH,
                             gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        [[dont_unroll]] for (uint base = 0; base < PART; base += LANES / 32) {
            const uint i = base + gl_SubgroupID;
            [[unroll]] for (uint j = 0; j < 4; j++)
                quads[0][j] = work[i * HADAMARD_PITCH + lane * 4 + j];
            hadamard_lanes(lane);
            if (part + i < rows)
                finish_columns(Y_ROW(part + i), n, quads[0] * factor);
        }
    }
}

void main()
{
    const uint sm = gl_SubgroupID % HEIGHT * (BM / HEIGHT), sn = gl_SubgroupID / HEIGHT * (16 * HEIGHT);
    const uint first = (WHOLE != 0 ? 0 : gl_WorkGroupID.z) * STEPS, last = min(first + STEPS, K_PADDED / BK);

    if (!coopmat_prologue())
        return;
    [[unroll]] for (uint i = 0; i < MATRICES; i++)
        acc[i] = MatC(0.0);
    load_x(first, 0);
    load_words(first, 0);
    if (FRAGMENTS != 0)
        walk_fragments(first, last);
    else
        walk_staged(first, last, sm, sn);
    barrier();
    [[unroll]] for (uint i = 0; i < MATRICES; i++)
        acc[i] = acc[i] * VALUE_UNIT;
    if (WHOLE != 0)
        finish_rows();
    else
        store_sums(sm, sn);
}

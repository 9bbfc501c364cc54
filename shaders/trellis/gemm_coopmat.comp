// sums (splits, m, n_padded) = x (m, k) Q for many rows of the transformed f16 x, on KHR cooperative matrices.
//
// Workgroup (c, r, s) of 8 subgroups of 32 owns columns 128 c .. and rows BM r .. of the sums over its share of k,
// walked in steps of 64: thread 64 g + l decodes lane l of tile g of the step into shared memory, 16 rows of two
// columns, while the words of the next step are on their way. Subgroups stand in HEIGHT rows; each owns BM / HEIGHT
// rows and 16 * HEIGHT columns as matrices of 16 x 16. f16 operands, f32 sums. With FRAGMENTS a subgroup has all rows of
// 16 columns and decodes those itself (fragments.glsl); shared memory holds two steps of x, one barrier a step.
#extension GL_KHR_cooperative_matrix : require
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint STEPS = 1; // of 64 rows of Q that a workgroup has at most
layout(constant_id = 4) const uint BM = 64;   // 16, 32, 64 or 128
layout(constant_id = 5) const uint FRAGMENTS = 0;

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#include "include/trellis.glsl"
#include "include/trellis_f16.glsl"
#include "include/address.glsl"

#define BK 64
#define PITCH (BK + 8) // halves; the pad spreads rows over the banks
const uint HEIGHT = FRAGMENTS == 0 && BM >= 32 ? 2 : 1;
const uint ROWS = BM / HEIGHT / 16;
const uint COLUMNS = HEIGHT;
const uint MATRICES = ROWS * COLUMNS;
const uint X_TILE = BM * PITCH / 8; // uvec4s
const uint W_TILE = 128 * PITCH / 8;
const uint X_FETCH = (BM + 31) / 32; // uvec4s of x that a thread brings
const uint TWO_STEPS = 2 * X_TILE > 512 ? 2 * X_TILE : 512; // the sums pass through 512 of them

shared uvec4 tiles[FRAGMENTS != 0 ? TWO_STEPS : X_TILE + W_TILE];

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

#define TRELLIS p.trellis
#define FRAGMENT_TILES 4
#include "trellis/fragments.glsl"
MatC acc[MATRICES];

void load_words(uint step, uint g, uint lane)
{
    const uint tile = step * 4 + g, units = p.k_padded / UNIT_ROWS;
    if (FRAGMENTS != 0)
        [[unroll]] for (uint j = 0; j < 4; j++)
            fetch_fragment(j, unit_at(gl_WorkGroupID.x, 0, units), gl_SubgroupID, step * 4 + j);
    else
        load_tile(p.trellis, unit_at(gl_WorkGroupID.x, tile / TILES, units), lane, tile % TILES);
}

// Tile j of the step, a constant, times the rows of x that lie at `at` in shared memory.
void multiply_fragment(uint step, uint j, uint at)
{
    const MatB b = fragment(j, fragment_bit(step * 4 + j) % 32);
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        MatA a;
        coopMatLoad(a, tiles, at + (r * 16 * PITCH + j * 16) / 8, PITCH / 8, gl_CooperativeMatrixLayoutRowMajor);
        acc[r] = coopMatMulAdd(a, b, acc[r]);
    }
}

uvec4 load_x(uint step, uint i)
{
    const uint task = gl_LocalInvocationIndex + 256 * i, m = min(gl_WorkGroupID.y * BM + task / 8, p.m - 1);
    return BufU32x4(p.x).v[(m * p.k_padded + step * BK) / 8 + task % 8];
}

void main()
{
    const uint t = gl_LocalInvocationIndex, g = t / 64, lane = t % 64;
    const uint sm = gl_SubgroupID % HEIGHT * (BM / HEIGHT), sn = gl_SubgroupID / HEIGHT * (16 * HEIGHT);
    const uint first = gl_WorkGroupID.z * STEPS, last = min(first + STEPS, p.k_padded / BK);
    const uint column = lane / 8 * 16 + lane % 8;
    uvec4 x[X_FETCH];

    [[unroll]] for (uint i = 0; i < MATRICES; i++)
        acc[i] = MatC(0.0);
    [[unroll]] for (uint i = 0; i < X_FETCH; i++)
        x[i] = load_x(first, i);
    load_words(first, g, lane);
    for (uint step = first; step < last; step++) {
        const uint at = FRAGMENTS != 0 ? step % 2 * X_TILE : 0;
        if (FRAGMENTS == 0)
            barrier(); // the step before has been read
        [[unroll]] for (uint i = 0; i < X_FETCH; i++) {
            const uint task = t + 256 * i;
            if (task / 8 < BM)
                tiles[at + (task / 8 * PITCH) / 8 + task % 8] = x[i];
        }
        if (FRAGMENTS != 0) {
            barrier();
            next_fragments();
            if (step + 1 < last) {
                [[unroll]] for (uint i = 0; i < X_FETCH; i++)
                    x[i] = load_x(step + 1, i);
                load_words(step + 1, g, lane);
            }
            multiply_fragment(step, 0, at);
            multiply_fragment(step, 1, at);
            multiply_fragment(step, 2, at);
            multiply_fragment(step, 3, at);
            continue;
        }
        [[unroll]] for (uint h = 0; h < 2; h++)
            [[unroll]] for (uint r = 0; r < 2; r++) {
                uvec4 rows; // eight rows of column + 8 h
                [[unroll]] for (uint q = 0; q < 4; q++)
                    rows[q] = packFloat2x16(pair_of(state_of(8 * q + 4 * h + 2 * r), state_of(8 * q + 4 * h + 2 * r + 1)));
                tiles[X_TILE + ((column + 8 * h) * PITCH + 16 * g) / 8 + r] = rows;
            }
        barrier();
        if (step + 1 < last) {
            [[unroll]] for (uint i = 0; i < X_FETCH; i++)
                x[i] = load_x(step + 1, i);
            load_words(step + 1, g, lane);
        }
        [[unroll]] for (uint i = 0; i < BK; i += 16) {
            MatA a[ROWS];
            MatB b;
            [[unroll]] for (uint r = 0; r < ROWS; r++)
                coopMatLoad(a[r], tiles, ((sm + r * 16) * PITCH + i) / 8, PITCH / 8, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
                coopMatLoad(b, tiles, X_TILE + ((sn + c * 16) * PITCH + i) / 8, PITCH / 8,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < ROWS; r++)
                    acc[r * COLUMNS + c] = coopMatMulAdd(a[r], b, acc[r * COLUMNS + c]);
            }
        }
    }
    barrier();
    // Each subgroup passes its matrices through 1 KiB of shared memory: lane l gets 8 columns of row l / 2.
    const uint base = gl_SubgroupID * 64, l = gl_SubgroupInvocationID;
    [[unroll]] for (uint i = 0; i < MATRICES; i++) {
        acc[i] = acc[i] * VALUE_UNIT;
        coopMatStore(acc[i], tiles, base, 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        const uint m = gl_WorkGroupID.y * BM + sm + i / COLUMNS * 16 + l / 2, n = sn + i % COLUMNS * 16 + l % 2 * 8;
        if (m < p.m) {
            const uvec2 y = address_at(p.partial, gl_WorkGroupID.z * p.m + m, p.n_padded * 4);
            BufU32x4(y).v[gl_WorkGroupID.x * 32 + n / 4] = tiles[base + l * 2];
            BufU32x4(y).v[gl_WorkGroupID.x * 32 + n / 4 + 1] = tiles[base + l * 2 + 1];
        }
        subgroupBarrier();
    }
}

// y = epilogue(x W) on KHR cooperative matrices, for up to M rows of x that went through the input transform before: a
// product of few rows with EXL3 weights that is as fast for 2 rows as for 16. Shared by gemv_coopmat.comp and
// moe_gemv_coopmat.comp, which declare the push block p, define coopmat_prologue and finish_column behind this file,
// and say before it where things are: TRELLIS, SVH, FIRST_ROW and ROWS, those of x; K_PADDED; and X_SCALE, which x was
// multiplied by.
//
//   workgroup (c, s, z) columns 128 c .. 128 c + 127, BLOCKS blocks of 128 rows of Q (k) from s * BLOCKS on
//   with FRAGMENTS      a subgroup has WIDTH tiles side by side, ABREAST subgroups the columns, and takes every so many
//                       tile of the rows; values go into matrices as they are decoded (fragments.glsl)
//   without:
//   group of 64 lanes   every GROUPS-th unit of the rows, as in gemv.glsl
//   subgroup of 32      decodes 16 rows of its 64 columns into shared memory of its own and multiplies them at once, so
//                       that nobody else waits; its sums stay in matrices till the end
//
// x (rows, k_padded) f16 is read where it is. Rows behind the last one hold anything: a row of x makes one row of y.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint M = 16;       // 16, 32 or 64
layout(constant_id = 4) const uint BLOCKS = 1;
layout(constant_id = 5) const uint Y_TYPE = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint SPLIT = 0;    // 1: several workgroups share 128 columns: y is made by others
layout(constant_id = 8) const uint LANES = 128;  // the local size
layout(constant_id = 9) const uint FRAGMENTS = 0; // 1: the device has that feature, and RATE2 is 4 at least

bool coopmat_prologue();                       // false: nothing to do, for the whole workgroup
void finish_column(uint m, uint n, float y);

const uint PREFETCH = 1, GROUPS = LANES / 64, HEIGHT = M / 16;
const bool SMALL_CODE = false;
const bool LOOPS = false;
#define HADAMARD_PITCH 132
#define STAGE_PITCH 3 // uvec4s of a column: 16 halves and a pad, so that neither writes nor loads meet in a bank

#include "include/trellis.glsl"
#include "include/trellis_f16.glsl"
#include "include/address.glsl"

shared uvec4 stage[FRAGMENTS != 0 ? 1 : LANES / 32 * 64 * STAGE_PITCH];
// Sums are added up in a few copies at a time.
const uint COPIES = FRAGMENTS == 0 ? 1 : 4 / HEIGHT;
const uint COPY = HADAMARD_PITCH * M;
shared float work[COPY * COPIES];
#include "include/hadamard_work.glsl"
#include "trellis/stream.glsl"

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
// Matrices that lie side by side in a subgroup, and subgroups that do.
const uint WIDTH = FRAGMENTS != 0 ? 8 / HEIGHT : 4;
const uint ABREAST = 8 / WIDTH;
MatC acc[HEIGHT * WIDTH]; // [row][column] of 16 x 16

MatA load_a(uint row, uint tile)
{
    const uint pitch = K_PADDED / 8, at = (FIRST_ROW + row) * pitch + (gl_WorkGroupID.y * BLOCKS * 8 + tile) * 2;
    MatA a;
    coopMatLoad(a, BufU32x4(p.x).v, at, pitch, gl_CooperativeMatrixLayoutRowMajor);
    return a;
}

#define FRAGMENT_TILES WIDTH
#define FRAGMENT_SLOTS 1
#include "trellis/fragments.glsl"

MatA rows_of_x[HEIGHT];

// Column tile j, a constant.
void multiply_fragment(uint j, uint from)
{
    if (j >= WIDTH)
        return;
    const MatB b = fragment(j, from);
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        acc[i * WIDTH + j] = coopMatMulAdd(rows_of_x[i], b, acc[i * WIDTH + j]);
}

// `tiles` of the rows, from the unit at `base` on.
void multiply_fragments(uint base, uint tiles)
{
    const uint step = LANES / 32 / ABREAST, column = gl_SubgroupID % ABREAST * WIDTH;
    uint tile = gl_SubgroupID / ABREAST;
    MatA next[HEIGHT];

    if (tile >= tiles)
        return;
    [[unroll]] for (uint j = 0; j < WIDTH; j++)
        fetch_fragment(j, base, column + j, tile);
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        next[i] = load_a(16 * i, tile);
    [[dont_unroll]] for (; tile < tiles; tile += step) {
        const uint following = min(tile + step, tiles - 1), from = fragment_bit(tile) % 32;
        next_fragments(0);
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            rows_of_x[i] = next[i];
        [[unroll]] for (uint j = 0; j < WIDTH; j++)
            fetch_fragment(j, base, column + j, following);
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            next[i] = load_a(16 * i, following);
        // One by one, as in stream.glsl.
        multiply_fragment(0, from);
        multiply_fragment(1, from);
        multiply_fragment(2, from);
        multiply_fragment(3, from);
        multiply_fragment(4, from);
        multiply_fragment(5, from);
        multiply_fragment(6, from);
        multiply_fragment(7, from);
    }
}

void begin_unit() { }
void end_unit(uint unit) { }

void multiply_tile(uint tile)
{
    const uint l = gl_SubgroupInvocationID, base = gl_SubgroupID * 64 * STAGE_PITCH;
    const uint column = base + (l / 8 * 16 + l % 8) * STAGE_PITCH;
    MatA a[HEIGHT];
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        a[i] = load_a(16 * i, tile);
    [[unroll]] for (uint h = 0; h < 2; h++)
        [[unroll]] for (uint r = 0; r < 16; r += 8) {
            uvec4 rows;
            [[unroll]] for (uint j = 0; j < 4; j++)
                rows[j] = packFloat2x16(pair_of(state_of(code_of(h, r + 2 * j)), state_of(code_of(h, r + 2 * j + 1))));
            stage[column + 8 * h * STAGE_PITCH + r / 8] = rows;
        }
    subgroupBarrier();
    [[unroll]] for (uint j = 0; j < 4; j++) {
        MatB b;
        coopMatLoad(b, stage, base + 16 * j * STAGE_PITCH, STAGE_PITCH, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            acc[i * WIDTH + j] = coopMatMulAdd(a[i], b, acc[i * WIDTH + j]);
    }
    subgroupBarrier();
}

// Sums of all subgroups -> work [row][128].
void gather()
{
    const uint own = gl_SubgroupID / ABREAST, all = LANES / 32 / ABREAST;
    for (uint g = 0; g < all; g += COPIES) {
        if (own >= g && own < g + COPIES)
            [[unroll]] for (uint i = 0; i < HEIGHT * WIDTH; i++) {
                const uint column = gl_SubgroupID % ABREAST * WIDTH + i % WIDTH;
                const uint at = own % COPIES * COPY + (i / WIDTH * HADAMARD_PITCH + column) * 16;
                MatC before;
                acc[i] = acc[i] * VALUE_UNIT;
                if (g > 0) {
                    coopMatLoad(before, work, at, HADAMARD_PITCH, gl_CooperativeMatrixLayoutRowMajor);
                    acc[i] = acc[i] + before;
                }
                coopMatStore(acc[i], work, at, HADAMARD_PITCH, gl_CooperativeMatrixLayoutRowMajor);
            }
        barrier();
    }
    if (COPIES == 1 || all == 1)
        return;
    for (uint i = gl_LocalInvocationIndex; i < 128 * ROWS; i += LANES) {
        const uint at = i / 128 * HADAMARD_PITCH + i % 128;
        float sum = work[at];
        for (uint c = 1; c < min(COPIES, all); c++)
            sum += work[c * COPY + at];
        work[at] = sum;
    }
    barrier();
}

void main()
{
    const uint group = gl_SubgroupID / 2, lane = gl_SubgroupID % 2 * 32 + gl_SubgroupInvocationID;
    if (!coopmat_prologue())
        return;
    const uint first = gl_WorkGroupID.y * BLOCKS, blocks = min(BLOCKS, K_PADDED / 128 - first);
    const uint count = blocks * 128 / UNIT_ROWS;
    const uint base = unit_at(gl_WorkGroupID.x, first * 128 / UNIT_ROWS, K_PADDED / UNIT_ROWS);

    begin_stream(base, count, lane);
    if (FRAGMENTS == 0)
        request_unit(TRELLIS, group);
    [[unroll]] for (uint i = 0; i < HEIGHT * WIDTH; i++)
        acc[i] = MatC(0.0);
    if (FRAGMENTS != 0) {
        multiply_fragments(base, blocks * 8);
    } else {
        [[dont_unroll]] for (uint unit = group; unit < count; unit += GROUPS)
            take_unit(TRELLIS, unit);
    }
    gather();
    if (SPLIT != 0) { // hadamard.comp adds the shares and goes on
        for (uint i = gl_LocalInvocationIndex; i < 128 * ROWS; i += LANES)
            BufF32(p.partial).v[((gl_WorkGroupID.y * ROWS + i / 128) * gl_NumWorkGroups.x + gl_WorkGroupID.x) * 128 +
                                i % 128] = work[i / 128 * HADAMARD_PITCH + i % 128];
        return;
    }
    hadamard_work(ROWS);
    for (uint i = gl_LocalInvocationIndex; i < 128 * ROWS; i += LANES) {
        const uint n = gl_WorkGroupID.x * 128 + i % 128;
        const float sum = work[i / 128 * HADAMARD_PITCH + i % 128] / X_SCALE;
        finish_column(i / 128, n, sum * half_to_float(uint(BufU16(SVH).v[n])));
    }
}

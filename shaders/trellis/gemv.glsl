// y (m, n) = epilogue(norm(x) W) for few rows of x: a decode step with EXL3 weights, from x to y in one dispatch.
// Shared by gemv.comp and moe_gemv.comp, which declare the push block p, define gemv_prologue and finish_column behind
// this file, and say before it where things are: TRELLIS, SUH and SVH, addresses, X_ROW(m), the row of x that is
// row m, X_GATE, the address of what gates x or 0, K_PADDED and N_PADDED, rows and columns of Q, and what shares of x
// are (see OPEN).
//
//     W = diag(suh) P Q P diag(svh)         Q from the trellis, P: 128 x 128 Hadamard blocks
//
//   workgroup (c, s, z) columns 128 c .. 128 c + 127, share s of the blocks of 128 rows of Q (k), BLOCKS at most;
//                      z: of products beside each other, the one
//   64 lanes           the 128 columns of a unit: lane 8 b + m has columns m and m + 8 of tile b (include/trellis.glsl)
//   group of 64        every GROUPS-th unit of the rows
//
//   first units' words and svh requested (words after x with X_FIRST) | x * suh, Hadamard -> xs | decode and multiply
//     | sums of the groups -> work | SPLIT: the last of the workgroups of 128 columns adds their sums
//     | Hadamard, svh, 1 / rms | bias .. -> y
//
// A lane has all 16 rows of its columns, so products need no reduction across lanes; x is the same for the whole
// subgroup. Per 128 rows x is scaled by a power of two to at most 16: chains of 16 f16 products then cannot overflow,
// whatever x is, and go to f32 every tile. f16 arithmetic, 3inst and mcg, at most 2 rows: the two halves of a value
// are multiplied apart and never added. INT8: x in 8 bits with one scale per 128, mul1 only: the value of a state is
// affine in the byte sum of the product, so one packed dot of the product with x four times is the multiplication.
//
// Instructions a weight that the inner loop needs, beside x (K = 4; M = 1):
//     3inst, mcg   funnel or shift 1.25, shift 1, multiply 1, and-xor 1, fma 1                          5.25
//     mul1         1.25, 1, 1, dot 1, pack 0.5, fma 0.5, fma 0.5                                        5.75
//     mul1 INT8    1.25, 1, 1, dot 1                                                                    4.25
// Loops before a barrier run equally often in all threads: llvmpipe of Mesa 22.3 loses subgroups otherwise.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint M = 1;        // rows of x
layout(constant_id = 4) const uint BLOCKS = 1;   // of 128 rows of Q that there is room for in a workgroup
layout(constant_id = 5) const uint ACTIVATION = 0;
layout(constant_id = 6) const uint SPLIT = 0;    // 1: several workgroups share 128 columns
layout(constant_id = 7) const uint PREFETCH = 0; // 1: units in registers, the next one in flight (f16 only)
layout(constant_id = 8) const uint CLUSTER = 8;  // f16: lanes of a subgroup that transform 128 values: 8, 16, 32
layout(constant_id = 9) const uint INT8 = 0;
layout(constant_id = 10) const uint FOURS = 0;   // 1: four elements of x at once; k is a multiple of 8
layout(constant_id = 11) const uint LANES = 64;  // the local size
layout(constant_id = 12) const bool ACQUIRE = true; // see include/arrive.glsl
#define ACQUIRE ACQUIRE
layout(constant_id = 13) const bool SHARES = false; // whether x or the result may lie in shares; M is 1 then

// Not constants, nor how many blocks a workgroup has: products of a step should have as few pipelines as can be,
// because machine code that does not stay in the instruction cache from layer to layer costs more than all these
// branches.
#define X_TYPE (p.types & 15u)
#define Y_TYPE (p.types >> 4 & 15u)
#define SHARE_BLOCKS (p.types >> 8 & 255u)

// The numbers of workgroups come of what has been read of the push block anyway: gl_NumWorkGroups lies elsewhere, and
// is there a quarter of a microsecond later.
#define COLUMN_BLOCKS (N_PADDED / 128)
// Whether units are asked for when x is there, not before it, which is better for experts and worse for one narrow
// matrix, by measurement of one row on an H200. For products in f16, those that ask beforehand at all.
#ifndef X_FIRST
#define X_FIRST false
#endif
#ifndef NORM
#define NORM (!is_null(p.norm))
#endif

// OPEN: the result is left in shares (include/shares.glsl), so that no workgroup waits for another: each one's sums
// through the output transform and times svh, in the places of what is told otherwise. X_SHARES: so many make x, or 0.
// With X_BASE they are added to that, and the sum goes to X_TOTAL for others, if that is not null. Without (experts) x
// is the row that they are, gated by that of X_GATE.
#define OPEN (SHARES && is_null(p.y))

// Products that are summed up: PARTS of them, copies z of the grid, one behind the other. 1 without.
#ifndef PARTS
#define PARTS 1u
#define MOST_PARTS 1
#define FIRST_PART 0u
#define LINE_SVH(line) SVH
#define LINE_WEIGHT(line) 1.0
#define END_COPY gl_WorkGroupID.z
#endif

bool gemv_prologue();                        // false: nothing to do, for the whole workgroup
void share_operands();                       // before the barrier behind x: what the prologue asked for -> shared
void request_column(uint n);                 // in the workgroup that makes y, before sums are collected
void finish_column(uint m, uint n, float y); // what has been through the output transform and times svh, to y

#include "include/trellis.glsl"
#include "include/address.glsl"
#include "include/activation.glsl"
#include "include/arrive.glsl"
#include "include/shares.glsl"
#include "include/hadamard.glsl" // for both kinds of math: a file is included once, whatever #if says

#define HADAMARD_PITCH 132
const uint GROUPS = LANES / 64;
const uint SUMS = 2 * M;
const bool SMALL_CODE = M == 1; // steps of one sequence: see above. More rows are worth longer code
const bool ONE_COLUMN = M == 1 && LANES >= 128; // makes a thread of y

// Lines of 128 in work: sums of the groups [group][m], then those of all workgroups, of rows or of parts.
#if MATH_F16
const uint PIECES = M == 1 ? 1 + LANES / CLUSTER : 1; // clusters share the sums of one line
#else
const uint PIECES = M * BLOCKS; // work holds x as well
#endif
const uint GROUP_LINES = GROUPS * M > MOST_PARTS ? GROUPS * M : MOST_PARTS;
const uint LINES = GROUP_LINES > PIECES ? GROUP_LINES : PIECES;
shared float work[HADAMARD_PITCH * LINES];
shared float scales[BLOCKS * M];  // what the staged x was divided by, a block of 128
shared float squares[BLOCKS * M]; // sums of squares of the staged x before norm and suh

// At file scope like w of trellis.glsl: sums of the lane's two columns for all rows.
float acc[SUMS];
uint splits; // workgroups that share 128 columns
uint group;  // of 64 lanes
uint thread; // such that subgroups have neighbours

// ---- x ----

// Where share s of x or its gate begins.
uint share_row(uint s) { return (FIRST_SHARE + s) * shares_pitch(K_PADDED); }

#ifdef X_BASE
float shares_at(uint k)
{
    float x = BufF32(X_BASE).v[k];
    for (uint s = 0; s < X_SHARES; s++)
        x += BufF32(p.x).v[share_row(s) + k];
    if (gl_WorkGroupID.x == 0 && !is_null(X_TOTAL))
        BufF32(X_TOTAL).v[k] = x;
    return x;
}
#else
float shares_at(uint k)
{
    return sum_shares(p.x, share_row(0), K_PADDED, X_SHARES, k) *
           activate(ACTIVATION, sum_shares(X_GATE, share_row(0), K_PADDED, X_SHARES, k));
}
#endif

// Element k of row m; with X_GATE, the address of an operand of the same shape and type: activation(gate) * x.
float x_at(uint m, uint k)
{
    if (SHARES && X_SHARES > 0)
        return shares_at(k);
    const uint at = X_ROW(m) * p.k + k;
    float x = load_act(p.x, at, X_TYPE);
    if (is_gated(ACTIVATION) && !is_null(X_GATE))
        x *= activate(ACTIVATION, load_act(X_GATE, at, X_TYPE));
    return x;
}

// ---- sums ----

// What a workgroup tells: rows of a share; of a row all columns, then its sum of squares as each 128 columns have it,
// on to a multiple of 16 bytes. Of a row in shares: its mean_part.
struct Told {
    uint columns; // where the 128 columns of the workgroup begin in a row
    uint pitch;   // of rows
    uint share;   // distance of shares
    uint first;   // share of this product
};

Told told_places()
{
    Told told;
    told.columns = gl_WorkGroupID.x * 128;
    told.pitch = COLUMN_BLOCKS * 128 + ((COLUMN_BLOCKS + 3) & ~3u);
    told.share = told.pitch * M;
    told.first = gl_WorkGroupID.z * splits * told.share;
    return told;
}

// Where the shares of line `line` begin: row `line`, or the row of part `line`.
uint told_line(Told told, uint line)
{
    if (PARTS == 1)
        return told.first + line * told.pitch;
    return (FIRST_PART + line) * splits * told.share;
}

// The number of squares in a row, behind the columns.
uint told_squares() { return COLUMN_BLOCKS * 128 + gl_WorkGroupID.x; }

// What the workgroup's blocks of x contribute to the mean square that the norm divides by the root of; to 1 without.
float mean_part(float squares, uint blocks)
{
    const float part = float(blocks * 128) / float(K_PADDED);
    return NORM ? fma(p.eps, part, squares / float(p.k)) : part;
}

uint end_counter() { return END_COPY * COLUMN_BLOCKS + gl_WorkGroupID.x; }

#include "trellis/stream.glsl"
#if MATH_F16
#include "trellis/products_f16.glsl"
#else
#include "trellis/products_f32.glsl"
#endif

void clear_sums()
{
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
}

// The lane's sums to the line of its group and row.
void store_sums(uint lane, uint blocks)
{
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const uint at = (group * M + i % M) * HADAMARD_PITCH + lane / 8 * 16 + lane % 8 + i / M * 8;
        work[at] = group == 0 ? acc[i] + product_offset(i % M, blocks) : acc[i];
    }
}

void tell_sums(uint blocks)
{
    const Told told = told_places();
    const uint share = told.first + gl_WorkGroupID.y * told.share;
    [[dont_unroll]] for (uint base = 0; base < 128 * M; base += LANES) {
        const uint i = min(base + thread, 128 * M - 1);
        float sum = 0.0;
        [[unroll]] for (uint g = 0; g < GROUPS; g++)
            sum += work[(g * M + i / 128) * HADAMARD_PITCH + i % 128];
        if (base + thread < 128 * M)
            BufTold(p.partial).v[share + i / 128 * told.pitch + told.columns + i % 128] = sum;
    }
    if (NORM)
        tell_squares(share + told_squares(), told.pitch, blocks);
}

void main()
{
    thread = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#if MATH_F16
    group = subgroupBroadcastFirst(thread / 64); // that it is uniform is news to compilers
#else
    group = thread / 64;
#endif
    const uint lane = thread % 64;
    if (!gemv_prologue())
        return;
    const uint first = gl_WorkGroupID.y * SHARE_BLOCKS, blocks = min(SHARE_BLOCKS, K_PADDED / 128 - first);
    const uint count = blocks * 128 / UNIT_ROWS;

    // ceil(k_padded / 128 / SHARE_BLOCKS), exact up to MRL_LINEAR_K_MAX, without the instructions of a division.
    splits = uint((float(K_PADDED / 128 + SHARE_BLOCKS) - 0.5) / float(SHARE_BLOCKS));
    clear_sums();
    begin_stream(unit_at(gl_WorkGroupID.x, first * 128 / UNIT_ROWS, K_PADDED / UNIT_ROWS), count, lane);
    if (!X_FIRST)
        request_unit(TRELLIS, group);
    request_end();
    stage_x(first, blocks);
    [[dont_unroll]] for (uint unit = group; unit - group < count; unit += GROUPS)
        if (unit < count)
            take_unit(TRELLIS, unit);
#if !MATH_F16
    barrier(); // work has been x
#endif
    store_sums(lane, blocks);
    barrier();
    if (SPLIT != 0 && !OPEN) {
        tell_sums(blocks);
        if (!last_to_arrive(p.counters, end_counter(), splits * PARTS))
            return;
    }
    request_column(gl_WorkGroupID.x * 128 + thread % 128);
    transform_sums(M * PARTS, blocks);
    if (OPEN)
        return;
    [[dont_unroll]] for (uint i = thread; i < 128 * M; i += LANES) {
        float sum = work[i / 128 * HADAMARD_PITCH + i % 128];
        for (uint part = 1; part < PARTS; part++)
            sum += work[part * HADAMARD_PITCH + i % 128];
        finish_column(i / 128, gl_WorkGroupID.x * 128 + i % 128, sum);
    }
}

// y (m, n) = epilogue(norm(x) W) for few rows of x: a decode step with EXL3 weights, from x to y in one dispatch.
// Shared by gemv.comp and moe_gemv.comp, which declare the push block p, define gemv_prologue and finish_column behind
// this file, and say before it where things are: TRELLIS, SUH and SVH, addresses, X_ROW(m), the row of x that is
// row m, and K_PADDED, rows of Q.
//
//     W = diag(suh) P Q P diag(svh)         Q from the trellis, P: 128 x 128 Hadamard blocks
//
//   workgroup (c, s, z) columns 128 c .. 128 c + 127, share s of the blocks of 128 rows of Q (k), BLOCKS at most;
//                      z: of products beside each other, the one
//   64 lanes           the 128 columns of a unit: lane 8 b + m has columns m and m + 8 of tile b (include/trellis.glsl)
//   group of 64        every GROUPS-th unit of the rows
//
//   first units' words and svh requested | x * suh, Hadamard -> xs | decode and multiply | sums of the groups
//     | SPLIT: the last of the workgroups of 128 columns adds their sums | Hadamard, 1 / rms, svh, bias .. -> y
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
layout(constant_id = 8) const uint SHUFFLE = 0;  // 1: subgroups of 8 lanes or more: tails come from registers
layout(constant_id = 9) const uint INT8 = 0;
layout(constant_id = 10) const uint FOURS = 0;   // 1: four elements of x at once; k is a multiple of 8
layout(constant_id = 11) const uint LANES = 64;  // the local size

// Not constants, nor how many blocks a workgroup has: products of a step should have as few pipelines as can be,
// because machine code that does not stay in the instruction cache from layer to layer costs more than all these
// branches.
#define X_TYPE (p.types & 255u)
#define Y_TYPE (p.types >> 8 & 255u)
#ifndef NORM
#define NORM (!is_null(p.norm))
#endif

// Products that are summed up: PARTS of them, copies z of the grid, one behind the other. 1 without.
#ifndef PARTS
#define PARTS 1
#define MOST_PARTS 1
#endif

bool gemv_prologue();                        // false: nothing to do, for the whole workgroup
void finish_column(uint m, uint n, float y); // what has been through the output transform and times svh, to y
void request_sum();                          // with PARTS > 1: what finish_sum needs beside work [part][128]
void finish_sum();

#include "include/trellis.glsl"
#include "include/address.glsl"
#include "include/activation.glsl"
#include "include/arrive.glsl"

#define HADAMARD_PITCH 132
const uint GROUPS = LANES / 64;
const uint ROUND = LANES / 16; // blocks that are transformed at a time
const uint SUMS = 2 * M;
const bool LOOPS = MATH_F16 == 0;
const bool SMALL_CODE = M == 1; // steps of one sequence: see above. More rows are worth longer code

#if MATH_F16
const uint STAGED = ROUND > M ? ROUND : M; // lines of x that are transformed, or of sums
#else
const uint STAGED = M * BLOCKS;
#endif
const uint WORK = HADAMARD_PITCH * (STAGED > MOST_PARTS ? STAGED : MOST_PARTS);
shared float work[WORK];
shared float scales[BLOCKS * M]; // what the staged x was divided by, a block of 128
shared float squares[BLOCKS * M]; // sums of squares of the staged x before norm and suh

// At file scope like w of trellis.glsl: sums of the lane's two columns for all rows.
float acc[SUMS];

#include "include/hadamard_work.glsl"

// ---- x ----

// Element k of row m; with X_GATE, the address of an operand of the same shape and type: activation(gate) * x.
float x_at(uint m, uint k)
{
    const uint at = X_ROW(m) * p.k + k;
    float x = load_act(p.x, at, X_TYPE);
#ifdef X_GATE
    if (is_gated(ACTIVATION) && !is_null(X_GATE))
        x *= activate(ACTIVATION, load_act(X_GATE, at, X_TYPE));
#endif
    return x;
}

#if MATH_F16
// Four of them, where FOURS allows it.
vec4 x_at4(uint m, uint k)
{
    const uint at = X_ROW(m) * p.k + k;
    vec4 x = load_act4(p.x, at, X_TYPE);
#ifdef X_GATE
    if (is_gated(ACTIVATION) && !is_null(X_GATE)) {
        const vec4 gate = load_act4(X_GATE, at, X_TYPE);
        [[unroll]] for (uint i = 0; i < 4; i++)
            x[i] *= activate(ACTIVATION, gate[i]);
    }
#endif
    return x;
}

void load_x(uint m, uint k, out float v[8])
{
    if (FOURS == 0) {
        [[unroll]] for (uint i = 0; i < 8; i++)
            v[i] = k + i < p.k ? x_at(m, k + i) : 0.0;
        return;
    }
    vec4 a = vec4(0.0), b = vec4(0.0);
    if (k < p.k) {
        a = x_at4(m, k);
        b = x_at4(m, k + 4);
    }
    v = float[8](a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w);
}
#endif

#include "trellis/stream.glsl"
#if MATH_F16
#include "trellis/products_f16.glsl"
#else
#include "trellis/products_f32.glsl"
#endif

// ---- sums ----

// Of row m over the workgroup's blocks.
float row_squares(uint m, uint blocks)
{
    float sum = 0.0;
    for (uint b = 0; b < blocks; b++)
        sum += squares[b * M + m];
    return sum;
}

void clear_sums()
{
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
}

// The lane's sums to work, or onto what is there.
void add_sums(bool first, uint lane, uint blocks)
{
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const uint at = i % M * HADAMARD_PITCH + lane / 8 * 16 + lane % 8 + i / M * 8;
        work[at] = first ? acc[i] + product_offset(i % M, blocks) : work[at] + acc[i];
    }
}

// svh of the thread's columns, and the counter into a cache: both asked for before everything else, because at the end
// nobody has anything to do while they come.
float column_scale[2];

uint end_counter() { return gl_WorkGroupID.z / PARTS * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

void request_end()
{
    const uint t = gl_LocalInvocationIndex, first = gl_WorkGroupID.x * 128;
    [[unroll]] for (uint i = 0; i < 2; i++)
        column_scale[i] = half_to_float(uint(BufU16(SVH).v[first + (t + LANES * i) % 128]));
    if (SPLIT != 0 && t == 0)
        touch_counter(p.counters, end_counter());
}

// Sums of all groups and, with SPLIT, of all workgroups of these columns -> work [m][128], or [part][128]; false: others
// will finish.
bool gather(uint group, uint lane, uint blocks)
{
    const uint t = gl_LocalInvocationIndex;
    barrier(); // in f32, work has been x
    for (uint g = 0; g < GROUPS; g++) {
        if (group == g)
            add_sums(g == 0, lane, blocks);
        barrier();
    }
    if (SPLIT == 0)
        return true;
    // A row of a share: its columns, then the sum of squares as each 128 columns have it.
    const uint pitch = gl_NumWorkGroups.x * 129, stride = pitch * M, columns = gl_WorkGroupID.x * 128;
    const uint all = gl_WorkGroupID.z * gl_NumWorkGroups.y * stride, share = all + gl_WorkGroupID.y * stride;
    for (uint i = t; i < 128 * M; i += LANES)
        BufTold(p.partial).v[share + i / 128 * pitch + columns + i % 128] = work[i / 128 * HADAMARD_PITCH + i % 128];
    const uint row = min(t, M - 1); // all threads take part in loops before barriers
    if (NORM) {
        const float sum = row_squares(row, blocks);
        if (t < M)
            BufTold(p.partial).v[share + t * pitch + gl_NumWorkGroups.x * 128 + gl_WorkGroupID.x] = sum;
    }
    if (!last_to_arrive(p.counters, end_counter(), gl_NumWorkGroups.y * PARTS))
        return false;
    if (PARTS > 1)
        request_sum();
    const uint first_part = gl_WorkGroupID.z / PARTS * PARTS * gl_NumWorkGroups.y * stride;
    for (uint i = t; i < 128 * M * PARTS; i += LANES) {
        const uint start = PARTS > 1 ? first_part + i / 128 * gl_NumWorkGroups.y * stride : all + i / 128 * pitch;
        const uint at = start + columns + i % 128;
        vec2 sums = vec2(0.0);
        if (NORM)
            sums = told_sums(p.partial, at, start + gl_NumWorkGroups.x * 128 + gl_WorkGroupID.x, stride, gl_NumWorkGroups.y);
        else
            sums.x = told_sum(p.partial, at, stride, gl_NumWorkGroups.y);
        work[i / 128 * HADAMARD_PITCH + i % 128] = sums.x;
        if (NORM && i % 128 == 0)
            squares[i / 128] = sums.y;
    }
    barrier();
    return true;
}

void main()
{
    const uint t = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#if MATH_F16
    const uint group = subgroupBroadcastFirst(t / 64); // that it is uniform is news to compilers
#else
    const uint group = t / 64;
#endif
    const uint lane = t % 64, units = K_PADDED / UNIT_ROWS;
    if (!gemv_prologue())
        return;
    const uint each = (K_PADDED / 128 + gl_NumWorkGroups.y - 1) / gl_NumWorkGroups.y;
    const uint first = gl_WorkGroupID.y * each, blocks = min(each, K_PADDED / 128 - first);
    const uint first_unit = first * 128 / UNIT_ROWS, count = blocks * 128 / UNIT_ROWS;

    clear_sums();
    const uint base = unit_at(gl_WorkGroupID.x, first_unit, units);
    request_unit(TRELLIS, base, lane, group, count);
    request_end();
    stage_x(first, blocks);
    [[dont_unroll]] for (uint unit = group; unit - group < count; unit += GROUPS)
        if (unit < count)
            take_unit(TRELLIS, base, lane, unit, count);
    if (!gather(group, lane, blocks))
        return;
    hadamard_work(M * PARTS);
    if (PARTS > 1) {
        finish_sum();
        return;
    }
    for (uint i = gl_LocalInvocationIndex; i < 128 * M; i += LANES) {
        const uint m = i / 128;
        float sum = work[m * HADAMARD_PITCH + i % 128];
        if (NORM)
            sum *= inversesqrt((SPLIT != 0 ? squares[m] : row_squares(m, blocks)) / float(p.k) + p.eps);
        finish_column(m, gl_WorkGroupID.x * 128 + i % 128, sum * column_scale[LANES == 64 ? i / 64 % 2 : 0]);
    }
}

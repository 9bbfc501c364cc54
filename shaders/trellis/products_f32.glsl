// The staging of x and the products of gemv.glsl in f32, for devices without fast f16 and for lavapipe: the same
// results with little code, because llvmpipe compiles a loop over its lanes for each access to memory in the code.
//
// The staged x lies in work: [block of 128][m][HADAMARD_PITCH]. INT8: whole numbers there, scales beside them.

const bool LOOPS = true;
#include "include/hadamard_work.glsl"

// Sums of squares of the blocks, a thread a block.
void sum_squares(uint first, uint all)
{
    for (uint base = 0; base < all; base += LANES) {
        const uint of = min(base + gl_LocalInvocationIndex, all - 1);
        float sum = 0.0;
        for (uint i = 0; i < 128; i++) {
            const uint k = (first + of / M) * 128 + i;
            const float v = k < p.k ? x_at(of % M, k) : 0.0;
            sum = fma(v, v, sum);
        }
        squares[of] = sum;
    }
}

// Blocks first .. first + count - 1 of all rows of x.
void stage_x(uint first, uint count)
{
    const uint t = gl_LocalInvocationIndex, all = count * M;
    for (uint i = t; i < all * 128; i += LANES) {
        const uint m = i / 128 % M, k = (first + i / 128 / M) * 128 + i % 128;
        float v = 0.0;
        if (k < p.k) {
            v = x_at(m, k) * half_to_float(uint(BufU16(SUH).v[k]));
            if (NORM)
                v *= BufF32(p.norm).v[k];
        }
        work[i / 128 * HADAMARD_PITCH + i % 128] = v;
    }
    share_operands();
    if (NORM)
        sum_squares(first, all);
    barrier();
    hadamard_work(all);
    if (INT8 == 0)
        return;
    for (uint base = 0; base < all; base += LANES) {
        const uint of = min(base + t, all - 1);
        float most = 0.0;
        for (uint i = 0; i < 128; i++) {
            const float v = work[of * HADAMARD_PITCH + i];
            most = isnan(v) ? v : max(most, abs(v));
        }
        // A row with inf or nan becomes nan whole: its scale is.
        scales[of] = isnan(most) || isinf(most) ? uintBitsToFloat(0x7fc00000u) : most > 0.0 ? most / 127.0 : 1.0;
    }
    barrier();
    for (uint i = t; i < all * 128; i += LANES) {
        const float scale = scales[i / 128];
        const uint at = i / 128 * HADAMARD_PITCH + i % 128;
        work[at] = isnan(scale) ? 0.0 : roundEven(work[at] / scale);
    }
    barrier();
}

float value_at(uint state)
{
    if (INT8 != 0) // affine, not rounded to f16, as the packed dot has it
        return float(1024u + byte_sum(product(state))) * 0.00676727294921875 - 10.3828125;
    return value_of(state);
}

void begin_unit() { }
void end_unit(uint unit) { }

void multiply_tile(uint tile)
{
    const uint row = tile * 16;
    float v[32]; // [h][row]
    [[unroll]] for (uint c = 0; c < 32; c++)
        v[c / 4 % 2 * 16 + c / 8 * 2 + c / 2 % 2 * 8 + c % 2] = value_at(state_of(c));
    [[unroll]] for (uint m = 0; m < M; m++) {
        const uint of = row / 128 * M + m;
        float sum[2] = {0.0, 0.0};
        [[unroll]] for (uint i = 0; i < 16; i++) {
            const float x = work[of * HADAMARD_PITCH + row % 128 + i];
            sum[0] = fma(v[i], x, sum[0]);
            sum[1] = fma(v[16 + i], x, sum[1]);
        }
        [[unroll]] for (uint h = 0; h < 2; h++)
            acc[h * M + m] += INT8 != 0 ? sum[h] * scales[of] : sum[h];
    }
}

float product_offset(uint m, uint blocks) { return 0.0; }

// ---- sums ----

// Of row m over the workgroup's blocks.
float row_squares(uint m, uint blocks)
{
    float sum = 0.0;
    for (uint b = 0; b < blocks; b++)
        sum += squares[b * M + m];
    return sum;
}

void tell_squares(uint at, uint pitch, uint blocks)
{
    const uint row = min(thread, M - 1); // all threads take part in loops before barriers
    const float sum = row_squares(row, blocks);
    if (thread < M)
        BufTold(p.partial).v[at + thread * pitch] = sum;
}

void request_end()
{
    if (SPLIT != 0 && !OPEN && thread == 0)
        touch_counter(p.counters, end_counter());
}

// As in products_f16.glsl.
void transform_sums(uint lines, uint blocks)
{
    const Told told = told_places();
    const bool join = SPLIT != 0 && !OPEN, norm = NORM && !OPEN;
    for (uint base = 0; base < 128 * lines; base += LANES) {
        const uint i = min(base + thread, 128 * lines - 1), line = i / 128;
        const uint at = told_line(told, line) + told.columns + i % 128;
        float sum = 0.0;
        if (join)
            for (uint s = 0; s < splits; s++)
                sum += BufTold(p.partial).v[at + s * told.share];
        else
            for (uint g = 0; g < GROUPS; g++)
                sum += work[(g * M + line) * HADAMARD_PITCH + i % 128];
        if (base + thread < 128 * lines)
            work[line * HADAMARD_PITCH + i % 128] = sum;
    }
    if (norm) {
        const uint line = min(thread, lines - 1); // all threads take part in loops before barriers
        float sum = 0.0;
        if (join)
            for (uint s = 0; s < splits; s++)
                sum += BufTold(p.partial).v[told_line(told, line) + s * told.share + told_squares()];
        else
            sum = row_squares(line, blocks);
        barrier();
        if (thread < lines)
            squares[thread] = sum;
    }
    barrier();
    hadamard_work(lines);
    for (uint base = 0; base < 128 * lines; base += LANES) {
        const uint i = min(base + thread, 128 * lines - 1), line = i / 128;
        float factor = LINE_WEIGHT(line) *
                       half_to_float(uint(BufU16(LINE_SVH(line)).v[gl_WorkGroupID.x * 128 + i % 128]));
        if (norm)
            factor *= inversesqrt(squares[line] / float(p.k) + p.eps);
        if (base + thread < 128 * lines)
            work[line * HADAMARD_PITCH + i % 128] *= factor;
    }
    barrier();
    if (OPEN) {
        const uint share = told.first + gl_WorkGroupID.y * told.share;
        for (uint i = thread; i < 128; i += LANES) // M is 1
            BufF32(p.partial).v[share + told.columns + i] = work[i];
        if (thread == 0)
            BufF32(p.partial).v[share + told_squares()] = mean_part(row_squares(0, blocks), blocks);
    }
}

// y (m, n) = epilogue(norm(x) W) for few rows of x: a decode step with EXL3 weights, from x to y in one dispatch.
// Shared by gemv.comp and moe_gemv.comp, which declare the push block p, define gemv_prologue and finish_column behind
// this file, and say before it where things are: TRELLIS and SUH, addresses, and X_ROW(m), the row of x that is row m.
//
//     W = diag(suh) P Q P diag(svh)         Q from the trellis, P: 128 x 128 Hadamard blocks
//
//   workgroup (c, s, z) columns 128 c .. 128 c + 127, BLOCKS blocks of 128 rows of Q (k) from s * BLOCKS on;
//                      z: of products beside each other, the one
//   64 lanes           the 128 columns of a unit: lane 8 b + m has columns m and m + 8 of tile b (include/trellis.glsl)
//   group of 64        every GROUPS-th unit of the rows
//
//   first units' words requested | x * suh, Hadamard -> xs | decode and multiply | sums of the groups
//     | SPLIT: the last of the workgroups of 128 columns adds their sums | Hadamard, svh, bias .. -> y
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
layout(constant_id = 4) const uint BLOCKS = 1;   // of 128 rows of Q that a workgroup has at most
layout(constant_id = 5) const uint X_TYPE = 0;
layout(constant_id = 6) const uint Y_TYPE = 0;
layout(constant_id = 7) const uint NORM = 0;
layout(constant_id = 8) const uint ACTIVATION = 0;
layout(constant_id = 9) const uint SPLIT = 0;    // 1: several workgroups share 128 columns
layout(constant_id = 10) const uint PREFETCH = 0; // 1: units in registers, the next one in flight (f16 only)
layout(constant_id = 11) const uint SHUFFLE = 0; // 1: subgroups of 8 lanes or more: tails come from registers
layout(constant_id = 12) const uint INT8 = 0;
layout(constant_id = 13) const uint FOURS = 0;   // 1: four elements of x at once
layout(constant_id = 14) const uint LANES = 64;  // the local size

bool gemv_prologue();                          // false: nothing to do, for the whole workgroup
void finish_column(uint m, uint n, float sum); // what has been through the output transform, to y

#include "include/trellis.glsl"
#include "include/address.glsl"

#define HADAMARD_PITCH 132
const uint GROUPS = LANES / 64;
const uint ROUND = LANES / 16; // blocks that are transformed at a time
const uint SUMS = 2 * M;
const bool LOOPS = MATH_F16 == 0;

// What workgroups tell each other. nonprivate stands at the member: glslang ignores it before the block.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufShared { nonprivate float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufCount { nonprivate uint v[]; };

#if MATH_F16
const uint WORK = HADAMARD_PITCH * (ROUND > M ? ROUND : M);
#else
const uint WORK = HADAMARD_PITCH * M * BLOCKS;
#endif
shared float work[WORK];
shared float scales[BLOCKS * M]; // what the staged x was divided by, a block of 128
shared float partial[M > 1 ? LANES / 4 * M : LANES / 2];
shared uint ticket;

// At file scope like w of trellis.glsl: sums of the lane's two columns for all rows; a unit, and those that follow.
float acc[SUMS];
uint words[UNIT_WORDS];
uvec4 next[UNIT_VECS], after[UNIT_VECS];

#include "include/hadamard_work.glsl"

// ---- x ----

#if MATH_F16
void load_x(uint m, uint k, out float v[8])
{
    if (FOURS != 0 && k + 8 <= p.k) {
        [[unroll]] for (uint i = 0; i < 8; i += 4) {
            const vec4 x = load_act4(p.x, X_ROW(m) * p.k + k + i, X_TYPE);
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = x[j];
        }
        return;
    }
    [[unroll]] for (uint i = 0; i < 8; i++)
        v[i] = k + i < p.k ? load_act(p.x, X_ROW(m) * p.k + k + i, X_TYPE) : 0.0;
}
#endif

// 1 / rms of every row of x; the whole workgroup takes part. In shared memory, because M is not a small constant.
shared float factors[M];
void norm_factors()
{
    const uint t = gl_LocalInvocationIndex;
    float sum[M];
    [[unroll]] for (uint m = 0; m < M; m++)
        sum[m] = 0.0;
#if MATH_F16
    for (uint base = 0; base < p.k; base += LANES * 8)
        [[unroll]] for (uint m = 0; m < M; m++)
            if (base + t * 8 < p.k) {
                float v[8];
                load_x(m, base + t * 8, v);
                [[unroll]] for (uint i = 0; i < 8; i++)
                    sum[m] = fma(v[i], v[i], sum[m]);
            }
#else
    for (uint base = 0; base < p.k; base += LANES)
        [[unroll]] for (uint m = 0; m < M; m++) {
            const float v = base + t < p.k ? load_act(p.x, X_ROW(m) * p.k + min(base + t, p.k - 1), X_TYPE) : 0.0;
            sum[m] = fma(v, v, sum[m]);
        }
#endif
    [[unroll]] for (uint m = 0; m < M; m++) {
        sum[m] = subgroupAdd(sum[m]);
        if (subgroupElect())
            partial[gl_SubgroupID * M + m] = sum[m];
    }
    barrier();
    float total = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++)
        total += partial[i * M + min(t, M - 1)];
    if (t < M)
        factors[t] = inversesqrt(total / float(p.k) + p.eps);
    barrier();
}

#if MATH_F16
#include "trellis/products_f16.glsl"
#else
#include "trellis/products_f32.glsl"
#endif

// ---- sums ----

// Sums of all groups and, with SPLIT, of all workgroups of these columns -> work [m][128]; false: others will finish.
bool gather(uint group, uint lane, uint blocks)
{
    const uint t = gl_LocalInvocationIndex, c = lane / 8 * 16 + lane % 8;
    barrier(); // in f32, work has been x
    for (uint g = 0; g < GROUPS; g++) {
        if (group == g)
            [[unroll]] for (uint i = 0; i < SUMS; i++) {
                const uint at = i % M * HADAMARD_PITCH + c + i / M * 8;
                work[at] = g == 0 ? acc[i] + product_offset(i % M, blocks) : work[at] + acc[i];
            }
        barrier();
    }
    if (SPLIT == 0)
        return true;
    const uint stride = p.n_padded * M, columns = gl_WorkGroupID.x * 128;
    const uint all = gl_WorkGroupID.z * gl_NumWorkGroups.y * stride, share = all + gl_WorkGroupID.y * stride;
    const uint counter = gl_WorkGroupID.z * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    for (uint i = t; i < 128 * M; i += LANES)
        BufShared(p.partial).v[share + i / 128 * p.n_padded + columns + i % 128] =
            work[i / 128 * HADAMARD_PITCH + i % 128];
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    barrier();
    if (t == 0)
        ticket = atomicAdd(BufCount(p.counters).v[counter], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                           gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
    barrier();
    if (ticket != gl_NumWorkGroups.y - 1)
        return false;
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
    if (t == 0)
        BufCount(p.counters).v[counter] = 0; // for the next call
    for (uint i = t; i < 128 * M; i += LANES) {
        const uint at = i / 128 * p.n_padded + columns + i % 128;
        float sum = 0.0;
        for (uint s = 0; s < gl_NumWorkGroups.y; s++) // always in this order
            sum += BufShared(p.partial).v[all + s * stride + at];
        work[i / 128 * HADAMARD_PITCH + i % 128] = sum;
    }
    barrier();
    return true;
}

void main()
{
    const uint t = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    const uint group = t / 64, lane = t % 64, units = p.k_padded / UNIT_ROWS;
    if (!gemv_prologue())
        return;
    const uint first = gl_WorkGroupID.y * BLOCKS, blocks = min(BLOCKS, p.k_padded / 128 - first);
    const uint first_unit = first * 128 / UNIT_ROWS, count = blocks * 128 / UNIT_ROWS;

    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
    const uint column = unit_at(gl_WorkGroupID.x, first_unit, units) + lane, stride = GROUPS * UNIT_VECS * 64;
    uint at = column + group * UNIT_VECS * 64;
    if (PREFETCH != 0) {
        const uint end = column + count * UNIT_VECS * 64; // behind the last unit of these lanes
        [[unroll]] for (uint i = 0; i < UNIT_VECS; i++) {
            next[i] = at < end ? BufU32x4(TRELLIS).v[at + i * 64] : uvec4(0);
            after[i] = at + stride < end ? BufU32x4(TRELLIS).v[at + stride + i * 64] : uvec4(0);
        }
    }
    stage_x(first, blocks);
    for (uint base = 0; base < count; base += GROUPS) {
        const uint unit = base + group;
        if (PREFETCH != 0)
            [[unroll]] for (uint i = 0; i < UNIT_VECS; i++) {
                words[4 * i] = next[i].x;
                words[4 * i + 1] = next[i].y;
                words[4 * i + 2] = next[i].z;
                words[4 * i + 3] = next[i].w;
                next[i] = after[i];
                if (unit + 2 * GROUPS < count)
                    after[i] = BufU32x4(TRELLIS).v[at + 2 * stride + i * 64];
            }
        if (unit < count)
            multiply_unit(at - lane, lane, unit);
        at += stride;
    }
    if (!gather(group, lane, blocks))
        return;
    hadamard_work(M);
    for (uint i = gl_LocalInvocationIndex; i < 128 * M; i += LANES)
        finish_column(i / 128, gl_WorkGroupID.x * 128 + i % 128, work[i / 128 * HADAMARD_PITCH + i % 128]);
}

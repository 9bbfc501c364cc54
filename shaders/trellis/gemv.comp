// y (m, n) = epilogue(norm(x) W) for few rows of x: a decode step with EXL3 weights, from x to y in one dispatch.
//
//     W = diag(suh) P Q P diag(svh)         Q from the trellis, P: 128 x 128 Hadamard blocks
//
//   workgroup (c, s)   columns 128 c .. 128 c + 127, BLOCKS blocks of 128 rows of Q (k) from s * BLOCKS on
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
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

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
layout(constant_id = 10) const uint PREFETCH = 0; // 1: whole units in registers, the next one in flight
layout(constant_id = 11) const uint SHUFFLE = 0; // 1: subgroups of 8 lanes or more: tails come from registers
layout(constant_id = 12) const uint INT8 = 0;
layout(constant_id = 13) const uint FOURS = 0;   // 1: four elements of x at once
layout(constant_id = 14) const uint LANES = 64;  // the local size

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };
#include "include/trellis.glsl"
#include "include/hadamard.glsl"
#include "trellis/epilogue.glsl"

const uint GROUPS = LANES / 64;
const uint ROUND = LANES / 16;                   // blocks that are transformed at a time
const uint WORK = HADAMARD_PITCH * (ROUND > M ? ROUND : M);
const uint SUMS = 2 * M;
#if MATH_F16
const uint X_VECS = INT8 != 0 ? 4 : 2;           // uvec4s of 16 elements of x
#else
const uint X_VECS = 4;
#endif
const bool APART = MATH_F16 == 1 && CODEBOOK != CODEBOOK_MUL1 && M <= 2;

layout(buffer_reference, scalar, buffer_reference_align = 4) nonprivate buffer BufShared { float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) nonprivate buffer BufCount { uint v[]; };

shared float work[WORK];
shared uvec4 xs[BLOCKS * M * 8 * X_VECS];        // [block of 16 rows][m][X_VECS]
shared float scales[BLOCKS * M];                 // what xs was divided by, a block of 128
shared float offsets[INT8 != 0 ? BLOCKS * M : 1]; // scale * sum of a block of int8 x
shared float partial[M > 1 ? LANES / 4 * M : LANES / 2];
shared uint ticket;

#ifdef DOT
int dot4(uint a, int b, int c) { return dotPacked4x8EXT(int(a), b) + c; }
uint dot_bytes(uint x) { return dotPacked4x8EXT(x, 0x01010101u); }
#else
int dot4(uint a, int b, int c)
{
    // b is one number four times.
    const ivec4 bytes = (ivec4(int(a)) << ivec4(24, 16, 8, 0)) >> 24;
    return (bytes.x + bytes.y + bytes.z + bytes.w) * (b >> 24) + c;
}
uint dot_bytes(uint x) { return byte_sum(x); }
#endif

// ---- x ----

void load_x(uint m, uint k, out float v[8])
{
    if (FOURS != 0 && k + 8 <= p.k) {
        [[unroll]] for (uint i = 0; i < 8; i += 4) {
            const vec4 x = load_act4(p.x, m * p.k + k + i, X_TYPE);
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = x[j];
        }
        return;
    }
    [[unroll]] for (uint i = 0; i < 8; i++)
        v[i] = k + i < p.k ? load_act(p.x, m * p.k + k + i, X_TYPE) : 0.0;
}

// 1 / rms of every row of x; the whole workgroup takes part. In shared memory, because M is not a small constant.
shared float factors[M];
void norm_factors()
{
    const uint t = gl_LocalInvocationIndex;
    float sum[M], v[8];
    [[unroll]] for (uint m = 0; m < M; m++)
        sum[m] = 0.0;
    for (uint base = 0; base < p.k; base += LANES * 8)
        [[unroll]] for (uint m = 0; m < M; m++)
            if (base + t * 8 < p.k) {
                load_x(m, base + t * 8, v);
                [[unroll]] for (uint i = 0; i < 8; i++)
                    sum[m] = fma(v[i], v[i], sum[m]);
            }
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

void second_pass(bool mine, uint block, uint i, out float most)
{
    float v[16];
    most = 0.0;
    if (!mine)
        return;
    const uint at = block * HADAMARD_PITCH + i;
    [[unroll]] for (uint j = 0; j < 16; j++)
        v[j] = work[at + 8 * j];
    butterflies16(v);
    [[unroll]] for (uint j = 0; j < 16; j++) {
        v[j] *= HADAMARD_SCALE;
        work[at + 8 * j] = v[j];
        most = isnan(v[j]) ? v[j] : max(most, abs(v[j]));
    }
}

// A power of two that brings `most` to 8 .. 16 when divided by it.
float power_for(float most)
{
    const uint exponent = clamp(floatBitsToUint(most) >> 23, 4u, 250u);
    return uintBitsToFloat((exponent - 3u) << 23);
}

// Eight transformed elements, `part` of 16 of block b of row m, to shared memory.
void store_x(uint m, uint b, uint part, float most, const float v[8])
{
    const uint at = ((b * 8 + part / 2) * M + m) * X_VECS + part % 2 * (X_VECS / 2), of = b * M + m;
    const bool finite = !isnan(most) && !isinf(most);
#if MATH_F16
    if (INT8 == 0) {
        const float scale = finite ? power_for(most) : 1.0;
        uvec4 word;
        [[unroll]] for (uint j = 0; j < 4; j++)
            word[j] = packHalf2x16(vec2(v[2 * j], v[2 * j + 1]) / scale);
        xs[at] = word;
        if (part == 0)
            scales[of] = scale;
        return;
    }
#else
    if (INT8 == 0) {
        [[unroll]] for (uint j = 0; j < 2; j++)
            xs[at + j] = floatBitsToUint(vec4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]));
        if (part == 0)
            scales[of] = 1.0;
        return;
    }
#endif
    // A row with inf or nan becomes nan whole: its scale is.
    const float scale = most > 0.0 ? most / 127.0 : 1.0;
    [[unroll]] for (uint j = 0; j < 2; j++) {
        uvec4 word;
        [[unroll]] for (uint i = 0; i < 4; i++)
            word[i] = finite ? (uint(int(roundEven(v[4 * j + i] / scale))) & 255u) * 0x01010101u : 0u;
        xs[at + j] = word;
    }
    if (part == 0)
        scales[of] = finite ? scale : uintBitsToFloat(0x7fc00000u);
}

// Blocks first .. first + count - 1 of all rows of x -> xs.
void stage_x(uint first, uint count)
{
    const uint t = gl_LocalInvocationIndex, rounds = (count * M + ROUND - 1) / ROUND;
    if (NORM != 0)
        norm_factors();
    for (uint round = 0; round < rounds; round++) {
        float v[8], most;
        uint task = round * ROUND + t / 16, m = task / count, b = task % count;
        const uint part = t % 16, k = (first + b) * 128 + part * 8, at = t / 16 * HADAMARD_PITCH + part * 8;
        const bool mine = task < count * M;
        if (mine) {
            load_x(m, k, v);
            const uvec4 suh = BufU32x4(p.suh).v[k / 8];
            [[unroll]] for (uint j = 0; j < 8; j++) {
                const vec2 pair = unpackHalf2x16(suh[j / 2]);
                if (NORM != 0)
                    v[j] *= factors[m] * (k + j < p.k ? BufF32(p.norm).v[k + j] : 0.0);
                v[j] *= pair[j % 2];
            }
            butterflies8(v);
            [[unroll]] for (uint j = 0; j < 8; j++)
                work[at + j] = v[j];
        }
        barrier();
        // Threads 0 .. 8 * ROUND - 1 take the second pass.
        task = round * ROUND + t / 8;
        second_pass(t < 8 * ROUND && task < count * M, t / 8, t % 8, most);
        if (t < 8 * ROUND)
            partial[t] = most;
        barrier();
        if (mine) {
            most = 0.0;
            [[unroll]] for (uint j = 0; j < 8; j++) {
                const float other = partial[t / 16 * 8 + j];
                most = isnan(most) || isnan(other) ? uintBitsToFloat(0x7fc00000u) : max(most, other);
            }
            [[unroll]] for (uint j = 0; j < 8; j++)
                v[j] = work[at + j];
            store_x(m, b, part, most, v);
        }
        barrier();
    }
    if (INT8 != 0) {
        for (uint base = 0; base < count * M; base += LANES) {
            const uint of = min(base + t, count * M - 1), m = of % M, b = of / M;
            int sum = 0;
            for (uint i = 0; i < 128; i++)
                sum += int(xs[((b * 8 + i / 16) * M + m) * X_VECS + i / 4 % 4][i % 4]) >> 24;
            offsets[of] = float(sum) * scales[of];
        }
        barrier();
    }
}

// ---- products ----

#if MATH_F16
// Exact values of two states.
A2 pair_of(uint s0, uint s1)
{
    const uint x0 = product(s0), x1 = product(s1);
    if (CODEBOOK == CODEBOOK_MUL1) {
        const uint sums = (dot_bytes(x0) + 0x64006400u) + (dot_bytes(x1) << 16); // 1024 + sum, as f16
        return fma(unpackFloat2x16(sums), A2(A(0.00676727294921875)), A2(A(-10.3828125)));
    }
    const A2 v0 = unpackFloat2x16(halves(x0)), v1 = unpackFloat2x16(halves(x1));
    return A2(v0.x, v1.x) + A2(v0.y, v1.y);
}
#else
A2 pair_of(uint s0, uint s1) { return A2(value_of(s0), value_of(s1)); }
#endif

// Elements 2 j, 2 j + 1 of 16 of row m of x.
void read_x(uint tile, uint m, out A2 x[8])
{
    const uint at = (tile * M + m) * X_VECS;
#if MATH_F16
    [[unroll]] for (uint i = 0; i < 2; i++) {
        const uvec4 word = xs[at + i];
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[4 * i + j] = unpackFloat2x16(word[j]);
    }
#else
    [[unroll]] for (uint i = 0; i < 4; i++) {
        const vec4 v = uintBitsToFloat(xs[at + i]);
        x[2 * i] = v.xy;
        x[2 * i + 1] = v.zw;
    }
#endif
}

// sum += the products of a tile (of the staged x) for the lane's two columns.
void multiply_tile(const uint w[TILE_WORDS], uint tile, inout float sum[SUMS])
{
    A2 v[16]; // [h][row / 2]
    [[unroll]] for (uint i = 0; i < 16; i++) {
        const uint h = i / 8, q = i % 4, r = i / 4 % 2, c = 8 * q + 4 * h + 2 * r;
        v[i] = pair_of(state_of(w, c), state_of(w, c + 1));
    }
    [[unroll]] for (uint m = 0; m < M; m++) {
        A2 x[8];
        read_x(tile, m, x);
        [[unroll]] for (uint h = 0; h < 2; h++) {
            A2 chain = v[8 * h] * x[0];
            [[unroll]] for (uint j = 1; j < 8; j++)
                chain = fma(v[8 * h + j], x[j], chain);
            sum[h * M + m] += float(chain.x) + float(chain.y);
        }
    }
}

#if MATH_F16
void multiply_tile_apart(const uint w[TILE_WORDS], uint tile, inout float sum[SUMS])
{
    A2 chain[SUMS], x[8 * M];
    [[unroll]] for (uint m = 0; m < M; m++) {
        A2 row[8];
        read_x(tile, m, row);
        [[unroll]] for (uint j = 0; j < 8; j++)
            x[8 * m + j] = row[j];
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        chain[i] = A2(A(0.0));
    [[unroll]] for (uint c = 0; c < 32; c++) {
        const uint h = c / 4 % 2, j = c / 8 + c / 2 % 2 * 4;
        const A2 value = unpackFloat2x16(halves(product(state_of(w, c))));
        [[unroll]] for (uint m = 0; m < M; m++)
            chain[h * M + m] = fma(value, A2((c & 1) == 0 ? x[8 * m + j].x : x[8 * m + j].y), chain[h * M + m]);
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        sum[i] += float(chain[i].x) + float(chain[i].y);
}
#endif

// The bytes less 128, as signed numbers: the sum that a value needs is 4 * 128 more.
void multiply_tile_int8(const uint w[TILE_WORDS], uint tile, inout int sum[SUMS])
{
    uint v[32]; // [h][row]
    [[unroll]] for (uint c = 0; c < 32; c++)
        v[c / 4 % 2 * 16 + c / 8 * 2 + c / 2 % 2 * 8 + c % 2] = product(state_of(w, c)) ^ 0x80808080u;
    [[unroll]] for (uint m = 0; m < M; m++)
        [[unroll]] for (uint i = 0; i < 4; i++) {
            const uvec4 x = xs[(tile * M + m) * X_VECS + i];
            [[unroll]] for (uint j = 0; j < 4; j++)
                [[unroll]] for (uint h = 0; h < 2; h++)
                    sum[h * M + m] = dot4(v[16 * h + 4 * i + j], int(x[j]), sum[h * M + m]);
        }
}

void multiply_any(const uint w[TILE_WORDS], uint tile, inout float sum[SUMS], inout int whole[SUMS])
{
    if (INT8 != 0)
        multiply_tile_int8(w, tile, whole);
#if MATH_F16
    else if (APART)
        multiply_tile_apart(w, tile, sum);
#endif
    else
        multiply_tile(w, tile, sum);
}

// acc += unit `unit` of the staged ones; words: of the unit, where they were loaded before.
void multiply_unit(const uint words[UNIT_WORDS], uint base, uint lane, uint unit, inout float acc[SUMS])
{
    float sum[SUMS];
    int whole[SUMS];
    uint w[TILE_WORDS];
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sum[i] = 0.0;
        whole[i] = 0;
    }
    if (PREFETCH == 0) {
        for (uint tile = 0; tile < TILES; tile++) {
            load_tile(p.trellis, base, lane, tile, w);
            multiply_any(w, unit * TILES + tile, sum, whole);
        }
    } else {
        uint tails = 0;
        [[unroll]] for (uint tile = 0; tile < TILES; tile++) {
            if (SHUFFLE == 0) {
                w[0] = tail_of(load_word(p.trellis, base, lane_before(lane), tail_word(tile)), tile);
            } else {
                if (tile % 2 == 0) // the tails of two tiles at once
                    tails = subgroupShuffle(tail_of(words[tail_word(tile)], tile) |
                                                tail_of(words[tail_word(tile + 1)], tile + 1) << 16,
                                            lane_before(gl_SubgroupInvocationID));
                w[0] = tile % 2 == 0 ? tails & 0xffffu : tails >> 16;
            }
            const uint first = tile * TILE_BITS / 32;
            [[unroll]] for (uint i = 1; i < TILE_WORDS; i++) {
                const uint a = words[min(first + i - 1, UNIT_WORDS - 1)], b = words[min(first + i, UNIT_WORDS - 1)];
                w[i] = RATE2 % 2 == 1 && tile % 2 == 1 ? (a << 16) | (b >> 16) : a;
            }
            multiply_any(w, unit * TILES + tile, sum, whole);
        }
    }
    const uint block = unit * UNIT_ROWS / 128;
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const float found = INT8 != 0 ? 0.00676727294921875 * float(whole[i]) : sum[i];
        acc[i] = fma(found, scales[block * M + i % M], acc[i]);
    }
}

void load_unit(uint base, uint lane, out uint words[UNIT_WORDS])
{
    [[unroll]] for (uint i = 0; i < UNIT_VECS; i++) {
        const uvec4 v = BufU32x4(p.trellis).v[base + i * 64 + lane];
        [[unroll]] for (uint j = 0; j < 4; j++)
            words[4 * i + j] = v[j];
    }
}

// ---- sums ----

// Sums of all groups and, with SPLIT, of all workgroups of these columns -> work [m][128]; false: others will finish.
bool gather(uint group, uint lane, uint blocks, const float acc[SUMS])
{
    const uint t = gl_LocalInvocationIndex, c = lane / 8 * 16 + lane % 8;
    for (uint g = 0; g < GROUPS; g++) {
        if (group == g)
            [[unroll]] for (uint i = 0; i < SUMS; i++) {
                const uint at = i % M * HADAMARD_PITCH + c + i / M * 8;
                float offset = 0.0;
                if (INT8 != 0 && g == 0) { // what every value has besides its byte sum less 512
                    for (uint b = 0; b < blocks; b++)
                        offset += offsets[b * M + i % M];
                    offset *= 1536.0 * 0.00676727294921875 - 10.3828125;
                }
                work[at] = g == 0 ? acc[i] + offset : work[at] + acc[i];
            }
        barrier();
    }
    if (SPLIT == 0)
        return true;
    const uint stride = p.n_padded * M, share = gl_WorkGroupID.y * stride, columns = gl_WorkGroupID.x * 128;
    for (uint i = t; i < 128 * M; i += LANES)
        BufShared(p.partial).v[share + i / 128 * p.n_padded + columns + i % 128] = work[i / 128 * HADAMARD_PITCH + i % 128];
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    barrier();
    if (t == 0)
        ticket = atomicAdd(BufCount(p.counters).v[gl_WorkGroupID.x], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                           gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
    barrier();
    if (ticket != gl_NumWorkGroups.y - 1)
        return false;
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
    if (t == 0)
        BufCount(p.counters).v[gl_WorkGroupID.x] = 0; // for the next call
    for (uint i = t; i < 128 * M; i += LANES) {
        const uint at = i / 128 * p.n_padded + columns + i % 128;
        float sum = 0.0;
        for (uint s = 0; s < gl_NumWorkGroups.y; s++) // always in this order
            sum += BufShared(p.partial).v[s * stride + at];
        work[i / 128 * HADAMARD_PITCH + i % 128] = sum;
    }
    barrier();
    return true;
}

void transform_sums()
{
    const uint t = gl_LocalInvocationIndex;
    float most;
    for (uint first = 0; first < M; first += ROUND) {
        const uint at = (first + t / 16) * HADAMARD_PITCH + t % 16 * 8;
        if (first + t / 16 < M) {
            float v[8];
            [[unroll]] for (uint j = 0; j < 8; j++)
                v[j] = work[at + j];
            butterflies8(v);
            [[unroll]] for (uint j = 0; j < 8; j++)
                work[at + j] = v[j];
        }
    }
    barrier();
    for (uint first = 0; first < M; first += LANES / 8)
        second_pass(first + t / 8 < M, first + t / 8, t % 8, most);
    barrier();
}

void main()
{
    const uint t = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    const uint group = t / 64, lane = t % 64, units = p.k_padded / UNIT_ROWS;
    const uint first = gl_WorkGroupID.y * BLOCKS, blocks = min(BLOCKS, p.k_padded / 128 - first);
    const uint first_unit = first * 128 / UNIT_ROWS, count = blocks * 128 / UNIT_ROWS;
    float acc[SUMS];
    uint words[UNIT_WORDS], next[UNIT_WORDS];

    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
    if (PREFETCH != 0)
        load_unit(unit_at(gl_WorkGroupID.x, first_unit + min(group, count - 1), units), lane, words);
    stage_x(first, blocks);
    for (uint base = 0; base < count; base += GROUPS) {
        const uint unit = base + group, after = min(unit + GROUPS, count - 1);
        if (PREFETCH != 0)
            load_unit(unit_at(gl_WorkGroupID.x, first_unit + after, units), lane, next);
        if (unit < count)
            multiply_unit(words, unit_at(gl_WorkGroupID.x, first_unit + unit, units), lane, unit, acc);
        if (PREFETCH != 0)
            [[unroll]] for (uint i = 0; i < UNIT_WORDS; i++)
                words[i] = next[i];
    }
    if (!gather(group, lane, blocks, acc))
        return;
    transform_sums();
    for (uint i = gl_LocalInvocationIndex; i < 128 * M; i += LANES)
        finish_column(i / 128, gl_WorkGroupID.x * 128 + i % 128, work[i / 128 * HADAMARD_PITCH + i % 128]);
}

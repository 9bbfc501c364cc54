// y (m, n) = epilogue(norm(x) (m, k) . W (n, k)^T) for few rows of x: a decode step.
//
// A group of SPLIT subgroups owns ROWS rows of W; its lanes stride along k, a unit of 16 bytes each:
//
//   row r   | lane 0 | lane 1 | ... | lane 32*SPLIT-1 | lane 0 | ...      w[0], w[1] .. w[PREFETCH-1]
//
// The loads of the first PREFETCH units of every row are issued before x is looked at, so that memory works
// while the workgroup normalises x and lays it out in shared memory as the format's pairs want it: piece c of
// unit u at xs[c * units + u], so that neighbouring lanes read neighbouring 16 bytes. Where all of x fits (one
// chunk), it is staged once and the workgroup walks on to further rows of W, whose loads are issued before the
// sums of the last ones are reduced.
// 4-bit formats multiply in f16 and add at most 8 products a half before going to f32; x is staged times 2^-7,
// which keeps such a sum in range for every finite f16 x. Wider formats convert and add in f32.
// Loops before a barrier run equally often in all threads: llvmpipe of Mesa 22.3 loses subgroups otherwise.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 1;       // even for gated activations
layout(constant_id = 2) const uint SPLIT = 1;
layout(constant_id = 3) const uint M = 1;          // rows of x
layout(constant_id = 4) const uint PREFETCH = 4;
layout(constant_id = 5) const uint CHUNK = 4096;   // elements of k staged at a time
layout(constant_id = 6) const uint XS = 512;       // uvec4s of shared memory: M * CHUNK * sizeof(A) / 16
layout(constant_id = 7) const uint X_TYPE = 0;
layout(constant_id = 8) const uint Y_TYPE = 0;
layout(constant_id = 9) const uint SCALE = 0;
layout(constant_id = 10) const uint ZERO = 0;
layout(constant_id = 11) const uint GROUP = 0;
layout(constant_id = 12) const uint ACTIVATION = 0;
layout(constant_id = 13) const uint NORM = 0;
layout(constant_id = 14) const uint K_PADDED = 0;  // 0: the pushed one

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"

#define CHAIN (MATH_F16 == 1 && FMT_BITS == 4)
#define PIECES (FMT_UNIT / FMT_CHUNK)
#if MATH_F16
#define PIECE_WORDS (FMT_CHUNK / 8)  // uvec4s
#else
#define PIECE_WORDS (FMT_CHUNK / 4)
#endif
#if CHAIN
#define X_SCALE 0.0078125
#else
#define X_SCALE 1.0
#endif

// Named, because glslang takes arrays of equal expressions for different types.
const uint LOADS = ROWS * PREFETCH;
const uint SUMS = ROWS * M;

shared uvec4 xs[XS];
shared float partial[64 * M];
shared float split_sums[SPLIT > 1 ? 64 * ROWS * M : 1];

// Scale of the group that element k of a row belongs to; the padding of a row borrows its last group's.
uint group_of(uint k) { return GROUP == 0 ? 0 : min(k / max(GROUP, 1), p.groups - 1); }

uint k_padded() { return K_PADDED != 0 ? K_PADDED : p.k_padded; }

// Mean square of every row of x over the whole workgroup -> factor[m].
void norm_factors(inout float factor[M])
{
    float sum[M];
    [[unroll]] for (uint m = 0; m < M; m++)
        sum[m] = 0.0;
    if ((p.k & 3) == 0) {
        for (uint base = 0; base < p.k; base += gl_WorkGroupSize.x * 4) {
            const uint i = base + gl_LocalInvocationIndex * 4;
            if (i < p.k)
                [[unroll]] for (uint m = 0; m < M; m++) {
                    vec4 v = load_act4(p.x, m * p.k + i, X_TYPE);
                    sum[m] += dot(v, v);
                }
        }
    } else {
        for (uint base = 0; base < p.k; base += gl_WorkGroupSize.x) {
            const uint i = base + gl_LocalInvocationIndex;
            if (i < p.k)
                [[unroll]] for (uint m = 0; m < M; m++) {
                    float v = load_act(p.x, m * p.k + i, X_TYPE);
                    sum[m] += v * v;
                }
        }
    }
    [[unroll]] for (uint m = 0; m < M; m++) {
        sum[m] = subgroupAdd(sum[m]);
        if (subgroupElect())
            partial[gl_SubgroupID * M + m] = sum[m];
    }
    barrier();
    [[unroll]] for (uint m = 0; m < M; m++) {
        float total = 0.0;
        for (uint i = 0; i < gl_NumSubgroups; i++)
            total += partial[i * M + m];
        factor[m] = inversesqrt(total / float(p.k) + p.eps);
    }
}

void load_piece(uint m, uint k, float factor, out float v[FMT_CHUNK])
{
    if ((p.k & 3) == 0 && k + FMT_CHUNK <= p.k) {
        [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += 4) {
            vec4 x = load_act4(p.x, m * p.k + k + i, X_TYPE) * factor;
            if (NORM != 0)
                x *= BufF32x4(p.norm).v[(k + i) >> 2];
            v[i] = x.x;
            v[i + 1] = x.y;
            v[i + 2] = x.z;
            v[i + 3] = x.w;
        }
        return;
    }
    [[unroll]] for (uint i = 0; i < FMT_CHUNK; i++) {
        v[i] = 0.0;
        if (k + i < p.k) {
            v[i] = load_act(p.x, m * p.k + k + i, X_TYPE) * factor;
            if (NORM != 0)
                v[i] *= BufF32(p.norm).v[k + i];
        }
    }
}

void stage(uint chunk, uint units, const float factor[M])
{
    for (uint base = 0; base < units * PIECES; base += gl_WorkGroupSize.x) {
        const uint i = base + gl_LocalInvocationIndex, unit = i / PIECES, piece = i % PIECES;
        if (i >= units * PIECES)
            continue;
        [[unroll]] for (uint m = 0; m < M; m++) {
            float v[FMT_CHUNK];
            load_piece(m, chunk + i * FMT_CHUNK, factor[m] * X_SCALE, v);
            uint at = (m * PIECES + piece) * PIECE_WORDS * units + unit;
#if MATH_F16
            uvec4 word;
            [[unroll]] for (uint j = 0; j < 4; j++)
                word[j] = packHalf2x16(vec2(v[fmt_pair(j).x], v[fmt_pair(j).y]));
            xs[at] = word;
#else
            [[unroll]] for (uint h = 0; h < PIECE_WORDS; h++)
                xs[at + h * units] = floatBitsToUint(vec4(v[fmt_pair(2 * h).x], v[fmt_pair(2 * h).y],
                                                          v[fmt_pair(2 * h + 1).x], v[fmt_pair(2 * h + 1).y]));
#endif
        }
    }
}

// Pairs of x that belong to piece `piece` of unit `unit` of the staged chunk.
void read_piece(uint m, uint piece, uint unit, uint units, out A2 x[FMT_CHUNK / 2])
{
    uint at = (m * PIECES + piece) * PIECE_WORDS * units + unit;
#if MATH_F16
    uvec4 word = xs[at];
    [[unroll]] for (uint j = 0; j < 4; j++)
        x[j] = UNPACK_A2(word[j]);
#else
    [[unroll]] for (uint h = 0; h < PIECE_WORDS; h++) {
        vec4 word = uintBitsToFloat(xs[at + h * units]);
        x[2 * h] = word.xy;
        x[2 * h + 1] = word.zw;
    }
#endif
}

void decode(uvec4 w, uint piece, float zero, out A2 v[FMT_CHUNK / 2])
{
#if FMT_ZERO
    if (ZERO != 0) {
        fmt_decode8z(w, piece, A(zero), v);
        return;
    }
#endif
    fmt_decode8(w, piece, v);
}

// Units base, base + lanes, ... of ROWS rows; clamped loads are never used.
void load_units(uint row0, uint base, uint last, uint lanes, out uvec4 w[LOADS])
{
    const uint stride = k_padded() / FMT_UNIT;
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        [[unroll]] for (uint i = 0; i < PREFETCH; i++)
            w[r * PREFETCH + i] = fmt_load(BufU32x4(p.quant), min(row0 + r, p.n - 1) * stride + min(base + i * lanes, last - 1));
}

// acc += the products of one unit of every row with all rows of x.
void multiply_unit(uint row0, uint unit, uint i, uint first, uint units, const uvec4 w[LOADS], inout float acc[SUMS])
{
    const bool small = SCALE != SCALE_NONE && GROUP != 0 && GROUP < FMT_UNIT; // several groups in the unit
    float scale[ROWS], zero[ROWS], sum[SUMS];
#if CHAIN
    A2 chain[SUMS];
#endif
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        const uint at = min(row0 + r, p.n - 1) * p.groups + group_of(unit * FMT_UNIT);
        scale[r] = SCALE == SCALE_NONE || GROUP == 0 || small ? 1.0 : load_scale(p.scale, at, SCALE);
        zero[r] = ZERO == 0 ? 0.0 : load_zero(p.zero, at);
    }
    [[unroll]] for (uint j = 0; j < ROWS * M; j++)
        sum[j] = 0.0;
    [[unroll]] for (uint piece = 0; piece < PIECES; piece++) {
        A2 x[FMT_CHUNK / 2], v[ROWS * FMT_CHUNK / 2];
        float part_scale[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            A2 d[FMT_CHUNK / 2];
            const uint at = min(row0 + r, p.n - 1) * p.groups + group_of(unit * FMT_UNIT + piece * FMT_CHUNK);
            decode(w[r * PREFETCH + i], piece, small && ZERO != 0 ? load_zero(p.zero, at) : zero[r], d);
            [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++)
                v[r * (FMT_CHUNK / 2) + j] = d[j];
            part_scale[r] = small ? load_scale(p.scale, at, SCALE) : 1.0;
        }
        [[unroll]] for (uint m = 0; m < M; m++) {
            read_piece(m, piece, unit - first, units, x);
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
#if CHAIN
                A2 c = (piece & 1) == 0 ? A2(0.0) : chain[r * M + m];
                [[unroll]] for (uint j = 0; j < 4; j++)
                    c = fma(v[r * 4 + j], x[j], c);
                chain[r * M + m] = c;
                if ((piece & 1) == 1)
                    sum[r * M + m] += (float(c.x) + float(c.y)) * part_scale[r];
#else
                float c = 0.0;
                [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
                    c = fma(float(v[r * (FMT_CHUNK / 2) + j].x), float(x[j].x), c);
                    c = fma(float(v[r * (FMT_CHUNK / 2) + j].y), float(x[j].y), c);
                }
                sum[r * M + m] += c * part_scale[r];
#endif
            }
        }
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        [[unroll]] for (uint m = 0; m < M; m++)
            acc[r * M + m] = fma(sum[r * M + m], scale[r], acc[r * M + m]);
}

// Sums over the lanes of the owner, then the epilogue; the owner's first subgroup stores.
void finish_rows(uint row0, inout float acc[SUMS])
{
    [[unroll]] for (uint i = 0; i < ROWS * M; i++)
        acc[i] = subgroupAdd(acc[i]);
    if (SPLIT > 1) {
        barrier(); // the sums of the rows before have been read
        [[unroll]] for (uint i = 0; i < ROWS * M; i++)
            if (gl_SubgroupInvocationID == i % gl_SubgroupSize)
                split_sums[gl_SubgroupID * ROWS * M + i] = acc[i];
        barrier();
        if (gl_SubgroupID % SPLIT != 0)
            return;
        [[unroll]] for (uint i = 0; i < ROWS * M; i++) {
            acc[i] = 0.0;
            [[unroll]] for (uint s = 0; s < SPLIT; s++)
                acc[i] += split_sums[(gl_SubgroupID + s) * ROWS * M + i];
        }
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        [[unroll]] for (uint m = 0; m < M; m++)
            acc[r * M + m] = finish(acc[r * M + m] / X_SCALE, min(row0 + r, p.n - 1));
    // Lane (r / 2 * M + m) stores the pair of rows r and r + 1 (a single row where ROWS is 1).
    [[unroll]] for (uint r = 0; r < ROWS; r += 2)
        [[unroll]] for (uint m = 0; m < M; m++)
            if (gl_SubgroupInvocationID == (r / 2 * M + m) % gl_SubgroupSize && row0 + r < p.n)
                store_pair(m, row0 + r, acc[r * M + m], acc[min(r + 1, ROWS - 1) * M + m],
                           ROWS > 1 && row0 + r + 1 < p.n);
}

void main()
{
    const uint lanes = SPLIT * gl_SubgroupSize;
    const uint lane = (gl_SubgroupID % SPLIT) * gl_SubgroupSize + gl_SubgroupInvocationID;
    const uint owners = gl_NumSubgroups / SPLIT, step = owners * ROWS; // rows of W a workgroup
    const bool once = k_padded() <= CHUNK;                            // x is staged once
    float factor[M];
    uvec4 w[LOADS];
    uint first = 0, last = min(CHUNK, k_padded()) / FMT_UNIT;

    [[unroll]] for (uint m = 0; m < M; m++)
        factor[m] = 1.0;
    uint row0 = gl_WorkGroupID.x * step + gl_SubgroupID / SPLIT * ROWS;
    load_units(row0, lane, last, lanes, w);
    if (NORM != 0)
        norm_factors(factor);
    stage(0, last, factor);
    barrier();
    for (uint block = gl_WorkGroupID.x; block * step < p.n; block += gl_NumWorkGroups.x) {
        float acc[SUMS];
        row0 = block * step + gl_SubgroupID / SPLIT * ROWS;
        [[unroll]] for (uint i = 0; i < ROWS * M; i++)
            acc[i] = 0.0;
        for (uint chunk = 0; chunk < k_padded(); chunk += CHUNK) {
            if (chunk > 0) {
                first = chunk / FMT_UNIT;
                last = min(chunk + CHUNK, k_padded()) / FMT_UNIT;
                load_units(row0, first + lane, last, lanes, w);
                barrier();
                stage(chunk, last - first, factor);
                barrier();
            }
            for (uint base = first + lane; base - lane < last; base += PREFETCH * lanes) {
                if (base - lane > first)
                    load_units(row0, base, last, lanes, w);
                [[unroll]] for (uint i = 0; i < PREFETCH; i++)
                    if (base + i * lanes < last)
                        multiply_unit(row0, base + i * lanes, i, first, last - first, w, acc);
            }
        }
        // Where x has several chunks, the host gives every block of rows a workgroup of its own.
        if (once && (block + gl_NumWorkGroups.x) * step < p.n)
            load_units(row0 + gl_NumWorkGroups.x * step, lane, last, lanes, w);
        finish_rows(row0, acc);
    }
}

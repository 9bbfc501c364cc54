// The body of the few-rows kernels: matmul/gemv.comp draws what it does. Before it come gemv_constants.glsl, the push
// block p, an epilogue (finish, store_pair) and these hooks:
//
//   GEMV_PROLOGUE             if defined, main() calls gemv_prologue() first and ends where that is false
//   K_LENGTH()                weights along k, padding included; k_padded() is that of a row of W
//   UNIT_AT(row, unit, stride)   where in the quant plane unit `unit` of row `row` of W lies
//   GROUP_AT(row, k)          where in the scale and zero planes the group of element k of a row lies
//   UNIT_UNSCALED             groups have no scales: finish() applies one a row, or none
//   X_AT(m, k)                where element k of row m of x lies
//   GEMV_LOAD_X               if defined, the includer has a load_x(m, k, out v) of its own
//   STORE_PAIR(m, n, a, b, second)   store_pair of row m of x
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

// 1 / rms of every row from the sum of squares that this thread found; the whole workgroup takes part.
void reduce_factors(inout float sum[M], out float factor[M])
{
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

#ifndef GEMV_LOAD_X
// Elements k .. of row m (zeros from p.k on), by fours where rows are aligned to them.
void load_x(uint m, uint k, out float v[FMT_CHUNK])
{
    const bool fours = (p.k & 3) == 0 && k + FMT_CHUNK <= p.k;
    [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += 4) {
        if (fours) {
            vec4 x = load_act4(p.x, X_AT(m, k) + i, X_TYPE);
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = x[j];
        } else {
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = k + i + j < p.k ? load_act(p.x, X_AT(m, k) + i + j, X_TYPE) : 0.0;
        }
    }
}
#endif

void load_norm(uint k, out float v[FMT_CHUNK])
{
    [[unroll]] for (uint i = 0; i < FMT_CHUNK; i++)
        v[i] = 1.0;
    if (NORM == 0)
        return;
    if (k + FMT_CHUNK <= p.k) {
        [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += 4) {
            vec4 x = BufF32x4(p.norm).v[(k + i) >> 2];
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = x[j];
        }
    } else {
        [[unroll]] for (uint i = 0; i < FMT_CHUNK; i++)
            if (k + i < p.k)
                v[i] = BufF32(p.norm).v[k + i];
    }
}

// Piece i of row m to shared memory, times factor and, by element, norm.
void store_piece(uint m, uint i, uint units, float factor, const float x[FMT_CHUNK], const float norm[FMT_CHUNK])
{
    const uint at = (m * PIECES + i % PIECES) * PIECE_WORDS * units + i / PIECES;
    float v[FMT_CHUNK];
    [[unroll]] for (uint j = 0; j < FMT_CHUNK; j++)
        v[j] = x[j] * (factor * X_SCALE) * norm[j];
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

float squares(const float v[FMT_CHUNK])
{
    float sum = 0.0;
    [[unroll]] for (uint i = 0; i < FMT_CHUNK; i++)
        sum = fma(v[i], v[i], sum);
    return sum;
}

// Mean square of every row of x over the whole workgroup -> factor[m].
void norm_factors(out float factor[M])
{
    float sum[M], v[FMT_CHUNK];
    [[unroll]] for (uint m = 0; m < M; m++)
        sum[m] = 0.0;
    for (uint base = 0; base < p.k; base += gl_WorkGroupSize.x * FMT_CHUNK) {
        const uint k = base + gl_LocalInvocationIndex * FMT_CHUNK;
        if (k < p.k)
            [[unroll]] for (uint m = 0; m < M; m++) {
                load_x(m, k, v);
                sum[m] += squares(v);
            }
    }
    reduce_factors(sum, factor);
}

void stage(uint chunk, uint units, const float factor[M])
{
    float x[FMT_CHUNK], norm[FMT_CHUNK];
    for (uint base = 0; base < units * PIECES; base += gl_WorkGroupSize.x) {
        const uint i = base + gl_LocalInvocationIndex;
        if (i >= units * PIECES)
            continue;
        load_norm(chunk + i * FMT_CHUNK, norm);
        [[unroll]] for (uint m = 0; m < M; m++) {
            load_x(m, chunk + i * FMT_CHUNK, x);
            store_piece(m, i, units, factor[m], x, norm);
        }
    }
}

// One row of x, normalised, of which a thread has at most two pieces: they stay in registers between the two passes.
void stage_normalised(uint units)
{
    const uint i = gl_LocalInvocationIndex, j = i + gl_WorkGroupSize.x;
    float x0[FMT_CHUNK], x1[FMT_CHUNK], norm0[FMT_CHUNK], norm1[FMT_CHUNK], sum[M], factor[M];
    load_x(0, i * FMT_CHUNK, x0);
    load_norm(i * FMT_CHUNK, norm0);
    sum[0] = squares(x0);
    if (KEPT == 2) {
        load_x(0, j * FMT_CHUNK, x1);
        load_norm(j * FMT_CHUNK, norm1);
        sum[0] += squares(x1);
    }
    reduce_factors(sum, factor);
    if (i < units * PIECES)
        store_piece(0, i, units, factor[0], x0, norm0);
    if (KEPT == 2 && j < units * PIECES)
        store_piece(0, j, units, factor[0], x1, norm1);
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

// What a lane has in flight: PREFETCH units of every row with their scales and zero points, as stored.
// Arrays of fixed size, because glslang cannot return structs sized by constants; the tail is never touched.
#define MAX_LOADS 16
struct Batch {
    uvec4 w[MAX_LOADS];
    uint scale[MAX_LOADS * 2];
    uint zero[MAX_LOADS * 2];
};

// Units base, base + lanes, ... of ROWS rows from row0; those from `last` on are never used.
Batch load_batch(uint row0, uint base, uint last, uint lanes)
{
    Batch batch;
    const uint stride = K_LENGTH() / FMT_UNIT;
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        const uint row = min(row0 + r, p.n - 1);
        [[unroll]] for (uint i = 0; i < PREFETCH; i++) {
            const uint unit = min(base + i * lanes, last - 1), at = r * PREFETCH + i;
            batch.w[at] = fmt_load(BufU32x4(p.quant), UNIT_AT(row, unit, stride));
            [[unroll]] for (uint j = 0; j < SCALES; j++) {
                const uint group = GROUP_AT(row, unit * FMT_UNIT + j * GROUP);
                batch.scale[at * SCALES + j] = UNIT_UNSCALED ? 0 : load_scale_bits(p.scale, group, SCALE);
                batch.zero[at * SCALES + j] = ZERO != 0 ? uint(BufU8(p.zero).v[group]) : 0;
            }
        }
    }
    return batch;
}

// acc += the products of unit i of every row of the batch with all rows of x; unit: its place in the staged x.
void multiply_unit(const Batch batch, uint i, uint unit, uint units, inout float acc[SUMS])
{
    A2 chain[SUMS];
    float sum[SUMS];
    [[unroll]] for (uint j = 0; j < SUMS; j++)
        sum[j] = 0.0;
    [[unroll]] for (uint piece = 0; piece < PIECES; piece++) {
        const uint group = piece * FMT_CHUNK * SCALES / FMT_UNIT; // of the unit's SCALES groups
        const bool group_ends = (piece + 1) * FMT_CHUNK * SCALES % FMT_UNIT == 0;
        A2 v[ROWS * FMT_CHUNK / 2];
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            A2 d[FMT_CHUNK / 2];
            decode(batch.w[r * PREFETCH + i], piece, float(batch.zero[(r * PREFETCH + i) * SCALES + group]), d);
            [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++)
                v[r * (FMT_CHUNK / 2) + j] = d[j];
        }
        [[unroll]] for (uint m = 0; m < M; m++) {
            A2 x[FMT_CHUNK / 2];
            read_piece(m, piece, unit, units, x);
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                const uint at = r * M + m;
#if CHAIN
                A2 c = (piece & 1) == 0 ? A2(0.0) : chain[at];
                [[unroll]] for (uint j = 0; j < 4; j++)
                    c = fma(v[r * 4 + j], x[j], c);
                chain[at] = c;
                if ((piece & 1) == 1)
                    sum[at] += float(c.x) + float(c.y);
#else
                [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
                    sum[at] = fma(float(v[r * (FMT_CHUNK / 2) + j].x), float(x[j].x), sum[at]);
                    sum[at] = fma(float(v[r * (FMT_CHUNK / 2) + j].y), float(x[j].y), sum[at]);
                }
#endif
                if (group_ends) {
                    const float scale =
                        UNIT_UNSCALED ? 1.0 : scale_value(batch.scale[(r * PREFETCH + i) * SCALES + group], SCALE);
                    acc[at] = fma(sum[at], scale, acc[at]);
                    sum[at] = 0.0;
                }
            }
        }
    }
}

void multiply(const Batch batch, uint base, uint first, uint last, uint lanes, inout float acc[SUMS])
{
    [[unroll]] for (uint i = 0; i < PREFETCH; i++)
        if (base + i * lanes < last)
            multiply_unit(batch, i, base + i * lanes - first, last - first, acc);
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
                STORE_PAIR(m, row0 + r, acc[r * M + m], acc[min(r + 1, ROWS - 1) * M + m],
                           ROWS > 1 && row0 + r + 1 < p.n);
}

// x does not fit: part after part of it is staged, for the one block of rows that the workgroup has.
void walk_chunks(uint row0, uint lane, uint lanes)
{
    float acc[SUMS], factor[M];
    [[unroll]] for (uint m = 0; m < M; m++)
        factor[m] = 1.0;
    if (NORM != 0)
        norm_factors(factor);
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
    for (uint chunk = 0; chunk < K_LENGTH(); chunk += CHUNK) {
        const uint first = chunk / FMT_UNIT, last = min(chunk + CHUNK, K_LENGTH()) / FMT_UNIT;
        Batch batch = load_batch(row0, first + lane, last, lanes);
        barrier();
        stage(chunk, last - first, factor);
        barrier();
        for (uint base = first + lane; base - lane < last; base += PREFETCH * lanes) {
            if (base - lane > first)
                batch = load_batch(row0, base, last, lanes);
            multiply(batch, base, first, last, lanes, acc);
        }
    }
    finish_rows(row0, acc);
}

// x is staged once; block after block of rows streams past it, the next batch always in flight.
void walk_rows(uint lane, uint lanes, Batch batch)
{
    const uint step = gl_NumSubgroups / SPLIT * ROWS, owner = gl_SubgroupID / SPLIT * ROWS;
    const uint last = K_LENGTH() / FMT_UNIT;
    float acc[SUMS];
    uint block = gl_WorkGroupID.x, base = lane;

    [[unroll]] for (uint i = 0; i < SUMS; i++)
        acc[i] = 0.0;
    if (KEPT != 0) {
        stage_normalised(last);
    } else {
        float factor[M];
        [[unroll]] for (uint m = 0; m < M; m++)
            factor[m] = 1.0;
        if (NORM != 0)
            norm_factors(factor);
        stage(0, last, factor);
    }
    barrier();
    for (;;) {
        uint next_block = block, next_base = base + PREFETCH * lanes;
        const bool row_ends = next_base - lane >= last;
        if (row_ends) {
            next_base = lane;
            next_block += p.workgroups;
        }
        const bool more = next_block * step < p.n;
        Batch next;
        if (more)
            next = load_batch(next_block * step + owner, next_base, last, lanes);
        multiply(batch, base, 0, last, lanes, acc);
        if (row_ends) {
            finish_rows(block * step + owner, acc);
            [[unroll]] for (uint i = 0; i < SUMS; i++)
                acc[i] = 0.0;
        }
        if (!more)
            break;
        [[unroll]] for (uint i = 0; i < LOADS; i++)
            batch.w[i] = next.w[i];
        [[unroll]] for (uint i = 0; i < LOADS * SCALES; i++) {
            batch.scale[i] = next.scale[i];
            batch.zero[i] = next.zero[i];
        }
        block = next_block;
        base = next_base;
    }
}

#include "matmul/gemv_broadcast.glsl"

void main()
{
#ifdef GEMV_PROLOGUE
    if (!gemv_prologue())
        return;
#endif
    if (BROADCAST != 0) {
        walk_broadcast();
        return;
    }
    const uint lanes = SPLIT * gl_SubgroupSize;
    const uint lane = (gl_SubgroupID % SPLIT) * gl_SubgroupSize + gl_SubgroupInvocationID;
    const uint row0 = (gl_WorkGroupID.x * (gl_NumSubgroups / SPLIT) + gl_SubgroupID / SPLIT) * ROWS;
    if (ONCE == 0)
        walk_chunks(row0, lane, lanes);
    else
        walk_rows(lane, lanes, load_batch(row0, lane, K_LENGTH() / FMT_UNIT, lanes));
}

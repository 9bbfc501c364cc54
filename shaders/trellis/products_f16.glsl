// The staging of x and the products of gemv.glsl in f16 and int8; products_f32.glsl is the plain sibling.
//
// xs: [block of 16 rows][m][X_VECS]. f16: 16 halves in order. INT8: 16 words, an element's byte four times each, so
// that one packed dot with a product's four bytes is (sum of bytes) * element.
const uint X_VECS = INT8 != 0 ? 4 : 2; // uvec4s of 16 elements of x
const bool APART = CODEBOOK != CODEBOOK_MUL1 && M <= 2;

#include "include/trellis_f16.glsl"

shared uvec4 xs[BLOCKS * M * 8 * X_VECS];
shared float offsets[INT8 != 0 ? BLOCKS * M : 1]; // scale * sum of a block of int8 x

#include "include/hadamard_lanes.glsl"

const uint CLUSTERS = LANES / CLUSTER;

// ---- x ----

// A power of two that brings `most` to 8 .. 16 when divided by it.
float power_for(uint most) { return uintBitsToFloat((clamp(most >> 23, 4u, 250u) - 3u) << 23); }

#ifndef X_BASE
// Elements k .. k + 3 of an x in shares, gated: what a batch needs is on its way at once.
vec4 load_shares(uint k, uint count)
{
    const uint batch = 4, last = X_SHARES - 1;
    vec4 x = vec4(0.0), gate = vec4(0.0);
    float mean = 0.0;
    [[dont_unroll]] for (uint s = 0; s <= last; s += batch) {
        vec4 v[batch], g[batch];
        float part[batch];
        [[unroll]] for (uint i = 0; i < batch; i++) {
            const uint row = share_row(min(s + i, last));
            v[i] = BufF32x4(p.x).v[(row + k) / 4];
            g[i] = BufF32x4(X_GATE).v[(row + k) / 4];
            part[i] = BufF32(p.x).v[row + K_PADDED];
        }
        [[unroll]] for (uint i = 0; i < batch; i++) {
            x += s + i <= last ? v[i] : vec4(0.0);
            gate += s + i <= last ? g[i] : vec4(0.0);
            mean += s + i <= last ? part[i] : 0.0;
        }
    }
    const float factor = k < p.k ? inversesqrt(mean) : 0.0;
    x *= factor;
    [[unroll]] for (uint i = 0; i < 4; i++)
        x[i] *= activate(ACTIVATION, gate[i] * factor);
    return x;
}
#else
vec4 line_quad(uint at);

// Elements k .. k + 3 of X_BASE and its shares. A workgroup of one block deals them out to its clusters.
vec4 load_shares(uint k, uint count)
{
    const uint batch = 4, cluster = thread / CLUSTER, at = thread % CLUSTER * EACH + k % EACH;
    const uint first = count == 1 ? cluster : 0, step = count == 1 ? CLUSTERS : 1;
    const uint last = X_SHARES - 1, column = min(k, p.k - 4);
    vec4 x = BufF32x4(X_BASE).v[column / 4];
    if (first > 0)
        x = vec4(0.0);
    [[dont_unroll]] for (uint s = first; s - first <= last; s += batch * step) {
        vec4 v[batch];
        [[unroll]] for (uint i = 0; i < batch; i++)
            v[i] = BufF32x4(p.x).v[(share_row(min(s + i * step, last)) + column) / 4];
        [[unroll]] for (uint i = 0; i < batch; i++)
            x += s + i * step <= last ? v[i] : vec4(0.0);
    }
    if (count == 1) {
        [[unroll]] for (uint i = 0; i < 4; i++)
            work[cluster * HADAMARD_PITCH + at + i] = x[i];
        barrier();
        x = vec4(0.0);
        [[unroll]] for (uint c = 0; c < CLUSTERS; c++)
            x += line_quad(c * HADAMARD_PITCH + at);
    }
    if (gl_WorkGroupID.x == 0 && !is_null(X_TOTAL) && k < p.k)
        BufF32x4(X_TOTAL).v[k / 4] = x;
    return k < p.k ? x : vec4(0.0);
}
#endif

// Elements k .. k + 3 of row m, of which the workgroup has `count` blocks.
vec4 load_x(uint m, uint k, uint count)
{
    vec4 x = vec4(0.0);
    if (SHARES && X_SHARES > 0)
        return load_shares(k, count);
    if (FOURS == 0) {
        [[unroll]] for (uint i = 0; i < 4; i++)
            x[i] = k + i < p.k ? x_at(m, k + i) : 0.0;
    } else if (k < p.k) {
        const uint at = X_ROW(m) * p.k + k;
        x = load_act4(p.x, at, X_TYPE);
        if (is_gated(ACTIVATION) && !is_null(X_GATE)) {
            const vec4 gate = load_act4(X_GATE, at, X_TYPE);
            [[unroll]] for (uint i = 0; i < 4; i++)
                x[i] *= activate(ACTIVATION, gate[i]);
        }
    }
    return x;
}

// The norm's weights of elements k .. k + 3; 1 without a norm.
vec4 load_norm(uint k)
{
    vec4 w = vec4(1.0);
    if (NORM && FOURS == 0) {
        [[unroll]] for (uint i = 0; i < 4; i++)
            w[i] = k + i < p.k ? BufF32(p.norm).v[k + i] : 0.0;
    } else if (NORM && k < p.k) {
        w = BufF32x4(p.norm).v[k / 4];
    }
    return w;
}

// Quad q, a literal, of transformed x, elements e .. e + 3 of block b of row m, to shared memory.
void store_quad(uint q, uint at, uint e, float inverse)
{
    const vec4 v = quads[q] * inverse;
    xs[at + e % 16 / 8][e % 8 / 2] = packHalf2x16(v.xy);
    xs[at + e % 16 / 8][e % 8 / 2 + 1] = packHalf2x16(v.zw);
}

// With INT8; returns the sum of the four whole numbers.
int store_quad8(uint q, uint at, uint e, float scale, bool finite)
{
    const ivec4 v = finite ? ivec4(roundEven(quads[q] / scale)) : ivec4(0);
    xs[at + e % 16 / 4] = (uvec4(v) & 255u) * 0x01010101u;
    return v.x + v.y + v.z + v.w;
}

uint peak_of(vec4 v)
{
    const uvec4 bits = floatBitsToUint(v) & 0x7fffffffu;
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

float asked_square; // of the lane's elements

// Elements k .. k + 3 of row m, times the norm's weights and suh -> quad q, a literal. All is asked for before anything
// is used: what comes from memory comes at once.
void load_quad(uint q, uint m, uint k, uint count)
{
    const uvec2 suh = BufU32x2(SUH).v[k / 4];
    const vec4 w = load_norm(k), x = load_x(m, k, count);
    quads[q] = x * w * vec4(unpackHalf2x16(suh.x), unpackHalf2x16(suh.y));
    asked_square += dot(x, x);
}

#define LOAD_QUAD(q, k) load_quad(q, m, k + 4 * q, count);
#define PEAK_QUAD(q, unused) most = max(most, peak_of(quads[q]));
#define AT_QUAD(q) ((b * 8 + (lane * EACH + 4 * q) / 16) * M + m) * X_VECS, lane * EACH + 4 * q
#define STORE_QUAD(q, inverse) store_quad(q, AT_QUAD(q), inverse);
#define STORE_QUAD8(q, scale) total += store_quad8(q, AT_QUAD(q), scale, finite);

// Compilers move loads to the front, but not before a branch: this one, which nothing takes, waits for x.
void wait_for(float x)
{
    if (subgroupAny(x == uintBitsToFloat(0x7f7fffffu)))
        work[0] = x; // x is not in work yet, nor are sums
}

// Blocks first .. first + count - 1 of all rows of x -> xs, a block a cluster. Clusters without one do the last again.
void stage_x(uint first, uint count)
{
    const uint lane = thread % CLUSTER, tasks = count * M;
    [[dont_unroll]] for (uint base = 0; base < tasks; base += CLUSTERS) {
        const uint task = min(base + thread / CLUSTER, tasks - 1);
        const uint m = M == 1 ? 0 : task / count, b = M == 1 ? task : task % count, of = b * M + m;
        const uint k = (first + b) * 128 + lane * EACH;
        asked_square = 0.0;
        EACH_QUAD(LOAD_QUAD, k)
        if (X_FIRST && PREFETCH != 0 && base == 0) {
            wait_for(quads[0].x);
            request_unit(TRELLIS, group);
        }
        hadamard_lanes(lane);
        uint most = 0; // as bits: in their order inf and nan are above all numbers
        EACH_QUAD(PEAK_QUAD, 0)
        most = cluster_max(most);
        const bool finite = most < 0x7f800000u;
        float scale = finite ? power_for(most) : 1.0;
        int total = 0;
        if (INT8 != 0) // a row with inf or nan becomes nan whole: its scale is
            scale = !finite ? uintBitsToFloat(0x7fc00000u) : most > 0 ? uintBitsToFloat(most) / 127.0 : 1.0;
        if (base + thread / CLUSTER < tasks) {
            if (INT8 != 0) {
                EACH_QUAD(STORE_QUAD8, scale)
            } else {
                EACH_QUAD(STORE_QUAD, uintBitsToFloat((254u << 23) - floatBitsToUint(scale))) // 1 / scale
            }
        }
        if (INT8 != 0)
            total = cluster_add(total);
        const float square = NORM ? cluster_add(asked_square) : 0.0;
        if (base + thread / CLUSTER < tasks && lane == 0) {
            scales[of] = scale;
            squares[of] = square;
            if (INT8 != 0)
                offsets[of] = float(total) * scale;
        }
    }
    share_operands();
    barrier();
}

// ---- sums ----

// Of row m over the workgroup's blocks, by a cluster.
float row_squares(uint m, uint blocks)
{
    const uint lane = thread % CLUSTER;
    float sum = 0.0;
    [[unroll]] for (uint b = 0; b < BLOCKS; b += CLUSTER)
        if (b + lane < blocks)
            sum += squares[(b + lane) * M + m];
    return cluster_add(sum);
}

void tell_squares(uint at, uint pitch, uint blocks)
{
    [[unroll]] for (uint base = 0; base < M; base += CLUSTERS) {
        const uint m = min(base + thread / CLUSTER, M - 1);
        const float sum = row_squares(m, blocks);
        if (thread % CLUSTER == 0 && base + thread / CLUSTER < M)
            BufTold(p.partial).v[at + m * pitch] = sum;
    }
}

// svh of the lane's columns, and the counter into a cache: both asked for before everything else, because at the end
// nobody has anything to do while they come. With PARTS > 1 they are asked for again, of every part.
uvec2 asked_svh[4];

#define ASK_QUAD(q, svh) asked_svh[q] = BufU32x2(svh).v[gl_WorkGroupID.x * 32 + thread % CLUSTER * QUADS + q];

void request_end()
{
    const uvec2 svh = SVH;
    EACH_QUAD(ASK_QUAD, svh)
    if (SPLIT != 0 && !OPEN && thread == 0)
        touch_counter(p.counters, end_counter());
}

// The told sums of every `step`-th share from `first` on, each share `stride` numbers after the one before -> quad q.
void collect_quad(uint q, uint at, uint first, uint step, uint stride)
{
    const uint batch = 6; // on their way at once
    vec4 sum = vec4(0.0);
    const uint distance = step * stride / 4;
    uint from = (at + first * stride) / 4;
    [[dont_unroll]] for (uint s = first; s < splits; s += batch * step) {
        vec4 v[batch];
        [[unroll]] for (uint i = 0; i < batch; i++) {
            v[i] = s + i * step < splits ? BufTold4(p.partial).v[from] : vec4(0.0);
            from += distance;
        }
        [[unroll]] for (uint i = 0; i < batch; i++)
            sum += v[i];
    }
    quads[q] = sum;
}

// The lane's part of the told squares.
float collect_squares(uint lane, uint at, uint stride)
{
    float sum = lane < splits ? BufTold(p.partial).v[at + lane * stride] : 0.0;
    [[dont_unroll]] for (uint base = CLUSTER; base < splits; base += CLUSTER)
        if (base + lane < splits)
            sum += BufTold(p.partial).v[at + (base + lane) * stride];
    return sum;
}

vec4 line_quad(uint at) { return vec4(work[at], work[at + 1], work[at + 2], work[at + 3]); }

// `count` lines of work added up, `distance` apart -> quad q.
void add_quad(uint q, uint at, uint count, uint distance)
{
    quads[q] = line_quad(at);
    [[dont_unroll]] for (uint c = 1; c < count; c++)
        quads[q] += line_quad(at + c * distance * HADAMARD_PITCH);
}

void store_line_quad(uint q, uint at)
{
    [[unroll]] for (uint i = 0; i < 4; i++)
        work[at + i] = quads[q][i];
}

#define COLLECT_QUAD(q, at) collect_quad(q, at + 4 * q, together ? cluster : 0, together ? CLUSTERS : 1, told.share);
#define ADD_GROUPS(q, at) add_quad(q, at + 4 * q, GROUPS, M);
#define ADD_CLUSTERS(q, at) add_quad(q, at + 4 * q, CLUSTERS, 1);
#define STORE_LINE_QUAD(q, at) store_line_quad(q, at + 4 * q);
#define STORE_SHARE_QUAD(q, at) BufF32x4(p.partial).v[(at) / 4 + q] = quads[q];
#define FINISH_QUAD(q, factor)                                                                                         \
    quads[q] *= factor * vec4(unpackHalf2x16(asked_svh[q].x), unpackHalf2x16(asked_svh[q].y));

// The sums of all groups, or of all workgroups, through the transform, times svh, the weight of a part and 1 / rms ->
// line `line` of work; a cluster a line, but sums of one line alone are collected by all. A barrier stands at the end.
void transform_sums(uint lines, uint blocks)
{
    const uint lane = thread % CLUSTER, cluster = thread / CLUSTER;
    const Told told = told_places();
    const bool join = SPLIT != 0 && !OPEN, together = join && lines == 1;
    const uint share = told.first + gl_WorkGroupID.y * told.share;
    [[dont_unroll]] for (uint base = 0; base < lines; base += CLUSTERS) {
        const uint line = min(base + cluster, lines - 1), at = line * HADAMARD_PITCH + lane * EACH;
        float factor = LINE_WEIGHT(line), square = 0.0;
        if (PARTS > 1) {
            const uvec2 svh = LINE_SVH(line);
            EACH_QUAD(ASK_QUAD, svh)
        }
        if (join) {
            const uint first = told_line(told, line);
            if (NORM)
                square = collect_squares(lane, first + told_squares(), told.share);
            EACH_QUAD(COLLECT_QUAD, first + told.columns + lane * EACH)
            if (NORM)
                square = cluster_add(square);
        } else {
            EACH_QUAD(ADD_GROUPS, at)
            if (NORM)
                square = row_squares(line, blocks);
        }
        if (NORM && !OPEN)
            factor *= inversesqrt(square / float(p.k) + p.eps);
        if (together) { // lines 1 and up are those of the clusters
            EACH_QUAD(STORE_LINE_QUAD, (1 + cluster) * HADAMARD_PITCH + lane * EACH)
            barrier();
            EACH_QUAD(ADD_CLUSTERS, HADAMARD_PITCH + lane * EACH)
        }
        hadamard_lanes(lane);
        EACH_QUAD(FINISH_QUAD, factor)
        if (base + cluster < lines && OPEN) { // M is 1
            EACH_QUAD(STORE_SHARE_QUAD, share + told.columns + lane * EACH)
            if (lane == 0)
                BufF32(p.partial).v[share + told_squares()] = mean_part(square, blocks);
        } else if (base + cluster < lines) {
            EACH_QUAD(STORE_LINE_QUAD, at)
        }
    }
    barrier();
}

// ---- products ----

// The sums of one unit: of f16 products, or of INT8 ones.
float sum[SUMS];
int whole[SUMS];

// Pair i of row m of x, of the 16 rows of a tile.
#define X_AT(tile, m, i) xs[((tile) * M + (m)) * X_VECS + (i)]

// Eight rows at a time, so that few values are alive at once.
void multiply_pairs(uint tile)
{
    A2 chain[SUMS];
    [[unroll]] for (uint r = 0; r < 16; r += 8) {
        A2 v[8]; // [h][row / 2]
        [[unroll]] for (uint i = 0; i < 8; i++)
            v[i] = pair_of(state_of(code_of(i / 4, r + i % 4 * 2)), state_of(code_of(i / 4, r + i % 4 * 2 + 1)));
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 8);
            [[unroll]] for (uint h = 0; h < 2; h++)
                [[unroll]] for (uint j = 0; j < 4; j++)
                    chain[h * M + m] = r == 0 && j == 0 ? v[4 * h] * unpackFloat2x16(x[0])
                                                        : fma(v[4 * h + j], unpackFloat2x16(x[j]), chain[h * M + m]);
        }
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        sum[i] += float(chain[i].x) + float(chain[i].y);
}

void multiply_apart(uint tile)
{
    A2 chain[SUMS];
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        chain[i] = A2(A(0.0));
    [[unroll]] for (uint r = 0; r < 16; r += 8)
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 8);
            [[unroll]] for (uint i = 0; i < 16; i++) {
                const A2 pair = unpackFloat2x16(x[i / 4]);
                const A2 value = unpackFloat2x16(halves(product(state_of(code_of(i % 2, r + i / 2)))));
                chain[i % 2 * M + m] = fma(value, A2(i / 2 % 2 == 0 ? pair.x : pair.y), chain[i % 2 * M + m]);
            }
        }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        sum[i] += float(chain[i].x) + float(chain[i].y);
}

// Four rows at a time.
void multiply_int8(uint tile)
{
    [[unroll]] for (uint r = 0; r < 16; r += 4) {
        uint v[8]; // [h][row]
        [[unroll]] for (uint i = 0; i < 8; i++)
            v[i] = product(state_of(code_of(i / 4, r + i % 4)));
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 4);
            [[unroll]] for (uint i = 0; i < 8; i++)
                whole[i / 4 * M + m] = dot4(v[i], int(x[i % 4]), whole[i / 4 * M + m]);
        }
    }
}

void multiply_tile(uint tile)
{
    if (INT8 != 0)
        multiply_int8(tile);
    else if (APART)
        multiply_apart(tile);
    else
        multiply_pairs(tile);
}

void begin_unit()
{
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sum[i] = 0.0;
        whole[i] = 0;
    }
}

void end_unit(uint unit)
{
    const uint block = unit * UNIT_ROWS / 128;
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const float found = INT8 != 0 ? 0.00676727294921875 * float(whole[i]) : VALUE_UNIT * sum[i];
        acc[i] = fma(found, scales[block * M + i % M], acc[i]);
    }
}

// What every value of an INT8 product has besides its byte sum, times x, summed over the blocks of row m.
float product_offset(uint m, uint blocks)
{
    float offset = 0.0;
    if (INT8 != 0)
        for (uint b = 0; b < blocks; b++)
            offset += offsets[b * M + m];
    return offset * (1024.0 * 0.00676727294921875 - 10.3828125);
}

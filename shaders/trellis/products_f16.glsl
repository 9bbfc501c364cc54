// The staging of x and the products of gemv.glsl in f16 and int8; products_f32.glsl is the plain sibling.
//
// xs: [block of 16 rows][m][X_VECS]. f16: 16 halves in order. INT8: 16 words, an element's byte four times each, so
// that one packed dot with a product's four bytes is (sum of bytes) * element.
const uint X_VECS = INT8 != 0 ? 4 : 2; // uvec4s of 16 elements of x
const bool APART = CODEBOOK != CODEBOOK_MUL1 && M <= 2;

shared uvec4 xs[BLOCKS * M * 8 * X_VECS];
shared float offsets[INT8 != 0 ? BLOCKS * M : 1]; // scale * sum of a block of int8 x
shared float peaks[LANES / 2];
shared float eight_squares[NORM != 0 ? LANES : 1];
shared float parts[INT8 != 0 ? BLOCKS * M * 16 : 1]; // sums of eight of them

#ifdef DOT
int dot4(uint a, int b, int c) { return dotPacked4x8EXT(a, b) + c; }
uint dot_bytes(uint x) { return dotPacked4x8EXT(x, 0x01010101u); }
#else
int dot4(uint a, int b, int c)
{
    return int(byte_sum(a)) * (b >> 24) + c; // b is one number four times
}
uint dot_bytes(uint x) { return byte_sum(x); }
#endif

// second_pass, and the largest magnitude that it leaves.
float second_pass_peak(bool mine, uint block, uint i)
{
    float most = 0.0;
    if (!mine)
        return most;
    second_pass(block, i);
    [[unroll]] for (uint j = 0; j < 16; j++) {
        const float v = work[block * HADAMARD_PITCH + i + 8 * j];
        most = isnan(v) ? v : max(most, abs(v));
    }
    return most;
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
    // A row with inf or nan becomes nan whole: its scale is.
    const float scale = most > 0.0 ? most / 127.0 : 1.0;
    float total = 0.0;
    [[unroll]] for (uint j = 0; j < 2; j++) {
        uvec4 word;
        [[unroll]] for (uint i = 0; i < 4; i++) {
            const float whole_x = finite ? roundEven(v[4 * j + i] / scale) : 0.0;
            total += whole_x;
            word[i] = (uint(int(whole_x)) & 255u) * 0x01010101u;
        }
        xs[at + j] = word;
    }
    parts[of * 16 + part] = total;
    if (part == 0)
        scales[of] = finite ? scale : uintBitsToFloat(0x7fc00000u);
}

#ifdef COOPMAT
void level_rows(uint blocks);
#endif

// Blocks first .. first + count - 1 of all rows of x -> xs.
void stage_x(uint first, uint count)
{
    const uint t = gl_LocalInvocationIndex, rounds = (count * ROWS + ROUND - 1) / ROUND;
    [[dont_unroll]] for (uint round = 0; round < rounds; round++) {
        float v[8], most;
        uint task = round * ROUND + t / 16, m = task / count, b = task % count;
        const uint part = t % 16, k = (first + b) * 128 + part * 8, at = t / 16 * HADAMARD_PITCH + part * 8;
        const bool mine = task < count * ROWS;
        if (mine) {
            load_x(m, k, v);
            if (NORM != 0)
                eight_squares[t] = dot(vec4(v[0], v[1], v[2], v[3]), vec4(v[0], v[1], v[2], v[3])) +
                                   dot(vec4(v[4], v[5], v[6], v[7]), vec4(v[4], v[5], v[6], v[7]));
            const uvec4 suh = BufU32x4(SUH).v[k / 8];
            [[unroll]] for (uint j = 0; j < 8; j++) {
                const vec2 pair = unpackHalf2x16(suh[j / 2]);
                if (NORM != 0)
                    v[j] *= k + j < p.k ? BufF32(p.norm).v[k + j] : 0.0;
                v[j] *= pair[j % 2];
            }
            butterflies8(v);
            [[unroll]] for (uint j = 0; j < 8; j++)
                work[at + j] = v[j];
        }
        barrier();
        // Threads 0 .. 8 * ROUND - 1 take the second pass.
        task = round * ROUND + t / 8;
        most = second_pass_peak(t < 8 * ROUND && task < count * ROWS, t / 8, t % 8);
        if (t < 8 * ROUND)
            peaks[t] = most;
        barrier();
        if (mine) {
            most = 0.0;
            [[unroll]] for (uint j = 0; j < 8; j++) {
                const float other = peaks[t / 16 * 8 + j];
                most = isnan(most) || isnan(other) ? uintBitsToFloat(0x7fc00000u) : max(most, other);
            }
            [[unroll]] for (uint j = 0; j < 8; j++)
                v[j] = work[at + j];
            store_x(m, b, part, most, v);
            if (NORM != 0 && part == 0) {
                float sum = 0.0;
                [[unroll]] for (uint j = 0; j < 16; j++)
                    sum += eight_squares[t + j];
                squares[b * M + m] = sum;
            }
        }
        barrier();
    }
#ifdef COOPMAT
    level_rows(count);
    barrier();
#endif
    if (INT8 != 0 && t < count * M) { // read behind the next barrier
        float total = 0.0;
        [[unroll]] for (uint i = 0; i < 16; i++)
            total += parts[t * 16 + i];
        offsets[t] = total * scales[t];
    }
}

// ---- products ----

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

// The code of column h (+ 8 h) and row r of a lane.
uint code_of(uint h, uint r) { return r % 8 / 2 * 8 + h * 4 + r / 8 * 2 + r % 2; }

#ifdef COOPMAT
#include "trellis/products_coopmat.glsl"
#else
#include "trellis/products_lanes.glsl"
#endif

// Tile `tile`, a constant, of a unit in words.
void multiply_tile_of(uint tile, uint base, uint lane, uint unit)
{
    const uint first = tile * TILE_BITS / 32;
    if (tile >= TILES)
        return;
    if (SHUFFLE == 0)
        w[0] = tail_of(load_word(TRELLIS, base, lane_before(lane), tail_word(tile)), tile);
    else
        w[0] = subgroupShuffle(tail_of(words[tail_word(tile)], tile), lane_before(gl_SubgroupInvocationID));
    [[unroll]] for (uint i = 1; i < TILE_WORDS; i++) {
        w[i] = words[first + i <= UNIT_WORDS ? first + i - 1 : 0];
        if (RATE2 % 2 == 1 && tile % 2 == 1)
            w[i] = (w[i] << 16) | (words[first + i < UNIT_WORDS ? first + i : 0] >> 16);
    }
    multiply_any(unit * TILES + tile);
}

// The sums += unit `unit` of the staged ones; with PREFETCH its words were loaded before.
void multiply_unit(uint base, uint lane, uint unit)
{
    begin_unit();
    if (PREFETCH != 0) { // one by one: a long loop is unrolled so late that its arrays stay in memory
        multiply_tile_of(0, base, lane, unit);
        multiply_tile_of(1, base, lane, unit);
        multiply_tile_of(2, base, lane, unit);
        multiply_tile_of(3, base, lane, unit);
        multiply_tile_of(4, base, lane, unit);
        multiply_tile_of(5, base, lane, unit);
        multiply_tile_of(6, base, lane, unit);
        multiply_tile_of(7, base, lane, unit);
    } else {
        for (uint tile = 0; tile < TILES; tile++) {
            load_tile(TRELLIS, base, lane, tile);
            multiply_any(unit * TILES + tile);
        }
    }
    end_unit(unit * UNIT_ROWS / 128);
}

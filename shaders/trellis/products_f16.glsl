// The staging of x and the products of gemv.glsl in f16 and int8; products_f32.glsl is the plain sibling.
//
// xs: [block of 16 rows][m][X_VECS]. f16: 16 halves in order. INT8: 16 words, an element's byte four times each, so
// that one packed dot with a product's four bytes is (sum of bytes) * element.
const uint X_VECS = INT8 != 0 ? 4 : 2; // uvec4s of 16 elements of x
const bool APART = CODEBOOK != CODEBOOK_MUL1 && M <= 2;

#include "include/trellis_f16.glsl"

shared uvec4 xs[BLOCKS * M * 8 * X_VECS];
shared float offsets[INT8 != 0 ? BLOCKS * M : 1]; // scale * sum of a block of int8 x
shared uint peaks[LANES / 2];
shared float eight_squares[LANES];
shared float parts[INT8 != 0 ? BLOCKS * M * 16 : 1]; // sums of eight of them

// second_pass, and the largest magnitude that it leaves, as bits: in their order inf and nan are above all numbers.
uint second_pass_peak(bool mine, uint block, uint i)
{
    uint most = 0;
    if (!mine)
        return most;
    second_pass(block, i);
    [[unroll]] for (uint j = 0; j < 16; j++)
        most = max(most, floatBitsToUint(work[block * HADAMARD_PITCH + i + 8 * j]) & 0x7fffffffu);
    return most;
}

// A power of two that brings `most` to 8 .. 16 when divided by it.
float power_for(uint most) { return uintBitsToFloat((clamp(most >> 23, 4u, 250u) - 3u) << 23); }

// Eight transformed elements, `part` of 16 of block b of row m, to shared memory.
void store_x(uint m, uint b, uint part, uint most, const float v[8])
{
    const uint at = ((b * 8 + part / 2) * M + m) * X_VECS + part % 2 * (X_VECS / 2), of = b * M + m;
    const bool finite = most < 0x7f800000u;
    if (INT8 == 0) {
        const float scale = finite ? power_for(most) : 1.0;
        const float inverse = uintBitsToFloat((254u << 23) - floatBitsToUint(scale)); // exact
        uvec4 word;
        [[unroll]] for (uint j = 0; j < 4; j++)
            word[j] = packHalf2x16(vec2(v[2 * j], v[2 * j + 1]) * inverse);
        xs[at] = word;
        if (part == 0)
            scales[of] = scale;
        return;
    }
    // A row with inf or nan becomes nan whole: its scale is.
    const float scale = most > 0 ? uintBitsToFloat(most) / 127.0 : 1.0;
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

// The norm's weights of elements k .. k + 7; 1 without a norm.
void load_norm(uint k, out vec4 a, out vec4 b)
{
    a = b = vec4(1.0);
    if (!NORM)
        return;
    if (FOURS == 0) {
        [[unroll]] for (uint j = 0; j < 4; j++) {
            a[j] = k + j < p.k ? BufF32(p.norm).v[k + j] : 0.0;
            b[j] = k + 4 + j < p.k ? BufF32(p.norm).v[k + 4 + j] : 0.0;
        }
    } else if (k < p.k) {
        a = BufF32x4(p.norm).v[k / 4];
        b = BufF32x4(p.norm).v[k / 4 + 1];
    }
}

// Blocks first .. first + count - 1 of all rows of x -> xs.
void stage_x(uint first, uint count)
{
    const uint t = gl_LocalInvocationIndex, rounds = (count * M + ROUND - 1) / ROUND;
    [[dont_unroll]] for (uint round = 0; round < rounds; round++) {
        float v[8];
        uint most, task = round * ROUND + t / 16, m = task / count, b = task % count;
        const uint part = t % 16, k = (first + b) * 128 + part * 8, at = t / 16 * HADAMARD_PITCH + part * 8;
        const bool mine = task < count * M;
        if (mine) {
            // All is asked for before anything is used: what comes from memory comes at once.
            const uvec4 suh = BufU32x4(SUH).v[k / 8];
            vec4 a, b;
            load_norm(k, a, b);
            load_x(m, k, v);
            if (NORM)
                eight_squares[t] = dot(vec4(v[0], v[1], v[2], v[3]), vec4(v[0], v[1], v[2], v[3])) +
                                   dot(vec4(v[4], v[5], v[6], v[7]), vec4(v[4], v[5], v[6], v[7]));
            [[unroll]] for (uint j = 0; j < 8; j++)
                v[j] = v[j] * (j < 4 ? a : b)[j % 4] * unpackHalf2x16(suh[j / 2])[j % 2];
            butterflies8(v);
            [[unroll]] for (uint j = 0; j < 8; j++)
                work[at + j] = v[j];
        }
        barrier();
        // Threads 0 .. 8 * ROUND - 1 take the second pass.
        task = round * ROUND + t / 8;
        most = second_pass_peak(t < 8 * ROUND && task < count * M, t / 8, t % 8);
        if (t < 8 * ROUND)
            peaks[t] = most;
        barrier();
        if (mine) {
            most = 0;
            [[unroll]] for (uint j = 0; j < 8; j++) {
                most = max(most, peaks[t / 16 * 8 + j]);
                v[j] = work[at + j];
            }
            store_x(m, b, part, most, v);
            if (NORM && part == 0) {
                float sum = 0.0;
                [[unroll]] for (uint j = 0; j < 16; j++)
                    sum += eight_squares[t + j];
                squares[b * M + m] = sum;
            }
        }
        barrier();
    }
    if (INT8 != 0 && t < count * M) { // read behind the next barrier
        float total = 0.0;
        [[unroll]] for (uint i = 0; i < 16; i++)
            total += parts[t * 16 + i];
        offsets[t] = total * scales[t];
    }
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

// The staging of x and the products of gemv.glsl in f16 and int8; products_f32.glsl is the plain sibling.
//
// xs: [block of 16 rows][m][X_VECS]. f16: 16 halves in order. INT8: 16 words, an element's byte four times each, so
// that one packed dot with a product's four bytes is (sum of bytes) * element.
const uint X_VECS = INT8 != 0 ? 4 : 2; // uvec4s of 16 elements of x
const bool APART = CODEBOOK != CODEBOOK_MUL1 && M <= 2;

shared uvec4 xs[BLOCKS * M * 8 * X_VECS];
shared float offsets[INT8 != 0 ? BLOCKS * M : 1]; // scale * sum of a block of int8 x

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
            const uvec4 suh = BufU32x4(SUH).v[k / 8];
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
        most = second_pass_peak(t < 8 * ROUND && task < count * M, t / 8, t % 8);
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

// Elements 2 j, 2 j + 1 of 16 of row m of x.
void read_x(uint tile, uint m, out A2 x[8])
{
    const uint at = (tile * M + m) * X_VECS;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        const uvec4 word = xs[at + i];
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[4 * i + j] = unpackFloat2x16(word[j]);
    }
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
    else if (APART)
        multiply_tile_apart(w, tile, sum);
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
    if (PREFETCH != 0) {
        uint tails = 0;
        [[unroll]] for (uint tile = 0; tile < TILES; tile++) {
            if (SHUFFLE == 0) {
                w[0] = tail_of(load_word(TRELLIS, base, lane_before(lane), tail_word(tile)), tile);
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
    } else {
        for (uint tile = 0; tile < TILES; tile++) {
            load_tile(TRELLIS, base, lane, tile, w);
            multiply_any(w, unit * TILES + tile, sum, whole);
        }
    }
    const uint block = unit * UNIT_ROWS / 128;
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const float found = INT8 != 0 ? 0.00676727294921875 * float(whole[i]) : sum[i];
        acc[i] = fma(found, scales[block * M + i % M], acc[i]);
    }
}

// What every value of an INT8 product has besides its byte sum less 512, times x, summed over the blocks of row m.
float product_offset(uint m, uint blocks)
{
    float offset = 0.0;
    if (INT8 != 0)
        for (uint b = 0; b < blocks; b++)
            offset += offsets[b * M + m];
    return offset * (1536.0 * 0.00676727294921875 - 10.3828125);
}

// Values of trellis.glsl in f16 arithmetic, two at once. With DOT bytes are summed by the packed integer dot product,
// which the kernel enables.
#ifdef DOT
int dot4(uint a, int b, int c) { return dotPacked4x8EXT(a, b) + c; }
uint dot_bytes(uint x) { return dotPacked4x8EXT(x, 0x01010101u); }
#else
int dot4(uint a, int b, int c)
{
    return int(byte_sum(a)) * (b >> 24) + c; // b is one number four times
}
#endif

// What pair_of gives is values divided by this.
#ifdef DOT
const float VALUE_UNIT = CODEBOOK == CODEBOOK_MUL1 ? 2.0 : 1.0;
#else
const float VALUE_UNIT = 1.0;
#endif

// Exact values of two states, or halves of them.
A2 pair_of(uint s0, uint s1)
{
    const uint x0 = product(s0), x1 = product(s1);
    if (CODEBOOK == CODEBOOK_MUL1) {
#ifdef DOT
        // As bits of f16 a sum of bytes is a subnormal, sum * 2^-24: nothing need be added to make a number of it. The
        // factor 0.00676727294921875 * 2^24 is beyond f16, half of it is not.
        const A2 sums = unpackFloat2x16(bitfieldInsert(dot_bytes(x0), dot_bytes(x1), 16, 16));
        return fma(sums, A2(A(56768.0)), A2(A(-1.7265625)));
#else
        const uint sums = (byte_sum(x0) + 0x64006400u) + (byte_sum(x1) << 16); // 1024 + sum
        return fma(unpackFloat2x16(sums), A2(A(0.00676727294921875)), A2(A(-10.3828125)));
#endif
    }
    const A2 v0 = unpackFloat2x16(halves(x0)), v1 = unpackFloat2x16(halves(x1));
    return A2(v0.x, v1.x) + A2(v0.y, v1.y);
}

// The code of column h (+ 8 h) and row r of a lane.
uint code_of(uint h, uint r) { return r % 8 / 2 * 8 + h * 4 + r / 8 * 2 + r % 2; }

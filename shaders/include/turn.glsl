// cos and sin of 0 <= angle < 2^24. The angle is the f32 product position * freq, as in
// transformers; what follows is exact, because device sin and cos are useless at large angles: in
// turns it is a 64-bit fraction, right to 2^-40 for angles up to 2^24, whose top 32 bits split into
// a quadrant and at most pi/4 beside it, where the Taylor series end below 2e-9. The error is that
// of a few f32 roundings, 1.5e-7. (No fma is used: lavapipe's rounds twice.)
vec2 rope_cos_sin(float angle)
{
    const uint inverse_high = 0x28be60dbu, inverse_low = 0x9391054au; // 2^64 / (2 pi)
    uint bits = floatBitsToUint(angle), mantissa = (bits & 0x7fffffu) | 0x800000u;
    uint shift = 150u - min((bits >> 23) & 255u, 150u); // angle = mantissa * 2^-shift
    uint w0, w1, w2, low, carry;

    umulExtended(mantissa, inverse_low, w1, w0);
    umulExtended(mantissa, inverse_high, w2, low);
    w1 = uaddCarry(w1, low, carry);
    w2 += carry; // w = mantissa / (2 pi) * 2^64
    // turns = bits 32 .. 63 of w >> shift
    uint turns = shift >= 64u ? 0u : shift >= 32u ? w2 >> (shift - 32u) : shift == 0u ? w1
               : (w1 >> shift) | (w2 << (32u - shift));

    uint quadrant = (turns + 0x20000000u) >> 30;
    float x = float(int(turns - (quadrant << 30))) * 1.4629180792671596e-9; // 2 pi / 2^32
    float xx = x * x;
    float s = -1.0 / 5040.0 + xx * (1.0 / 362880.0);
    s = x + x * xx * (-1.0 / 6.0 + xx * (1.0 / 120.0 + xx * s));
    float c = 1.0 / 40320.0 - xx * (1.0 / 3628800.0);
    c = 1.0 + xx * (-0.5 + xx * (1.0 / 24.0 + xx * (-1.0 / 720.0 + xx * c)));
    if ((quadrant & 1u) != 0u)
        return (quadrant & 2u) != 0u ? vec2(s, -c) : vec2(-s, c);
    return (quadrant & 2u) != 0u ? vec2(-c, -s) : vec2(c, s);
}

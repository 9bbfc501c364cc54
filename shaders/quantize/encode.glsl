// The encoders of quantize.comp: a row a format, and the arithmetic of the integers and small floats.
// marlin/formats.py `pack` is the same arithmetic; both give the same bytes (tests/test_quantize.py).

struct Encoder {
    float largest;       // the largest value of a code; 0: a wide float without scales
    uint mantissa, bias; // of a float; mantissa 0: an integer
    uint code;           // the code of `largest`
};
#define ENC_f32 Encoder(0.0, 23, 127, 0)
#define ENC_f16 Encoder(0.0, 10, 15, 0)
#define ENC_bf16 Encoder(0.0, 7, 127, 0)
#define ENC_int8 Encoder(127.0, 0, 0, 255)
#define ENC_int4 Encoder(7.0, 0, 0, 15)
#define ENC_fp8_e4m3 Encoder(448.0, 3, 7, 0x7e)
#define ENC_fp8_e5m2 Encoder(57344.0, 2, 15, 0x7b)
#define ENC_fp4_e2m1 Encoder(6.0, 1, 1, 0x7)
// glslang pastes tokens in code but not in #if, hence constants and not defines.
#define ENC_PASTE(name) ENC_##name
#define ENC_OF(name) ENC_PASTE(name)
const Encoder ENC = ENC_OF(FMT_NAME);
const uint BLANK = ENC.mantissa == 0 ? 1u << (FMT_BITS - 1) : 0u; // the code of a weight 0

// 1 / x as in formats.py: the same bits everywhere, which a division is not (2.5 units in Vulkan), and exact
// for powers of two, which y * (2 - x * y) would not be.
float reciprocal(float x)
{
    precise float y = uintBitsToFloat(0x7ef311c7u - floatBitsToUint(x));
    for (int i = 0; i < 4; i++)
        y = y + y * (1.0 - x * y);
    return y;
}

// |value| as a small float: round to nearest even, saturate at the code `largest`. Integer work for normal
// numbers; below 2^(1 - bias) the step is constant.
uint minifloat(float value, uint mantissa, uint bias, uint largest)
{
    uint bits = floatBitsToUint(value) & 0x7fffffffu;
    float magnitude = uintBitsToFloat(bits);
    float smallest = uintBitsToFloat((128u - bias) << 23);
    if (magnitude < smallest)
        return uint(roundEven(magnitude * uintBitsToFloat((126u + bias + mantissa) << 23)));
    uint drop = 23u - mantissa;
    uint code = (bits + ((1u << (drop - 1u)) - 1u) + ((bits >> drop) & 1u)) >> drop;
    return min(code - ((127u - bias) << mantissa), largest);
}

// The code of the weight with bits w; inv = 1 / scale, zero the zero point where one is stored.
uint encode(uint w, float inv, float zero)
{
    precise float scaled = uintBitsToFloat(w) * inv;
    // The sign is that of the weight: a device may lose the sign of a product that underflows.
    if (ENC.mantissa != 0)
        return minifloat(scaled, ENC.mantissa, ENC.bias, ENC.code) | ((w >> 31) << (FMT_BITS - 1));
    float q = roundEven(scaled);
    if (ZERO != 0)
        return uint(clamp(q + zero, 0.0, float(ENC.code)));
    return uint(int(clamp(q, -ENC.largest, ENC.largest)) + int(BLANK));
}

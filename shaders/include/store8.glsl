// Eight elements from i on, a multiple of 8, of a row at an address aligned to 16 bytes. Needs convert.glsl.
void store_act8(uvec2 address, uint i, uint type, vec4 a, vec4 b)
{
    const uvec4 x = floatBitsToUint(a), y = floatBitsToUint(b);
    if (type == ACT_F32) {
        BufU32x4(address).v[i / 4] = x;
        BufU32x4(address).v[i / 4 + 1] = y;
        return;
    }
    uint bits[8];
    [[unroll]] for (uint j = 0; j < 4; j++) {
        bits[j] = type == ACT_F16 ? f16_round(x[j]) : bf16_round(x[j]);
        bits[j + 4] = type == ACT_F16 ? f16_round(y[j]) : bf16_round(y[j]);
    }
    BufU32x4(address).v[i / 8] = uvec4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                                       bits[6] | bits[7] << 16);
}

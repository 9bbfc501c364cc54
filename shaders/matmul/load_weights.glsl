uvec4 load_unit(uint n, uint k) { return fmt_load(BufU32x4(p.quant), n * (p.k_padded / FMT_UNIT) + k / FMT_UNIT); }

// The second half of eight weights from k on whose first `bits` has: in f32 a unit of its own.
uvec4 load_second(uvec4 bits, uint n, uint k) { return FMT_UNIT < 8 ? load_unit(n, k + FMT_UNIT) : bits; }

// Eight consecutive weights of a row for the tiled kernels, of the units `bits` and `second`: value * group scale (a
// per-row scale is left to finish()). k is a multiple of 8 and below k_padded. Needs p, SCALE, ZERO, GROUP.
void decode_weights8(uvec4 bits, uvec4 second, uint n, uint k, out float w[8])
{
    const uint group = n * p.groups + (GROUP == 0 ? 0 : min(k / max(GROUP, 1), p.groups - 1));
    const float scale = SCALE == SCALE_NONE || GROUP == 0 ? 1.0 : load_scale(p.scale, group, SCALE);
    [[unroll]] for (uint i = 0; i < 8; i += FMT_CHUNK) {
        const uint piece = (k + i) % FMT_UNIT / FMT_CHUNK;
        if (i == FMT_UNIT)
            bits = second;
        A2 v[FMT_CHUNK / 2];
#if FMT_ZERO
        if (ZERO != 0)
            fmt_decode8z(bits, piece, A(load_zero(p.zero, group)), v);
        else
#endif
            fmt_decode8(bits, piece, v);
        [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
            w[i + fmt_pair(j).x] = float(v[j].x) * scale;
            w[i + fmt_pair(j).y] = float(v[j].y) * scale;
        }
    }
}

void decode_weights8(uvec4 bits, uint n, uint k, out float w[8])
{
    decode_weights8(bits, load_second(bits, n, k), n, k, w);
}

void load_weights8(uint n, uint k, out float w[8]) { decode_weights8(load_unit(n, k), n, k, w); }

// The weights of such a unit of row n, k the first one's. scaled: times group scales, else the caller's affair.
void decode_unit(uvec4 bits, uint n, uint k, const bool scaled, out float w[FMT_UNIT])
{
    float scale = 1.0, zero = 0.0;

    [[unroll]] for (uint at = 0; at < FMT_UNIT; at += FMT_CHUNK) {
        A2 v[FMT_CHUNK / 2];
        if (at == 0 || (GROUP != 0 && GROUP < FMT_UNIT)) {
            const uint group = n * p.groups + (GROUP == 0 ? 0 : min((k + at) / max(GROUP, 1), p.groups - 1));
            scale = scaled ? load_scale(p.scale, group, SCALE) : 1.0;
            zero = ZERO != 0 ? load_zero(p.zero, group) : 0.0;
        }
#if FMT_ZERO
        if (ZERO != 0)
            fmt_decode8z(bits, at / FMT_CHUNK, A(zero), v);
        else
#endif
            fmt_decode8(bits, at / FMT_CHUNK, v);
        [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
            w[at + fmt_pair(j).x] = float(v[j].x) * scale;
            w[at + fmt_pair(j).y] = float(v[j].y) * scale;
        }
    }
}

// All weights of a unit of row n: read once.
void load_weights_unit(uint n, uint k, const bool scaled, out float w[FMT_UNIT])
{
    decode_unit(load_unit(n, k), n, k, scaled, w);
}

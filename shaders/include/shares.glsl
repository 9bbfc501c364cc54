// A row in shares: the result of trellis/gemv.glsl before anyone has added it up. Share s is all columns, up to a multiple
// of 128, then numbers whose sum over the shares is 1 / (factor of the row)^2, one of each 128 columns and all alike; up to
// a multiple of 16 bytes.
uint shares_mean(uint width) { return (width + 127) & ~127u; }

uint shares_pitch(uint width) { return shares_mean(width) + ((width + 127) / 128 + 3 & ~3u); }

// Elements at .. at + 3, at a multiple of 4, of the row of `width` that begins at `row`; all of a batch is on its way at
// once.
vec4 sum_shares4(uvec2 address, uint row, uint width, uint count, uint at)
{
    const uint batch = 8;
    vec4 sum = vec4(0.0);
    float mean = 0.0;
    [[dont_unroll]] for (uint s = 0; s < count; s += batch) {
        vec4 v[batch];
        float part[batch];
        [[unroll]] for (uint i = 0; i < batch; i++) {
            const uint share = row + min(s + i, count - 1) * shares_pitch(width);
            v[i] = BufF32x4(address).v[(share + at) / 4];
            part[i] = BufF32(address).v[share + shares_mean(width)];
        }
        [[unroll]] for (uint i = 0; i < batch; i++) {
            sum += s + i < count ? v[i] : vec4(0.0);
            mean += s + i < count ? part[i] : 0.0;
        }
    }
    return sum * inversesqrt(mean);
}

float sum_shares(uvec2 address, uint row, uint width, uint count, uint at)
{
    return sum_shares4(address, row, width, count, at & ~3u)[at & 3u];
}

// A row in shares: a result of trellis/gemv.glsl that nobody has added up. Share s is all columns, up to a multiple of
// 128, then numbers, one of each 128 columns and all alike, up to a multiple of 16 bytes. The row is the sum of the
// shares, over the root of the sum of those numbers; shares that are added to a base leave the numbers aside.
uint shares_mean(uint width) { return (width + 127) & ~127u; }

uint shares_pitch(uint width) { return shares_mean(width) + ((width + 127) / 128 + 3 & ~3u); }

// Element `at` of the row of `width` that begins at `row`; all of a batch is on its way at once.
float sum_shares(uvec2 address, uint row, uint width, uint count, uint at)
{
    const uint batch = 8;
    float sum = 0.0, mean = 0.0;
    [[dont_unroll]] for (uint s = 0; s < count; s += batch) {
        float v[batch], part[batch];
        [[unroll]] for (uint i = 0; i < batch; i++) {
            const uint share = row + min(s + i, count - 1) * shares_pitch(width);
            v[i] = BufF32(address).v[share + at];
            part[i] = BufF32(address).v[share + shares_mean(width)];
        }
        [[unroll]] for (uint i = 0; i < batch; i++) {
            sum += s + i < count ? v[i] : 0.0;
            mean += s + i < count ? part[i] : 0.0;
        }
    }
    return sum * inversesqrt(mean);
}

// A lane multiplies ROWS rows of W with one row of x, for devices whose loads are dear and whose broadcasts are free
// (see gemm_broadcast.comp). The workgroup is one subgroup:
//
//   rows of W   lane 0: n0 .. n0 + ROWS - 1   lane 1: the next ROWS ...   a unit of 16 bytes a row and step
//   x           lane 0: k0                    lane 1: k0 + 1 ...          one load a step, then broadcast lane by lane
//
// No shared memory and no barrier. Needs the push block p, SCALE, ZERO, GROUP and
//
//   SCALES               groups in a unit
//   NORM                 not 0: elements of x are multiplied with those of p.norm
//   UNIT_UNSCALED        groups have no scales
//   BROADCAST_K          elements of x
//   BROADCAST_X(slot, k) element k of x
//   group_of(k), k_padded(), decode()
const uint WORDS = ROWS * SCALES;

// sums += the products, without scales, of a unit of every row whose elements start at k; returns this lane's share of
// x squared.
float broadcast_unit(uint slot, uint k, const uint row[ROWS], const float zero[WORDS], inout float sums[WORDS])
{
    const uint lanes = gl_WorkGroupSize.x;
    uvec4 w[ROWS];
    float squared = 0.0;

    [[unroll]] for (uint r = 0; r < ROWS; r++)
        w[r] = fmt_load(BufU32x4(p.quant), row[r] * (k_padded() / FMT_UNIT) + k / FMT_UNIT);
    [[unroll]] for (uint piece = 0; piece < FMT_UNIT / FMT_CHUNK; piece++) {
        const uint group = piece * FMT_CHUNK * SCALES / FMT_UNIT; // of the unit's SCALES groups
        float x[FMT_CHUNK];
        [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += lanes) {
            const uint own = i + gl_SubgroupInvocationID, at = k + piece * FMT_CHUNK + own;
            float mine = 0.0;
            if (own < FMT_CHUNK && at < BROADCAST_K) {
                mine = BROADCAST_X(slot, at);
                squared = fma(mine, mine, squared);
                if (NORM != 0)
                    mine *= BufF32(p.norm).v[at];
            }
            [[unroll]] for (uint j = 0; j < min(lanes, FMT_CHUNK); j++)
                x[i + j] = subgroupBroadcast(mine, j);
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            const uint at = r * SCALES + group;
            A2 d[FMT_CHUNK / 2];
            decode(w[r], piece, zero[at], d);
            [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
                sums[at] = fma(float(d[j].x), x[fmt_pair(j).x], sums[at]);
                sums[at] = fma(float(d[j].y), x[fmt_pair(j).y], sums[at]);
            }
        }
    }
    return squared;
}

// acc += the products of rows `row` of the planes with x; returns this lane's share of x squared.
float broadcast_rows(uint slot, const uint row[ROWS], inout float acc[ROWS])
{
    const uint span = GROUP == 0 ? k_padded() : max(GROUP, FMT_UNIT);
    float squared = 0.0;

    for (uint base = 0; base < k_padded(); base += span) {
        float scale[WORDS], zero[WORDS], sums[WORDS];
        [[unroll]] for (uint i = 0; i < WORDS; i++) {
            const uint group = row[i / SCALES] * p.groups + group_of(base + i % SCALES * GROUP);
            scale[i] = UNIT_UNSCALED ? 1.0 : load_scale(p.scale, group, SCALE);
            zero[i] = ZERO != 0 ? load_zero(p.zero, group) : 0.0;
            sums[i] = 0.0;
        }
        for (uint k = base; k < min(base + span, k_padded()); k += FMT_UNIT)
            squared += broadcast_unit(slot, k, row, zero, sums);
        [[unroll]] for (uint i = 0; i < WORDS; i++)
            acc[i / SCALES] = fma(sums[i], scale[i], acc[i / SCALES]);
    }
    return squared;
}

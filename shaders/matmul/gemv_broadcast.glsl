// The other way to multiply one row of x, for devices whose loads are dear and whose broadcasts are free (BROADCAST; see
// gemm_broadcast.comp): a workgroup is one subgroup, a lane owns ROWS rows of W and walks them unit by unit.
//
//   rows of W   lane 0: n0 .. n0 + ROWS - 1   lane 1: the next ROWS ...   a unit of 16 bytes a row and step
//   x           lane 0: k0                    lane 1: k0 + 1 ...          one load a step, then broadcast lane by lane
//
// No shared memory and no barrier. The norm's factor multiplies the finished sums, since it is the same for all of x.
// Hooks beside those of gemv.glsl, here for a single matrix:
//
//   BROADCAST_SLOTS           parts of k: matrices whose products add up
//   BROADCAST_ROW(slot, row)  the row of the planes that row `row` of W is in a part
//   BROADCAST_X(slot, k)      element k < p.k of x in a part
#ifndef BROADCAST_SLOTS
#define BROADCAST_SLOTS 1
#endif
#ifndef BROADCAST_ROW
#define BROADCAST_ROW(slot, row) (row)
#endif
#ifndef BROADCAST_X
#define BROADCAST_X(slot, k) load_act(p.x, X_AT(0, k), X_TYPE)
#endif

const uint WORDS = ROWS * SCALES;

// acc += the products of a unit of every row, whose elements start at k; returns this lane's share of x squared.
float broadcast_unit(uint slot, uint k, const uint row[ROWS], inout float acc[ROWS])
{
    const uint lanes = gl_WorkGroupSize.x;
    uvec4 w[ROWS];
    float scale[WORDS], zero[WORDS], squared = 0.0;

    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        w[r] = fmt_load(BufU32x4(p.quant), row[r] * (k_padded() / FMT_UNIT) + k / FMT_UNIT);
        [[unroll]] for (uint j = 0; j < SCALES; j++) {
            const uint group = row[r] * p.groups + group_of(k + j * GROUP);
            scale[r * SCALES + j] = UNIT_UNSCALED ? 1.0 : load_scale(p.scale, group, SCALE);
            zero[r * SCALES + j] = ZERO != 0 ? load_zero(p.zero, group) : 0.0;
        }
    }
    [[unroll]] for (uint piece = 0; piece < PIECES; piece++) {
        const uint group = piece * FMT_CHUNK * SCALES / FMT_UNIT; // of the unit's SCALES groups
        float x[FMT_CHUNK];
        [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += lanes) {
            const uint own = i + gl_SubgroupInvocationID, at = k + piece * FMT_CHUNK + own;
            float mine = 0.0;
            if (own < FMT_CHUNK && at < p.k) {
                mine = BROADCAST_X(slot, at);
                squared = fma(mine, mine, squared);
                if (NORM != 0)
                    mine *= BufF32(p.norm).v[at];
            }
            [[unroll]] for (uint j = 0; j < min(lanes, FMT_CHUNK); j++)
                x[i + j] = subgroupBroadcast(mine, j);
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            A2 d[FMT_CHUNK / 2];
            decode(w[r], piece, zero[r * SCALES + group], d);
            float sum = 0.0;
            [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++)
                sum = fma(float(d[j].y), x[fmt_pair(j).y], fma(float(d[j].x), x[fmt_pair(j).x], sum));
            acc[r] = fma(sum, scale[r * SCALES + group], acc[r]);
        }
    }
    return squared;
}

void broadcast_rows()
{
    const uint row0 = (gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_SubgroupInvocationID) * ROWS;
    float acc[ROWS], squared = 0.0;

    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r] = 0.0;
    for (uint slot = 0; slot < BROADCAST_SLOTS; slot++) {
        uint row[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; r++)
            row[r] = BROADCAST_ROW(slot, min(row0 + r, p.n - 1));
        for (uint k = 0; k < k_padded(); k += FMT_UNIT)
            squared += broadcast_unit(slot, k, row, acc);
    }
    const float factor = NORM != 0 ? inversesqrt(subgroupAdd(squared) / float(p.k) + p.eps) : 1.0;
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r] = finish(acc[r] * factor, min(row0 + r, p.n - 1));
    [[unroll]] for (uint r = 0; r < ROWS; r += 2)
        if (row0 + r < p.n)
            STORE_PAIR(0, row0 + r, acc[r], acc[min(r + 1, ROWS - 1)], ROWS > 1 && row0 + r + 1 < p.n);
}

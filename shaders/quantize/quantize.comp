// Rows of W in its format = dense rows x (rows, k) f32 | f16 | bf16 rounded to nearest; row i of x becomes
// row row_start + i * row_stride. The formulas stand in marlin/formats.py `pack`, which gives the same bytes.
//
// A lane owns 8 weights, a workgroup a tile of 8 * lanes; a group is 2 .. 32 lanes, which exchange their
// extremes through shared memory. With one scale a row (group 0) the workgroup walks the row twice.
// Extremes are compared as integers: the order is the same and subnormals survive.
// status: u32 {inf and nan in x, numbers too large for the format or its scale, first such row of W}.
#include "include/address.glsl"
#include "include/convert.glsl"
#include "include/scale.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SRC = 0;   // ACT_* of x
layout(constant_id = 2) const uint SCALE = 0; // SCALE_*
layout(constant_id = 3) const uint ZERO = 0;  // 1: a zero plane

#include "quantize/encode.glsl"

layout(push_constant, scalar) uniform Push { mrl_push_quantize p; };

void report(uint what, uint row)
{
    atomicAdd(BufU32(p.status).v[what], 1u, gl_ScopeQueueFamily, 0, gl_SemanticsRelaxed);
    atomicMin(BufU32(p.status).v[2], row, gl_ScopeQueueFamily, 0, gl_SemanticsRelaxed);
}

void load8(uvec2 x, uint column, out uint w[8])
{
    [[unroll]] for (uint i = 0; i < 8; i++)
        w[i] = column + i < p.k ? load_bits(x, column + i, SRC) : 0u;
}

#if FMT_BITS >= 16
void encode8(uvec2 quant, uint unit, uint w[8], uint row)
{
    [[unroll]] for (uint i = 0; i < 8; i++) {
        bool finite = (w[i] & 0x7f800000u) != 0x7f800000u;
        if (!finite)
            report(0, row);
#if FMT_BITS == 16
        const uint infinity = ENC.mantissa == 10 ? 0x7c00u : 0x7f80u;
        w[i] = ENC.mantissa == 10 ? f16_round(w[i]) : bf16_round(w[i]);
        if (finite && (w[i] & 0x7fffu) == infinity)
            report(1, row);
#endif
    }
#if FMT_BITS == 16
    [[unroll]] for (uint i = 0; i < 4; i++)
        BufU32(quant).v[unit * 4 + i] = w[2 * i] | (w[2 * i + 1] << 16);
#else
    [[unroll]] for (uint i = 0; i < 8; i++)
        BufU32(quant).v[unit * 8 + i] = w[i];
#endif
}
#else
shared uint highest[gl_WorkGroupSize.x], lowest[gl_WorkGroupSize.x];

struct Grid { float inv, zero; }; // inv 0: the whole group is blank

// Takes in the magnitudes of the positive and the negative weights.
void extremes(uint w[8], inout uint high, inout uint low)
{
    [[unroll]] for (uint i = 0; i < 8; i++) {
        uint magnitude = w[i] & 0x7fffffffu;
        if (w[i] >> 31 == 0)
            high = max(high, magnitude);
        else
            low = max(low, magnitude);
    }
}

void reduce(uint lanes, inout uint high, inout uint low)
{
    uint lane = gl_LocalInvocationID.x, first = lane & ~(lanes - 1);
    barrier(); // the values of the last tile have been read
    highest[lane] = high;
    lowest[lane] = low;
    barrier();
    for (uint i = 0; i < lanes; i++) {
        high = max(high, highest[first + i]);
        low = max(low, lowest[first + i]);
    }
}

// The scale of a group, stored by one lane (`owner`) and known to all.
Grid make_grid(uint high, uint low, uint at, uint row, bool owner)
{
    precise float s, zero = 0.0;
    uint peak = max(high, low), stored = 0;
    bool fits = true;

    if (ZERO != 0) {
        s = uintBitsToFloat(high) + uintBitsToFloat(low);
        s = s * (1.0 / float(ENC.code));
    } else {
        s = uintBitsToFloat(peak) * (1.0 / ENC.largest);
    }
    if (SCALE == SCALE_E8M0) {
        stored = uint(max(int(peak >> 23) - 2, 1));
        s = scale_e8m0(stored);
    } else if (SCALE == SCALE_E4M3) {
        stored = minifloat(s * reciprocal(p.global_scale), 3, 7, 0x7e);
        s = scale_e4m3(stored) * p.global_scale;
    } else {
        s = s < 7.888609052210118e-31 ? 0.0 : s; // 2^-100: no reciprocal beyond
        stored = floatBitsToUint(s);
        if (SCALE == SCALE_F16) {
            stored = f16_round(stored);
            s = f16_value(stored);
        }
        fits = (floatBitsToUint(s) & 0x7f800000u) != 0x7f800000u;
    }
    float inv = s > 0.0 ? reciprocal(s) : 0.0;
    if (ZERO != 0) {
        precise float z = roundEven(uintBitsToFloat(low) * inv);
        zero = inv > 0.0 ? clamp(z, 0.0, float(ENC.code)) : float(BLANK);
    }
    if (owner) {
        if (peak >= 0x7f800000u)
            report(0, row);
        else if (!fits)
            report(1, row);
        if (SCALE == SCALE_F32)
            BufU32(p.scale).v[at] = stored;
        else if (SCALE == SCALE_F16)
            BufU16(p.scale).v[at] = uint16_t(stored);
        else
            BufU8(p.scale).v[at] = uint8_t(stored);
        if (ZERO != 0)
            BufU8(p.zero).v[at] = uint8_t(uint(zero));
    }
    return Grid(inv, zero);
}

void encode8(uvec2 quant, uint unit, uint w[8], Grid grid)
{
    const uint each = 32 / FMT_BITS;
    [[unroll]] for (uint word = 0; word < 8 / each; word++) {
        uint bits = 0;
        [[unroll]] for (uint i = 0; i < each; i++) {
            bool used = unit * 8 + word * each + i < p.k && grid.inv > 0.0;
            uint code = used ? encode(w[word * each + i], grid.inv, grid.zero) : BLANK;
            bits |= code << (i * FMT_BITS);
        }
        BufU32(quant).v[unit * (8 / each) + word] = bits;
    }
}
#endif

void main()
{
    uint lane = gl_LocalInvocationID.x, lanes = gl_WorkGroupSize.x, w[8];
    uint tiles = (p.k_padded / 8 + lanes - 1) / lanes;
    for (uint source = gl_WorkGroupID.y; source < p.rows; source += gl_NumWorkGroups.y) {
        uint row = p.row_start + source * p.row_stride;
        uvec2 x = address_at(p.x, source, p.k * (SRC == ACT_F32 ? 4u : 2u));
        uvec2 quant = address_at(p.quant, row, p.k_padded / 8 * FMT_BITS);
#if FMT_BITS < 16
        Grid grid;
        if (p.group == 0) {
            uint high = 0, low = 0;
            for (uint unit = lane; unit * 8 < p.k; unit += lanes) {
                load8(x, unit * 8, w);
                extremes(w, high, low);
            }
            reduce(lanes, high, low);
            grid = make_grid(high, low, row, row, lane == 0);
        }
#endif
        for (uint tile = gl_WorkGroupID.x; tile < tiles; tile += gl_NumWorkGroups.x) {
            uint unit = tile * lanes + lane;
            load8(x, unit * 8, w);
#if FMT_BITS >= 16
            if (unit * 8 < p.k_padded)
                encode8(quant, unit, w, row);
#else
            if (p.group != 0) {
                uint high = 0, low = 0, column = unit * 8;
                extremes(w, high, low);
                reduce(p.group / 8, high, low);
                grid = make_grid(high, low, row * p.groups + column / p.group, row,
                                 column < p.k && column % p.group == 0);
            }
            if (unit * 8 < p.k_padded)
                encode8(quant, unit, w, grid);
#endif
        }
    }
}

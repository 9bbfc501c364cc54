// y (m, n) = epilogue(x (m, k) . W (n, k)^T) on KHR cooperative matrices: f16 operands, f32 sums.
//
// A workgroup of 8 subgroups of 32 owns 128 x 128 of y and walks k in steps of 32. Two tiles of x and W are in
// shared memory: while the matrix units work on one, every thread fetches 16 elements of x and of W for the
// other. Subgroup s owns 64 x 32 of y: rows (s % 2) * 64.., columns (s / 2) * 32.., as 4 x 2 matrices of 16 x 16.
// Workgroup (x, y) = (tile of n, tile of m).
#extension GL_KHR_cooperative_matrix : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint Y_TYPE = 0;
layout(constant_id = 3) const uint SCALE = 0;
layout(constant_id = 4) const uint ZERO = 0;
layout(constant_id = 5) const uint GROUP = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;

layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"

#define BM 128
#define BN 128
#define BK 32
#define PITCH (BK + 8)          // halves; the pad spreads rows over the banks
#define TILE (BM * PITCH / 8)   // uvec4s of one tile
#define ROWS 4
#define COLUMNS 2

shared uvec4 tiles[4 * TILE];   // x even, x odd, W even, W odd; later the sums

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

uvec4 pack8(const float v[8])
{
    return uvec4(packHalf2x16(vec2(v[0], v[1])), packHalf2x16(vec2(v[2], v[3])), packHalf2x16(vec2(v[4], v[5])),
                 packHalf2x16(vec2(v[6], v[7])));
}

// Eight elements of x from column k; zeros from p.k on. p.k is a multiple of 8.
uvec4 load_x8(uint m, uint k)
{
    if (k >= p.k)
        return uvec4(0);
    const uint at = m * p.k + k;
    if (X_TYPE == ACT_F16)
        return BufU32x4(p.x).v[at / 8];
    vec4 a = load_act4(p.x, at, X_TYPE), b = load_act4(p.x, at + 4, X_TYPE);
    return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}

#define UNITS (FMT_UNIT >= 16 ? 1 : 16 / FMT_UNIT)

void load_w16(uint n, uint k, out uvec4 bits[UNITS])
{
    [[unroll]] for (uint i = 0; i < UNITS; i++)
        bits[i] = fmt_load(BufU32x4(p.quant), n * (p.k_padded / FMT_UNIT) + k / FMT_UNIT + i);
}

// Sixteen weights, in order, as f16: value * group scale.
void decode_w16(uint n, uint k, const uvec4 bits[UNITS], out uvec4 half0, out uvec4 half1)
{
    [[unroll]] for (uint h = 0; h < 2; h++) {
        const uint at = k + h * 8;
        const uint group = n * p.groups + (GROUP == 0 ? 0 : min(at / max(GROUP, 1), p.groups - 1));
        const float scale = SCALE == SCALE_NONE || GROUP == 0 ? 1.0 : load_scale(p.scale, group, SCALE);
        float w[8];
        uvec4 packed;
        [[unroll]] for (uint i = 0; i < 8; i += FMT_CHUNK) {
            const uint unit = FMT_UNIT >= 16 ? 0 : (h * 8 + i) / FMT_UNIT;
            A2 v[FMT_CHUNK / 2];
            // The piece of a 4-bit unit depends on the thread: choose the words first, decode constants.
            uvec4 source = bits[unit];
            const uint piece = FMT_UNIT == 32 ? 0 : (at + i) % FMT_UNIT / FMT_CHUNK;
            if (FMT_UNIT == 32)
                source.x = (k & 16u) != 0 ? bits[0][2 + h] : bits[0][h];
#if FMT_ZERO
            if (ZERO != 0)
                fmt_decode8z(source, piece, A(load_zero(p.zero, group)), v);
            else
#endif
                fmt_decode8(source, piece, v);
#if MATH_F16 && FMT_UNIT > 4
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[j] *= A(scale);
            // Pairs back to the order of the row.
            [[unroll]] for (uint j = 0; j < 4; j++) {
                const uint a = fmt_slot(2 * j), b = fmt_slot(2 * j + 1);
                packed[j] = packFloat2x16(f16vec2((a & 1) == 0 ? v[a / 2].x : v[a / 2].y,
                                                  (b & 1) == 0 ? v[b / 2].x : v[b / 2].y));
            }
#else
            [[unroll]] for (uint j = 0; j < FMT_CHUNK / 2; j++) {
                w[i + fmt_pair(j).x] = float(v[j].x) * scale;
                w[i + fmt_pair(j).y] = float(v[j].y) * scale;
            }
#endif
        }
#if !(MATH_F16 && FMT_UNIT > 4)
        packed = pack8(w);
#endif
        if (h == 0)
            half0 = packed;
        else
            half1 = packed;
    }
}

void main()
{
    const uint t = gl_LocalInvocationIndex, m0 = gl_WorkGroupID.y * BM, n0 = gl_WorkGroupID.x * BN;
    const uint row = t / 2, part = (t % 2) * 16; // what this thread fetches of a step
    const uint xm = min(m0 + row, p.m - 1), wn = min(n0 + row, p.n - 1);
    const uint slot = (row * PITCH + part) / 8;
    const uint sm = (gl_SubgroupID % 2) * 64, sn = (gl_SubgroupID / 2) * 32;
    const uint steps = p.k_padded / BK;
    MatC acc[ROWS * COLUMNS];
    uvec4 x0, x1, bits[UNITS], w0, w1;

    [[unroll]] for (uint i = 0; i < ROWS * COLUMNS; i++)
        acc[i] = MatC(0.0);
    x0 = load_x8(xm, part);
    x1 = load_x8(xm, part + 8);
    load_w16(wn, part, bits);
    for (uint step = 0; step < steps; step++) {
        const uint k = step * BK + part, tile = (step & 1) * TILE;
        decode_w16(wn, k, bits, w0, w1);
        tiles[tile + slot] = x0;
        tiles[tile + slot + 1] = x1;
        tiles[2 * TILE + tile + slot] = w0;
        tiles[2 * TILE + tile + slot + 1] = w1;
        barrier(); // the other tile was read before the previous barrier
        if (step + 1 < steps) {
            x0 = load_x8(xm, k + BK);
            x1 = load_x8(xm, k + BK + 8);
            load_w16(wn, k + BK, bits);
        }
        [[unroll]] for (uint i = 0; i < BK; i += 16) {
            MatA a[ROWS];
            MatB b;
            [[unroll]] for (uint r = 0; r < ROWS; r++)
                coopMatLoad(a[r], tiles, tile + ((sm + r * 16) * PITCH + i) / 8, PITCH / 8,
                            gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
                coopMatLoad(b, tiles, 2 * TILE + tile + ((sn + c * 16) * PITCH + i) / 8, PITCH / 8,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < ROWS; r++)
                    acc[r * COLUMNS + c] = coopMatMulAdd(a[r], b, acc[r * COLUMNS + c]);
            }
        }
    }
    barrier();
    // Each subgroup passes its matrices through 1 KiB of shared memory: lane l gets 8 columns of row l / 2.
    const uint base = gl_SubgroupID * 64, lane = gl_SubgroupInvocationID;
    [[unroll]] for (uint i = 0; i < ROWS * COLUMNS; i++) {
        coopMatStore(acc[i], tiles, base, 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        const uint m = m0 + sm + i / COLUMNS * 16 + lane / 2, n = n0 + sn + i % COLUMNS * 16 + lane % 2 * 8;
        vec4 a = uintBitsToFloat(tiles[base + lane * 2]), b = uintBitsToFloat(tiles[base + lane * 2 + 1]);
        const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        [[unroll]] for (uint j = 0; j < 8; j += 2)
            if (m < p.m && n + j < p.n)
                store_pair(m, n + j, finish(v[j], n + j), finish(v[j + 1], min(n + j + 1, p.n - 1)), n + j + 1 < p.n);
        subgroupBarrier();
    }
}

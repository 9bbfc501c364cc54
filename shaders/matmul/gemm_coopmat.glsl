// The body of the tiled kernels on cooperative matrices: matmul/gemm_coopmat.comp says what it does. Before it come the
// hooks of matmul/gemm.glsl, but for X_ROW, and
//
//   ROWS, COLUMNS       16 x 16 matrices that a subgroup owns below and beside each other
//   HEIGHT              subgroups above each other
//   X_FETCH             sixteens of x that a thread fetches
//   X_GUARD             nothing, or an `if` for the threads whose fetches of x lie in the tile
//   TILE_ROWS           rows of the tile that there are
//   STORE_EIGHT(i, n, v)   stores columns n .. n + 7 like STORE_PAIR
//   X_ROW(i)            row of x of fetch i of this thread: row gl_LocalInvocationIndex / 2 + i * 128 of the tile
#ifdef FMT_SUBNORMAL
#include "include/subnormals.glsl"
#endif

#define BK 32
#define PITCH (BK + 8)              // halves; the pad spreads rows over the banks
const uint X_TILE = BM * PITCH / 8; // uvec4s
const uint W_TILE = BN * PITCH / 8;
const uint W_FETCH = BN / 128;      // sixteens of weights that a thread fetches

shared uvec4 tiles[BUFFERS * (X_TILE + W_TILE)]; // x and W of a step; later the sums

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

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

#define UNITS (FMT_UNIT >= 16 ? 1 : 16 / FMT_UNIT) // that hold 16 weights

struct Weights { // sixteen, still encoded
    uvec4 bits[UNITS];
    float scale, zero; // a group has 16 weights or more
};

// Weights k .. k + 15 of row n; k is a multiple of 16.
Weights load_w16(uint n, uint k)
{
    Weights w;
    [[unroll]] for (uint i = 0; i < UNITS; i++)
        w.bits[i] = fmt_load(BufU32x4(p.quant), n * (p.k_padded / FMT_UNIT) + k / FMT_UNIT + i);
    const uint at = n * p.groups + (GROUP == 0 ? 0 : min(k / max(GROUP, 1), p.groups - 1));
    w.scale = SCALE == SCALE_NONE || GROUP == 0 ? 1.0 : load_scale(p.scale, at, SCALE);
    w.zero = ZERO == 0 ? 0.0 : load_zero(p.zero, at);
    return w;
}

// Eight of them, h the lower or upper half, in order as f16: value * group scale.
uvec4 decode_w8(const Weights w, uint k, uint h)
{
    A2 v[4];
    uvec4 source = w.bits[FMT_UNIT >= 16 ? 0 : h], packed;
    uint piece = FMT_UNIT == 16 ? h : 0;
    // Which pieces of a 4-bit unit these are depends on the thread: choose the word, then decode constants.
    if (FMT_UNIT == 32)
        source.x = (k & 16u) != 0 ? w.bits[0][2 + h] : w.bits[0][h];
#if FMT_ZERO
    if (ZERO != 0)
        fmt_decode8z(source, piece, A(w.zero), v);
    else
#endif
#ifdef FMT_SUBNORMAL
        fmt_decode8_subnormal(source, piece, v);
#else
        fmt_decode8(source, piece, v);
#endif
    [[unroll]] for (uint j = 0; j < 4; j++) { // pairs back to the order of the row
        const uint a = fmt_slot(2 * j), b = fmt_slot(2 * j + 1);
        f16vec2 pair = f16vec2((a & 1) == 0 ? v[a / 2].x : v[a / 2].y, (b & 1) == 0 ? v[b / 2].x : v[b / 2].y);
        packed[j] = packFloat2x16(SCALE == SCALE_NONE || GROUP == 0 ? pair : pair * A(w.scale));
    }
    return packed;
}

void main()
{
#ifdef TILE_PROLOGUE
    if (!tile_prologue())
        return;
#endif
    const uint t = gl_LocalInvocationIndex, n0 = gl_WorkGroupID.x * BN;
    const uint row = t / 2, part = (t % 2) * 16; // what this thread fetches of a step
    const uint slot = (row * PITCH + part) / 8;
    // Successive subgroups, which work side by side, stand beside each other: where a tile is not full, those above
    // work on and those below leave the matrix units to them.
    const uint across = 8 / HEIGHT, sm = gl_SubgroupID / across * 64, sn = gl_SubgroupID % across * (COLUMNS * 16);
    const uint steps = p.k_padded / BK;
    MatC acc[ROWS * COLUMNS];
    uvec4 x[2 * X_FETCH];
    Weights w[W_FETCH];

    [[unroll]] for (uint i = 0; i < ROWS * COLUMNS; i++)
        acc[i] = MatC(0.0);
    [[unroll]] for (uint i = 0; i < 2 * X_FETCH; i++)
        x[i] = load_x8(X_ROW(i / 2), part + i % 2 * 8);
    [[unroll]] for (uint i = 0; i < W_FETCH; i++)
        w[i] = load_w16(W_ROW(n0 + row + i * 128), part);
    for (uint step = 0; step < steps; step++) {
        const uint k = step * BK + part;
        const uint xt = BUFFERS == 2 ? (step & 1) * (X_TILE + W_TILE) : 0, wt = xt + X_TILE;
        if (BUFFERS == 1)
            barrier(); // the step before has been read
        [[unroll]] for (uint i = 0; i < 2 * X_FETCH; i++)
            X_GUARD tiles[xt + slot + i / 2 * 128 * PITCH / 8 + i % 2] = x[i];
        [[unroll]] for (uint i = 0; i < W_FETCH; i++) {
            tiles[wt + slot + i * 128 * PITCH / 8] = decode_w8(w[i], k, 0);
            tiles[wt + slot + i * 128 * PITCH / 8 + 1] = decode_w8(w[i], k, 1);
        }
        barrier();
        if (step + 1 < steps) {
            [[unroll]] for (uint i = 0; i < 2 * X_FETCH; i++)
                x[i] = load_x8(X_ROW(i / 2), k + BK + i % 2 * 8);
            [[unroll]] for (uint i = 0; i < W_FETCH; i++)
                w[i] = load_w16(W_ROW(n0 + row + i * 128), k + BK);
        }
        if (sm < TILE_ROWS) // the same for a whole subgroup
            [[unroll]] for (uint i = 0; i < BK; i += 16) {
                MatA a[ROWS];
                MatB b;
                [[unroll]] for (uint r = 0; r < ROWS; r++)
                    coopMatLoad(a[r], tiles, xt + ((sm + r * 16) * PITCH + i) / 8, PITCH / 8,
                                gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
                    coopMatLoad(b, tiles, wt + ((sn + c * 16) * PITCH + i) / 8, PITCH / 8,
                                gl_CooperativeMatrixLayoutColumnMajor);
                    [[unroll]] for (uint r = 0; r < ROWS; r++)
                        acc[r * COLUMNS + c] = coopMatMulAdd(a[r], b, acc[r * COLUMNS + c]);
                }
            }
    }
    barrier();
    // Each subgroup passes its matrices through 1 KiB of shared memory: lane l gets 8 columns of row l / 2.
    const uint base = gl_SubgroupID * 64, lane = gl_SubgroupInvocationID;
    const bool eights = stores_eight();
    [[unroll]] for (uint i = 0; i < ROWS * COLUMNS; i++) {
        coopMatStore(acc[i], tiles, base, 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        const uint m = sm + i / COLUMNS * 16 + lane / 2, n = n0 + sn + i % COLUMNS * 16 + lane % 2 * 8;
        vec4 a = uintBitsToFloat(tiles[base + lane * 2]), b = uintBitsToFloat(tiles[base + lane * 2 + 1]);
        float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        [[unroll]] for (uint j = 0; j < 8; j++)
            v[j] = finish(v[j], min(n + j, p.n - 1));
        if (eights) {
            if (n < p.n)
                STORE_EIGHT(m, n, v);
        } else {
            [[unroll]] for (uint j = 0; j < 8; j += 2)
                if (n + j < p.n)
                    STORE_PAIR(m, n + j, v[j], v[j + 1], n + j + 1 < p.n);
        }
        subgroupBarrier();
    }
}

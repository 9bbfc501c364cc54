// Prefill of a gated delta net, the part of each chunk by itself: chunk.glsl. Grid (chunks, VALUE_HEADS).
//
//   K, Q -> shared | Q K^T, K K^T | L, then T | M = -T diag(beta G): W = M K | M = T diag(beta): U = M V
#include "delta/chunk.glsl"

const uint K_PITCH = (KEY_DIM > VALUE_DIM ? KEY_DIM : VALUE_DIM) / 8 + 1;
const uint T_PITCH = CHUNK / 4 + 1; // f32
const uint M_PITCH = CHUNK / 8 + 1;
const uint X_SIZE = CHUNK * (K_PITCH > T_PITCH ? K_PITCH : T_PITCH);
const uint X_AT = CHUNK * K_PITCH;  // Q, then products and T, behind K, which becomes V
const uint M_AT = X_AT + X_SIZE;
shared uvec4 pool[M_AT + CHUNK * M_PITCH];
shared float beta[CHUNK];
shared float decay[CHUNK]; // logarithms; below
shared float total[CHUNK]; // their sums up to each row: log G

const uint FETCHED = CHUNK * (KEY_DIM > VALUE_DIM ? KEY_DIM : VALUE_DIM) / 4 / LANES;
uint first_row;

// Channels `channel` .. + size of the chunk's rows to x, eight f32 in two places: all loads of a lane are under way at
// once. Zeros behind the prompt.
#define FETCH(x, channel, size)                                                                                        \
    [[unroll]] for (uint i = 0; i < CHUNK * size / 8 / LANES; i++) {                                                   \
        const uint n = gl_LocalInvocationIndex + i * LANES, row = first_row + n / (size / 8);                          \
        BufF32x4 line = BufF32x4(mixed_row(min(row, p.rows - 1)));                                                     \
        const uint at = (channel) / 4 + n % (size / 8) * 2;                                                            \
        x[2 * i] = row < p.rows ? line.v[at] : vec4(0.0);                                                              \
        x[2 * i + 1] = row < p.rows ? line.v[at + 1] : vec4(0.0);                                                      \
    }

void load_gates(uint head)
{
    for (uint i = gl_LocalInvocationIndex; i < CHUNK; i += LANES) {
        const bool there = first_row + i < p.rows;
        BufF32 line = BufF32(mixed_row(min(first_row + i, p.rows - 1)));
        beta[i] = there ? line.v[CHANNELS + 2 * head] : 0.0;
        const float x = line.v[CHANNELS + 2 * head + 1];
        // Enough to forget everything, and far from an infinity, whose differences would be NaN. NaN stays.
        decay[i] = !there ? 0.0 : isnan(x) ? x : max(log(x), -100.0);
    }
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < CHUNK; i += LANES) {
        float sum = 0.0;
        for (uint j = 0; j <= i; j++)
            sum += decay[j];
        total[i] = sum;
    }
    barrier();
}

void load_k_and_q(uint head, BufU32x4 block)
{
    const uint units = KEY_DIM / 8, channel = head / RATIO * KEY_DIM;
    vec4 k[FETCHED], q[FETCHED];
    FETCH(k, KEY_HEADS * KEY_DIM + channel, KEY_DIM)
    FETCH(q, channel, KEY_DIM)
    load_gates(head);
    [[unroll]] for (uint i = 0; i < CHUNK * units / LANES; i++) {
        const uint n = gl_LocalInvocationIndex + i * LANES, at = n / units * K_PITCH + n % units;
        const float g = exp(total[n / units]);
        pool[at] = pack8(k[2 * i], k[2 * i + 1]);
        pool[X_AT + at] = pack8(q[2 * i], q[2 * i + 1]);
        block.v[Q_AT + n] = pack8(q[2 * i] * g, q[2 * i + 1] * g);
    }
    barrier();
}

void store_kt(BufU32x4 block)
{
    const uint units = CHUNK / 8;
    [[unroll]] for (uint i = 0; i < KEY_DIM * units / LANES; i++) {
        const uint n = gl_LocalInvocationIndex + i * LANES, d = n / units, row = n % units * 8;
        vec4 x[2];
        [[unroll]] for (uint j = 0; j < 8; j++) {
            const uint two = pool[(row + j) * K_PITCH + d / 8][d / 2 % 4];
            const float k = unpackHalf2x16(d % 2 == 0 ? two : two >> 16).x;
            x[j / 4][j % 4] = k * exp(total[CHUNK - 1] - total[row + j]);
        }
        block.v[KT_AT + n] = pack8(x[0], x[1]);
    }
}

// The subgroup's rows of a product to where Q was.
#define SPILL(x)                                                                                                       \
    [[unroll]] for (uint n = 0; n < TILES; n++)                                                                        \
        coopMatStore(x[n], pool, X_AT + gl_SubgroupID * 16 * T_PITCH + 4 * n, T_PITCH, ROWS);                          \
    barrier();

vec4 spilled(uint row, uint quad) { return uintBitsToFloat(pool[X_AT + row * T_PITCH + quad]); }

// Four columns of Q K^T times G_i / G_j, 0 above the diagonal.
vec4 decayed(uint row, uint quad)
{
    vec4 x = spilled(row, quad);
    [[unroll]] for (uint c = 0; c < 4; c++) {
        const uint j = 4 * quad + c;
        x[c] = j <= row ? x[c] * exp(total[row] - total[j]) : 0.0;
    }
    return x;
}

// T = (1 + L)^-1. Above the diagonal lies L, transposed; T comes below and onto it. A thread has a column of T, and
// makes 16 rows at a time: what the rows before them take off, then what they take off each other.
void invert()
{
    const uint column = gl_LocalInvocationIndex;
    if (column >= CHUNK)
        return;
    [[dont_unroll]] for (uint row = 0; row < CHUNK; row += 16) {
        float t[16];
        [[unroll]] for (uint i = 0; i < 16; i++)
            t[i] = row + i == column ? 1.0 : 0.0;
        [[dont_unroll]] for (uint first = 0; first < row; first += 4)
            [[unroll]] for (uint j = first; j < first + 4; j++) {
                const float before = uintBitsToFloat(pool[X_AT + j * T_PITCH + column / 4][column % 4]);
                const float x = j >= column ? before : 0.0;
                [[unroll]] for (uint i = 0; i < 16; i += 4) {
                    const vec4 l = spilled(j, (row + i) / 4);
                    [[unroll]] for (uint c = 0; c < 4; c++)
                        t[i + c] -= l[c] * x;
                }
            }
        [[unroll]] for (uint j = 0; j < 16; j++)
            [[unroll]] for (uint i = j / 4 * 4; i < 16; i += 4) {
                const vec4 l = spilled(row + j, (row + i) / 4);
                [[unroll]] for (uint c = 0; c < 4; c++)
                    if (i + c > j)
                        t[i + c] -= l[c] * t[j];
            }
        [[unroll]] for (uint i = 0; i < 16; i++)
            if (row + i >= column)
                pool[X_AT + (row + i) * T_PITCH + column / 4][column % 4] = floatBitsToUint(t[i]);
    }
}

// M = T times a factor a column.
void scale_columns(bool with_decay)
{
    [[unroll]] for (uint step = 0; step < CHUNK * CHUNK / 8; step += LANES) {
        const uint n = step + gl_LocalInvocationIndex;
        const uint row = n / (CHUNK / 8), unit = n % (CHUNK / 8);
        vec4 x[2];
        [[unroll]] for (uint h = 0; h < 2; h++) {
            x[h] = spilled(row, 2 * unit + h);
            [[unroll]] for (uint c = 0; c < 4; c++) {
                const uint j = 8 * unit + 4 * h + c;
                x[h][c] = j <= row ? x[h][c] * (with_decay ? -beta[j] * exp(total[j]) : beta[j]) : 0.0;
            }
        }
        pool[M_AT + row * M_PITCH + unit] = pack8(x[0], x[1]);
    }
    barrier();
}

// Columns 16 n .. of the subgroup's rows of M times what lies where K did.
MatC product(uint n)
{
    MatC sum = MatC(0.0);
    [[unroll]] for (uint j = 0; j < TILES; j++) {
        MatA a;
        MatB b;
        coopMatLoad(a, pool, M_AT + gl_SubgroupID * 16 * M_PITCH + 2 * j, M_PITCH, ROWS);
        coopMatLoad(b, pool, j * 16 * K_PITCH + 2 * n, K_PITCH, ROWS);
        sum = coopMatMulAdd(a, b, sum);
    }
    return sum;
}

void main()
{
    const uint head = gl_WorkGroupID.y, own = gl_SubgroupID * 16;
    BufU32x4 block = BufU32x4(block_of(gl_WorkGroupID.x, head));
    first_row = gl_WorkGroupID.x * CHUNK;
    if (!delta_valid(BufI32(p.slots).v[0], BufI32(p.positions).v[0]))
        return;
    load_k_and_q(head, block);
    store_kt(block);
    MatC qk[TILES], kk[TILES];
    [[unroll]] for (uint n = 0; n < TILES; n++)
        qk[n] = kk[n] = MatC(0.0);
    [[unroll]] for (uint d = 0; d < K_TILES; d++) {
        MatA q, k;
        coopMatLoad(q, pool, X_AT + own * K_PITCH + 2 * d, K_PITCH, ROWS);
        coopMatLoad(k, pool, own * K_PITCH + 2 * d, K_PITCH, ROWS);
        [[unroll]] for (uint n = 0; n < TILES; n++) {
            MatB b;
            coopMatLoad(b, pool, n * 16 * K_PITCH + 2 * d, K_PITCH, COLUMNS);
            qk[n] = coopMatMulAdd(q, b, qk[n]);
            kk[n] = coopMatMulAdd(k, b, kk[n]);
        }
    }
    barrier(); // Q has been read
    SPILL(qk)
    [[unroll]] for (uint step = 0; step < CHUNK * CHUNK / 8; step += LANES) {
        const uint n = step + gl_LocalInvocationIndex;
        const uint row = n / (CHUNK / 8), quad = n % (CHUNK / 8) * 2;
        block.v[QK_AT + n] = pack8(decayed(row, quad), decayed(row, quad + 1));
    }
    barrier();
    SPILL(kk)
    [[unroll]] for (uint step = 0; step < CHUNK * CHUNK / 4; step += LANES) {
        const uint n = step + gl_LocalInvocationIndex;
        const uint j = n / (CHUNK / 4), quad = n % (CHUNK / 4);
        vec4 x = spilled(j, quad); // symmetric
        [[unroll]] for (uint c = 0; c < 4; c++) {
            const uint row = 4 * quad + c;
            x[c] *= row > j ? beta[row] * exp(total[row] - total[j]) : 0.0;
        }
        pool[X_AT + j * T_PITCH + quad] = floatBitsToUint(x);
    }
    barrier();
    vec4 v[FETCHED];
    FETCH(v, v_channel(head), VALUE_DIM)
    invert();
    barrier();

    scale_columns(true);
    [[unroll]] for (uint n = 0; n < K_TILES; n++)
        coopMatStore(MatH(product(n)), block.v, W_AT + own * KEY_DIM / 8 + 2 * n, KEY_DIM / 8, ROWS);
    barrier(); // K and M have been read
    [[unroll]] for (uint i = 0; i < CHUNK * VALUE_DIM / 8 / LANES; i++) {
        const uint n = gl_LocalInvocationIndex + i * LANES, units = VALUE_DIM / 8;
        [[unroll]] for (uint j = 0; j < 4; j++) {
            v[2 * i][j] = to_half_range(v[2 * i][j]);
            v[2 * i + 1][j] = to_half_range(v[2 * i + 1][j]);
        }
        pool[n / units * K_PITCH + n % units] = pack8(v[2 * i], v[2 * i + 1]);
    }
    scale_columns(false);
    [[unroll]] for (uint n = 0; n < VALUE_DIM / 16; n++)
        coopMatStore(product(n), block.v, U_AT + own * VALUE_DIM / 4 + 4 * n, VALUE_DIM / 4, ROWS);
    if (gl_LocalInvocationIndex == 0)
        block.v[LAST_AT] = uvec4(floatBitsToUint(exp(total[CHUNK - 1])), 0, 0, 0);
}

// Prefill of a gated delta net, from chunk to chunk: chunk.glsl. Grid (VALUE_DIM / WIDE, VALUE_HEADS): a workgroup has
// WIDE columns of S, in registers, a share of its rows in each subgroup; of each chunk's d and o 16 rows a subgroup.
//
//   W, q, S -> shared | d = U - W S, o = G q S | QK, KT, d -> shared | o += QK d, S = G_last S + KT d
//
// What the next products take is under way to registers while those before are made.
#include "delta/chunk.glsl"

const uint WIDE = 32;
const uint ACROSS = WIDE / 16;
const uint DOWN = K_TILES / TILES; // matrices of S below each other, of a subgroup

// Shared memory: [W | q], then [KT | QK | d], with a uvec4 behind each row for the banks; and S.
const uint K_UNITS = KEY_DIM / 8, K_PITCH = K_UNITS + 1;
const uint C_UNITS = CHUNK / 8, C_PITCH = C_UNITS + 1;
const uint PITCH = WIDE / 8 + 1;
const uint Q_POOL = CHUNK * K_PITCH;
const uint QK_POOL = KEY_DIM * C_PITCH;
const uint D_POOL = QK_POOL + CHUNK * C_PITCH;
const uint WQ_SIZE = 2 * CHUNK * K_PITCH, DK_SIZE = D_POOL + CHUNK * PITCH;
const uint S_POOL = WQ_SIZE > DK_SIZE ? WQ_SIZE : DK_SIZE;
shared uvec4 pool[S_POOL + KEY_DIM * PITCH];

const uint WQ_FETCH = 2 * CHUNK * K_UNITS / LANES; // of a lane
const uint DK_FETCH = (CHUNK + KEY_DIM) * C_UNITS / LANES;

// W and q lie one behind the other in a block, and QK behind KT.
#define FETCH(units, at, count)                                                                                        \
    [[unroll]] for (uint i = 0; i < count; i++)                                                                        \
        units[i] = block.v[(at) + gl_LocalInvocationIndex + i * LANES];
#define STORE(units, count, width)                                                                                     \
    [[unroll]] for (uint i = 0; i < count; i++) {                                                                      \
        const uint n = gl_LocalInvocationIndex + i * LANES;                                                            \
        pool[n / width * (width + 1) + n % width] = units[i];                                                          \
    }
#define FETCH_U                                                                                                        \
    [[unroll]] for (uint n = 0; n < ACROSS; n++)                                                                       \
        coopMatLoad(u[n], block.v, U_AT + (own * VALUE_DIM + column) / 4 + 4 * n, VALUE_DIM / 4, ROWS);

void main()
{
    const uint head = gl_WorkGroupID.y, column = gl_WorkGroupID.x * WIDE, own = gl_SubgroupID * 16;
    const uint count = (p.rows + CHUNK - 1) / CHUNK;
    const int first = BufI32(p.positions).v[0], in_slot = BufI32(p.slots).v[0];
    if (!delta_valid(in_slot, first))
        return;
    BufU32x4 state = BufU32x4(address_at(p.state, uint(in_slot) * VALUE_HEADS + head, STATE_SIZE * 4));
    const uint s_row = gl_SubgroupID * DOWN * 16;

    MatC s[DOWN * ACROSS], u[ACROSS];
    uvec4 wq[WQ_FETCH], dk[DK_FETCH];
    [[unroll]] for (uint i = 0; i < DOWN * ACROSS; i++) {
        s[i] = MatC(0.0);
        if (first > 0)
            coopMatLoad(s[i], state.v, ((s_row + i / ACROSS * 16) * VALUE_DIM + column + i % ACROSS * 16) / 4,
                        VALUE_DIM / 4, ROWS);
    }
    BufU32x4 block = BufU32x4(block_of(0, head));
    FETCH(wq, W_AT, WQ_FETCH)
    FETCH(dk, KT_AT, DK_FETCH)
    FETCH_U
    float last = uintBitsToFloat(block.v[LAST_AT].x);

    for (uint chunk = 0; chunk < count; chunk++) {
        barrier(); // the chunk before has been read
        STORE(wq, WQ_FETCH, K_UNITS)
        [[unroll]] for (uint i = 0; i < DOWN * ACROSS; i++)
            coopMatStore(MatH(s[i]), pool, S_POOL + (s_row + i / ACROSS * 16) * PITCH + i % ACROSS * 2, PITCH, ROWS);
        barrier();
        block = BufU32x4(block_of(min(chunk + 1, count - 1), head));
        FETCH(wq, W_AT, WQ_FETCH)
        MatC d[ACROSS], o[ACROSS];
        [[unroll]] for (uint n = 0; n < ACROSS; n++) {
            d[n] = u[n];
            o[n] = MatC(0.0);
        }
        FETCH_U
        [[unroll]] for (uint i = 0; i < K_TILES; i++) {
            MatA w, q;
            coopMatLoad(w, pool, own * K_PITCH + 2 * i, K_PITCH, ROWS);
            coopMatLoad(q, pool, Q_POOL + own * K_PITCH + 2 * i, K_PITCH, ROWS);
            [[unroll]] for (uint n = 0; n < ACROSS; n++) {
                MatB b;
                coopMatLoad(b, pool, S_POOL + i * 16 * PITCH + 2 * n, PITCH, ROWS);
                d[n] = coopMatMulAdd(w, b, d[n]);
                o[n] = coopMatMulAdd(q, b, o[n]);
            }
        }
        barrier(); // W and q have been read
        STORE(dk, DK_FETCH, C_UNITS)
        [[unroll]] for (uint n = 0; n < ACROSS; n++)
            coopMatStore(MatH(d[n]), pool, D_POOL + own * PITCH + 2 * n, PITCH, ROWS);
        barrier();
        FETCH(dk, KT_AT, DK_FETCH)
        [[unroll]] for (uint i = 0; i < DOWN * ACROSS; i++)
            s[i] = s[i] * last;
        last = uintBitsToFloat(block.v[LAST_AT].x);
        [[unroll]] for (uint j = 0; j < TILES; j++) {
            MatA qk, kt[DOWN];
            coopMatLoad(qk, pool, QK_POOL + own * C_PITCH + 2 * j, C_PITCH, ROWS);
            [[unroll]] for (uint i = 0; i < DOWN; i++)
                coopMatLoad(kt[i], pool, (s_row + i * 16) * C_PITCH + 2 * j, C_PITCH, ROWS);
            [[unroll]] for (uint n = 0; n < ACROSS; n++) {
                MatB b;
                coopMatLoad(b, pool, D_POOL + j * 16 * PITCH + 2 * n, PITCH, ROWS);
                o[n] = coopMatMulAdd(qk, b, o[n]);
                [[unroll]] for (uint i = 0; i < DOWN; i++)
                    s[i * ACROSS + n] = coopMatMulAdd(kt[i], b, s[i * ACROSS + n]);
            }
        }
        BufU32x4 to = BufU32x4(o_row(chunk * CHUNK + own));
        [[unroll]] for (uint n = 0; n < ACROSS; n++)
            coopMatStore(o[n], to.v, (head * VALUE_DIM + column) / 4 + 4 * n, VALUE_HEADS * VALUE_DIM / 4, ROWS);
    }
    [[unroll]] for (uint i = 0; i < DOWN * ACROSS; i++)
        coopMatStore(s[i], state.v, ((s_row + i / ACROSS * 16) * VALUE_DIM + column + i % ACROSS * 16) / 4,
                     VALUE_DIM / 4, ROWS);
}

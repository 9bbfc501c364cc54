// Prefill of a gated delta net, second part: the recurrence over consecutive rows of one slot, as decode.comp has it.
//
//   d = beta (v - decay k S);  o = decay q S + (q k) d;  S = decay S + k d^T
//
// From row first_row to row rows, for the limit that llvmpipe has on rounds of loops.
// The columns of S do not meet: grid (VALUE_DIM / columns, VALUE_HEADS), and a workgroup walks over all rows with its
// columns in registers. A team of TEAM lanes shares WIDE columns, a lane holds every TEAM-th four rows of them. q, k, v
// and the gates are staged TILE rows at a time; q and k are padded with zeros to whole teams.
#include "delta/mixed.glsl"

layout(constant_id = 10) const uint TEAM = 4; // power of two, at most the subgroup size
layout(constant_id = 11) const uint WIDE = 1;
layout(constant_id = 12) const uint TILE = 1;
layout(constant_id = 13) const uint LANES = 4; // the workgroup size

const uint QUADS = (KEY_DIM / 4 + TEAM - 1) / TEAM; // a lane
const uint KEY_PAD = QUADS * TEAM * 4;
const uint COLUMNS = LANES / TEAM * WIDE;
const uint STAGED = TILE * KEY_PAD / 4;
const uint STAGED_V = TILE * COLUMNS;

shared vec4 q[STAGED];
shared vec4 k[STAGED];
shared float v[STAGED_V];
shared vec2 gates[TILE];

// Zeros behind the rows and behind the head, so that they change nothing: decay does not matter there either.
vec4 quad_of(uint row, uint channel, uint quad)
{
    vec4 x = vec4(0.0);
    if (row < p.rows && 4 * quad < KEY_DIM) {
        BufF32 line = BufF32(mixed_row(row));
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = line.v[channel + 4 * quad + j];
    }
    return x;
}

void load_tile(uint row0, uint head, uint column0)
{
    uint q_channel = head / RATIO * KEY_DIM;
    for (uint base = 0; base < STAGED; base += LANES) { // equally many rounds in all threads, as llvmpipe wants
        uint n = min(base + gl_LocalInvocationIndex, STAGED - 1);
        uint row = row0 + n / (KEY_PAD / 4), quad = n % (KEY_PAD / 4);
        q[n] = quad_of(row, q_channel, quad);
        k[n] = quad_of(row, KEY_HEADS * KEY_DIM + q_channel, quad);
    }
    for (uint base = 0; base < STAGED_V; base += LANES) {
        uint n = min(base + gl_LocalInvocationIndex, STAGED_V - 1), row = row0 + n / COLUMNS;
        uint column = column0 + n % COLUMNS;
        v[n] = row < p.rows && column < VALUE_DIM ? BufF32(mixed_row(row)).v[v_channel(head) + column] : 0.0;
    }
    for (uint base = 0; base < TILE; base += LANES) {
        uint n = min(base + gl_LocalInvocationIndex, TILE - 1);
        BufF32 line = BufF32(mixed_row(min(row0 + n, p.rows - 1)));
        gates[n] = vec2(line.v[CHANNELS + 2 * head], line.v[CHANNELS + 2 * head + 1]);
    }
}

float team_add(float x)
{
    [[unroll]] for (uint mask = 1; mask < TEAM; mask *= 2)
        x += subgroupShuffleXor(x, mask);
    return x;
}

void main()
{
    uint head = gl_WorkGroupID.y, column0 = gl_WorkGroupID.x * COLUMNS;
    int first = BufI32(p.positions).v[0], in_slot = BufI32(p.slots).v[0];
    if (!delta_valid(in_slot, first))
        return;
    // By the subgroup, for team_add shuffles within it.
    uint lane = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    uint part = lane % TEAM, own = lane / TEAM * WIDE; // of the workgroup's columns
    BufF32 state = BufF32(address_at(p.state, uint(in_slot) * VALUE_HEADS + head, STATE_SIZE * 4));
    vec4 s[WIDE * QUADS]; // four rows of a column
    [[unroll]] for (uint c = 0; c < WIDE; c++)
        [[unroll]] for (uint i = 0; i < QUADS; i++) {
            uint r = 4 * (part + i * TEAM), column = column0 + own + c;
            s[c * QUADS + i] = vec4(0.0);
            if ((first > 0 || p.first_row > 0) && r < KEY_DIM && column < VALUE_DIM)
                [[unroll]] for (uint j = 0; j < 4; j++)
                    s[c * QUADS + i][j] = state.v[(r + j) * VALUE_DIM + column];
        }

    for (uint row0 = p.first_row; row0 < p.rows; row0 += TILE) {
        barrier(); // the tile before has been read
        load_tile(row0, head, column0);
        barrier();
        uint count = min(TILE, p.rows - row0);
        for (uint t = 0; t < count; t++) {
            float ks[WIDE], qs[WIDE], qk = 0.0;
            [[unroll]] for (uint c = 0; c < WIDE; c++)
                ks[c] = qs[c] = 0.0;
            [[unroll]] for (uint i = 0; i < QUADS; i++) {
                uint at = t * (KEY_PAD / 4) + part + i * TEAM;
                vec4 a = q[at], b = k[at];
                qk += dot(a, b);
                [[unroll]] for (uint c = 0; c < WIDE; c++) {
                    ks[c] += dot(b, s[c * QUADS + i]);
                    qs[c] += dot(a, s[c * QUADS + i]);
                }
            }
            qk = team_add(qk);
            float beta = gates[t].x, decay = gates[t].y, d[WIDE];
            [[unroll]] for (uint c = 0; c < WIDE; c++) {
                d[c] = beta * (v[t * COLUMNS + own + c] - decay * team_add(ks[c]));
                float o = decay * team_add(qs[c]) + qk * d[c];
                if (part == 0 && column0 + own + c < VALUE_DIM)
                    BufF32(o_row(row0 + t)).v[head * VALUE_DIM + column0 + own + c] = o;
            }
            [[unroll]] for (uint i = 0; i < QUADS; i++) {
                vec4 b = k[t * (KEY_PAD / 4) + part + i * TEAM];
                [[unroll]] for (uint c = 0; c < WIDE; c++)
                    s[c * QUADS + i] = decay * s[c * QUADS + i] + b * d[c];
            }
        }
    }

    [[unroll]] for (uint c = 0; c < WIDE; c++)
        [[unroll]] for (uint i = 0; i < QUADS; i++) {
            uint r = 4 * (part + i * TEAM), column = column0 + own + c;
            if (r < KEY_DIM && column < VALUE_DIM)
                [[unroll]] for (uint j = 0; j < 4; j++)
                    state.v[(r + j) * VALUE_DIM + column] = s[c * QUADS + i][j];
        }
}

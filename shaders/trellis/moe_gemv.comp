// y[pair] = norm(x[pair / slots]) W[expert of the pair], or of activation(gate) * x: gemv.glsl for experts whose
// trellises and scales lie one behind the other. Workgroup (c, s, z) has pair z, or tile z of at most M pairs that
// chose the same expert, so that it is decoded once for them. Pairs of idle rows and of experts in other stacks are
// left out.
//
// With weights y[row] = residual + sum over the pairs of a row of weight * product: the last workgroup of 128 columns
// of all of them adds up, always in the order of the pairs. They are MRL_TRELLIS_SUM_MAX at most.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

#include "trellis/moe_operands.glsl"
uint own_row; // with SUMMED, that of the workgroup's pair
uvec2 expert_trellis, expert_suh, expert_svh;
float asked_own; // weight of the workgroup's pair
#define TRELLIS expert_trellis
#define SUH expert_suh
#define SVH expert_svh
#define X_ROW(m) (SUMMED ? tile_pair(m) : row_of(tile_pair(m)))
#define X_GATE p.gate
#define NORM (!is_null(p.norm) && !SUMMED)
#define X_FIRST (!SUMMED)
#define X_SHARES (SUMMED ? p.types >> 20 : 0)
#define FIRST_SHARE (gl_WorkGroupID.z * X_SHARES)
#define PARTS (SUMMED && !OPEN ? ROW_PAIRS : 1u)
#define FIRST_PART (own_row * ROW_PAIRS)
#define END_COPY (SUMMED ? own_row : gl_WorkGroupID.z)
#define LINE_SVH(line) (SUMMED && !OPEN ? svh_of(part_expert[line]) : expert_svh)
#define LINE_WEIGHT(line) (!SUMMED ? 1.0 : OPEN ? asked_own : part_weight[line])

layout(constant_id = 14) const uint MOST_PARTS = MRL_TRELLIS_SUM_MAX; // that there is room for
shared uint part_expert[MOST_PARTS]; // of all pairs of the row
shared float part_weight[MOST_PARTS];
uvec2 svh_of(uint expert);
#include "trellis/gemv.glsl"

uvec2 svh_of(uint expert) { return address_at(p.svh, expert, 2 * N_PADDED); }

uint asked_expert; // of part gl_LocalInvocationIndex
float asked_weight;

void share_operands()
{
    if (SUMMED && gl_LocalInvocationIndex < ROW_PAIRS) {
        part_expert[gl_LocalInvocationIndex] = asked_expert;
        part_weight[gl_LocalInvocationIndex] = asked_weight;
    }
}

bool gemv_prologue()
{
    if (!find_tile(gl_WorkGroupID.z, (gl_WorkGroupID.x | gl_WorkGroupID.y) == 0))
        return false;
    if (SUMMED) {
        own_row = row_of(gl_WorkGroupID.z);
        const uint pair = FIRST_PART + min(gl_LocalInvocationIndex, ROW_PAIRS - 1);
        asked_expert = uint(BufI32(p.ids).v[pair]);
        asked_weight = BufF32(p.weights).v[pair];
        asked_own = BufF32(p.weights).v[gl_WorkGroupID.z];
    }
    expert_trellis = address_at(p.trellis, tile_expert, K_PADDED / 16 * N_PADDED * RATE2);
    expert_suh = address_at(p.suh, tile_expert, 2 * K_PADDED);
    expert_svh = svh_of(tile_expert);
    return true;
}

float asked_residual; // with ONE_COLUMN, of the thread's

float residual_of(uint n)
{
    if (!SUMMED || is_null(p.norm))
        return 0.0;
    return BufF32(p.norm).v[own_row * p.n + min(n, p.n - 1)];
}

void request_column(uint n) { asked_residual = ONE_COLUMN ? residual_of(n) : 0.0; }

void finish_column(uint m, uint n, float y)
{
    const uint row = SUMMED ? own_row : tile_pair(m);
    if (n < p.n && m < tile_rows)
        store_act(p.y, row * p.n + n, Y_TYPE, y + (ONE_COLUMN ? asked_residual : residual_of(n)));
}

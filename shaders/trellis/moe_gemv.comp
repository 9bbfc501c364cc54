// y[pair] = norm(x[pair / slots]) W[expert of the pair], or of activation(gate) * x: gemv.glsl for experts whose trellises
// and scales lie one behind the other. Workgroup (c, s, z) has pair z, or tile z of at most M pairs that chose the same
// expert, so that it is decoded once for them. Pairs of idle rows and of experts in other stacks are left out.
//
// With weights y[row] = residual + sum over the pairs of a row of weight * product: the last workgroup of 128 columns of
// all of them adds up, always in the order of the pairs. They are MRL_TRELLIS_SUM_MAX at most.
#ifdef DOT
#extension GL_EXT_integer_dot_product : require
#endif

#include "trellis/moe_operands.glsl"
uvec2 expert_trellis, expert_suh, expert_svh;
#define TRELLIS expert_trellis
#define SUH expert_suh
#define SVH expert_svh
#define X_ROW(m) (SUMMED ? tile_pair(m) : tile_pair(m) / ROW_PAIRS)
#define X_GATE p.gate
#define SUMMED (!is_null(p.weights))
#define NORM (!is_null(p.norm) && !SUMMED)
#define PARTS (SUMMED ? ROW_PAIRS : 1u)
#define MOST_PARTS MRL_TRELLIS_SUM_MAX
#include "trellis/gemv.glsl"

shared uint part_expert[MRL_TRELLIS_SUM_MAX]; // of all pairs of the row
shared float part_weight[MRL_TRELLIS_SUM_MAX];

bool gemv_prologue()
{
    const uint part = gl_LocalInvocationIndex;
    if (!find_tile(gl_WorkGroupID.z))
        return false;
    if (SUMMED && part < ROW_PAIRS) { // behind the barriers of what follows
        const uint pair = gl_WorkGroupID.z / ROW_PAIRS * ROW_PAIRS + part;
        part_expert[part] = uint(BufI32(p.ids).v[pair]);
        part_weight[part] = BufF32(p.weights).v[pair];
    }
    expert_trellis = address_at(p.trellis, tile_expert, K_PADDED * 8 * gl_NumWorkGroups.x * RATE2);
    expert_suh = address_at(p.suh, tile_expert, 2 * K_PADDED);
    expert_svh = address_at(p.svh, tile_expert, 256 * gl_NumWorkGroups.x);
    return true;
}

void finish_column(uint m, uint n, float y)
{
    if (n < p.n && m < tile_rows)
        store_act(p.y, tile_pair(m) * p.n + n, Y_TYPE, y);
}

// ---- sums over the pairs of a row: column t % 128, and 128 threads on, of each of them

const uint SUM_COLUMNS = LANES < 128 ? 128 / LANES : 1;
float part_svh[SUM_COLUMNS * MRL_TRELLIS_SUM_MAX], sum_residual[SUM_COLUMNS];

uint sum_column(uint c) { return gl_WorkGroupID.x * 128 + (gl_LocalInvocationIndex + LANES * c) % 128; }
uint sum_place(uint c) { return gl_WorkGroupID.z / ROW_PAIRS * p.n + min(sum_column(c), p.n - 1); }

void request_sum()
{
    [[unroll]] for (uint c = 0; c < SUM_COLUMNS; c++) {
        [[unroll]] for (uint i = 0; i < MRL_TRELLIS_SUM_MAX; i++) {
            const uvec2 svh = address_at(p.svh, part_expert[min(i, ROW_PAIRS - 1)], 256 * gl_NumWorkGroups.x);
            part_svh[c * MRL_TRELLIS_SUM_MAX + i] = half_to_float(uint(BufU16(svh).v[sum_column(c)]));
        }
        sum_residual[c] = is_null(p.norm) ? 0.0 : BufF32(p.norm).v[sum_place(c)];
    }
}

void finish_sum()
{
    [[unroll]] for (uint c = 0; c < SUM_COLUMNS; c++) {
        const uint at = (gl_LocalInvocationIndex + LANES * c) % 128;
        float y = sum_residual[c];
        [[unroll]] for (uint i = 0; i < MRL_TRELLIS_SUM_MAX; i++)
            if (i < ROW_PAIRS)
                y = fma(part_weight[i], work[i * HADAMARD_PITCH + at] * part_svh[c * MRL_TRELLIS_SUM_MAX + i], y);
        if (gl_LocalInvocationIndex < 128 && sum_column(c) < p.n)
            store_act(p.y, sum_place(c), Y_TYPE, y);
    }
}

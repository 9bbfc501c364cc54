// Latent attention of consecutive rows of one slot, expanded: keys and values of each head have been made of the
// latents (p.quant: (p.chunks positions, heads of this dispatch, NOPE + VALUES) f16), so that a score costs NOPE +
// ROPE_DIM products instead of RANK + ROPE_DIM, and a value VALUES instead of RANK. The rope part of a key comes from
// the cache.
//
// q (rows, HEADS * (NOPE + ROPE_DIM)) is turned here. Grid (line tiles, heads from p.first_head on); a line is a row.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; the rest is attention/prefill_coopmat.glsl.
#extension GL_KHR_cooperative_matrix : require
#include "include/mla.glsl"
layout(constant_id = 11) const uint SUBGROUPS = 8;
layout(constant_id = 12) const uint SUBGROUP = 32; // its size: 8, 16 or 32

const uint K_DIM = NOPE + ROPE_DIM;
const uint V_DIM = VALUES;
const float LOG2_E = 1.4426950408889634;

uint lines() { return p.rows; }
uint line_row(uint line) { return line; }

int row_position(uint row, out int slot)
{
    const int position = BufI32(p.positions).v[row];
    slot = BufI32(p.slots).v[row];
    return mla_valid(slot, position) && uint(position) < p.chunks ? position : -1;
}

vec4 load_q(uint line, uint i)
{
    const uvec2 q = address_at(p.x, line, HEADS * K_DIM * act_bytes(X));
    const uint head = (p.first_head + gl_WorkGroupID.y) * K_DIM, at = 4 * i;
    vec4 x;
    if (at < NOPE) {
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = load_act(q, head + at + j, X);
    } else {
        const int position = max(BufI32(p.positions).v[line], 0);
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = mla_turned(q, head + NOPE, at - NOPE + j, position);
    }
    return x * (p.softmax * LOG2_E);
}

uint expanded_unit(uint key)
{
    return (key * gl_NumWorkGroups.y + gl_WorkGroupID.y) * ((NOPE + VALUES) / 8);
}

uvec4 load_k(uint slot, uint key, uint i)
{
    if (i < NOPE / 8)
        return BufU32x4(p.quant).v[expanded_unit(key) + i];
    return BufU32x4(p.cache).v[mla_unit(slot, key) + RANK / 8 + i - NOPE / 8];
}

uvec4 load_v(uint slot, uint key, uint i) { return BufU32x4(p.quant).v[expanded_unit(key) + NOPE / 8 + i]; }

#include "include/store8.glsl"

void store_o(uint line, uint at, bool idle, vec4 a, vec4 b)
{
    store_act8(address_at(p.y, line, HEADS * VALUES * act_bytes(OUT)), (p.first_head + gl_WorkGroupID.y) * VALUES + at,
               OUT, a, b);
}

#include "attention/prefill_coopmat.glsl"

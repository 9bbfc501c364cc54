// Prefill of a gated delta net, last part: y = o / rms(o) * norm * silu(z) of each value head, and the last TAPS rows
// of x to the ring, which conv.comp has read.
//
// Grid (rows, n): a subgroup takes a value head of its row, every n-th, and with the first of those that share a key
// head its q and k.
#include "delta/mixed.glsl"

void keep(BufF32 ring, uvec2 x, uint from, uint channel, uint size)
{
    for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize)
        ring.v[channel + i] = load_act(x, from + i, X_TYPE);
}

void main()
{
    uint row = gl_WorkGroupID.x;
    int first = BufI32(p.positions).v[0], slot = BufI32(p.slots).v[0];
    bool valid = delta_valid(slot, first);
    uvec2 x = delta_row(p.x, row, KEY_HEADS * GROUP_WIDTH, X_TYPE);
    uvec2 y = delta_row(p.y, row, VALUE_HEADS * VALUE_DIM, Y_TYPE);
    BufF32 o = BufF32(o_row(row));
    for (uint head = gl_WorkGroupID.y * gl_NumSubgroups + gl_SubgroupID; head < VALUE_HEADS;
         head += gl_NumWorkGroups.y * gl_NumSubgroups) {
        uint base = head * VALUE_DIM;
        float squares = 0.0;
        for (uint i = gl_SubgroupInvocationID; i < VALUE_DIM; i += gl_SubgroupSize)
            squares += valid ? o.v[base + i] * o.v[base + i] : 0.0;
        float factor = inversesqrt(subgroupAdd(squares) / float(VALUE_DIM) + p.eps);
        for (uint i = gl_SubgroupInvocationID; i < VALUE_DIM; i += gl_SubgroupSize) {
            float gate = silu(load_act(x, z_at(head) + i, X_TYPE));
            float result = valid ? o.v[base + i] * factor * BufF32(p.norm).v[i] * gate : 0.0;
            store_bits(y, base + i, Y_TYPE, floatBitsToUint(result));
        }
        if (!valid || row + TAPS < p.rows)
            continue;
        BufF32 ring = BufF32(ring_entry(uint(slot), uint(first) + row));
        keep(ring, x, v_at(head), v_channel(head), VALUE_DIM);
        if (head % RATIO == 0) {
            uint channel = head / RATIO * KEY_DIM;
            keep(ring, x, q_at(head / RATIO), channel, KEY_DIM);
            keep(ring, x, k_at(head / RATIO), KEY_HEADS * KEY_DIM + channel, KEY_DIM);
        }
    }
}

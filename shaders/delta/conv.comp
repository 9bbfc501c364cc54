// Prefill of a gated delta net, first part: the convolution of consecutive rows of one slot, q and k to length 1 (q
// also / sqrt(KEY_DIM)), and the gates. Only the position and the slot of the first row are read.
//
//   mixed (rows, MIXED) f32: [ q | k | v, as the channels | beta, decay of each value head ]
//
// Grid (rows, n): a subgroup takes a head of q, of k or of v of its row, every n-th.
#include "delta/mixed.glsl"

float convolve(int slot, int first, uint row, uint x_index, uint channel)
{
    float sum = 0.0;
    for (uint back = 0; back < TAPS; back++) {
        float x = 0.0;
        if (back <= row)
            x = load_act(delta_row(p.x, row - back, KEY_HEADS * GROUP_WIDTH, X_TYPE), x_index, X_TYPE);
        else if (back <= uint(first) + row)
            x = BufF32(ring_entry(uint(slot), uint(first) + row - back)).v[channel];
        sum += x * BufF32(p.conv).v[channel * TAPS + TAPS - 1 - back];
    }
    return silu(sum);
}

void main()
{
    uint row = gl_WorkGroupID.x;
    int first = BufI32(p.positions).v[0], slot = BufI32(p.slots).v[0];
    if (!delta_valid(slot, first))
        return;
    BufF32 mixed = BufF32(mixed_row(row));
    for (uint unit = gl_WorkGroupID.y * gl_NumSubgroups + gl_SubgroupID; unit < 2 * KEY_HEADS + VALUE_HEADS;
         unit += gl_NumWorkGroups.y * gl_NumSubgroups) {
        bool is_q = unit < KEY_HEADS, is_v = unit >= 2 * KEY_HEADS;
        uint head = is_q ? unit : is_v ? unit - 2 * KEY_HEADS : unit - KEY_HEADS;
        uint from = is_q ? q_at(head) : is_v ? v_at(head) : k_at(head);
        uint channel = is_v ? v_channel(head) : unit * KEY_DIM, size = is_v ? VALUE_DIM : KEY_DIM;
        float squares = 0.0;
        for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize) {
            float x = convolve(slot, first, row, from + i, channel + i);
            mixed.v[channel + i] = x;
            squares += x * x;
        }
        if (is_v) {
            vec2 gates = delta_gates(row, head);
            if (subgroupElect()) {
                mixed.v[CHANNELS + 2 * head] = gates.x;
                mixed.v[CHANNELS + 2 * head + 1] = gates.y;
            }
            continue;
        }
        float factor = inversesqrt(subgroupAdd(squares) + L2_EPS) * (is_q ? inversesqrt(float(KEY_DIM)) : 1.0);
        for (uint i = gl_SubgroupInvocationID; i < KEY_DIM; i += gl_SubgroupSize)
            mixed.v[channel + i] *= factor; // what this lane wrote
    }
}

// Prefill of a gated delta net, first part: the convolution of consecutive rows of one slot, q and k to length 1 (q
// also / sqrt(KEY_DIM)), and the gates. Only the position and the slot of the first row are read.
//
//   mixed (rows, MIXED) f32: [ q | k | v, as the channels | beta, decay of each value head ]
//
// Grid (rows / RUN, n): a subgroup takes a head of q, of k or of v of RUN rows, every n-th, a lane its channels one
// after the other: filter and window then stay in registers from row to row.
#include "delta/mixed.glsl"

layout(constant_id = 10) const uint RUN = 1;

float squares[RUN]; // of the lane's channels, a row each

// x of `row`, which counts from the first of the call and wraps where it lies before it.
float x_of(int slot, int first, uint row, uint x_index, uint channel)
{
    if (row < p.rows)
        return load_act(delta_row(p.x, row, KEY_HEADS * GROUP_WIDTH, X_TYPE), x_index, X_TYPE);
    const int position = first + int(row);
    return position >= 0 && int(row) < 0 ? BufF32(ring_entry(uint(slot), uint(position))).v[channel] : 0.0;
}

void convolve(int slot, int first, uint row0, uint x_index, uint channel)
{
    float weight[TAPS], window[TAPS]; // the newest row last
    [[unroll]] for (uint t = 0; t < TAPS; t++) {
        weight[t] = BufF32(p.conv).v[channel * TAPS + t];
        window[t] = t == 0 ? 0.0 : x_of(slot, first, row0 + t - TAPS, x_index, channel);
    }
    [[unroll]] for (uint r = 0; r < RUN; r++) {
        [[unroll]] for (uint t = 0; t + 1 < TAPS; t++)
            window[t] = window[t + 1];
        window[TAPS - 1] = x_of(slot, first, min(row0 + r, p.rows - 1), x_index, channel);
        float sum = 0.0;
        [[unroll]] for (uint t = TAPS; t > 0; t--)
            sum += window[t - 1] * weight[t - 1];
        const float x = silu(sum);
        if (row0 + r < p.rows)
            BufF32(mixed_row(row0 + r)).v[channel] = x;
        squares[r] += x * x;
    }
}

void store_gates(uint row0, uint head)
{
    for (uint row = row0; row < min(row0 + RUN, p.rows); row++) {
        const vec2 gates = delta_gates(row, head);
        if (subgroupElect()) {
            BufF32 mixed = BufF32(mixed_row(row));
            mixed.v[CHANNELS + 2 * head] = gates.x;
            mixed.v[CHANNELS + 2 * head + 1] = gates.y;
        }
    }
}

void main()
{
    const uint row0 = gl_WorkGroupID.x * RUN;
    const int first = BufI32(p.positions).v[0], slot = BufI32(p.slots).v[0];
    if (!delta_valid(slot, first))
        return;
    for (uint unit = gl_WorkGroupID.y * gl_NumSubgroups + gl_SubgroupID; unit < 2 * KEY_HEADS + VALUE_HEADS;
         unit += gl_NumWorkGroups.y * gl_NumSubgroups) {
        const bool is_q = unit < KEY_HEADS, is_v = unit >= 2 * KEY_HEADS;
        const uint head = is_q ? unit : is_v ? unit - 2 * KEY_HEADS : unit - KEY_HEADS;
        const uint from = is_q ? q_at(head) : is_v ? v_at(head) : k_at(head);
        const uint channel = is_v ? v_channel(head) : unit * KEY_DIM, size = is_v ? VALUE_DIM : KEY_DIM;
        [[unroll]] for (uint r = 0; r < RUN; r++)
            squares[r] = 0.0;
        for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize)
            convolve(slot, first, row0, from + i, channel + i);
        if (is_v) {
            store_gates(row0, head);
            continue;
        }
        [[unroll]] for (uint r = 0; r < RUN; r++) {
            const float to_one = inversesqrt(subgroupAdd(squares[r]) + L2_EPS);
            const float factor = to_one * (is_q ? inversesqrt(float(KEY_DIM)) : 1.0);
            if (row0 + r < p.rows)
                for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize)
                    BufF32(mixed_row(row0 + r)).v[channel + i] *= factor; // what this lane wrote
        }
    }
}

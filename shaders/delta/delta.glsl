// What the kernels of a gated delta net share: sizes, the layout of their operands, the convolution, the gates.
//
//   row of x    [ q | k | v of RATIO heads | z of RATIO heads ]  for each key head
//   row of p.ba [ b of RATIO heads | a of RATIO heads ]          for each key head
//   channels    [ q of all heads | k of all heads | v of all heads ]   of the filter, the ring and p.mixed
//   ring        (slots, TAPS, CHANNELS): x at position p lies in entry p % TAPS
//   state       (slots, VALUE_HEADS, KEY_DIM, VALUE_DIM): S of each value head
//
// The ring has one entry more than a window looks back: who writes position p disturbs no one who reads p - 1 to
// p - TAPS + 1. Position 0 begins a text: its window and its S are empty, whatever lies in memory.
// Source: Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464, equation 10.
#include "include/address.glsl"
#include "include/convert.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint KEY_DIM = 64;
layout(constant_id = 2) const uint VALUE_DIM = 64;
layout(constant_id = 3) const uint KEY_HEADS = 1;
layout(constant_id = 4) const uint VALUE_HEADS = 1;
layout(constant_id = 5) const uint TAPS = 4;
layout(constant_id = 6) const uint SLOTS = 1;
layout(constant_id = 7) const uint X_TYPE = ACT_F16;
layout(constant_id = 8) const uint BA_TYPE = ACT_F32;
layout(constant_id = 9) const uint Y_TYPE = ACT_F16;
layout(push_constant, scalar) uniform Push { mrl_push_delta p; };

const uint RATIO = VALUE_HEADS / KEY_HEADS;
const uint GROUP_WIDTH = 2 * KEY_DIM + 2 * RATIO * VALUE_DIM; // of a key head in a row of x
const uint CHANNELS = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM;
const uint STATE_SIZE = KEY_DIM * VALUE_DIM; // of a head
const float L2_EPS = 1e-6;

bool delta_valid(int slot, int position) { return slot >= 0 && uint(slot) < SLOTS && position >= 0; }

uvec2 delta_row(uvec2 base, uint row, uint width, uint type)
{
    return address_at(base, row, width * (type == ACT_F32 ? 4 : 2));
}

uvec2 ring_entry(uint slot, uint position) { return address_at(p.ring, slot * TAPS + position % TAPS, CHANNELS * 4); }

// Where an element of a head lies in a row of x.
uint q_at(uint key_head) { return key_head * GROUP_WIDTH; }
uint k_at(uint key_head) { return key_head * GROUP_WIDTH + KEY_DIM; }
uint v_at(uint head) { return head / RATIO * GROUP_WIDTH + 2 * KEY_DIM + head % RATIO * VALUE_DIM; }
uint z_at(uint head) { return v_at(head) + RATIO * VALUE_DIM; }

// The first channel of a head of v.
uint v_channel(uint head) { return 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM; }

float silu(float x) { return x / (1.0 + exp(-x)); }

// beta and the factor of decay of a value head.
vec2 delta_gates(uint row, uint head)
{
    uvec2 ba = delta_row(p.ba, row, 2 * VALUE_HEADS, BA_TYPE);
    uint at = head / RATIO * 2 * RATIO + head % RATIO;
    float b = load_act(ba, at, BA_TYPE), a = load_act(ba, at + RATIO, BA_TYPE) + BufF32(p.dt_bias).v[head];
    float softplus = a > 20.0 ? a : log(1.0 + exp(a));
    return vec2(1.0 / (1.0 + exp(-b)), exp(-exp(BufF32(p.a_log).v[head]) * softplus));
}

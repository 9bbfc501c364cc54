// What the kernels of latent attention share. A cache row is [latent (RANK) | rope part (ROPE_DIM)],
// one a position for all heads; a query head is [NOPE | ROPE_DIM], absorbed [RANK | ROPE_DIM].
#include "include/address.glsl"
#include "include/convert.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RANK = 64;
layout(constant_id = 2) const uint CACHE = ACT_F16; // ACT_F32 or ACT_F16
layout(constant_id = 3) const uint SLOTS = 1;
layout(constant_id = 4) const uint X = ACT_F16; // of kv and q
layout(constant_id = 5) const uint ROPE_DIM = 64;
layout(constant_id = 6) const uint INTERLEAVED = 1;
layout(constant_id = 7) const uint OUT = ACT_F16;
layout(constant_id = 8) const uint HEADS = 1;
layout(constant_id = 9) const uint NOPE = 64;
layout(constant_id = 10) const uint VALUES = 64; // of a value head
layout(push_constant, scalar) uniform Push { mrl_push_mla p; };

#include "include/kv_unit.glsl"
#include "include/turn.glsl"

const uint ROW = RANK + ROPE_DIM;
const uint ROW_UNITS = ROW / 8;
const uint CHUNK_STEP = 32;             // chunk lengths are multiples of this many positions
const float LOWEST = -3.0e38;           // below all finite scores; -inf would make NaN of differences

uint act_bytes(uint type) { return type == ACT_F32 ? 4 : 2; }

// Rows outside of the cache are idle: nothing is written for them and their result is zeros.
bool mla_valid(int slot, int position)
{
    return slot >= 0 && uint(slot) < SLOTS && position >= 0 && uint(position) < p.context;
}

// The first unit of a row. The host keeps the last one below 2^31 / 2: indices are signed.
uint mla_unit(uint slot, uint position) { return (slot * p.context + position) * ROW_UNITS; }

// Positions 0 .. count - 1 over at most p.chunks workgroups: the length of a chunk. The active
// chunks share the positions evenly, whatever the bound was that the grid was captured for.
uint mla_chunk_length(uint count)
{
    uint even = (count + p.chunks - 1) / p.chunks;
    return (even + CHUNK_STEP - 1) / CHUNK_STEP * CHUNK_STEP;
}

// Where the result of (row, head, chunk) lies: O, then 16 bytes with the maximum of the scores and the sum of the
// weights, in f32. O is in f32, or divided by that sum in f16.
uvec2 mla_partial(uvec2 base, uint row, uint head, uint chunk, const uint type)
{
    return address_at(base, (row * HEADS + head) * p.chunks + chunk, RANK * act_bytes(type) + 16);
}

// Element e of the ROPE_DIM that start at `from` in a row of x, turned. LOAD_X: where x is no dense row of type X.
#ifndef LOAD_X
#define LOAD_X(x, at) load_act(x, at, X)
#endif
float mla_turned(uvec2 x, uint from, uint e, int position)
{
    const uint HALF = ROPE_DIM / 2;
    uint i = INTERLEAVED != 0 ? e / 2 : e % HALF;
    uint a = INTERLEAVED != 0 ? 2 * i : i, b = INTERLEAVED != 0 ? 2 * i + 1 : i + HALF;
    vec2 turn = p.rope_scale * rope_cos_sin(float(position) * BufF32(p.freq).v[i]);
    float first = LOAD_X(x, from + a), second = LOAD_X(x, from + b);
    return e == a ? first * turn.x - second * turn.y : second * turn.x + first * turn.y;
}

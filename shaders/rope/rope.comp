// Rotates q and k of qkv rows, writes q to y and k and v to the cache. One workgroup a row, one
// subgroup a head at a time: heads of q, then of k, then of v.
#include "include/rope.glsl"

layout(constant_id = 7) const uint OUT = ACT_F32;

shared vec2 turns[DIM / 2];

// The address of a head in the cache; elements are written one by one, for a pair is not adjacent.
uvec2 cache_head(uvec2 cache, int slot, int position, uint kv_head)
{
    return address_at(cache, kv_unit(uint(slot), uint(position), kv_head), UNIT_BYTES);
}

void cache_store(uvec2 head, uint i, float x)
{
    if (CACHE == ACT_F32)
        BufU32(head).v[i] = kv_bits(x);
    else
        BufU16(head).v[i] = uint16_t(kv_bits(x));
}

void main()
{
    uint row = gl_WorkGroupID.x;
    int position = BufI32(p.positions).v[row], slot = BufI32(p.slots).v[row];
    uvec2 qkv = rope_row(row);
    uvec2 y = address_at(p.y, row, p.heads * DIM * (OUT == ACT_F32 ? 4 : 2));

    if (!kv_valid(slot, position)) {
        for (uint i = gl_LocalInvocationIndex; i < p.heads * DIM; i += gl_WorkGroupSize.x)
            store_bits(y, i, OUT, 0);
        return;
    }
    for (uint i = gl_LocalInvocationIndex; i < DIM / 2; i += gl_WorkGroupSize.x)
        turns[i] = rope_turn(position, i);
    barrier();
    for (uint h = gl_SubgroupID; h < p.heads + 2 * p.kv_heads; h += gl_NumSubgroups) {
        uint head = h < p.heads ? h * q_stride() : p.heads * q_stride() + (h - p.heads) * DIM;
        if (h < p.heads) {
            float factor = rope_norm(qkv, head, p.q_norm);
            for (uint i = gl_SubgroupInvocationID; i < DIM / 2; i += gl_SubgroupSize) {
                uvec2 at = rope_pair(i);
                vec2 x = rope_rotate(qkv, head, i, turns[i], factor, p.q_norm);
                store_bits(y, h * DIM + at.x, OUT, floatBitsToUint(x.x));
                store_bits(y, h * DIM + at.y, OUT, floatBitsToUint(x.y));
            }
        } else if (h < p.heads + p.kv_heads) {
            uvec2 k = cache_head(p.cache_k, slot, position, h - p.heads);
            float factor = rope_norm(qkv, head, p.k_norm);
            for (uint i = gl_SubgroupInvocationID; i < DIM / 2; i += gl_SubgroupSize) {
                uvec2 at = rope_pair(i);
                vec2 x = rope_rotate(qkv, head, i, turns[i], factor, p.k_norm);
                cache_store(k, at.x, x.x);
                cache_store(k, at.y, x.y);
            }
        } else {
            uvec2 v = cache_head(p.cache_v, slot, position, h - p.heads - p.kv_heads);
            for (uint i = gl_SubgroupInvocationID; i < DIM; i += gl_SubgroupSize)
                cache_store(v, i, load_act(qkv, head + i, QKV));
        }
    }
}

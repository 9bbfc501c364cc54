// The latents of a slot, positions 0 .. p.rows - 1, behind each other: y (p.rows, RANK) f16 from an f16 cache, for the
// product that makes keys and values of them. The slot is that of the first row of the call that is not idle; p.chunks
// rows were given. A lane copies a unit of 8 elements.
#include "include/mla.glsl"

void main()
{
    const uint unit = gl_GlobalInvocationID.x, row = unit / (RANK / 8);
    if (row >= p.rows)
        return;
    for (uint i = 0; i < p.chunks; i++) {
        const int slot = BufI32(p.slots).v[i];
        if (mla_valid(slot, BufI32(p.positions).v[i])) {
            BufU32x4(p.y).v[unit] = BufU32x4(p.cache).v[mla_unit(uint(slot), row) + unit % (RANK / 8)];
            return;
        }
    }
    BufU32x4(p.y).v[unit] = uvec4(0);
}

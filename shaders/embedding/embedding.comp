// y (rows, k) = W[ids]: row i of y is row ids[i] of the table, decoded. Ids outside 0 .. n - 1 are clamped:
// idle slots carry any id, and nothing is checked on the device. Grid as in dequantize.comp.
#include "quantize/decode_rows.glsl"

void main()
{
    uint unit = gl_GlobalInvocationID.x;
    if (unit >= p.k_padded / FMT_UNIT)
        return;
    for (uint row = gl_WorkGroupID.y; row < p.rows; row += gl_NumWorkGroups.y) {
        int id = clamp(BufI32(p.ids).v[row], 0, int(p.n) - 1);
        decode_unit(uint(id), row, unit);
    }
}

// y (n, k) = the weights as numbers. Grid: units of 16 bytes along x, rows along y (strided).
#include "quantize/decode_rows.glsl"

void main()
{
    uint unit = gl_GlobalInvocationID.x;
    if (unit >= p.k_padded / FMT_UNIT)
        return;
    for (uint row = gl_WorkGroupID.y; row < p.rows; row += gl_NumWorkGroups.y)
        decode_unit(row, row, unit);
}

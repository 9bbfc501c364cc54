// y (m, n) = epilogue(norm(x) (m, k) . W (n, k)^T) for few rows of x: a decode step.
//
// A group of SPLIT subgroups owns ROWS rows of W; its lanes stride along k, a unit of 16 bytes each:
//
//   row r   | lane 0 | lane 1 | ... | lane 32*SPLIT-1 | lane 0 | ...      w[0], w[1] .. w[PREFETCH-1]
//
// The loads of the first PREFETCH units of every row, and of their scales, are issued before x is looked at, so that
// memory works while the workgroup normalises x and lays it out in shared memory as the format's pairs want it:
// piece c of unit u at xs[c * units + u], so that neighbouring lanes read neighbouring 16 bytes. Where all of x
// fits, it is staged once and the workgroup walks on to further rows of W.
// 4-bit formats multiply in f16 and add at most 8 products a half before going to f32; x is staged times 2^-7,
// which keeps such a sum in range for every finite f16 x. Wider formats convert and add in f32.
// Loops before a barrier run equally often in all threads: llvmpipe of Mesa 22.3 loses subgroups otherwise.
#include "matmul/gemv_constants.glsl"
layout(push_constant, scalar) uniform Push { mrl_push_matmul p; };
#include "include/epilogue.glsl"

#define K_LENGTH() k_padded()
#define UNIT_AT(row, unit, stride) ((row) * (stride) + (unit))
#define GROUP_AT(row, k) ((row) * p.groups + group_of(k))
#define UNIT_UNSCALED (SCALE == SCALE_NONE || GROUP == 0)
#define X_AT(m, at) (m) * p.k + (at)
#define STORE_PAIR store_pair
#include "matmul/gemv.glsl"

// The two transforms of an EXL3 layer on their own, for the kernels of many rows (and for tests and tools).
//
//   input    partial (m, k_padded) f16 | f32 = x_scale * (x * suh) P       REFERENCE: x * suh rounded to f16 first
//            with a gated ACTIVATION of activation(gate) * x
//   output   y (m, n) = epilogue(sum over s of partial (s, m, n_padded) P / x_scale * svh)
//
// Workgroup (b, row) transforms LANES / 16 blocks of 128.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint OUTPUT = 0;
layout(constant_id = 2) const uint X_TYPE = 0;   // of x
layout(constant_id = 3) const uint Y_TYPE = 0;   // of y, or of what the input transform makes
layout(constant_id = 4) const uint ACTIVATION = 0;
layout(constant_id = 5) const uint SPLITS = 1;
layout(constant_id = 6) const uint REFERENCE = 0;
layout(constant_id = 7) const uint LANES = 64;
layout(constant_id = 8) const bool LOOPS = false;

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };

#define HADAMARD_PITCH 132
const uint ROUND = LANES / 16;

shared float work[ROUND * HADAMARD_PITCH];

#include "include/convert.glsl"
#include "include/hadamard_work.glsl"
#include "trellis/epilogue.glsl"

// Element k of the row before the transform.
float element(uint m, uint k)
{
    if (OUTPUT != 0) {
        float sum = 0.0;
        for (uint s = 0; s < SPLITS; s++)
            sum += BufF32(address_at(p.partial, s * p.m + m, p.n_padded * 4)).v[k];
        return sum;
    }
    if (k >= p.k)
        return 0.0;
    float v = load_act(p.x, m * p.k + k, X_TYPE) * (is_null(p.suh) ? 1.0 : half_to_float(uint(BufU16(p.suh).v[k])));
    if (is_gated(ACTIVATION))
        v *= activate(ACTIVATION, load_act(p.gate, m * p.k + k, X_TYPE));
    // In integers, because compilers fold a pack and its unpack (Mesa 25 does).
    return REFERENCE != 0 ? f16_value(f16_round(floatBitsToUint(v))) : v;
}

// x_scale keeps all f16 x in range; a product with a gate may be larger.
float scaled(float v) { return Y_TYPE == ACT_F16 && is_gated(ACTIVATION) ? to_half_range(v) : v; }

void main()
{
    const uint t = gl_LocalInvocationIndex, m = gl_WorkGroupID.y, width = OUTPUT != 0 ? p.n_padded : p.k_padded;
    const uint first = gl_WorkGroupID.x * ROUND * 128, blocks = min(ROUND, (width - first) / 128);

    for (uint i = t; i < ROUND * 128; i += LANES)
        work[i / 128 * HADAMARD_PITCH + i % 128] = element(m, min(first + i, width - 1));
    barrier();
    hadamard_work(blocks);
    for (uint i = t; i < ROUND * 128; i += LANES) {
        const float v = work[i / 128 * HADAMARD_PITCH + i % 128];
        if (first + i >= width)
            continue;
        if (OUTPUT != 0)
            finish_column(m, first + i, v / p.x_scale * half_to_float(uint(BufU16(p.svh).v[first + i])));
        else
            store_act(p.partial, m * p.k_padded + first + i, Y_TYPE, scaled(v * p.x_scale));
    }
}

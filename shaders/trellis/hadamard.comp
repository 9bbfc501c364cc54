// The two transforms of an EXL3 layer on their own, for the kernels of many rows (and for tests and tools).
//
//   input    partial (m, k_padded) f16 | f32 = x_scale * (x * suh) P       REFERENCE: x * suh rounded to f16 first
//            with a gated ACTIVATION of activation(gate) * x
//   output   y (m, n) = epilogue(sum over s of partial (s, m, n_padded) P / x_scale * svh)
//
// Workgroup (b, row): transform.glsl.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint OUTPUT = 0;
layout(constant_id = 2) const uint X_TYPE = 0;   // of x
layout(constant_id = 3) const uint Y_TYPE = 0;   // of y, or of what the input transform makes
layout(constant_id = 4) const uint ACTIVATION = 0;
layout(constant_id = 5) const uint SPLITS = 1;
layout(constant_id = 6) const uint REFERENCE = 0;
layout(constant_id = 7) const uint LANES = 64;
layout(constant_id = 8) const bool LOOPS = false;
layout(constant_id = 9) const uint CLUSTER = 32;
layout(constant_id = 10) const bool FOURS = false; // four elements at once: k or n, y_stride and all addresses allow it

layout(push_constant, scalar) uniform Push { mrl_push_trellis p; };

#include "include/convert.glsl"
#include "trellis/epilogue.glsl"
#include "trellis/epilogue4.glsl"
#include "trellis/transform.glsl"

uint row() { return gl_WorkGroupID.y; }

vec4 halves4(uvec2 address, uint i)
{
    const uvec2 bits = BufU32x2(address).v[i / 4];
    return vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
}

// Elements k .. k + 3 of the row of x or of its gate.
vec4 activations(uvec2 address, uint k)
{
    const uint at = row() * p.k + k;
    if (FOURS)
        return load_act4(address, at, X_TYPE);
    vec4 x = vec4(0.0);
    [[unroll]] for (uint j = 0; j < 4; j++)
        if (k + j < p.k)
            x[j] = load_act(address, at + j, X_TYPE);
    return x;
}

vec4 operand(uint k)
{
    vec4 x = vec4(0.0);
    if (OUTPUT != 0) {
        [[unroll]] for (uint s = 0; s < SPLITS; s++)
            x += BufF32x4(address_at(p.partial, s * p.m + row(), p.n_padded * 4)).v[k / 4];
        return x;
    }
    if (k >= p.k)
        return x;
    x = activations(p.x, k);
    if (!is_null(p.suh))
        x *= halves4(p.suh, k);
    if (is_gated(ACTIVATION)) {
        const vec4 gate = activations(p.gate, k);
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] *= activate(ACTIVATION, gate[j]);
    }
    if (REFERENCE != 0) // in integers, because compilers fold a pack and its unpack (Mesa 25 does)
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = f16_value(f16_round(floatBitsToUint(x[j])));
    return x;
}

vec4 asked_svh[4], asked_bias[4], asked_residual[4]; // indices are literals

void ask(uint q, uint k)
{
    if (OUTPUT == 0)
        return;
    asked_svh[q] = halves4(p.svh, k);
    if (FOURS) {
        asked_bias[q] = bias4(k);
        asked_residual[q] = residual4(row(), k);
    }
}

// x_scale keeps all f16 x in range; a product with a gate may be larger.
float scaled(float v) { return Y_TYPE == ACT_F16 && is_gated(ACTIVATION) ? to_half_range(v) : v; }

void result(uint q, uint k, vec4 x)
{
    if (OUTPUT == 0) {
        x *= p.x_scale;
        [[unroll]] for (uint j = 0; j < 4; j++)
            x[j] = scaled(x[j]);
        store_act4(p.partial, row() * p.k_padded + k, Y_TYPE, x);
        return;
    }
    finish_quad(row(), k, x / p.x_scale * asked_svh[q], asked_bias[q], asked_residual[q]);
}

void main() { transform_row(OUTPUT != 0 ? p.n_padded : p.k_padded); }

// How fast weights are decoded and multiplied where nothing has to come from memory, for benchmarks/trellis.py: a lane
// keeps the words of one tile and, p.rows times, multiplies its 32 weights with 16 elements of x, each way that a
// kernel could. Word i of lane l is (l * TILE_WORDS + i) * 2654435761 at first and one more each time, TILE_WORDS
// additions for 32 weights; element i of x is i + 1. y (lanes) f32: the sums.
#extension GL_EXT_integer_dot_product : require
#define DOT
#include "include/subnormals.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint WAY = 0; // the numbers are mrl_trellis_way of csrc/ops/trellis.h

layout(push_constant, scalar) uniform Push { mrl_push_trellis_copy p; };
#include "include/trellis.glsl"
#include "include/trellis_f16.glsl"

#define WAY_STATES 0 // no products: the states, all bits of them
#define WAY_F32 1    // values as the reference makes them
#define WAY_PAIRS 2  // of f16, as trellis_gemv has them
#define WAY_APART 3  // 3inst, mcg: the halves of a value multiplied, not added
#define WAY_INT8 4   // mul1: the packed dot is the product

shared uvec4 xs[4];
float sum;

uint x_word(uint i)
{
    if (WAY == WAY_F32)
        return floatBitsToUint(float(i + 1));
    if (WAY == WAY_INT8)
        return (i + 1) * 0x01010101u;
    return packHalf2x16(vec2(2 * i + 1, 2 * i + 2));
}

void multiply_states()
{
    uint all = 0;
    [[unroll]] for (uint c = 0; c < 32; c++)
        all ^= state_of(c);
    sum += float(all);
}

void multiply_values()
{
    [[unroll]] for (uint i = 0; i < 16; i++)
        [[unroll]] for (uint h = 0; h < 2; h++)
            sum = fma(value_of(state_of(code_of(h, i))), uintBitsToFloat(xs[i / 4][i % 4]), sum);
}

// Of a column of the tile, 16 rows: a chain.
void multiply_pairs()
{
    [[unroll]] for (uint h = 0; h < 2; h++) {
        A2 chain = A2(A(0.0));
        [[unroll]] for (uint i = 0; i < 8; i++)
            chain = fma(pair_of(state_of(code_of(h, 2 * i)), state_of(code_of(h, 2 * i + 1))),
                        unpackFloat2x16(xs[i / 4][i % 4]), chain);
        sum += VALUE_UNIT * (float(chain.x) + float(chain.y));
    }
}

void multiply_apart()
{
    [[unroll]] for (uint h = 0; h < 2; h++) {
        A2 chain = A2(A(0.0));
        [[unroll]] for (uint i = 0; i < 16; i++) {
            const A2 x = unpackFloat2x16(xs[i / 8][i / 2 % 4]);
            chain = fma(unpackFloat2x16(halves(product(state_of(code_of(h, i))))), A2(i % 2 == 0 ? x.x : x.y), chain);
        }
        sum += float(chain.x) + float(chain.y);
    }
}

void multiply_int8()
{
    int whole = 0;
    [[unroll]] for (uint i = 0; i < 16; i++)
        [[unroll]] for (uint h = 0; h < 2; h++)
            whole = dot4(product(state_of(code_of(h, i))), int(xs[i / 4][i % 4]), whole);
    sum += float(whole);
}

void main()
{
    const uint lane = gl_GlobalInvocationID.x;
    if (gl_LocalInvocationIndex < 4)
        [[unroll]] for (uint j = 0; j < 4; j++)
            xs[gl_LocalInvocationIndex][j] = x_word(4 * gl_LocalInvocationIndex + j);
    barrier();
    [[unroll]] for (uint i = 0; i < TILE_WORDS; i++)
        w[i] = (lane * TILE_WORDS + i) * 2654435761u;
    sum = 0.0;
    [[dont_unroll]] for (uint round = 0; round < p.rows; round++) {
        if (WAY == WAY_STATES)
            multiply_states();
        else if (WAY == WAY_F32)
            multiply_values();
        else if (WAY == WAY_PAIRS)
            multiply_pairs();
        else if (WAY == WAY_APART)
            multiply_apart();
        else
            multiply_int8();
        [[unroll]] for (uint i = 0; i < TILE_WORDS; i++)
            w[i]++;
    }
    BufF32(p.file).v[lane] = sum;
}

// The Hadamard transform of 128 values, that of include/hadamard.glsl to the bit, by CLUSTER lanes of a subgroup (8, 16
// or 32) that lie side by side: lane i has elements EACH * i .. EACH * (i + 1) - 1. No barrier, and less than half of
// the machine code of the way through shared memory. Needs hadamard.glsl.
//
// Callers' control flow must be the same for whole workgroups: where NVIDIA's compiler does not know that a subgroup is
// complete, each shuffle is two calls of functions that find out.
const uint EACH = 128 / CLUSTER;
const uint QUADS = EACH / 4;
vec4 quads[4]; // at file scope like w of trellis.glsl; QUADS of them, indices are literals: loops are unrolled too late

// DO(q, argument) for all quads.
#define EACH_QUAD(DO, argument)                                                                                        \
    DO(0, argument)                                                                                                    \
    if (QUADS > 1) {                                                                                                   \
        DO(1, argument)                                                                                                \
    }                                                                                                                  \
    if (QUADS > 2) {                                                                                                   \
        DO(2, argument)                                                                                                \
        DO(3, argument)                                                                                                \
    }

#define BUTTERFLIES_IN_QUAD(q, unused)                                                                                 \
    quads[q] = vec4(quads[q].x + quads[q].y, quads[q].x - quads[q].y,                                                  \
                    quads[q].z + quads[q].w, quads[q].z - quads[q].w);                                                 \
    quads[q] = vec4(quads[q].xy + quads[q].zw, quads[q].xy - quads[q].zw);

#define BUTTERFLIES_OF_QUADS(a, b)                                                                                     \
    {                                                                                                                  \
        const vec4 sum = quads[a] + quads[b], difference = quads[a] - quads[b];                                        \
        quads[a] = sum;                                                                                                \
        quads[b] = difference;                                                                                         \
    }

#define BUTTERFLIES_ACROSS(q, mask) quads[q] = fma(quads[q], vec4(sign), subgroupShuffleXor(quads[q], mask));

#define ACROSS_LANES(mask)                                                                                             \
    if (mask < CLUSTER) {                                                                                              \
        const float sign = (lane & mask) == 0 ? 1.0 : -1.0;                                                            \
        EACH_QUAD(BUTTERFLIES_ACROSS, mask)                                                                            \
    }

#define SCALE_QUAD(q, factor) quads[q] *= factor;

void hadamard_lanes(uint lane)
{
    EACH_QUAD(BUTTERFLIES_IN_QUAD, 0)
    if (QUADS > 1)
        BUTTERFLIES_OF_QUADS(0, 1)
    if (QUADS > 2) {
        BUTTERFLIES_OF_QUADS(2, 3)
        BUTTERFLIES_OF_QUADS(0, 2)
        BUTTERFLIES_OF_QUADS(1, 3)
    }
    ACROSS_LANES(1)
    ACROSS_LANES(2)
    ACROSS_LANES(4)
    ACROSS_LANES(8)
    ACROSS_LANES(16)
    EACH_QUAD(SCALE_QUAD, HADAMARD_SCALE)
}

// Over the lanes of a cluster, for all of them: floats always in the same order, integers by one instruction where
// devices have it.
#define EACH_DISTANCE(DO)                                                                                              \
    DO(1)                                                                                                              \
    DO(2)                                                                                                              \
    DO(4)                                                                                                              \
    if (CLUSTER > 8)                                                                                                   \
        DO(8)                                                                                                          \
    if (CLUSTER > 16)                                                                                                  \
        DO(16)

#define ADD_ACROSS(mask) x += subgroupShuffleXor(x, mask);
#define MAX_ACROSS(mask) x = max(x, subgroupShuffleXor(x, mask));

float cluster_add(float x)
{
    EACH_DISTANCE(ADD_ACROSS)
    return x;
}

int cluster_add(int x)
{
    if (gl_SubgroupSize == CLUSTER)
        return subgroupAdd(x);
    EACH_DISTANCE(ADD_ACROSS)
    return x;
}

uint cluster_max(uint x)
{
    if (gl_SubgroupSize == CLUSTER)
        return subgroupMax(x);
    EACH_DISTANCE(MAX_ACROSS)
    return x;
}

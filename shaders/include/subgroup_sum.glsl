// Sums and maxima over subgroups all of whose invocations take part, in control flow the same for the workgroup: a
// third of the machine code of subgroupAdd, which on NVIDIA has a second form for subgroups that are not complete.
#define SUBGROUP_TREE(value, operation)                                                                                \
    [[unroll]] for (uint level = 0; level < 7; level++)                                                                \
        if ((1u << level) < gl_SubgroupSize)                                                                           \
            value = operation(value, subgroupShuffleXor(value, 1u << level));

float plus(float a, float b) { return a + b; }

float subgroup_sum(float x)
{
    SUBGROUP_TREE(x, plus)
    return x;
}

float subgroup_max(float x)
{
    SUBGROUP_TREE(x, max)
    return x;
}

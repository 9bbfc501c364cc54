// Sums over a workgroup, in an order that depends on the subgroup size only.
shared float reduce_scratch[256];

// The sum of x over all invocations, for all of them. Every invocation must call; at most 256
// subgroups.
float workgroup_add(float x)
{
    x = subgroupAdd(x);
    if (gl_NumSubgroups == 1)
        return x;
    if (subgroupElect())
        reduce_scratch[gl_SubgroupID] = x;
    barrier();
    x = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++)
        x += reduce_scratch[i];
    barrier(); // before the next call writes
    return x;
}

// Workgroups that share a result: each tells its part, and the last to arrive puts the parts together.
//
// What is told is written and read through BufTold, coherent across the device access by access. So one thread's
// release and acquire suffice behind a barrier of the workgroup; a fence of every thread waits for memory twice more.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufTold { devicecoherent float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer BufTold4 { devicecoherent vec4 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufArrivals { nonprivate uint v[]; };

shared uint arrival;

// Brings a counter into the cache that counts, long before it is needed: nobody waits for what an atomic without a
// result does.
void touch_counter(uvec2 counters, uint counter)
{
    atomicOr(BufArrivals(counters).v[counter], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
}

void told_barrier()
{
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,
                   gl_SemanticsAcquireRelease);
}

// True in the last of `count` workgroups, for all its threads; all threads of a workgroup call, after they told. The
// counter, zero before, is zero again for the next dispatch.
//
// ACQUIRE false, with the device feature `told`: the memory model wants an acquire of who reads, which on NVIDIA is a
// second fence of a quarter of a microsecond, and throws away the first-level cache. What is told is read past that
// cache, behind a barrier and a branch on the counter, and needs neither there (as in CUDA's threadFenceReduction).
#ifndef ACQUIRE
#define ACQUIRE true
#endif

bool last_to_arrive(uvec2 counters, uint counter, uint count)
{
    told_barrier();
    if (gl_LocalInvocationIndex == 0) {
        if (ACQUIRE)
            arrival = atomicAdd(BufArrivals(counters).v[counter], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                                gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
        else
            arrival = atomicAdd(BufArrivals(counters).v[counter], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                                gl_SemanticsRelease | gl_SemanticsMakeAvailable);
        if (arrival == count - 1)
            BufArrivals(counters).v[counter] = 0;
    }
    told_barrier();
    return arrival == count - 1;
}

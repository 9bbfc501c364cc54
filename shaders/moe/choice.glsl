// The best of EXPERTS experts, taken one by one by a subgroup, each lane of which has the keys of every so many expert.
// Needs the constants EXPERTS and SUBGROUP, the lanes of every subgroup.
const uint PER_LANE = EXPERTS == 0 ? 1 : (EXPERTS + SUBGROUP - 1) / SUBGROUP;
uint lane_keys[PER_LANE]; // of experts lane, lane + SUBGROUP, ..; 0 for those that there are not

// The expert with the largest key, of equal ones that with the lowest number; its key becomes 0.
uint take_best()
{
    const uint lane = gl_SubgroupInvocationID;
    uint best = 0, at = ~0u;
    [[unroll]] for (uint i = 0; i < PER_LANE; i++)
        best = max(best, lane_keys[i]);
    best = subgroupMax(best);
    [[unroll]] for (uint i = 0; i < PER_LANE; i++)
        at = min(at, lane_keys[i] == best ? i * SUBGROUP + lane : ~0u);
    const uint taken = min(subgroupMin(at), EXPERTS - 1);
    [[unroll]] for (uint i = 0; i < PER_LANE; i++)
        lane_keys[i] = taken == i * SUBGROUP + lane ? 0 : lane_keys[i];
    return taken;
}

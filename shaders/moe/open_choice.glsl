// An open choice of experts: of a row by itself the router told only what each expert is worth, and the workgroups
// of the experts' first products choose, each subgroup for itself, so that none of the router's waits for the others.
//
//   p.order -> (key u32, score f32)[EXPERTS] | (0, logit of the shared experts' gate) | usage[EXPERTS] u32
//
// A key orders the experts, 0: the row is idle. A score is a sigmoid, or a logit for softmax. The first workgroup of
// each slot writes for later kernels what was chosen: p.ids, its slots' experts, then their weights; with p.ids 0 none.
layout(constant_id = 19) const uint EXPERTS = 0; // 0: this is not wanted
layout(constant_id = 20) const uint TOP_K = 1;
layout(constant_id = 21) const uint SLOTS = 1;
layout(constant_id = 22) const uint RULES = 0;   // bits MRL_CHOICE_ of push.h
layout(constant_id = 23) const float WEIGHT_SCALE = 1.0;
layout(constant_id = 24) const uint SUBGROUP = 32;
#include "moe/choice.glsl"

const bool SIGMOID = (RULES & MRL_CHOICE_SIGMOID) != 0;
const bool NORMALISE = (RULES & MRL_CHOICE_NORMALISE) != 0;
const bool SHARED_GATE = (RULES & MRL_CHOICE_SHARED_GATE) != 0;
const uint USAGE = 2 * EXPERTS + 5 & ~3u;

float lane_scores[PER_LANE];

float score_of(uint expert)
{
    float score = lane_scores[0];
    [[unroll]] for (uint i = 1; i < PER_LANE; i++)
        score = expert / SUBGROUP == i ? lane_scores[i] : score;
    return subgroupShuffle(score, expert % SUBGROUP);
}

// What a chosen expert's score counts, or with the softmax: `highest` is the first one's.
float worth(float score, float highest) { return SIGMOID ? score : exp(score - highest); }

// What the weights of the chosen are divided by; NaN with NaN among the scores. total: of the chosen.
float divisor(float total, float highest)
{
    bool nan = false;
    float sum = 0.0;
    [[unroll]] for (uint i = 0; i < PER_LANE; i++) {
        nan = nan || (floatBitsToUint(lane_scores[i]) & 0x7fffffffu) > 0x7f800000u;
        if (i * SUBGROUP + gl_SubgroupInvocationID < EXPERTS)
            sum += worth(lane_scores[i], highest);
    }
    if (subgroupAny(nan))
        return uintBitsToFloat(0x7fc00000u);
    if (NORMALISE)
        return SIGMOID ? total + 1e-20 : total; // the sum of sigmoids may be 0
    return SIGMOID ? 1.0 : subgroupAdd(sum);
}

// The expert of a slot, -1 in an idle row. first: this is the workgroup that writes for later kernels.
int choose_slot(uint slot, bool first)
{
    BufU32x2 told = BufU32x2(p.order);
    [[unroll]] for (uint i = 0; i < PER_LANE; i++) {
        const uint own = i * SUBGROUP + gl_SubgroupInvocationID, expert = min(own, EXPERTS - 1);
        const uvec2 of = told.v[expert];
        lane_scores[i] = uintBitsToFloat(of.y);
        lane_keys[i] = own < EXPERTS ? of.x : 0;
    }
    const float gate = SHARED_GATE ? uintBitsToFloat(told.v[EXPERTS].y) : 0.0;
    const bool idle = subgroupBroadcast(lane_keys[0], 0) == 0;
    const bool writes = first && !is_null(p.ids);
    float highest = 0.0, total = 0.0, own = 0.0;
    uint found = EXPERTS + slot - TOP_K; // a shared one
    [[unroll]] for (uint n = 0; n < TOP_K; n++) {
        const uint taken = take_best();
        const float score = score_of(taken);
        highest = n == 0 ? score : highest;
        total += worth(score, highest);
        own = n == slot ? worth(score, highest) : own;
        found = n == slot ? taken : found;
    }
    const int expert = idle ? -1 : int(found);
    if (!writes)
        return expert;
    float weight = slot < TOP_K ? own / divisor(total, highest) * WEIGHT_SCALE
                   : SHARED_GATE ? 1.0 / (1.0 + exp(-gate)) : 1.0;
    if (gl_LocalInvocationIndex == 0) {
        BufI32(p.ids).v[slot] = expert;
        BufF32(p.ids).v[SLOTS + slot] = idle ? 0.0 : weight;
        if (!idle && slot < TOP_K)
            atomicAdd(BufU32(p.order).v[USAGE + found], 1u);
    }
    return expert;
}

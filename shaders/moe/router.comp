// The router of a mixture of experts, for each row of x:
//
//   logit[e] = norm(x) . W[e]                 in f32; W (experts, k)
//   score[e] = softmax(logit)[e] or sigmoid(logit[e])
//   chosen   = the TOP_K experts with the largest score + bias, of equal ones those with the lower number; with GROUPS
//              only within the TOP_GROUPS groups whose GROUP_BEST largest such sums add up to most
//   weight   = score of the chosen, divided by the sum of the chosen's (NORMALISE), times p.scale
//
// Behind the chosen ones come the shared experts, EXPERTS and up, with weight 1 or, with SHARED_GATE, the sigmoid of
// logit EXPERTS. A row that has NaN among its logits gets valid experts and the weights NaN. Idle rows get expert -1.
//
// WORK ALL: workgroup (e, row) computes a logit, and the last to arrive of a row chooses. CHOOSE: the logits are there
// already; workgroup (0, row) chooses. TELL: of one row nobody chooses yet, see open_choice.glsl.
// Source: Shazeer et al. 2017, arXiv 1701.06538; DeepSeek-V3, arXiv 2412.19437 section 2.1.2 (bias, groups).
layout(constant_id = 16) const bool ACQUIRE = true;
#define ACQUIRE ACQUIRE
layout(constant_id = 17) const bool MANY = false; // experts: the best are taken one by one, by one subgroup
layout(constant_id = 18) const uint SUBGROUP = 32; // its lanes
#include "include/reduce.glsl"
#include "include/arrive.glsl"
#include "include/subgroup_sum.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint X_TYPE = 0;
layout(constant_id = 2) const uint W_TYPE = 0;
layout(constant_id = 3) const uint NORM = 0;
layout(constant_id = 4) const uint STEP = 1;      // 4: k is a multiple of it
layout(constant_id = 5) const uint WORK = MRL_ROUTER_ALL;
layout(constant_id = 6) const uint EXPERTS = 1;   // routed
layout(constant_id = 7) const uint TOP_K = 1;
layout(constant_id = 8) const uint SHARED = 0;    // shared experts
layout(constant_id = 9) const uint SHARED_GATE = 0;
layout(constant_id = 10) const uint SIGMOID = 0;
layout(constant_id = 11) const uint NORMALISE = 0;
layout(constant_id = 12) const uint GROUPS = 1;
layout(constant_id = 13) const uint TOP_GROUPS = 1;
layout(constant_id = 14) const uint GROUP_BEST = 2;
layout(constant_id = 15) const uint ROUNDS = 0;   // of the workgroup along k, all loads issued at once; 0: a loop

layout(push_constant, scalar) uniform Push { mrl_push_router p; };
#include "moe/choice.glsl"

// What workgroups tell each other, as arrive.glsl wants it.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufLogits { devicecoherent float v[]; };

const uint ROWS = EXPERTS + SHARED_GATE; // of W

shared float score[EXPERTS];
shared uint key[EXPERTS];       // orders the experts; 0: not to be chosen
shared uint group_key[GROUPS];
shared uint chosen[TOP_K];
shared vec2 sums[64]; // of the subgroups: products, squares
shared uint nan_seen; // among the logits

float first_bias; // of the expert gl_LocalInvocationIndex
uint thread;      // such that subgroups have neighbours

float bias_of(uint expert) { return is_null(p.bias) ? 0.0 : BufF32(p.bias).v[expert]; }

float nan() { return uintBitsToFloat(0x7fc00000u); }
bool is_nan(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u; }
float sigmoid(float x) { return 1.0 / (1.0 + exp(-x)); }

// Greater for greater numbers, equal for equal ones, 1 for NaN.
uint key_of(float x)
{
    const uint bits = x == 0.0 ? 0u : floatBitsToUint(x);
    return is_nan(x) ? 1u : (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// The number that key_of made the key of.
float of_key(uint k) { return k == 1u ? nan() : uintBitsToFloat((k & 0x80000000u) != 0u ? k & 0x7fffffffu : ~k); }

float workgroup_max(float x)
{
    x = subgroupMax(x);
    if (gl_NumSubgroups == 1)
        return x;
    if (subgroupElect())
        reduce_scratch[gl_SubgroupID] = x;
    barrier();
    x = reduce_scratch[0];
    for (uint i = 1; i < gl_NumSubgroups; i++)
        x = max(x, reduce_scratch[i]);
    barrier();
    return x;
}

float logit(uint row, uint expert) { return BufLogits(p.logits).v[row * ROWS + expert]; }

// Products and squares of elements k .. k + STEP - 1.
void add_step(uint row, uint expert, uint k, inout vec2 sum)
{
    if (STEP == 4) {
        const vec4 x = load_act4(p.x, row * p.k + k, X_TYPE), w = load_act4(p.w, expert * p.k_padded + k, W_TYPE);
        sum += vec2(dot(NORM == 0 ? x : x * BufF32x4(p.norm).v[k >> 2], w), dot(x, x));
    } else {
        const float x = load_act(p.x, row * p.k + k, X_TYPE), w = load_act(p.w, expert * p.k_padded + k, W_TYPE);
        sum += vec2((NORM == 0 ? x : x * BufF32(p.norm).v[k]) * w, x * x);
    }
}

// One logit by the whole workgroup. Invocation 0 gets it.
float compute_logit(uint row, uint expert)
{
    const uint own = gl_LocalInvocationIndex * STEP, step = gl_WorkGroupSize.x * STEP;
    vec2 sum = vec2(0.0);
    if (ROUNDS != 0) {
        [[unroll]] for (uint i = 0; i < ROUNDS; i++) {
            vec2 part = vec2(0.0);
            add_step(row, expert, min(own + i * step, p.k - STEP), part);
            sum += own + i * step < p.k ? part : vec2(0.0);
        }
    } else {
        for (uint base = 0; base < p.k; base += step)
            if (base + own < p.k)
                add_step(row, expert, base + own, sum);
    }
    sum.x = subgroup_sum(sum.x);
    if (NORM != 0)
        sum.y = subgroup_sum(sum.y);
    if (gl_NumSubgroups > 1) {
        if (subgroupElect())
            sums[gl_SubgroupID] = sum;
        barrier();
        sum = vec2(0.0);
        for (uint i = 0; i < gl_NumSubgroups; i++)
            sum += sums[i];
    }
    return NORM == 0 ? sum.x : sum.x * inversesqrt(sum.y / float(p.k) + p.eps);
}

// Leaves the keys of all but the best TOP_GROUPS groups 0.
void choose_groups()
{
    const uint size = EXPERTS / GROUPS;
    for (uint base = 0; base < GROUPS; base += gl_WorkGroupSize.x) {
        const uint group = min(base + gl_LocalInvocationIndex, GROUPS - 1);
        uint best = 0, second = 0;
        for (uint i = 0; i < size; i++) {
            const uint k = key[group * size + i];
            second = max(second, min(best, k));
            best = max(best, k);
        }
        group_key[group] = GROUP_BEST == 1 || size == 1 ? best : key_of(of_key(best) + of_key(second));
    }
    barrier();
    for (uint base = 0; base < EXPERTS; base += gl_WorkGroupSize.x) {
        const uint expert = min(base + gl_LocalInvocationIndex, EXPERTS - 1), group = expert / size;
        uint rank = 0;
        for (uint i = 0; i < GROUPS; i++)
            rank += uint(group_key[i] > group_key[group] || (group_key[i] == group_key[group] && i < group));
        if (rank >= TOP_GROUPS && base + gl_LocalInvocationIndex < EXPERTS)
            key[expert] = 0;
    }
    barrier();
}

// The expert with r others before it goes to place r. Where a workgroup has enough threads, four share the comparisons
// of an expert; where several fit a group of loads they are issued together.
void choose_experts()
{
    uint team = 1;
    if (EXPERTS % 32 == 0 && EXPERTS * 4 <= gl_WorkGroupSize.x)
        team = 4;
    const uint together = EXPERTS % 8 == 0 ? 8 : 1, first = thread % team * (EXPERTS / team);
    for (uint base = 0; base < EXPERTS; base += gl_WorkGroupSize.x / team) {
        const uint expert = min(base + thread / team, EXPERTS - 1), own = key[expert];
        uint rank = 0;
        for (uint i = first; i < first + EXPERTS / team; i += together)
            [[unroll]] for (uint j = 0; j < together; j++)
                rank += uint(key[i + j] > own || (key[i + j] == own && i + j < expert));
        if (team > 1) {
            rank += subgroupShuffleXor(rank, 1);
            rank += subgroupShuffleXor(rank, 2);
        }
        if (rank < TOP_K)
            chosen[rank] = expert;
    }
}

// The same by the first subgroup.
void choose_of_many()
{
    [[unroll]] for (uint i = 0; i < PER_LANE; i++) {
        const uint expert = i * SUBGROUP + gl_SubgroupInvocationID;
        lane_keys[i] = expert < EXPERTS ? key[min(expert, EXPERTS - 1)] : 0;
    }
    for (uint n = 0; n < TOP_K; n++) {
        const uint taken = take_best();
        if (subgroupElect())
            chosen[n] = taken;
    }
}

// What an expert is worth: its score, and the key by which it is chosen.
struct Rated {
    float score;
    uint key;
};

Rated rate(float logit, float highest, float bias)
{
    Rated r;
    if (SIGMOID != 0) {
        r.score = sigmoid(logit);
        r.key = key_of(is_nan(logit) ? nan() : r.score + bias);
    } else {
        r.score = exp(logit - highest);
        r.key = key_of(is_nan(logit) || GROUPS == 1 ? logit : r.score); // sums of groups are of probabilities
    }
    return r;
}

// Scores and keys of a row to shared memory; returns what every score is divided by, NaN if a logit is.
float score_experts(uint row)
{
    float highest = -1e38, sum = 0.0;
    for (uint base = 0; base < EXPERTS; base += gl_WorkGroupSize.x) {
        const uint expert = min(base + gl_LocalInvocationIndex, EXPERTS - 1);
        const float x = logit(row, expert);
        if (base + gl_LocalInvocationIndex < EXPERTS)
            score[expert] = x; // read again by this very invocation
        if (is_nan(x))
            atomicOr(nan_seen, 1u);
        else
            highest = max(highest, x);
    }
    if (SIGMOID == 0)
        highest = workgroup_max(highest);
    for (uint base = 0; base < EXPERTS; base += gl_WorkGroupSize.x) {
        const uint expert = base + gl_LocalInvocationIndex;
        if (expert >= EXPERTS)
            continue;
        const Rated r = rate(score[expert], highest, base == 0 ? first_bias : bias_of(expert));
        score[expert] = r.score;
        key[expert] = r.key;
        sum += r.score;
    }
    sum = SIGMOID == 0 ? workgroup_add(sum) : 1.0;
    barrier();
    return nan_seen != 0 ? nan() : sum;
}

void choose(uint row)
{
    const float divisor = score_experts(row);
    if (GROUPS > 1)
        choose_groups();
    if (!MANY)
        choose_experts();
    else if (gl_SubgroupID == 0)
        choose_of_many();
    barrier();
    float total = 0.0;
    [[unroll]] for (uint i = 0; i < TOP_K; i++)
        total += score[chosen[i]];
    const uint slots = TOP_K + SHARED;
    for (uint base = 0; base < slots; base += gl_WorkGroupSize.x) {
        const uint slot = base + gl_LocalInvocationIndex;
        if (slot >= slots)
            continue;
        uint expert = EXPERTS + slot - TOP_K;
        float weight = SHARED_GATE != 0 ? sigmoid(logit(row, EXPERTS)) : 1.0;
        if (slot < TOP_K) {
            expert = chosen[slot];
            // The sum of the chosen sigmoids may be 0; that of the softmax holds the largest one unless all are bad.
            weight = NORMALISE != 0 ? score[expert] / (SIGMOID != 0 ? total + 1e-20 : total) : score[expert] / divisor;
            weight *= p.scale;
            if (is_nan(divisor))
                weight = nan();
            atomicAdd(BufU32(p.usage).v[expert], 1u);
        }
        BufI32(p.ids).v[row * slots + slot] = int(expert);
        BufF32(p.weights).v[row * slots + slot] = weight;
    }
}

void mark_idle(uint row)
{
    const uint slots = TOP_K + SHARED;
    for (uint slot = gl_LocalInvocationIndex; slot < slots; slot += gl_WorkGroupSize.x) {
        BufI32(p.ids).v[row * slots + slot] = -1;
        BufF32(p.weights).v[row * slots + slot] = 0.0;
    }
}

// For moe/open_choice.glsl, by one thread.
void tell(uint expert, float logit, bool idle)
{
    const bool gate = expert == EXPERTS; // of shared experts
    const uint key = gate || idle ? 0 : rate(logit, logit, first_bias).key;
    const float score = SIGMOID != 0 && !gate && !is_nan(logit) ? sigmoid(logit) : logit;
    BufU32x2(p.logits).v[expert] = uvec2(key, floatBitsToUint(score));
}

void main()
{
    const uint row = gl_WorkGroupID.y;
    thread = gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
    // Looked at behind the logit's products, so that nobody waits for it.
    const int position = is_null(p.positions) ? 0 : BufI32(p.positions).v[row];
    // Nor for these, which the last to arrive would wait for.
    const uint rated = WORK == MRL_ROUTER_TELL ? gl_WorkGroupID.x : gl_LocalInvocationIndex;
    first_bias = SIGMOID != 0 ? bias_of(min(rated, EXPERTS - 1)) : 0.0;
    if (gl_LocalInvocationIndex == 0) {
        nan_seen = 0; // before the barriers of those who arrive
        if (WORK == MRL_ROUTER_ALL)
            touch_counter(p.counters, row);
    }
    const float x = WORK != MRL_ROUTER_CHOOSE ? compute_logit(row, gl_WorkGroupID.x) : 0.0;
    if (WORK == MRL_ROUTER_TELL) {
        if (gl_LocalInvocationIndex == 0)
            tell(gl_WorkGroupID.x, x, position < 0);
        return;
    }
    if (position < 0) {
        if (gl_WorkGroupID.x == 0)
            mark_idle(row);
        return;
    }
    if (WORK == MRL_ROUTER_ALL) {
        if (gl_LocalInvocationIndex == 0)
            BufLogits(p.logits).v[row * ROWS + gl_WorkGroupID.x] = x;
        if (!last_to_arrive(p.counters, row, ROWS))
            return;
    } else {
        barrier();
    }
    choose(row);
}

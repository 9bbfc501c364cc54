// One token for each running slot, and the step state moved on by one (push.h: mrl_push_sample).
//
// A workgroup owns a slot. With l = the logits:
//   1. repetition penalty r: l = l > 0 ? l / r : l * r for tokens already seen; then l += bias
//   2. temperature 0: the largest l, the lowest id among equals. Otherwise, tokens in the order of
//      (l descending, id ascending) and w = exp((l - max l) / temperature):
//   3. top-k keeps the first k
//   4. top-p keeps the shortest run of the first that weighs >= top_p of what top-k left,
//      at least one
//   5. min-p keeps w >= min_p (the largest w is 1)
//   6. u = Philox(seed, draws) in [0, 1); the first kept token whose running sum of w exceeds
//      u * (sum of w), tokens taken in the order of (id mod 1024, id)
// Log-probabilities are those of the logits as they came. NaN, +inf, or no finite logit end the
// slot. Order of steps and the penalty: transformers' logits processors.
//
// Steps 3, 4, 6 and the top log-probabilities are one question: where does a running sum (of ones,
// or of weights) along an order reach what is needed? It is answered digit by digit: a histogram of
// the sums over the next digit, a walk along its bins, and on among the tokens that share the
// digits found. What 3 and 4 leave is a cut, the last (~key of l, id) kept. Weights are added as
// integers of 2^-42, so the result depends neither on the order of atomics nor on the sizes of
// workgroups and subgroups.
//
// Loops before a barrier run equally often in all threads: llvmpipe of Mesa 22.3 otherwise loses
// subgroups there. It also compiles for seconds when routines stand in the code more than once.
#include "include/rng.glsl"

layout(local_size_x_id = 0) in;
// Logits that a thread loads before it looks at one.
layout(constant_id = 1) const uint BATCH = 4u;
layout(push_constant, scalar) uniform Push { mrl_push_sample p; };

#define tid gl_LocalInvocationIndex
#define threads gl_WorkGroupSize.x
#define slot gl_WorkGroupID.x
#define BINS 2048u
#define GROUPS 32u                 // of 64 bins
#define COLUMNS 1024u
#define ID_MASK 0x1fffffu          // csrc/ops/sample.h: MRL_VOCAB_MAX
#define KEY_NEG_INF 0x007fffffu
#define KEY_INF 0xff800000u
#define NEG_INF uintBitsToFloat(0xff800000u)
#define LOWEST uintBitsToFloat(0xff7fffffu)
#define TOPS_MAX (MRL_RING_TOP_LOGPROBS - MRL_RING_TOP_IDS)

#define STAGE_TOP_K 0u
#define STAGE_TOP_P 1u
#define STAGE_DRAW 2u
#define STAGE_TOPS 3u

shared uint bins_lo[BINS], bins_hi[BINS]; // also scratch of raw_stats
shared uvec2 group_sum[GROUPS];
shared uint bias_filter[64];       // bit id mod 2048: maybe biased
shared uint top_key[TOPS_MAX], top_id[TOPS_MAX];
shared uint best_key, best_id, gathered;

uint row, biases;
float penalty, temperature, peak;

uint param(uint field) { return BufU32(p.params).v[slot * MRL_SLOT_WORDS + field]; }
float param_float(uint field) { return uintBitsToFloat(param(field)); }

// 64-bit sums as (low, high).
uvec2 add(uvec2 a, uvec2 b)
{
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

uvec2 subtract(uvec2 a, uvec2 b)
{
    uint borrow;
    uint low = usubBorrow(a.x, b.x, borrow);
    return uvec2(low, a.y - b.y - borrow);
}

bool less(uvec2 a, uvec2 b) { return a.y < b.y || (a.y == b.y && a.x < b.x); }

// floor(a * fraction / 2^32)
uvec2 scale(uvec2 a, uint fraction)
{
    uint low_low, low_high, high_low, high_high;
    umulExtended(a.x, fraction, low_high, low_low);
    umulExtended(a.y, fraction, high_high, high_low);
    return add(uvec2(low_high, 0u), uvec2(high_low, high_high));
}

// Unsigned integers in the order of the floats; -0 counts as 0 and NaN is above everything.
uint key_of(float x)
{
    uint u = floatBitsToUint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0xffffffffu;
    u = u == 0x80000000u ? 0u : u;
    return (u & 0x80000000u) != 0u ? ~u : u | 0x80000000u;
}

float of_key(uint key)
{
    return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

// The list is sorted by id (csrc/engine/generator.c).
float bias_of(uint id)
{
    uint base = slot * MRL_BIAS_MAX, at = 0u;
    for (uint step = MRL_BIAS_MAX / 2u; step > 0u; step >>= 1)
        if (at + step < biases && BufU32x2(p.bias).v[base + at + step].x <= id)
            at += step;
    uvec2 entry = BufU32x2(p.bias).v[base + at];
    return entry.x == id ? uintBitsToFloat(entry.y) : 0.0;
}

bool is_seen(uint id)
{
    return (BufU32(p.seen).v[slot * ((p.vocab + 31u) >> 5) + (id >> 5)] >> (id & 31u) & 1u) != 0u;
}

float raw_logit(uint id) { return uintBitsToFloat(BufU32(p.logits).v[row + id]); }

// Every pass must meet the same bits: precise forbids contraction.
float adjusted_logit(uint id)
{
    precise float x = raw_logit(id);
    if (penalty != 1.0 && is_seen(id))
        x = x > 0.0 ? x / penalty : x * penalty;
    if (biases > 0u && (bias_filter[id >> 5 & 63u] >> (id & 31u) & 1u) != 0u)
        x = x + bias_of(id);
    return x;
}

// The logits first, first + stride, ... of a thread; -inf beyond the last.
void load_batch(uint first, uint stride, bool raw, out float x[BATCH])
{
    [[unroll]] for (uint j = 0u; j < BATCH; j++) {
        uint i = first + j * stride;
        x[j] = i >= p.vocab ? NEG_INF : raw ? raw_logit(i) : adjusted_logit(i);
    }
}

// exp of -inf is a tiny number on some devices.
float weight(float x) { return x > LOWEST ? exp((x - peak) / temperature) : 0.0; }

// In units of 2^-42: 2^21 weights of 1 still fit.
uvec2 fixed_weight(float w)
{
    float high = floor(w * 1024.0);
    return uvec2(uint((w * 1024.0 - high) * 4294967296.0), uint(high));
}

// The largest key of the workgroup and its lowest id.
uvec2 arg_max(uint key, uint id)
{
    barrier();
    if (tid == 0u) {
        best_key = 0u;
        best_id = ~0u;
    }
    barrier();
    uint top = subgroupMax(key);
    if (subgroupElect())
        atomicMax(best_key, top);
    barrier();
    uint lowest = subgroupMin(key == best_key ? id : ~0u);
    if (subgroupElect())
        atomicMin(best_id, lowest);
    barrier();
    return uvec2(best_key, best_id);
}

// Key and id of the largest raw logit, and log(sum(exp(raw))), in one pass: 1024 columns of ids, each of which rescales
// when its maximum grows, then 32 sums of 32 columns. Every token has this pass, by one workgroup: more loads are in
// flight than elsewhere, the largest is looked for where a batch has one as large, and NaN and +inf, whose key is above
// all others, by two maxima.
uvec2 raw_stats(out float log_sum)
{
    const uint batch = BATCH > 1u ? 8u : 1u;
    uint id = ~0u, negative = 0u;
    float top = NEG_INF;
    int positive = 0;
    for (uint c = tid; c < COLUMNS; c += threads) {
        float most = LOWEST, sum = 0.0;
        for (uint first = c; first < p.vocab + c; first += batch * COLUMNS) {
            float x[batch];
            float grown = most;
            [[unroll]] for (uint j = 0u; j < batch; j++) {
                uint i = first + j * COLUMNS;
                x[j] = i < p.vocab ? raw_logit(i) : NEG_INF;
            }
            [[unroll]] for (uint j = 0u; j < batch; j++) {
                positive = max(positive, floatBitsToInt(x[j]));
                negative = max(negative, floatBitsToUint(x[j]));
                grown = max(grown, x[j]);
            }
            if (grown >= top)
                [[unroll]] for (uint j = 0u; j < batch; j++) {
                    uint i = first + j * COLUMNS;
                    if (x[j] > top || (x[j] == top && i < id)) {
                        top = x[j];
                        id = i;
                    }
                }
            sum *= exp(most - grown);
            [[unroll]] for (uint j = 0u; j < batch; j++)
                sum += exp(x[j] - grown);
            most = grown;
        }
        bins_lo[c] = floatBitsToUint(sum);
        bins_hi[c] = floatBitsToUint(most);
    }
    const uint key = positive >= 0x7f800000 || negative > 0xff800000u ? ~0u : key_of(top);
    uvec2 best = arg_max(key, id);
    float largest = of_key(best.x), sum = 0.0;
    uint g = tid & (GROUPS - 1u);
    for (uint j = 0u; j < COLUMNS / GROUPS; j++) {
        uint c = j * GROUPS + g;
        sum += uintBitsToFloat(bins_lo[c]) * exp(uintBitsToFloat(bins_hi[c]) - largest);
    }
    group_sum[g].x = floatBitsToUint(sum);
    barrier();
    sum = 0.0;
    for (uint j = 0u; j < GROUPS; j++)
        sum += uintBitsToFloat(group_sum[j].x);
    barrier();
    log_sum = largest + log(sum);
    return best;
}

uvec2 adjusted_max()
{
    uint key = 0u, id = ~0u;
    for (uint first = tid; first < p.vocab + tid; first += BATCH * threads) {
        float x[BATCH];
        load_batch(first, threads, false, x);
        [[unroll]] for (uint j = 0u; j < BATCH; j++)
            if (key_of(x[j]) > key) {
                key = key_of(x[j]);
                id = first + j * threads;
            }
    }
    return arg_max(key, id);
}

// Digits 0..4 are those of (~key, id), so that the largest logit comes first; 5 and 6 those of
// (id mod 1024, id).
bool of_key_word(uint digit) { return digit < 3u; }
uint digit_shift(uint digit)
{
    return digit == 0u ? 21u : digit == 1u || digit == 6u ? 10u : digit == 3u ? 11u : 0u;
}
uint digit_mask(uint digit) { return digit == 2u || digit == 5u ? 1023u : 2047u; }

bool kept(uvec2 cut, uvec2 at) { return at.x < cut.x || (at.x == cut.x && at.y <= cut.y); }

// What a token counts in a stage's histogram.
uvec2 amount_of(uint stage, float x, float min_p)
{
    if (stage == STAGE_TOP_K || stage == STAGE_TOPS)
        return uvec2(1u, 0u);
    float w = weight(x);
    return fixed_weight(stage == STAGE_DRAW && w < min_p ? 0.0 : w);
}

// Sums over a digit of what the stage counts: tokens kept that share the digits of `prefix`.
void histogram(uint stage, uint digit, uvec2 prefix, uvec2 mask, uvec2 cut, float min_p)
{
    for (uint b = tid; b < BINS; b += threads)
        bins_lo[b] = bins_hi[b] = 0u;
    barrier();
    for (uint first = tid; first < p.vocab + tid; first += BATCH * threads) {
        float x[BATCH];
        load_batch(first, threads, stage == STAGE_TOPS, x);
        [[unroll]] for (uint j = 0u; j < BATCH; j++) {
            uvec2 at = uvec2(~key_of(x[j]), first + j * threads);
            if (at.y >= p.vocab || (at & mask) != prefix || !kept(cut, at))
                continue;
            uvec2 amount = amount_of(stage, x[j], min_p);
            uint bin = (of_key_word(digit) ? at.x : at.y) >> digit_shift(digit) & digit_mask(digit);
            uint old = atomicAdd(bins_lo[bin], amount.x);
            amount.y += old + amount.x < old ? 1u : 0u;
            if (amount.y > 0u)
                atomicAdd(bins_hi[bin], amount.y);
        }
    }
    barrier();
    // Each bank holds one of the words read at a time.
    uint g = tid & (GROUPS - 1u);
    uvec2 sum = uvec2(0u);
    for (uint j = 0u; j < BINS / GROUPS; j++) {
        uint b = g * (BINS / GROUPS) + (j + g & (BINS / GROUPS - 1u));
        sum = add(sum, uvec2(bins_lo[b], bins_hi[b]));
    }
    group_sum[g] = sum;
    barrier();
}

uvec2 total_sum()
{
    uvec2 sum = uvec2(0u);
    for (uint g = 0u; g < GROUPS; g++)
        sum = add(sum, group_sum[g]);
    return sum;
}

// The bin in which the running sum reaches need, 1 <= need <= total_sum(); need becomes what is
// needed of that bin.
uint find_bin(inout uvec2 need)
{
    uvec2 sum = uvec2(0u), before = uvec2(0u);
    uint bin = 0u;
    for (uint g = 0u; g < GROUPS; g++) {
        sum = add(sum, group_sum[g]);
        if (less(sum, need)) {
            before = sum;
            bin = (g + 1u) * (BINS / GROUPS);
        }
    }
    uint start = bin & (BINS - 1u);
    sum = before;
    for (uint j = 0u; j < BINS / GROUPS; j++) {
        sum = add(sum, uvec2(bins_lo[start + j], bins_hi[start + j]));
        if (less(sum, need)) {
            before = sum;
            bin = start + j + 1u;
        }
    }
    need = subtract(need, before);
    return bin & (BINS - 1u);
}

// What a stage needs of its total: a number of tokens, or a share of the weight.
uvec2 needed(uint stage, uint tokens)
{
    if (stage == STAGE_TOP_K || stage == STAGE_TOPS)
        return uvec2(tokens, 0u);
    uvec2 total = total_sum();
    if (stage == STAGE_TOP_P) {
        uvec2 share = scale(total, uint(param_float(MRL_SLOT_TOP_P) * 4294967296.0));
        return less(share, uvec2(1u, 0u)) ? uvec2(1u, 0u) : share;
    }
    uvec2 seed = uvec2(param(MRL_SLOT_SEED_LO), param(MRL_SLOT_SEED_HI));
    uint word = philox4x32(uvec4(param(MRL_SLOT_DRAWS), 0u, 0u, 0u), seed).x;
    return add(scale(total, word & 0xffffff00u), uvec2(1u, 0u)); // u of 24 bits
}

// The place (~key, id) at which the stage's running sum reaches what it needs.
uvec2 search(uint stage, uint tokens, uvec2 cut, float min_p)
{
    uint first = stage == STAGE_DRAW ? 5u : 0u, end = stage == STAGE_DRAW ? 7u : 5u;
    uvec2 prefix = uvec2(0u), mask = uvec2(0u), need = uvec2(0u);
    for (uint digit = first; digit < end; digit++) {
        histogram(stage, digit, prefix, mask, cut, min_p);
        if (digit == first)
            need = needed(stage, tokens);
        uint bin = find_bin(need);
        uvec2 sum = uvec2(bins_lo[bin], bins_hi[bin]);
        barrier(); // all have read the bins
        uint shift = digit_shift(digit);
        if (of_key_word(digit)) {
            prefix.x |= bin << shift;
            mask.x |= digit_mask(digit) << shift;
        } else {
            prefix.y |= bin << shift;
            mask.y |= digit_mask(digit) << shift;
        }
        // Done when all tokens of the bin are needed; by weight only those of one key are alike.
        bool by_weight = stage == STAGE_TOP_P, alike = digit >= 2u || !by_weight;
        uvec2 unit = by_weight ? fixed_weight(weight(of_key(~prefix.x))) : uvec2(1u, 0u);
        if (stage != STAGE_DRAW && alike && less(subtract(sum, unit), need))
            break;
    }
    return uvec2(prefix.x | ~mask.x, (prefix.y | ~mask.y) & ID_MASK);
}

// Runs the stages that are on. token holds the largest adjusted logit's id, and then what was
// drawn; the cut returned is that of the top log-probabilities.
uvec2 run_stages(uint tops, inout uint token)
{
    uint top_k = param(MRL_SLOT_TOP_K);
    bool random = temperature > 0.0;
    float min_p = param_float(MRL_SLOT_MIN_P);
    uvec2 cut = uvec2(~0u), tops_cut = cut;
    for (uint stage = STAGE_TOP_K; stage <= STAGE_TOPS; stage++) {
        bool on = stage == STAGE_TOP_K   ? random && top_k > 0u && top_k < p.vocab
                  : stage == STAGE_TOP_P ? random && param_float(MRL_SLOT_TOP_P) < 1.0
                  : stage == STAGE_DRAW  ? random
                                         : tops > 0u;
        if (!on)
            continue;
        bool last = stage == STAGE_TOPS;
        uvec2 place = search(stage, last ? tops : top_k, last ? tops_cut : cut, min_p);
        if (last)
            tops_cut = place;
        else if (stage == STAGE_DRAW)
            token = place.y;
        else if (kept(cut, place)) // top-p may end with all of a key that top-k cuts
            cut = place;
    }
    return tops_cut;
}

// The tokens up to the cut, in order, with their log-probabilities.
void write_tops(uvec2 cut, uint tops, uint entry, float log_sum)
{
    if (tid == 0u)
        gathered = 0u;
    barrier();
    for (uint first = tid; first < p.vocab + tid; first += BATCH * threads) {
        float x[BATCH];
        load_batch(first, threads, true, x);
        [[unroll]] for (uint j = 0u; j < BATCH; j++) {
            uint key = key_of(x[j]), i = first + j * threads;
            if (i < p.vocab && kept(cut, uvec2(~key, i))) {
                uint at = min(atomicAdd(gathered, 1u), TOPS_MAX - 1u);
                top_key[at] = key;
                top_id[at] = i;
            }
        }
    }
    barrier();
    uint mine = min(tid, TOPS_MAX - 1u), key = top_key[mine], id = top_id[mine], rank = 0u;
    for (uint j = 0u; j < TOPS_MAX; j++)
        if (j < tops && (top_key[j] > key || (top_key[j] == key && top_id[j] < id)))
            rank++;
    if (tid < tops) {
        float logprob = of_key(key) - log_sum;
        BufU32(p.ring).v[entry + MRL_RING_TOP_IDS + rank] = id;
        BufU32(p.ring).v[entry + MRL_RING_TOP_LOGPROBS + rank] = floatBitsToUint(logprob);
    }
}

bool usable(uint key) { return key < KEY_INF && key > KEY_NEG_INF; }

uint finish_of(uint token, int position)
{
    uint finish = position + 1 >= int(param(MRL_SLOT_LIMIT)) ? MRL_FINISH_LENGTH : MRL_FINISH_NONE;
    uint stops = param(MRL_SLOT_STOPS);
    for (uint i = 0u; i < stops; i++)
        if (param(MRL_SLOT_STOP_0 + i) == token)
            finish = MRL_FINISH_STOP;
    return finish;
}

void main()
{
    int position = BufI32(p.positions).v[slot];
    BufU32 ring = BufU32(p.ring);
    uint entry = (BufU32(p.step).v[0] % MRL_RING_STEPS * p.slots + slot) * MRL_RING_WORDS;
    uint token = ~0u, finish = MRL_FINISH_NONE, tops = 0u;
    float logprob = 0.0;

    if (position >= 0) {
        row = slot * p.vocab;
        biases = param(MRL_SLOT_BIASES);
        penalty = param_float(MRL_SLOT_REPEAT);
        temperature = param_float(MRL_SLOT_TEMPERATURE);
        for (uint first = 0u; first < 64u; first += threads)
            bias_filter[first + tid & 63u] = 0u;
        barrier();
        for (uint first = 0u; first < biases; first += threads)
            if (first + tid < biases) {
                uint id = BufU32x2(p.bias).v[slot * MRL_BIAS_MAX + first + tid].x;
                atomicOr(bias_filter[id >> 5 & 63u], 1u << (id & 31u));
            }
        float log_sum;
        uvec2 best = raw_stats(log_sum);
        bool good = usable(best.x);
        if (good && (penalty != 1.0 || biases > 0u)) {
            best = adjusted_max();
            good = usable(best.x);
        }
        finish = MRL_FINISH_NAN;
        logprob = uintBitsToFloat(0x7fc00000u);
        if (good) {
            peak = of_key(best.x);
            token = best.y;
            tops = min(param(MRL_SLOT_LOGPROBS), p.vocab);
            uvec2 cut = run_stages(tops, token);
            if (tops > 0u)
                write_tops(cut, tops, entry, log_sum);
            logprob = raw_logit(token) - log_sum;
            finish = finish_of(token, position);
        }
    }
    barrier(); // all have read the state
    if (tid != 0u)
        return;
    ring.v[entry + MRL_RING_TOKEN] = token;
    ring.v[entry + MRL_RING_FINISH] = finish;
    ring.v[entry + MRL_RING_LOGPROB] = floatBitsToUint(logprob);
    ring.v[entry + MRL_RING_TOPS] = tops;
    if (position >= 0)
        BufI32(p.positions).v[slot] = finish == MRL_FINISH_NONE ? position + 1 : -1;
    if (token != ~0u) {
        BufI32(p.tokens).v[slot] = int(token);
        BufU32(p.params).v[slot * MRL_SLOT_WORDS + MRL_SLOT_DRAWS]++;
        BufU32(p.seen).v[slot * ((p.vocab + 31u) >> 5) + (token >> 5)] |= 1u << (token & 31u);
    }
    // The last workgroup to arrive advances the step: by then each has read it.
    if (atomicAdd(BufU32(p.step).v[1], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                  gl_SemanticsAcquireRelease) == p.slots - 1u) {
        BufU32(p.step).v[1] = 0u;
        BufU32(p.step).v[0]++;
    }
}
